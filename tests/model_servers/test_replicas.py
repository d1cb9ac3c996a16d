"""Replicas: who is asked, who is set aside and for how long, what moves to another one, and what never does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress

import pytest

from comps.core.answers import collect, read
from comps.core.errors import (
    InvalidRequest,
    LLMError,
    ModelServerError,
    Overloaded,
    PromptTooLong,
    Refused,
    Timeout,
    Unreachable,
)
from comps.core.ports import Answer, Completes
from comps.core.retries import Retries
from comps.core.tallies import RETRIES
from comps.core.types import JSON, Finished, Generation, Prompt, Sampling, TextDelta, Usage
from comps.model_servers.replicas import Replicas
from comps.model_servers.scripted import Scripted
from tests.model_servers.replica_group import FAILURES, Clock, Completing, Group, Replica
from tests.service import PATIENCE

# Who is asked


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a request moves; how long they are is tested elsewhere."""
    monkeypatch.setattr("comps.core.retries._FIRST_PAUSE", 0.001)


async def test_with_nothing_to_do_they_are_asked_in_turn() -> None:
    group = Group(3)
    assert [await group.ask() for _ in range(7)] == ["a", "b", "c", "a", "b", "c", "a"]


async def test_a_description_changes_no_turn() -> None:
    group = Group(2)
    answers = []
    for _ in range(4):
        await group.all.describe()
        answers.append(await group.ask())
    assert answers == ["a", "b", "a", "b"]


async def test_the_replica_with_the_fewest_requests_is_asked() -> None:
    group = Group(2, ["x", asyncio.Event()])
    begun = [await group.begin() for _ in range(4)]
    assert [one.times for one in group.each] == [2, 2]
    await begun[1].aclose()
    await begun[3].aclose()
    begun += [await group.begin(), await group.begin()]
    assert [one.times for one in group.each] == [2, 4]
    for events in begun:
        await events.aclose()


async def test_a_whole_answer_counts_as_one_to_answer_until_it_is_there_or_cancelled() -> None:
    gate = asyncio.Event()
    group = Group(2, [gate, "x"], kind=Completing)
    a, b = group.each
    waiting = [asyncio.ensure_future(group.ask_whole()) for _ in range(3)]
    await asyncio.wait_for(b.reached.wait(), PATIENCE)
    assert (a.times, b.times) == (2, 1)
    for answer in (waiting[0], waiting[2]):  # Those of a.
        answer.cancel()
    await asyncio.gather(waiting[0], waiting[2], return_exceptions=True)
    assert a.closed.is_set()
    waiting[1:] = [waiting[1], *(asyncio.ensure_future(group.ask_whole()) for _ in range(2))]
    for _ in range(5):
        await asyncio.sleep(0)
    assert (a.times, b.times) == (3, 2)
    gate.set()
    assert await asyncio.gather(*waiting[1:]) == ["x"] * 3
    for _ in range(2):
        assert await group.ask() == "x"
    assert (a.times, b.times) == (4, 3)


async def test_closing_an_answer_closes_the_replica_s_at_once_and_counts_as_no_failure() -> None:
    group = Group(2, ["x", asyncio.Event()])
    events = await group.begin()
    await events.aclose()
    assert group.each[0].closed.is_set()
    for events in [await group.begin(), await group.begin()]:
        await events.aclose()
    assert [one.times for one in group.each] == [2, 1]


async def test_cancelling_before_the_first_event_closes_the_replica_s_and_counts_as_no_failure() -> None:
    group = Group(1, [asyncio.Event()], ["x"])
    waiting = asyncio.ensure_future(group.ask())
    await asyncio.wait_for(group.each[0].reached.wait(), PATIENCE)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert group.each[0].closed.is_set()
    assert await group.ask() == "x"


async def test_what_is_asked_arrives_and_what_is_answered_comes_back_as_it_is() -> None:
    group = Group(2)
    sampling = Sampling(max_tokens=3)
    events = [event async for event in read(group.all.generate, "Why?", sampling, {"n": 1})]
    assert group.each[0].asked == [("Why?", sampling, {"n": 1})]
    assert events[0] == TextDelta("a")
    assert isinstance(events[-1], Finished)


# What moves to another one

MOVING = [error for error in FAILURES if not isinstance(error, Timeout)]


