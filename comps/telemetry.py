"""What the service tells of itself: Prometheus metrics, OPEA's statistics, its log, and the machine's graphics cards.

Nothing here runs per token.
"""

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
from comps.core.types import GPU, Usage

log = logging.getLogger("opea_llm")

_KEPT = 1000
"""How many of the last requests the statistics are about."""
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=index,name,utilization.gpu,temperature.gpu,memory.used,memory.total",
    "--format=csv,noheader,nounits",
)
_NVIDIA_SECONDS = 10
"""How long nvidia-smi may take; it wakes a card that sleeps."""


class Exchange:
    """One request and its answer, as far as telemetry is concerned; a context manager around both.

    Args:
        telemetry: Where it is counted.
        path: What was asked.
    """

    def __init__(self, telemetry: Telemetry, path: str) -> None:
        self._telemetry = telemetry
        self._path = path
        self.started = time.monotonic()
        self.outcome = "error"
        """The HTTP status; `gone` if the client left before the end, `broken` if a stream did not reach its end."""
        self.first_token_after: float | None = None
        """Seconds; known for streamed answers only."""
        self.usage: Usage | None = None
        self.reason: str | None = None
        self.failure = ""
        """What went wrong here or at the model server; not what the caller has to mend."""

    def __enter__(self) -> Exchange:
        self._telemetry.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._telemetry.end(self._path, self)

    def first_token(self) -> None:
        """Called when the first event of a streamed answer is there."""
        self.first_token_after = time.monotonic() - self.started


class Seconds:
    """A histogram of durations, counted in plain numbers: the service has one thread, and prometheus_client's own takes
    a lock for each of them."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self._sum += seconds

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        """What Prometheus is told."""
        bounds = [*map(str, map(float, _SECONDS)), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(name, documentation, buckets, self._sum)


class Telemetry(Collector):
    """Counts exchanges; one for each service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._exchanges: defaultdict[tuple[str, str], int] = defaultdict(int)
        """By path and outcome."""
        self._in_flight = 0
        self._seconds = Seconds()
        self._first = Seconds()
        self._tokens = {"prompt": 0, "completion": 0}
        self._latencies: deque[float] = deque(maxlen=_KEPT)
        self._first_latencies: deque[float] = deque(maxlen=_KEPT)

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's `Collector`."""
        labels = ("path", "outcome")
        exchanges = CounterMetricFamily("opea_llm_requests", "Requests, by path and outcome", labels=labels)
        for said, count in self._exchanges.items():
            exchanges.add_metric(said, count)
        yield exchanges
        yield GaugeMetricFamily("opea_llm_requests_in_flight", "Requests being answered", self._in_flight)
        yield self._seconds.family("opea_llm_request_seconds", "From request to the end of its answer")
        first = "From request to the first event of a streamed answer"
        yield self._first.family("opea_llm_first_token_seconds", first)
        tokens = CounterMetricFamily("opea_llm_tokens", "Tokens, as the model server counted them", labels=("kind",))
        for kind, count in self._tokens.items():
            tokens.add_metric((kind,), count)
        yield tokens

    def exchange(self, path: str) -> Exchange:
        """A request, counted from the beginning to the end of a `with` block, however that is reached."""
        return Exchange(self, path)

    def begin(self) -> None:
        """A request has begun."""
        self._in_flight += 1

    def end(self, path: str, exchange: Exchange) -> None:
        """A request has ended."""
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
            said = (path, exchange.outcome, exchange.reason or "-", tokens, took, failure)
            log.log(level, "%s %s reason=%s tokens=%s %.3f s%s", *said)

    def metrics(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def statistics(self) -> dict[str, float | None]:
        """Latencies of the last answers in seconds, as OPEA's services give them; None until there are some."""
        return {
            "p50_latency": _percentile(self._latencies, 0.50),
            "p99_latency": _percentile(self._latencies, 0.99),
            "average_latency": fmean(self._latencies) if self._latencies else None,
            "p50_latency_first_token": _percentile(self._first_latencies, 0.50),
            "p99_latency_first_token": _percentile(self._first_latencies, 0.99),
            "average_latency_first_token": fmean(self._first_latencies) if self._first_latencies else None,
        }


def _percentile(values: deque[float], share: float) -> float | None:
    """The smallest of the values that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[ceil(share * len(ordered)) - 1] if ordered else None


async def gpus() -> list[GPU]:
    """The graphics cards of this machine, as NVIDIA's tool knows them; none where there is no such tool.

    Raises:
        LLMError: It failed.
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
    handler.setFormatter(_Formatter("[%(asctime)s] [%(levelname)8s] %(name)s: %(message)s"))
    # What no line says is not looked up: https://docs.python.org/3/howto/logging.html#optimization.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("opea_llm", "uvicorn"):
        logging.getLogger(name).setLevel(level)


class _Formatter(logging.Formatter):
    """Formats a second once for all that is logged in it."""

    _second = 0
    _text = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, time.strftime(self.default_time_format, self.converter(record.created))
        return f"{self._text},{int(record.msecs):03d}"
