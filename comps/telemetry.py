"""Telemetry: Prometheus metrics, OPEA's statistics, and a line in the log for each request; nothing runs per token.

Where OpenTelemetry's conventions for generative AI have a name, a metric has it, with the labels of the convention, in
Prometheus' form: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/
"""

from __future__ import annotations

import asyncio
import logging
import platform
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from math import ceil
from pathlib import Path
from statistics import fmean
from time import monotonic
from types import MappingProxyType
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from comps.access import Caller
from comps.admission import Admission
from comps.answer_metrics import AnswerMetrics
from comps.core.generator import TextGenerator
from comps.core.ports import CIRCUIT_STATES, HasCircuitBreakers
from comps.core.tallies import MODEL_SERVER_ERRORS, RETRIES, TIMEOUTS
from comps.core.unread import UNREAD
from comps.exchange import Exchange, Trace
from comps.limits import CONNECTIONS
from comps.logs import RequestLine, log
from comps.metrics import LAG_SECONDS, SECONDS, SERVED, Counters, Histograms, counter, gauge
from comps.shared_metrics import Latest, SharedMetrics, Snapshot

_KEPT = 1000
"""The number of most recent answers in the statistics."""
_LAG_SECONDS = 1.0
"""How often the event loop's lag is measured."""


class Tracing(Protocol):
    """The traces of a service."""

    def begin(self, scope: MutableMapping[str, Any], exchange: Exchange) -> Trace:
        """Begin the span of a request."""
        ...