@pytest.mark.parametrize("error", MOVING, ids=repr)
async def test_a_request_moves_on_while_nothing_of_its_answer_has_come(error: LLMError) -> None:
    group = Group(2)
    group.each[0].error = error
    assert [await group.ask() for _ in range(3)] == ["b", "b", "b"]
    assert [one.times for one in group.each] == [1, 3]


@pytest.mark.parametrize("error", [*MOVING, Overloaded("busy", 5)], ids=repr)
async def test_a_request_for_a_whole_answer_moves_on(error: LLMError) -> None:
    group = Group(2, kind=Completing)
    group.each[0].error = error
    assert [await group.ask_whole() for _ in range(3)] == ["b", "b", "b"]
    assert [one.times for one in group.each] == [3 if isinstance(error, Overloaded) else 1, 3]


async def test_a_request_for_a_whole_answer_moves_on_from_one_that_broke_off() -> None:
    replicas = Replicas([Completing("a", ["half", ModelServerError("it broke off")]), Completing("b")])
    assert isinstance(replicas, Completes)
    assert await replicas.complete("?", Sampling(), {}) == Generation("b", "stop", Usage(1, 1))


async def test_an_answer_that_broke_off_is_an_error_and_its_replica_is_set_aside() -> None:
    error, gate = ModelServerError("it broke off"), asyncio.Event()
    group = Group(2, ["half", gate, error])
    events = await group.begin()
    gate.set()
    with pytest.raises(ModelServerError) as caught:
        await anext(events)
    assert caught.value is error
    assert [one.times for one in group.each] == [1, 0]
    gate.clear()
    for events in [await group.begin(), await group.begin()]:
        await events.aclose()
    assert [one.times for one in group.each] == [1, 2]


@pytest.mark.parametrize(
    "error", [InvalidRequest("no", "top_k"), PromptTooLong(9, 8), Refused(401, "key"), Refused(404, "model")], ids=repr
)
@pytest.mark.parametrize("ask", [Group.ask, Group.ask_whole])
async def test_a_refusal_is_not_retried_and_sets_no_replica_aside(
    error: LLMError, ask: Callable[[Group], Awaitable[str]]
) -> None:
    group = Group(2, kind=Completing)
    group.each[0].error = error
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            await ask(group)
        assert caught.value is error
        assert await ask(group) == "b"
    assert [one.times for one in group.each] == [2, 2]


@pytest.mark.parametrize("ask", [Group.ask, Group.ask_whole])
async def test_a_request_that_timed_out_may_be_running_and_is_not_sent_to_another_replica(
    ask: Callable[[Group], Awaitable[str]],
) -> None:
    group = Group(2, kind=Completing)
    group.each[0].error = Timeout("slow")
    with pytest.raises(Timeout):
        await ask(group)
    assert [await ask(group) for _ in range(2)] == ["b", "b"]
    assert [one.times for one in group.each] == [1, 2]


async def test_requests_that_failed_move_within_the_budget_and_those_that_were_not_begun_always_do() -> None:
    RETRIES.clear()
    a, b = Replica("a"), Replica("b")
    replicas = Replicas([a, b], Clock(), retries=Retries(0.1), failures=1000)
    a.error = Refused(500, "oops")
    failed = 0
    for _ in range(100):
        with suppress(Refused):
            await collect(replicas.generate, "?", Sampling(), {})
            continue
        failed += 1
    moved = RETRIES["", "failed"]
    assert (a.times, b.times, failed) == (moved + failed, 100 - failed, 100 - b.times)
    assert 10 <= moved <= 10 + 0.1 * 100
    a.error = Overloaded("busy")
    for _ in range(20):
        await collect(replicas.generate, "?", Sampling(), {})
    assert RETRIES["", "overloaded"] > 0


async def test_a_request_moves_no_more_often_than_set_after_replicas_that_failed() -> None:
    each = [Replica(name) for name in "abcd"]
    replicas = Replicas(each, Clock(), retries=Retries(most=1))
    for replica in each:
        replica.error = Refused(500, "oops")
    with pytest.raises(Refused):
        await collect(replicas.generate, "?", Sampling(), {})
    assert [one.times for one in each] == [1, 1, 0, 0]


async def test_who_has_too_much_to_do_is_not_set_aside() -> None:
    group = Group(2)
    group.each[0].error = Overloaded("busy", 5)
    assert [await group.ask() for _ in range(3)] == ["b", "b", "b"]
    assert [one.times for one in group.each] == [3, 3]


