"""The metrics of requests and their answers, by dialect, model, server, key and outcome; all labels are bounded.

Where OpenTelemetry's conventions for generative AI have a name, a metric has it, with the labels of the convention, in
Prometheus' form: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import Metric

from comps.exchange import Exchange
from comps.metrics import (
    FIRST_TOKEN_SECONDS,
    OPERATION_SECONDS,
    OVERHEAD_SECONDS,
    PER_TOKEN_SECONDS,
    SERVED,
    TOKENS,
    Counters,
    Histograms,
)

_REASONS = frozenset(("stop", "length", "tool_calls", "function_call", "content_filter"))
"""The finish reasons that are labels; any other is `other`."""
_OPERATION = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "dialect")
"""The labels of what was asked: `chat`, `text_completion`, `prompt` or one of the handler's names for work without
text, such as `embeddings`; the kind of the model's server; the model; and the dialect."""

_GENERATES = ("chat", "text_completion")
"""The operations that make tokens."""


class _RequestCounters:
    """The counters of requests."""

    def __init__(self) -> None:
        self.requests = Counters(
            "opea_llm_requests",
            "Requests, by outcome: the HTTP status, gone (the client left) or broken (a stream that failed)",
            *("path", "dialect", *SERVED, "key", "outcome"),
        )
        self.tokens = Counters(
            "opea_llm_tokens", "Tokens, as the model server counted them", "kind", "dialect", *SERVED, "key"
        )
        self.finished = Counters("opea_llm_answers", "Answers, by finish reason", "reason", "dialect", *SERVED)
        self.documents = Counters("opea_llm_documents", "Documents, by what became of them", "fate", *SERVED)
        self.turns = Counters("opea_llm_turns_dropped", "Earlier messages that had no room in a prompt", *SERVED)


class AnswerMetrics(_RequestCounters):
    """The metrics of requests and their answers."""

    def __init__(self) -> None:
        super().__init__()
        self.durations = Histograms(
            "gen_ai_server_request_duration_seconds",
            "From a request to the end of its answer; error_type is its outcome, empty for answers",
            OPERATION_SECONDS,
            *("error_type", *_OPERATION),
        )
        self.first = Histograms(
            "gen_ai_server_time_to_first_token_seconds",
            "From a request to the first text, reasoning or tool call of a streamed answer",
            FIRST_TOKEN_SECONDS,
            *_OPERATION,
        )
        self.per_token = Histograms(
            "gen_ai_server_time_per_output_token_seconds",
            "Time per token after the first one, of streams of one answer",
            PER_TOKEN_SECONDS,
            *_OPERATION,
        )
        self.operations = Histograms(
            "gen_ai_client_operation_duration_seconds",
            "How long the model server was asked for answers; error_type is the outcome, empty for answers",
            OPERATION_SECONDS,
            *("error_type", *_OPERATION),
        )
        self.usage = Histograms(
            "gen_ai_client_token_usage",
            "Tokens of a request, as the model server counted them",
            TOKENS,
            *("gen_ai_token_type", *_OPERATION),
        )
        self.overhead = Histograms(
            "opea_llm_overhead_seconds",
            "Of answers, what is neither receiving the body, nor the queue, nor the model server's answer",
            OVERHEAD_SECONDS,
            *_OPERATION,
        )
        self._series: dict[tuple[str, ...], _Series] = {}

    def families(self) -> Iterator[Metric]:
        """Yields all of them."""
        yield from (one.family() for one in vars(self).values() if isinstance(one, Counters | Histograms))

    def speed(self, model: str) -> float:
        """Returns the tokens per second of a model's answers, on average since the start; 0.0 before the first."""
        known = [one for (kind, _, name, _), one in self._series.items() if name == model and kind in _GENERATES]
        seconds = sum(one.operations[-1] for one in known)
        return sum(one.output[-1] for one in known) / seconds if seconds else 0.0

    def record(self, exchange: Exchange, server: str) -> None:
        """Record the end of a request."""
        dialect, model, outcome, usage = exchange.dialect, exchange.model, exchange.outcome, exchange.usage
        key = exchange.caller.name if exchange.caller else ""
        self.requests.values[exchange.path, dialect, model, server, key, outcome] += 1
        if usage:
            self.tokens.values["prompt", dialect, model, server, key] += usage.prompt_tokens
            self.tokens.values["completion", dialect, model, server, key] += usage.completion_tokens
        for report in exchange.reports.values():
            for use in report.documents:
                self.documents.values[use.fate, model, server] += 1
            if report.turns_dropped:
                self.turns.values[model, server] += report.turns_dropped
        labels = exchange.operation, server, model, dialect
        if outcome == "200":
            if reason := exchange.reason:
                self.finished.values[reason if reason in _REASONS else "other", dialect, model, server] += 1
            series = self._series.get(labels)
            if series is None:
                series = self._series[labels] = _Series(self, labels)
            series.record(exchange)
            return
        took = exchange.ended_at - exchange.started
        durations = self.durations.of(outcome, *labels)
        durations[bisect_left(OPERATION_SECONDS, took)] += 1
        durations[-1] += took
        if exchange.asked_at:
            asked = exchange.ended_at - exchange.asked_at
            operations = self.operations.of(outcome, *labels)
            operations[bisect_left(OPERATION_SECONDS, asked)] += 1
            operations[-1] += asked


class _Series:
    """The histograms of the answers of one kind: of an operation of a model, in a dialect. They are looked up once."""

    __slots__ = ("durations", "first", "input", "operations", "output", "overhead", "per_token")

    def __init__(self, answers: AnswerMetrics, labels: tuple[str, ...]) -> None:
        self.durations = answers.durations.of("", *labels)
        self.operations = answers.operations.of("", *labels)
        self.overhead = answers.overhead.of(*labels)
        self.input = answers.usage.of("input", *labels)
        self.output = answers.usage.of("output", *labels)
        generates = labels[0] in _GENERATES
        self.first = answers.first.of(*labels) if generates else []
        self.per_token = answers.per_token.of(*labels) if generates else []

    def record(self, exchange: Exchange) -> None:
        """Record an answer."""
        took = exchange.ended_at - exchange.started
        self.durations[bisect_left(OPERATION_SECONDS, took)] += 1
        self.durations[-1] += took
        if exchange.asked_at:
            asked = exchange.answered_at - exchange.asked_at
            own = took - (exchange.received_at - exchange.started) - asked
            if exchange.slots:
                own -= exchange.slots.waited
            self.operations[bisect_left(OPERATION_SECONDS, asked)] += 1
            self.operations[-1] += asked
            self.overhead[bisect_left(OVERHEAD_SECONDS, own)] += 1
            self.overhead[-1] += own
        usage, first = exchange.usage, exchange.first_token_at
        if first:
            after = first - exchange.started
            self.first[bisect_left(FIRST_TOKEN_SECONDS, after)] += 1
            self.first[-1] += after
        if usage:
            sent, made = usage.prompt_tokens, usage.completion_tokens
            self.input[bisect_left(TOKENS, sent)] += 1
            self.input[-1] += sent
            self.output[bisect_left(TOKENS, made)] += 1
            self.output[-1] += made
            if first and made > 1 and exchange.answers == 1:
                each = (exchange.answered_at - first) / (made - 1)
                self.per_token[bisect_left(PER_TOKEN_SECONDS, each)] += 1
                self.per_token[-1] += each
