"""Mixed load for long: whole and streamed answers, clients that leave, refused bodies; memory and gauges meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from tests.benchmarks.soak.clients import Outcomes, ask, body, figures
from tests.benchmarks.soak.overload import GAUGES

A_SECOND = 40.0
"""Requests a second, on average."""
EVERY = 5.0
"""Seconds between two looks."""
TOKENS = "opea_llm_tokens_total"


@dataclass
class Look:
    """The service at one moment."""

    minutes: float
    megabytes: float
    """Of memory that is its own."""
    files: int
    """Open file descriptors."""
    in_flight: float
    waiting: float
    tokens: float
    """Since the start, of prompts and answers."""


@dataclass
class Endured:
    """All looks, and how the requests ended."""

    looks: list[Look] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        return asdict(self)


async def measure(port: int, minutes: float, memory: Callable[[], int], files: Callable[[], int]) -> Endured:
    """Ask for so long, and look; the last look is after all answers."""
    outcomes, endured = Outcomes(), Endured()
    started = time.perf_counter()
    chance = random.Random(0)

    async def look() -> None:
        in_flight, waiting, tokens = await figures(port, *GAUGES, TOKENS)
        now = (time.perf_counter() - started) / 60
        endured.looks.append(Look(now, memory() / 1e6, files(), in_flight, waiting, tokens))

    asking: set[asyncio.Task[None]] = set()
    looked = 0.0
    while (now := time.perf_counter() - started) < minutes * 60:
        if now >= looked:
            await look()
            looked = now + EVERY
        task = asyncio.ensure_future(_one(port, chance, outcomes))
        asking.add(task)
        task.add_done_callback(asking.discard)
        await asyncio.sleep(chance.expovariate(A_SECOND))
    await asyncio.gather(*asking)
    await asyncio.sleep(1)
    await look()
    endured.outcomes = dict(outcomes.counts)
    return endured


async def _one(port: int, chance: random.Random, outcomes: Outcomes) -> None:
    """One request: most are answered, a tenth leave, a twentieth are refused."""
    drawn = chance.random()
    if drawn < 0.05:
        await ask(port, {**body(1, 0), "temperature": "hot"}, outcomes)
    elif drawn < 0.15:
        await ask(port, body(200, 20), outcomes, leaves_after=chance.uniform(0, 2))
    elif drawn < 0.4:
        await ask(port, body(chance.randrange(1, 60), 0, stream=False), outcomes)
    else:
        await ask(port, body(chance.randrange(1, 200), chance.randrange(0, 20)), outcomes)
