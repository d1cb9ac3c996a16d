"""The metric of the event loop's lag."""

from __future__ import annotations

import asyncio
import time

import pytest

from comps import telemetry
from comps.telemetry import Telemetry


async def test_a_loop_that_is_held_shows_in_the_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_LAG_SECONDS", 0.01)
    told = Telemetry()
    watching = asyncio.ensure_future(told.watch_loop())
    await asyncio.sleep(0)
    until = time.monotonic() + 0.15
    while time.monotonic() < until:
        pass
    for _ in range(3):
        await asyncio.sleep(0.01)
    watching.cancel()
    lines = told.metrics().decode().splitlines()
    of_at_most = {
        line.partition('le="')[2].partition('"')[0]: float(line.split()[1])
        for line in lines
        if "lag_seconds_bucket" in line
    }
    assert of_at_most["+Inf"] - of_at_most["0.1"] >= 1
