"""Telemetry: Prometheus metrics, OPEA's statistics, and a line in the log for each request; nothing runs per token."""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import ceil
from pathlib import Path
from statistics import fmean
from types import TracebackType

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from comps.access import Caller
from comps.admission import Admission
from comps.core.generator import TextGenerator
from comps.core.ports import CIRCUIT_STATES, HasCircuitBreakers
from comps.core.request_id import REQUEST_ID
from comps.core.tallies import RETRIES, TIMEOUTS
from comps.core.types import GenerationRequest, Usage
from comps.core.unread import UNREAD
from comps.limits import CONNECTIONS
from comps.logs import log
from comps.shared_metrics import SharedMetrics, Snapshot

_KEPT = 1000
"""The number of most recent answers in the statistics."""
_ANSWERED = ("200", "gone", "broken")
"""The outcomes of requests that a model may have begun to answer."""
_BYTES_PER_TOKEN = 4
"""By which the tokens of a body are estimated where the model server has not counted them."""
_LAG_SECONDS = 1.0
"""How often the event loop's lag is measured."""
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Exchange:
    """Context manager that records one request and its answer.

    Args:
        telemetry: The telemetry to record in.
        path: The path of the request.
        caller: Who sent it; None if no keys are set.
    """

    def __init__(self, telemetry: Telemetry, path: str, caller: Caller | None = None) -> None:
        self._telemetry = telemetry
        self._path = path
        self.caller = caller
        self.allowed: Collection[str] = caller.models if caller else ()
        """The names of the models that the caller may use; none: all."""
        self.body_size = 0
        """The bytes of the request's body."""
        self.id = REQUEST_ID.get()
        self.started = time.monotonic()
        self.outcome = "error"
        """The HTTP status, `gone` if the client disconnected before the end, or `broken` if a stream is incomplete."""
        self.first_token_after: float | None = None
        """DurationHistogram from the request to the first event; None for whole answers."""
        self.window = "body"
        """Where a cancelled request was: `body` (it was not read completely), `queued` (for a slot), `first_token`
        (its prompt was planned, or its stream had not begun), `stream`, or `whole` (its answer is not streamed)."""
        self.asked: Sequence[GenerationRequest] = ()
        """What was asked of the model; empty before that is known, and if nothing is to be generated."""
        self.usage: Usage | None = None
        self.reason: str | None = None
        self.failure = ""
        """The error, for the log, if it is one of the service or the model server; empty for request errors."""

    def __enter__(self) -> Exchange:
        self._telemetry.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._telemetry.end(self._path, self)

    def first_token(self) -> None:
        """Record the time of the first event of a stream."""
        self.first_token_after = time.monotonic() - self.started
        self.window = "stream"