class Telemetry(Collector):
    """Counters, histograms and statistics of one service.

    Args:
        models: The models whose circuit breakers are shown.
        servers: The kind of each model's server, by the model's name.
        version: The service's version.
    """

    def __init__(
        self,
        models: Iterable[TextGenerator] = (),
        servers: Mapping[str, str] = MappingProxyType({}),
        version: str = "",
    ) -> None:
        self._models = models
        self._servers = servers
        self._version = version
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._process = ProcessCollector(registry=None)
        self._of_process: Sequence[Metric] = ()
        self._answers = AnswerMetrics()
        self._cancelled = Counters(
            "opea_llm_cancelled_requests", "Requests whose client left before the end, by where they were", "window"
        )
        self._saved_tokens = 0
        self.tracing: Tracing | None = None
        """The traces; None if there are none."""
        self.in_flight = 0
        """Requests that have begun and not ended."""
        self._admissions: Mapping[str, Admission] = {}
        self._queue = Histograms(
            "opea_llm_queue_seconds", "How long requests waited that had to, until they got a slot", SECONDS, "model"
        )
        self._lags = Histograms(
            "opea_llm_event_loop_lag_seconds",
            "How much later than asked for the event loop calls a timer; measured once a second",
            LAG_SECONDS,
        )
        self._lag = self._lags.of()
        self._latencies, self._first_latencies = Latest(_KEPT), Latest(_KEPT)
        self._shared: SharedMetrics | None = None

    def collect(self) -> Iterator[Metric]:
        """Yields all metrics; see prometheus_client's `Collector`."""
        build = GaugeMetricFamily("opea_llm_build_info", "Always 1", labels=("version", "python_version"))
        build.add_metric((self._version, platform.python_version()), 1)
        yield build
        yield from self._answers.families()
        yield gauge("opea_llm_requests_in_flight", "Requests being answered", self.in_flight)
        yield from self._admission_families()
        yield from self._of_cancelled()
        yield counter(
            "opea_llm_retries", "Requests sent to a model server again, by reason", ["model", "reason"], RETRIES
        )
        yield counter("opea_llm_timeouts", "Missed deadlines of model servers and clients", ["deadline"], TIMEOUTS)
        yield self._failures()
        yield self._circuits()
        left_out = "Parts of model servers' answers that were not understood, and left out"
        yield counter("opea_llm_unread_parts", left_out, ["part"], UNREAD)
        yield gauge("opea_llm_connections", "Open connections of clients", CONNECTIONS.open)
        ended = "Connections ended by a limit"
        yield counter("opea_llm_connections_ended", ended, ["reason"], CONNECTIONS.ended)
        yield self._lags.family()
        yield from self._of_process

    def _failures(self) -> Metric:
        """Returns the errors of model servers, by class."""
        failures = CounterMetricFamily(
            "opea_llm_model_server_errors", "Errors of model servers, by class", labels=("class", *SERVED)
        )
        for (model, kind), count in MODEL_SERVER_ERRORS.items():
            failures.add_metric((kind, model, self._servers.get(model, "")), count)
        return failures

    def _of_cancelled(self) -> Iterator[Metric]:
        """Yields the metrics of requests whose client left.

        The saved tokens are an upper estimate: the limits of all answers of a cancelled request (`max_tokens`), without
        the tokens that had been sent to its client; of a whole answer (the window `whole`), without those that the
        model makes in that time on average. Nothing is known, and counted, of a request without `max_tokens`.
        """
        yield self._cancelled.family()
        saved = "Tokens that cancelled requests allowed and that were not made, an upper estimate"
        yield CounterMetricFamily("opea_llm_saved_tokens", saved, self._saved_tokens)

    def _circuits(self) -> Metric:
        """Returns the states of all circuit breakers: 1 for the state that a replica has."""
        labels = ("model", "replica", "state")
        circuits = GaugeMetricFamily(
            "opea_llm_replica_circuit", "Circuit breakers of replicas: 1 for the state that each has", labels=labels
        )
        for generator in self._models:
            if isinstance(generator.server, HasCircuitBreakers):
                for number, now in enumerate(generator.server.circuit_states(), 1):
                    for state in CIRCUIT_STATES:
                        circuits.add_metric((generator.model, str(number), state), float(state == now))
        return circuits

    def _admission_families(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("opea_llm_requests_running", "Slots that are taken, by model", labels=("model",))
        waiting = GaugeMetricFamily("opea_llm_requests_waiting", "Requests in the queue, by model", labels=("model",))
        slots = GaugeMetricFamily("opea_llm_slots", "Slots that there are, by model", labels=("model",))
        why = "Requests that got no slot (429), by model and reason"
        refused = CounterMetricFamily("opea_llm_requests_refused", why, labels=("model", "reason"))
        for model, admission in self._admissions.items():
            running.add_metric((model,), admission.running)
            waiting.add_metric((model,), admission.waiting)
            slots.add_metric((model,), admission.max_running)
            for reason, count in admission.refused.items():
                refused.add_metric((model, reason), count)
        yield from (running, waiting, slots, refused, self._queue.family())

    def watch(self, admissions: Mapping[str, Admission]) -> None:
        """Have the metrics tell the state of these admissions, which have their models' names."""
        self._admissions = admissions

    async def watch_loop(self) -> None:
        """Record the lag of the running event loop, until this is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            lag = max(loop.time() - due, 0.0)
            self._lag[bisect_left(LAG_SECONDS, lag)] += 1
            self._lag[-1] += lag

    def waited(self, model: str, seconds: float) -> None:
        """Record how long a request was in the queue of a model before it got a slot."""
        queue = self._queue.of(model)
        queue[bisect_left(SECONDS, seconds)] += 1
        queue[-1] += seconds

    def refused(self, caller: Caller | None, status: int) -> None:
        """Record a request that was not let in."""
        self._answers.requests.values["", "", "", "", caller.name if caller else "", str(status)] += 1

    def end(self, exchange: Exchange) -> None:
        """Record the end of a request, and log it."""
        exchange.ended_at = monotonic()
        self.in_flight -= 1
        server = self._servers.get(exchange.model, "")
        if exchange.trace:
            exchange.trace.end(exchange)
        self._answers.record(exchange, server)
        speed = self._answers.speed(exchange.model) if exchange.outcome == "gone" else 0.0
        if exchange.caller and exchange.caller.tokens:
            exchange.caller.tokens.spend(exchange.spent(speed))
        if exchange.outcome == "gone":
            self._cancelled.values[(exchange.window,)] += 1
            self._saved_tokens += exchange.saved(speed)
        elif exchange.outcome == "200":
            self._latencies.append(exchange.ended_at - exchange.started)
        if exchange.first_token_at:
            self._first_latencies.append(exchange.first_token_at - exchange.started)
        level = logging.WARNING if exchange.is_failure else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, RequestLine(exchange, server))

    async def read_process(self) -> None:
        """Read what the system says of this process: memory, CPU time, open files. It may block, so a thread does."""
        self._of_process = await asyncio.to_thread(lambda: list(self._process.collect()))

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
            self._of_process = list(self._process.collect())
            self._shared.publish(self._snapshot())

    def _snapshot(self) -> Snapshot:
        return Snapshot(list(self._registry.collect()), list(self._latencies), list(self._first_latencies))

    def _whole(self) -> Snapshot:
        assert self._shared
        return self._shared.whole(self._snapshot())


def drop_gauges(folder: Path, number: int) -> None:
    """Keep only the counters of a worker that has ended."""
    SharedMetrics(folder, number, _KEPT).publish(Snapshot())


def _percentile(values: Sequence[float], share: float) -> float | None:
    """Returns the percentile (nearest rank) for a share from 0 to 1; None if there are no values."""
    ordered = sorted(values)
    return ordered[ceil(share * len(ordered)) - 1] if ordered else None