async def test_if_all_have_too_much_to_do_the_shortest_wait_is_passed_on() -> None:
    group = Group(3)
    for replica, seconds in zip(group.each, (5, 2, 9), strict=True):
        replica.error = Overloaded("busy", seconds)
    with pytest.raises(Overloaded) as caught:
        await group.ask()
    assert caught.value.retry_after == 2


async def test_one_that_is_only_busy_counts_for_more_than_one_that_fails() -> None:
    group = Group(2)
    group.each[0].error, group.each[1].error = Overloaded("busy", 5), Unreachable("away")
    for _ in range(2):
        with pytest.raises(Overloaded):
            await group.ask()


async def test_one_that_fails_counts_for_more_than_one_that_is_away() -> None:
    group = Group(2)
    group.each[0].error, group.each[1].error = LLMError("the model server answered 500: boom"), Unreachable("away")
    for _ in range(3):
        with pytest.raises(LLMError, match="boom"):
            await group.ask()


async def test_a_fault_of_ours_is_no_failure_of_the_replica() -> None:
    class Faulty(Scripted):
        async def generate(
            self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer
        ) -> None:
            raise RuntimeError("ours")

    replicas = Replicas([Faulty(), Scripted()])
    with pytest.raises(RuntimeError):
        await collect(replicas.generate, "?", Sampling(), {})


# Who is set aside, and for how long


async def test_a_replica_that_failed_is_tried_again_after_ever_longer_pauses() -> None:
    group = Group(2)
    group.each[0].error = Unreachable("away")
    await group.ask()
    pauses = []
    for _ in range(8):
        since, asked = group.clock.now, group.each[0].times
        while group.each[0].times == asked:
            group.clock.now += 0.5
            assert await group.ask() == "b"
        pauses.append(group.clock.now - since)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


async def test_a_replica_that_answers_again_is_in_use_again_and_its_pauses_are_short_again() -> None:
    group = Group(2)
    a, _ = group.each
    for _ in range(3):
        a.error = Unreachable("away")
        group.clock.now += 60
        await group.ask()
    a.error = None
    group.clock.now += 60
    assert sorted([await group.ask() for _ in range(4)]) == ["a", "a", "b", "b"]
    a.error = Unreachable("away")
    await group.ask()
    await group.ask()
    asked = a.times
    group.clock.now += 1
    await group.ask()
    assert a.times == asked + 1


async def test_the_log_says_which_replica_of_which_model_is_set_aside(caplog: pytest.LogCaptureFixture) -> None:
    replicas = Replicas([Replica("a"), Replica("b")], model="vicuna")
    replicas.servers[0].error = Unreachable("away")  # type: ignore[attr-defined]
    await collect(replicas.generate, "?", Sampling(), {})
    assert "replica 1 of 2 of vicuna is set aside for 1 s: away" in caplog.text


async def test_a_replica_that_may_be_tried_again_goes_before_those_with_less_to_answer() -> None:
    group = Group(2)
    a, _ = group.each
    async with aclosing(await group.begin()):  # This one is a's.
        a.error = Unreachable("away")
        async with aclosing(await group.begin()):  # And this one b's.
            assert await group.ask() == "b"
        a.error = None
        assert a.times == 2
        group.clock.now += 60
        assert await group.ask() == "a"


@pytest.mark.parametrize("error", [InvalidRequest("no"), Overloaded("busy"), Refused(404, "no")])
async def test_a_replica_that_refuses_what_tries_it_has_short_pauses_again(error: LLMError) -> None:
    group = Group(2)
    a, _ = group.each
    a.error = Unreachable("away")
    assert [await group.ask() for _ in range(2)] == ["b", "b"]
    group.clock.now += 60
    a.error = error
    with suppress(InvalidRequest, Refused):
        await group.ask()
    a.error = Unreachable("away")
    assert [await group.ask() for _ in range(2)] == ["b", "b"]
    asked = a.times
    group.clock.now += 1
    await group.ask()
    assert a.times == asked + 1


