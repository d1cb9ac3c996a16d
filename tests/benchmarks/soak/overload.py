"""Ten times as many requests as the service may answer, for a minute: good answers go on, and refusals come at once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from tests.benchmarks.soak.clients import GOOD, LOST, Outcomes, ask, body, exchange, figures, request

RUNNING, WAITING = 64, 64
TOKENS, PAUSE_MS = 20, 50
"""Of an answer, so that it takes a second: the service may give as many a second as may run at once."""
TIMES = 10
PEAK_SECONDS = 15
GAUGES = ("opea_llm_requests_in_flight", "opea_llm_requests_waiting")
SETTINGS = {"USVC_MAX_RUNNING": str(RUNNING), "USVC_MAX_WAITING": str(WAITING)}


@dataclass(frozen=True)
class Held:
    """What was measured."""

    peak: float
    """Good answers a second where as many clients ask as may be answered at once."""
    overloaded: float
    """The same with ten times as many requests."""
    offered: float
    """Requests a second, then."""
    outcomes: dict[str, int]
    refusals_ms: tuple[float, float]
    """The median and the 99th percentile, from connecting to the end of the refusal."""
    health_ms: float
    """The 95th percentile of `/health` meanwhile."""
    left: list[float]
    """The gauges of requests in flight and waiting, after all."""


async def measure(port: int, seconds: float) -> Held:
    """Both parts, on a service with `SETTINGS`."""
    peak = await _peak(port)
    outcomes, health = Outcomes(), Outcomes()
    interval = TOKENS * PAUSE_MS / 1000 / RUNNING / TIMES
    started = time.perf_counter()
    probing = asyncio.ensure_future(_probe(port, health, seconds))
    asking = []
    number = 0
    while (now := time.perf_counter() - started) < seconds:
        while number * interval <= now:
            asking.append(asyncio.ensure_future(ask(port, body(TOKENS, PAUSE_MS), outcomes)))
            number += 1
        await asyncio.sleep(0.002)
    good = outcomes.counts[GOOD]
    await asyncio.gather(probing, *asking)
    median, most = (outcomes.percentile("429", percent) or 0.0 for percent in (50, 99))
    return Held(
        peak=peak,
        overloaded=good / seconds,
        offered=number / seconds,
        outcomes=dict(outcomes.counts),
        refusals_ms=(median * 1e3, most * 1e3),
        health_ms=(health.percentile("200", 95) or 0.0) * 1e3,
        left=await figures(port, *GAUGES),
    )


async def _peak(port: int) -> float:
    outcomes = Outcomes()
    until = time.perf_counter() + PEAK_SECONDS

    async def client() -> None:
        while time.perf_counter() < until:
            await ask(port, body(TOKENS, PAUSE_MS), outcomes)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(RUNNING)))
    return outcomes.counts[GOOD] / (time.perf_counter() - started)


async def _probe(port: int, health: Outcomes, seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        reply = await exchange(port, request("GET", "/health"))
        health.add("200" if reply.startswith(b"HTTP/1.1 200") else LOST, time.perf_counter() - started)
        await asyncio.sleep(0.1)
