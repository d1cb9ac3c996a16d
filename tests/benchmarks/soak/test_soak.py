"""The load generator tells apart what it counts, and the page says what was measured."""

from __future__ import annotations

import asyncio

import pytest

from comps.model_servers.scripted import Scripted
from tests.benchmarks.soak import overload
from tests.benchmarks.soak.__main__ import page
from tests.benchmarks.soak.clients import BROKEN, GOOD, LEFT, LOST, Outcomes, ask, body, figures
from tests.benchmarks.soak.endurance import Endured, Look
from tests.benchmarks.soak.overload import GAUGES, Held
from tests.process import free_port
from tests.service import running, until_in_flight


async def test_a_client_tells_a_whole_answer_from_a_cut_one_and_from_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = Outcomes()
    async with running(Scripted([[" word"] * 3]), monkeypatch) as service:
        for tokens, further in ((3, {}), (3, {"stream": False}), (4, {}), (3, {"temperature": "hot"})):
            await ask(service.port, {**body(tokens, 0), "model": "scripted", **further}, outcomes)
    await ask(free_port(), body(1, 0), outcomes)
    assert outcomes.counts == {GOOD: 2, BROKEN: 1, "400": 1, LOST: 1}
    assert outcomes.percentile("429", 50) is None


async def test_a_client_that_leaves_frees_its_place_and_the_gauges_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = Outcomes()
    async with running(Scripted([[" word"] * 3], delay=60), monkeypatch) as service:
        asked = {**body(3, 0), "model": "scripted"}
        await asyncio.gather(*(ask(service.port, asked, outcomes, leaves_after=0.2) for _ in range(3)))
        await until_in_flight(service, 0)
        assert (await figures(service.port, *GAUGES))[0] == 0
    assert outcomes.counts == {LEFT: 3}


async def test_more_than_may_run_and_wait_is_refused_and_the_rest_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload, "PEAK_SECONDS", 0.2)
    monkeypatch.setattr(overload, "body", lambda *_: {**body(3, 0), "model": "scripted"})
    settings = {"USVC_MAX_RUNNING": "1", "USVC_MAX_WAITING": "1"}
    async with running(Scripted([[" word"] * 3], delay=0.01), monkeypatch, settings) as service:
        held = await overload.measure(service.port, 0.5)
    assert held.outcomes.keys() == {GOOD, "429"}
    assert held.left == [0, 0]
    endured = Endured([Look(1.0, 50.0, 12, 3, 1, 100), Look(2.0, 51.0, 12, 0, 0, 200)], {GOOD: 7, LEFT: 2})
    text = page(held, endured)
    assert f"429 {held.outcomes['429']}" in text
    assert "| requests | 9: good 7, left 2 |" in text


def test_the_page_compares_with_the_peak() -> None:
    held = Held(50.0, 48.0, 500.0, {GOOD: 48}, (1.0, 2.0), 3.0, [0, 0])
    assert "| good answers a second, overloaded | 48.0 (96%) |" in page(held, Endured([Look(1, 1, 1, 0, 0, 1)]))