async def test_one_call_alone_tries_a_replica_that_was_set_aside() -> None:
    gate = asyncio.Event()
    group = Group(2, [gate, "x"])
    a, b = group.each
    a.error = Unreachable("away")
    waiting = [asyncio.ensure_future(group.ask())]
    await asyncio.wait_for(b.reached.wait(), PATIENCE)
    a.error = None
    group.clock.now += 1
    waiting += [asyncio.ensure_future(group.ask()) for _ in range(5)]
    await asyncio.wait_for(a.reached.wait(), PATIENCE)
    for _ in range(5):
        await asyncio.sleep(0)
    assert (a.times, b.times) == (2, 5)
    gate.set()
    assert await asyncio.gather(*waiting) == ["x"] * 6
    assert [await group.ask(), await group.ask()] == ["x", "x"]
    assert (a.times, b.times) == (3, 6)


async def test_of_requests_that_failed_together_one_alone_tries_a_replica_that_was_set_aside() -> None:
    """They wait before they move, and the replica is chosen after that."""
    gate, broken = asyncio.Event(), asyncio.Event()
    group = Group(3, [gate, "x"])
    a, b, c = group.each = [Replica("a", [broken, ModelServerError("broke")]), *group.each[1:]]
    group.all = Replicas(group.each, group.clock)
    b.error = Unreachable("away")
    asking = [asyncio.ensure_future(group.ask()) for _ in range(3)]
    await asyncio.wait_for(asyncio.gather(a.reached.wait(), c.reached.wait()), PATIENCE)
    assert (a.times, b.times, c.times) == (2, 1, 1)
    b.error = None
    group.clock.now += 1
    broken.set()
    await asyncio.wait_for(b.reached.wait(), PATIENCE)
    gate.set()
    assert await asyncio.gather(*asking) == ["x"] * 3
    assert (a.times, b.times, c.times) == (2, 2, 2)


async def test_many_answers_that_break_off_together_are_one_failure() -> None:
    gate = asyncio.Event()
    group = Group(2, ["x", gate, Unreachable("away")])
    a, b = group.each
    begun = [await group.begin() for _ in range(20)]
    gate.set()
    for events in begun:
        with pytest.raises(Unreachable):
            await anext(events)
    assert (a.times, b.times) == (10, 10)
    group.clock.now += 1
    await group.begin()
    await group.begin()
    assert (a.times, b.times) == (11, 11)


async def test_if_all_are_set_aside_the_one_whose_time_comes_first_is_tried() -> None:
    group = Group(3)
    for replica in (group.each[1], group.each[2], group.each[0]):
        replica.error = Unreachable(f"{replica} away")
    with pytest.raises(Unreachable):
        await group.ask()
    assert [one.times for one in group.each] == [1, 1, 1]
    group.clock.now += 1
    group.each[2].error = None
    assert await group.ask() == "c"
    group.each[2].error = Unreachable("away")
    with pytest.raises(Unreachable):
        await group.ask()
    before = [one.times for one in group.each]
    group.each[0].error = group.each[1].error = None  # Set aside for two seconds; c for one.
    group.each[2].error = None
    assert await group.ask() == "c"
    assert [one.times for one in group.each] == [before[0], before[1], before[2] + 1]


async def test_a_replica_is_tried_again_though_the_answer_that_tried_it_last_time_goes_on() -> None:
    group = Group(2, ["x", asyncio.Event()])
    a, b = group.each
    a.error = Unreachable("away")
    begun = [await group.begin()]
    group.clock.now += 1
    a.error = None
    begun.append(await group.begin())
    assert (a.times, b.times) == (2, 1)
    a.error = Unreachable("away")
    begun += [await group.begin(), await group.begin()]
    assert (a.times, b.times) == (3, 3)
    group.clock.now += 1
    a.error = None
    begun.append(await group.begin())
    assert (a.times, b.times) == (4, 3)
    for events in begun:
        await events.aclose()


async def test_failing_before_its_time_sets_no_replica_aside_for_longer() -> None:
    group = Group(2)
    group.each[0].error = group.each[1].error = Unreachable("away")
    for _ in range(10):
        with pytest.raises(Unreachable):
            await group.ask()
        with pytest.raises(Unreachable):
            await group.all.describe()
    group.each[0].error = group.each[1].error = None
    group.clock.now += 1
    assert sorted([await group.ask(), await group.ask()]) == ["a", "b"]


async def test_a_request_tries_no_more_than_one_that_is_set_aside() -> None:
    group = Group(4)
    for replica in group.each:
        replica.error = Unreachable("away")
    with pytest.raises(Unreachable):
        await group.ask()
    with pytest.raises(Unreachable):
        await group.ask()
    assert sum(one.times for one in group.each) == 5
