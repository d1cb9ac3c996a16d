"""Answers to write to: collected, read as they are written, and several as one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial

import pytest

from comps.core.answers import Collector, Forwarding, Parts, collect, read
from comps.core.errors import ModelServerError
from comps.core.ports import Answer
from comps.core.tasks import at_once
from comps.core.types import Event, Finished, Generation, Sampling, TextDelta, Usage, total
from comps.model_servers.scripted import Scripted


async def write(events: Sequence[Event], answer: Answer) -> None:
    """Write events to an answer, as a model server does."""
    for event in events:
        if isinstance(event, Finished):
            answer.finished(event)
        elif event.text and event.extra is None:
            answer.text(event.text, event.choice)
        else:
            answer.delta(event)


def server(*pieces: str | ModelServerError | asyncio.Event) -> Scripted:
    return Scripted([pieces])


def asking(server: Scripted) -> Callable[[Answer], Awaitable[None]]:
    return partial(server.generate, "?", Sampling(), {})


async def test_collecting_joins_the_pieces_and_keeps_reason_and_usage() -> None:
    events = [TextDelta("a"), TextDelta(""), TextDelta("b"), Finished("length", Usage(1, 2))]
    assert await collect(write, events) == Generation("ab", "length", Usage(1, 2))


async def test_collecting_keeps_the_choices_apart() -> None:
    events = [TextDelta("a"), TextDelta("x", choice=1), Finished("length", choice=1), TextDelta("b"), Finished("stop")]
    assert await collect(write, events) == Generation("ab", "stop", further=(Generation("x", "length"),))


@pytest.mark.parametrize(
    "events",
    [
        (),
        (TextDelta("half an"),),
        (TextDelta("half an"), Finished("stop", choice=1)),
        (TextDelta("a"), TextDelta("x", choice=1), Finished("stop")),
        (TextDelta("a"), TextDelta("", choice=1, extra={"reasoning": "hm"}), Finished("stop")),
    ],
    ids=["empty", "text only", "another choice ended", "a choice without an end", "an extra without an end"],
)
async def test_half_an_answer_is_an_error(events: Sequence[Event]) -> None:
    with pytest.raises(ModelServerError, match="broke off"):
        await collect(write, events)


async def test_collecting_puts_together_what_came_with_the_text() -> None:
    events = [
        TextDelta("", extra={"reasoning": "hm"}),
        TextDelta("a", extra={"logprobs": {"content": [1]}}),
        TextDelta("b", extra={"logprobs": {"content": [2]}}),
        Finished("stop"),
    ]
    whole = await collect(write, events)
    assert whole.extra == {"reasoning": "hm", "logprobs": {"content": [1, 2]}}


async def test_a_collector_is_never_full() -> None:
    collector = Collector()
    assert not collector.full
    await asyncio.wait_for(collector.drain(), 5)


async def test_what_is_read_is_what_was_written_in_that_order() -> None:
    extra = TextDelta("", extra={"reasoning": "hm"})
    events = [TextDelta("a"), extra, TextDelta("x", choice=1), Finished("stop"), Finished("length", choice=1)]
    assert [event async for event in read(write, events)] == events
    assert [event async for event in read(write, [])] == []


async def test_what_is_written_is_read_at_once() -> None:
    may_go_on = asyncio.Event()
    async with aclosing(read(asking(server("a", may_go_on, "b")))) as events:
        assert await anext(events) == TextDelta("a")
        may_go_on.set()
        assert [event async for event in events] == [TextDelta("b"), Finished("stop", Usage(1, 2))]


@pytest.mark.parametrize("pieces", [(), ("a",)], ids=["before the first piece", "after it"])
async def test_reading_that_is_closed_cancels_what_writes(pieces: Sequence[str]) -> None:
    scripted = server(*pieces, asyncio.Event())
    async with aclosing(read(asking(scripted))) as events:
        reading = asyncio.ensure_future(anext(events))
        await scripted.reached.wait()
        if pieces:
            await reading
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    assert scripted.closed.is_set()


async def test_what_goes_wrong_is_raised_behind_what_was_written() -> None:
    error = ModelServerError("x")
    events = read(asking(server("a", "b", error)))
    assert [await anext(events), await anext(events)] == [TextDelta("a"), TextDelta("b")]
    with pytest.raises(ModelServerError) as caught:
        await anext(events)
    assert caught.value is error


async def test_the_writer_waits_for_the_reader_and_nothing_is_lost() -> None:
    written = 0

    async def count_up(answer: Answer) -> None:
        nonlocal written
        for written in range(1000):
            await answer.drain()
            answer.text(f"{written} ")
        answer.finished(Finished("stop"))

    events = read(count_up)
    seen = [await anext(events)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert written < 100
    seen += [event async for event in events]
    assert seen == [*(TextDelta(f"{number} ") for number in range(1000)), Finished("stop")]


async def test_a_wrapper_waits_for_the_answer_that_it_wraps() -> None:
    class Full(Collector):
        drained = 0

        @property
        def full(self) -> bool:  # type: ignore[override]
            return True

        async def drain(self) -> None:
            self.drained += 1

    answer = Full()
    for forwarding in (Forwarding(answer), Parts(answer, 1).part(0)):
        assert forwarding.full
        await forwarding.drain()
    assert answer.drained == 2
    await write([TextDelta("a"), TextDelta("", extra={"b": "c"}), Finished("stop")], Forwarding(answer))
    assert answer.generation() == Generation("a", "stop", extra={"b": "c"})


async def several(asks: Sequence[Callable[[Answer], Awaitable[None]]], answer: Answer, choices: int = 1) -> None:
    """Write several answers as one, at the same time."""
    parts = Parts(answer, len(asks), choices)

    async def write_part(number: int, ask: Callable[[Answer], Awaitable[None]]) -> None:
        await ask(parts.part(number))

    await at_once([write_part(number, ask) for number, ask in enumerate(asks)])


async def test_several_answers_come_as_they_are_made() -> None:
    first_may_go_on = asyncio.Event()
    asks = [asking(server("a", first_may_go_on, "b")), asking(server("c"))]
    seen: list[Event] = []
    async with aclosing(read(partial(several, asks, choices=2))) as events:
        async for event in events:
            seen.append(event)
            if event == Finished("stop", choice=2):
                first_may_go_on.set()
    assert [event for event in seen if event.choice == 0] == [
        TextDelta("a"),
        TextDelta("b"),
        Finished("stop", Usage(2, 3)),
    ]
    assert [event for event in seen if event.choice == 2] == [TextDelta("c", choice=2), Finished("stop", choice=2)]


async def test_what_comes_beside_the_text_of_several_answers_stays_with_its_choice() -> None:
    beside = TextDelta("", choice=1, extra={"reasoning": "hm"})
    asks = [partial(write, [Finished("stop"), Finished("stop", choice=1)])]
    asks.append(partial(write, [Finished("stop"), beside, Finished("stop", choice=1)]))
    whole = await collect(partial(several, asks, choices=2))
    assert [choice.extra for choice in whole.choices] == [None, None, None, {"reasoning": "hm"}]


async def test_of_several_answers_of_which_one_is_not_counted_the_usage_is_not_known() -> None:
    asks = [partial(write, [Finished("stop", Usage(1, 2)), Finished("stop", choice=1)])]
    asks.append(partial(write, [Finished("stop")]))
    events = [event async for event in read(partial(several, asks, choices=2))]
    assert [event for event in events if isinstance(event, Finished) and event.usage] == []


def test_usages_are_added_up_with_the_details_that_all_of_them_have() -> None:
    one = Usage(1, 2, {"a": {"x": 1, "y": 2}, "b": {"z": 3}})
    assert total([one, Usage(3, 4, {"a": {"x": 5}})]) == Usage(4, 6, {"a": {"x": 6}})
    assert total([one]) == one
    assert total([one, None]) is None


async def test_several_answers_are_closed_together() -> None:
    never = asyncio.Event()
    servers = [server("a", never), server("b", never)]
    async with aclosing(read(several, [asking(one) for one in servers])) as events:
        await anext(events)
        await anext(events)
    assert all(one.closed.is_set() for one in servers)


async def test_one_of_several_answers_that_fails_ends_the_others() -> None:
    waiting, failing = server("a", asyncio.Event()), server("b", ModelServerError("x"))
    with pytest.raises(ModelServerError, match="x"):
        await collect(several, [asking(waiting), asking(failing)])
    assert waiting.closed.is_set()


async def test_one_of_several_answers_that_breaks_off_is_an_error() -> None:
    asks = [partial(write, [TextDelta("a"), Finished("stop")]), partial(write, [TextDelta("b")])]
    with pytest.raises(ModelServerError, match="broke off"):
        await collect(several, asks)


async def test_each_of_several_answers_says_whether_it_has_ended() -> None:
    parts = Parts(Collector(), 2)
    first, second = parts.part(0), parts.part(1)
    await write([TextDelta("a"), Finished("stop")], first)
    await write([TextDelta("b")], second)
    assert (first.ended, second.ended) == (True, False)
