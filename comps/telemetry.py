"""Telemetry: Prometheus metrics, OPEA's statistics, the log, and the machine's GPUs. Nothing here runs per token."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import time
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import accumulate
from math import ceil, nan
from pathlib import Path
from statistics import fmean
from types import TracebackType

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from comps.core.errors import LLMError
from comps.core.request_id import REQUEST_ID
from comps.core.types import GPU, Usage
from comps.core.unread import UNREAD

log = logging.getLogger("opea_llm")

_KEPT = 1000
"""The number of most recent answers in the statistics."""
_LAG_SECONDS = 1.0
"""How often the event loop's lag is measured."""
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=index,name,utilization.gpu,temperature.gpu,memory.used,memory.total",
    "--format=csv,noheader,nounits",
)
_NVIDIA_SECONDS = 10
"""The deadline for nvidia-smi, in seconds; it wakes a suspended GPU."""


class Exchange:
    """Context manager that records one request and its answer.

    Args:
        telemetry: The telemetry to record in.
        path: The path of the request.
    """

    def __init__(self, telemetry: Telemetry, path: str) -> None:
        self._telemetry = telemetry
        self._path = path
        self.id = REQUEST_ID.get()
        self.started = time.monotonic()
        self.outcome = "error"
        """The HTTP status, `gone` if the client disconnected before the end, or `broken` if a stream is incomplete."""
        self.first_token_after: float | None = None
        """DurationHistogram from the request to the first event; None for whole answers."""
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
    """Counters, histograms and statistics of one service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._exchanges: defaultdict[tuple[str, str], int] = defaultdict(int)
        """The number of requests by path and outcome."""
        self._in_flight = 0
        self._seconds = DurationHistogram()
        self._first = DurationHistogram()
        self._lags = DurationHistogram()
        self._tokens = {"prompt": 0, "completion": 0}
        self._latencies: deque[float] = deque(maxlen=_KEPT)
        self._first_latencies: deque[float] = deque(maxlen=_KEPT)

    def collect(self) -> Iterator[Metric]:
        """Yields all metrics; see prometheus_client's `Collector`."""
        labels = ("path", "outcome")
        exchanges = CounterMetricFamily("opea_llm_requests", "Requests, by path and outcome", labels=labels)
        for said, count in self._exchanges.items():
            exchanges.add_metric(said, count)
        yield exchanges
        yield GaugeMetricFamily("opea_llm_requests_in_flight", "Requests being answered", self._in_flight)
        yield self._seconds.family("opea_llm_request_seconds", "From request to the end of its answer")
        first = "From request to the first event of a streamed answer"
        yield self._first.family("opea_llm_first_token_seconds", first)
        lag = "How much later than asked for the event loop calls a timer; measured once a second"
        yield self._lags.family("opea_llm_event_loop_lag_seconds", lag)
        tokens = CounterMetricFamily("opea_llm_tokens", "Tokens, as the model server counted them", labels=("kind",))
        for kind, count in self._tokens.items():
            tokens.add_metric((kind,), count)
        yield tokens
        left_out = "Parts of model servers' answers that were not understood, and left out"
        unread = CounterMetricFamily("opea_llm_unread_parts", left_out, labels=("part",))
        for part, count in UNREAD.items():
            unread.add_metric((part,), count)
        yield unread

    async def watch_loop(self) -> None:
        """Record the lag of the running event loop, until this is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            self._lags.observe(max(loop.time() - due, 0.0))

    def exchange(self, path: str) -> Exchange:
        """Returns the context manager that records a request."""
        return Exchange(self, path)

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
        if exchange.outcome == "200":
            self._latencies.append(took)
        if exchange.first_token_after is not None:
            self._first.observe(exchange.first_token_after)
            self._first_latencies.append(exchange.first_token_after)
        level, failure = (logging.WARNING, f": {exchange.failure}") if exchange.failure else (logging.INFO, "")
        if log.isEnabledFor(level):
            tokens = f"{usage.prompt_tokens}+{usage.completion_tokens}" if usage else "-"
            said = (path, exchange.outcome, exchange.id or "-", exchange.reason or "-", tokens, took, failure)
            log.log(level, "%s %s id=%s reason=%s tokens=%s %.3f s%s", *said)

    def metrics(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def statistics(self) -> dict[str, float | None]:
        """Returns OPEA's statistics: latencies of the last 1000 answers in seconds, or None before the first."""
        return {
            "p50_latency": _percentile(self._latencies, 0.50),
            "p99_latency": _percentile(self._latencies, 0.99),
            "average_latency": fmean(self._latencies) if self._latencies else None,
            "p50_latency_first_token": _percentile(self._first_latencies, 0.50),
            "p99_latency_first_token": _percentile(self._first_latencies, 0.99),
            "average_latency_first_token": fmean(self._first_latencies) if self._first_latencies else None,
        }


def _percentile(values: deque[float], share: float) -> float | None:
    """Returns the percentile (nearest rank) for a share from 0 to 1; None if there are no values."""
    ordered = sorted(values)
    return ordered[ceil(share * len(ordered)) - 1] if ordered else None


async def gpus() -> list[GPU]:
    """Returns the state of all NVIDIA GPUs; an empty list if nvidia-smi is not installed.

    Raises:
        LLMError: nvidia-smi failed.
    """
    try:
        done = await asyncio.to_thread(
            subprocess.run, _NVIDIA_SMI, capture_output=True, text=True, timeout=_NVIDIA_SECONDS, check=False
        )
        if done.returncode:
            raise LLMError(f"nvidia-smi: {(done.stdout or done.stderr).strip()}")
        return [_gpu(line) for line in done.stdout.splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning("nvidia-smi: %s", error)
        raise LLMError("nvidia-smi: it cannot be asked; the service's log has the reason") from None


def _gpu(line: str) -> GPU:
    index, name, *numbers = line.split(", ")
    load, temperature, used, total = map(_number, numbers)
    return GPU(int(index), name, load, temperature, used, total)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # Such as [N/A].
        return nan


def start_log(level: str, path: str) -> None:
    """Write the log to a file, or to standard error if `path` is empty.

    Raises:
        OSError: The file cannot be written.
    """
    handler: logging.Handler = logging.StreamHandler()
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Formatter())
    # Fields that the format does not use are not collected: https://docs.python.org/3/howto/logging.html#optimization.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(level)
    # uvicorn's lines about its own start say that it runs while the model still loads; ours say when it is ready.
    logging.getLogger("uvicorn").setLevel(max(log.level, logging.WARNING))


class _Formatter(logging.Formatter):
    """Formats `[time] [level] logger: message`, each second only once. There is a line for every request."""

    _second = 0
    _text = ""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, time.strftime(self.default_time_format, self.converter(record.created))
        return f"[{self._text},{int(record.msecs):03d}] [{record.levelname:>8}] {record.name}: {record.message}"