class DurationHistogram:
    """Histogram of durations. It has no locks, unlike that of prometheus_client, because the service has one thread."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Record a duration."""
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self._sum += seconds

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        """Returns the metric for Prometheus."""
        bounds = [*map(str, map(float, _SECONDS)), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(name, documentation, buckets, self._sum)


class Telemetry(Collector):
    """Counters, histograms and statistics of one service.

    Args:
        models: The models whose circuit breakers are shown.
    """

    def __init__(self, models: Iterable[TextGenerator] = ()) -> None:
        self._models = models
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._exchanges: defaultdict[tuple[str, str], int] = defaultdict(int)
        """The number of requests by path and outcome."""
        self._cancelled: defaultdict[str, int] = defaultdict(int)
        """The number of cancelled requests by window."""
        self._saved_tokens = 0
        self._in_flight = 0
        self._admissions: Mapping[str, Admission] = {}
        self._queue = DurationHistogram()
        self._seconds = DurationHistogram()
        self._first = DurationHistogram()
        self._lags = DurationHistogram()
        self._tokens = {"prompt": 0, "completion": 0}
        self._of_keys: defaultdict[tuple[str, str], int] = defaultdict(int)
        """The number of requests by the name of the key and outcome."""
        self._tokens_of_keys: defaultdict[tuple[str, str], int] = defaultdict(int)
        """The number of tokens by the name of the key and kind."""
        self._latencies: deque[float] = deque(maxlen=_KEPT)
        self._first_latencies: deque[float] = deque(maxlen=_KEPT)
        self._shared: SharedMetrics | None = None

    def collect(self) -> Iterator[Metric]:
        """Yields all metrics; see prometheus_client's `Collector`."""
        yield _counters("opea_llm_requests", "Requests, by path and outcome", ("path", "outcome"), self._exchanges)
        yield GaugeMetricFamily("opea_llm_requests_in_flight", "Requests being answered", self._in_flight)
        yield from self._admission_families()
        yield self._seconds.family("opea_llm_request_seconds", "From request to the end of its answer")
        first = "From request to the first event of a streamed answer"
        yield self._first.family("opea_llm_first_token_seconds", first)
        lag = "How much later than asked for the event loop calls a timer; measured once a second"
        yield self._lags.family("opea_llm_event_loop_lag_seconds", lag)
        tokens = CounterMetricFamily("opea_llm_tokens", "Tokens, as the model server counted them", labels=("kind",))
        for kind, count in self._tokens.items():
            tokens.add_metric((kind,), count)
        yield tokens
        yield _counters("opea_llm_key_requests", "Requests, by API key and outcome", ("key", "outcome"), self._of_keys)
        yield _counters("opea_llm_key_tokens", "Tokens, by API key and kind", ("key", "kind"), self._tokens_of_keys)
        yield GaugeMetricFamily("opea_llm_connections", "Open connections of clients", CONNECTIONS.open)
        ended = "Connections ended by a limit"
        yield _counter("opea_llm_connections_ended", ended, "reason", CONNECTIONS.ended)
        yield from self._of_cancelled()
        yield _counter("opea_llm_retries", "Requests sent to a model server again, by reason", "reason", RETRIES)
        yield _counter("opea_llm_timeouts", "Missed deadlines of model servers and clients", "deadline", TIMEOUTS)
        yield self._circuits()
        left_out = "Parts of model servers' answers that were not understood, and left out"
        yield _counter("opea_llm_unread_parts", left_out, "part", UNREAD)

    def _of_cancelled(self) -> Iterator[Metric]:
        """Yields the metrics of requests whose client left.

        The saved tokens are those that a cancelled request allowed and that were not generated, where that is known:
        the limits of all its answers (`max_tokens`), if the client left before anything of them was generated, which is
        in the windows `queued` and `first_token`. Nothing counts the tokens of a stream or of a whole answer on their
        way, so what is saved in the windows `stream` and `whole` is not known, and not counted.
        """
        gone = "Requests whose client left before the end, by where they were"
        yield _counter("opea_llm_cancelled_requests", gone, "window", self._cancelled)
        saved = "Tokens that cancelled requests allowed, of answers that had not begun"
        yield CounterMetricFamily("opea_llm_saved_tokens", saved, self._saved_tokens)

    def _circuits(self) -> Metric:
        """Returns the states of all circuit breakers: 1 for the state that a replica has."""
        labels = ("model", "replica", "state")
        circuits = GaugeMetricFamily("opea_llm_replica_circuit", "Circuit breakers of replicas", labels=labels)
        for generator in self._models:
            if isinstance(generator.server, HasCircuitBreakers):
                for number, now in enumerate(generator.server.circuit_states(), 1):
                    for state in CIRCUIT_STATES:
                        circuits.add_metric((generator.model, str(number), state), float(state == now))
        return circuits

    def _admission_families(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("opea_llm_requests_running", "Slots that are taken, by model", labels=("model",))
        waiting = GaugeMetricFamily("opea_llm_requests_waiting", "Requests in the queue, by model", labels=("model",))
        why = "Requests that got no slot (429), by model and reason"
        refused = CounterMetricFamily("opea_llm_requests_refused", why, labels=("model", "reason"))
        for model, admission in self._admissions.items():
            running.add_metric((model,), admission.running)
            waiting.add_metric((model,), admission.waiting)
            for reason, count in admission.refused.items():
                refused.add_metric((model, reason), count)
        yield from (running, waiting, refused)
        yield self._queue.family(
            "opea_llm_queue_seconds", "How long requests waited that had to, until they got a slot"
        )

    def watch(self, admissions: Mapping[str, Admission]) -> None:
        """Have the metrics tell the state of these admissions, which have their models' names."""
        self._admissions = admissions

    async def watch_loop(self) -> None:
        """Record the lag of the running event loop, until this is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            self._lags.observe(max(loop.time() - due, 0.0))

    def waited(self, seconds: float) -> None:
        """Record how long a request was in the queue before it got a slot."""
        self._queue.observe(seconds)

    def exchange(self, path: str, caller: Caller | None = None) -> Exchange:
        """Returns the context manager that records a request."""
        return Exchange(self, path, caller)

    def refused(self, caller: Caller | None, status: int) -> None:
        """Record a request that was not let in."""
        self._of_keys[caller.name if caller else "", str(status)] += 1

    def _count_for(self, caller: Caller, exchange: Exchange) -> None:
        """Record the end of a request with a key, and take its tokens from the caller's allowance."""
        self._of_keys[caller.name, exchange.outcome] += 1
        spent = 0
        if usage := exchange.usage:
            self._tokens_of_keys[caller.name, "prompt"] += usage.prompt_tokens
            self._tokens_of_keys[caller.name, "completion"] += usage.completion_tokens
            spent = usage.prompt_tokens + usage.completion_tokens
        elif exchange.outcome in _ANSWERED:
            spent = exchange.body_size // _BYTES_PER_TOKEN
        if caller.tokens:
            caller.tokens.spend(spent)

    def begin(self) -> None:
        """Record the beginning of a request."""
        self._in_flight += 1

    def end(self, path: str, exchange: Exchange) -> None:
        """Record the end of a request, and log it."""
        self._in_flight -= 1
        took = time.monotonic() - exchange.started
        self._exchanges[path, exchange.outcome] += 1
        self._seconds.observe(took)
        usage = exchange.usage
        if usage:
            self._tokens["prompt"] += usage.prompt_tokens
            self._tokens["completion"] += usage.completion_tokens
        caller = exchange.caller
        if caller:
            self._count_for(caller, exchange)
        if exchange.outcome == "gone":
            self._cancelled[exchange.window] += 1
            if exchange.window in ("queued", "first_token"):
                self._saved_tokens += sum(map(_most_tokens, exchange.asked))
        if exchange.outcome == "200":
            self._latencies.append(took)
        if exchange.first_token_after is not None:
            self._first.observe(exchange.first_token_after)
            self._first_latencies.append(exchange.first_token_after)
        level, failure = (logging.WARNING, f": {exchange.failure}") if exchange.failure else (logging.INFO, "")
        if log.isEnabledFor(level):
            tokens = f"{usage.prompt_tokens}+{usage.completion_tokens}" if usage else "-"
            key = f" key={caller.name}" if caller else ""
            said = (path, exchange.outcome, exchange.id or "-", key, exchange.reason or "-", tokens, took, failure)
            log.log(level, "%s %s id=%s%s reason=%s tokens=%s %.3f s%s", *said)

    def metrics(self) -> bytes:
        """Returns all metrics in Prometheus' text format, of all workers if there are several."""
        return generate_latest(self._whole() if self._shared else self._registry)

    def statistics(self) -> dict[str, float | None]:
        """Returns OPEA's statistics: latencies of the last 1000 answers in seconds, or None before the first.

        With several workers, they are those of the last 1000 answers of each.
        """
        latencies: Sequence[float] = self._latencies
        first: Sequence[float] = self._first_latencies
        if self._shared:
            whole = self._whole()
            latencies, first = whole.latencies, whole.first_latencies
        return {
            "p50_latency": _percentile(latencies, 0.50),
            "p99_latency": _percentile(latencies, 0.99),
            "average_latency": fmean(latencies) if latencies else None,
            "p50_latency_first_token": _percentile(first, 0.50),
            "p99_latency_first_token": _percentile(first, 0.99),
            "average_latency_first_token": fmean(first) if first else None,
        }

    def share(self, folder: Path, number: int) -> None:
        """Count for a service of several workers, of which this one has a number; see `SharedMetrics`."""
        self._shared = SharedMetrics(folder, number, _KEPT)

    def publish(self) -> None:
        """Let the other workers know what was counted here."""
        if self._shared:
            self._shared.publish(self._snapshot())

    def _snapshot(self) -> Snapshot:
        return Snapshot(list(self._registry.collect()), list(self._latencies), list(self._first_latencies))

    def _whole(self) -> Snapshot:
        assert self._shared
        return self._shared.whole(self._snapshot())


def _counters(
    name: str, documentation: str, labels: tuple[str, str], counts: Mapping[tuple[str, str], int]
) -> CounterMetricFamily:
    """Returns counters with two labels, for Prometheus."""
    family = CounterMetricFamily(name, documentation, labels=labels)
    for said, count in counts.items():
        family.add_metric(said, count)
    return family


def drop_gauges(folder: Path, number: int) -> None:
    """Keep only the counters of a worker that has ended."""
    SharedMetrics(folder, number, _KEPT).publish(Snapshot())


def _most_tokens(request: GenerationRequest) -> int:
    """Returns the number of tokens that the answers to a request may have; 0 if there is no limit."""
    choices = request.options.get("n")
    return (request.sampling.max_tokens or 0) * (choices if isinstance(choices, int) else 1)


def _counter(name: str, documentation: str, label: str, counts: Mapping[str, int]) -> Metric:
    """Returns the metric of counts by one label."""
    counter = CounterMetricFamily(name, documentation, labels=(label,))
    for value, count in counts.items():
        counter.add_metric((value,), count)
    return counter


def _percentile(values: Sequence[float], share: float) -> float | None:
    """Returns the percentile (nearest rank) for a share from 0 to 1; None if there are no values."""
    ordered = sorted(values)
    return ordered[ceil(share * len(ordered)) - 1] if ordered else None
