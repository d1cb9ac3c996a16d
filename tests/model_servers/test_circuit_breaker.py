"""The circuit breaker of a replica: its states, when it changes, and what the log and the metrics say of it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from comps.core.errors import LLMError, ModelServerError, Refused, Unreachable
from comps.core.generator import TextGenerator
from comps.core.ports import HasCircuitBreakers
from comps.model_servers.replicas import Replicas
from comps.telemetry import Telemetry
from tests.model_servers.replica_group import Clock, Group, Replica
from tests.service import PATIENCE


def limited(failures: int, longest: float = 30.0) -> Group:
    """Two replicas with these limits."""
    group = Group(2)
    group.all = Replicas(group.each, group.clock, failures=failures, longest_pause=longest)
    return group


async def test_it_is_closed_then_open_then_half_open_with_one_probe_and_each_change_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="opea_llm")
    gate = asyncio.Event()
    group = Group(2, [gate, "x"])
    a, _ = group.each
    assert isinstance(group.all, HasCircuitBreakers)
    states = [group.all.circuit_states()]
    gate.set()
    a.error = Unreachable("away")
    await group.ask()
    states.append(group.all.circuit_states())
    gate.clear()
    a.error = None
    group.clock.now += 1
    probe = asyncio.ensure_future(group.ask())
    await asyncio.wait_for(a.reached.wait(), PATIENCE)
    states.append(group.all.circuit_states())
    gate.set()
    await probe
    states.append(group.all.circuit_states())
    closed = ["closed", "closed"]
    assert states == [closed, ["open", "closed"], ["half-open", "closed"], closed]
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"replica 1 of 2 of the model {what}" for what in ("is set aside for 1 s: away", "is tried again", "is back")
    ]


async def test_a_probe_that_fails_opens_it_for_longer_and_one_that_is_cancelled_leaves_it_due() -> None:
    group = limited(5)
    a, _ = group.each
    a.error = Unreachable("away")
    await group.ask()
    group.clock.now += 1
    a.error = ModelServerError("broke")  # One failure of a probe is enough.
    await group.ask()
    assert list(group.all.circuit_states()) == ["open", "closed"]
    group.clock.now += 1
    a.error = None
    assert await group.ask() == "b"  # It is open for 2 s now.
    group.clock.now += 1
    a._answers = [[asyncio.Event()]]
    probe = asyncio.ensure_future(group.ask())
    await asyncio.wait_for(a.reached.wait(), PATIENCE)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    a._answers = [["a"]]
    assert list(group.all.circuit_states()) == ["open", "closed"]
    assert await group.ask() == "a"


@pytest.mark.parametrize(("error", "needed"), [(Refused(500, "oops"), 3), (Unreachable("away"), 1)])
async def test_it_opens_after_failures_in_a_row_and_at_once_for_one_that_is_unreachable(
    error: LLMError, needed: int
) -> None:
    group = limited(3)
    a, _ = group.each

    async def fail_until_open() -> int:
        before, a.error = a.times, error
        while "open" not in group.all.circuit_states():
            assert await group.ask() == "b"
        return a.times - before

    a.error = Refused(500, "oops")
    while a.times < 2:
        await group.ask()
    a.error = None
    while await group.ask() != "a":  # Which ends the row of two.
        pass
    assert await fail_until_open() == needed


async def test_the_longest_pause_is_a_setting() -> None:
    group = limited(1, longest=3)
    group.each[0].error = Unreachable("away")
    pauses: list[float] = []
    for _ in range(4):
        since, asked = group.clock.now, group.each[0].times
        while group.each[0].times == asked:
            group.clock.now += 0.5
            await group.ask()
        pauses.append(group.clock.now - since)
    assert pauses == [0.5, 1, 2, 3]


async def test_its_state_is_a_metric_of_each_model_and_replica() -> None:
    group = Group(2)
    lone = TextGenerator(Replica("c"), "lone")
    telemetry = Telemetry([TextGenerator(group.all, "served"), lone])
    group.each[1].error = Unreachable("away")
    assert [await group.ask(), await group.ask()] == ["a", "a"]
    text = telemetry.metrics().decode()
    shown = [line for line in text.splitlines() if line.startswith("opea_llm_replica_circuit{")]
    assert shown == [
        f'opea_llm_replica_circuit{{model="served",replica="{replica}",state="{state}"}} {float(state == now)}'
        for replica, now in (("1", "closed"), ("2", "open"))
        for state in ("closed", "open", "half-open")
    ]
    assert "lone" not in text


async def test_a_failing_replica_is_tried_once_in_each_pause_however_many_ask() -> None:
    clock = Clock()
    a, b = Replica("a"), Replica("b")
    replicas = Replicas([a, b], clock)
    a.error = Unreachable("away")
    group = Group(0)
    group.all = replicas
    for _ in range(10):
        await asyncio.gather(*(group.ask() for _ in range(20)))
    assert (a.times, b.times) == (1, 200)
