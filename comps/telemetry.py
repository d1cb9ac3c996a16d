"""What the service tells of itself: Prometheus metrics, OPEA's statistics, its log, and the machine's graphics cards.

Nothing here runs per token.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import time
from collections import deque
from math import ceil, nan
from pathlib import Path
from statistics import fmean
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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


class Telemetry:
    """Counts exchanges; one for each service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._exchanges = Counter(
            "opea_llm_requests", "Requests, by path and outcome", ("path", "outcome"), registry=self._registry
        )
        self._in_flight = Gauge("opea_llm_requests_in_flight", "Requests being answered", registry=self._registry)
        self._seconds = Histogram(
            "opea_llm_request_seconds",
            "From request to the end of its answer",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "opea_llm_first_token_seconds",
            "From request to the first event of a streamed answer",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._tokens = Counter(
            "opea_llm_tokens", "Tokens, as the model server counted them", ("kind",), registry=self._registry
        )
        self._prompt_tokens = self._tokens.labels("prompt")
        self._completion_tokens = self._tokens.labels("completion")
        self._counters: dict[tuple[str, str], Counter] = {}
        self._latencies: deque[float] = deque(maxlen=_KEPT)
        self._first_latencies: deque[float] = deque(maxlen=_KEPT)

    def exchange(self, path: str) -> Exchange:
        """A request, counted from the beginning to the end of a `with` block, however that is reached."""
        return Exchange(self, path)

    def begin(self) -> None:
        """A request has begun."""
        self._in_flight.inc()

    def end(self, path: str, exchange: Exchange) -> None:
        """A request has ended."""
        self._in_flight.dec()
        took = time.monotonic() - exchange.started
        self._counter(path, exchange.outcome).inc()
        self._seconds.observe(took)
        usage = exchange.usage
        if usage:
            self._prompt_tokens.inc(usage.prompt_tokens)
            self._completion_tokens.inc(usage.completion_tokens)
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

    def _counter(self, path: str, outcome: str) -> Counter:
        """The counter with these labels, which are looked up once."""
        counter = self._counters.get((path, outcome))
        if counter is None:
            counter = self._counters[path, outcome] = self._exchanges.labels(path, outcome)
        return counter

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
