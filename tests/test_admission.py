"""Places and the queue before them: first come, first served, and nobody who left keeps either."""

from __future__ import annotations

import asyncio

import pytest

from comps.admission import Admission, RequestSlots
from comps.core.errors import Overloaded


class Guest:
    """Somebody who comes for a place, and stays until told to leave."""

    def __init__(self, admission: Admission, order: list[str], name: str) -> None:
        self._admission = admission
        self._order = order
        self._name = name
        self._came = asyncio.Event()
        self.seated = asyncio.Event()
        self.leave = asyncio.Event()
        self.fails: Exception | None = None
        self.task = asyncio.ensure_future(self._visit())

    async def _visit(self) -> None:
        self._came.set()
        async with RequestSlots(self._admission).slot():
            self._order.append(self._name)
            self.seated.set()
            await self.leave.wait()
            if self.fails:
                raise self.fails

    async def arrive(self) -> Guest:
        """Once this returns, the guest has a place, waits for one, or was turned away."""
        await self._came.wait()
        return self


class Door:
    """Where guests come in, and the order in which they were seated."""

    def __init__(self, running: int, waiting: int) -> None:
        self.admission = Admission(running, waiting)
        self.order: list[str] = []

    async def guest(self, name: str) -> Guest:
        return await Guest(self.admission, self.order, name).arrive()


async def test_all_who_find_a_place_are_seated_at_once() -> None:
    door = Door(running=2, waiting=0)
    a, b = await door.guest("a"), await door.guest("b")
    assert a.seated.is_set()
    assert b.seated.is_set()
    assert door.admission.waiting == 0
    a.leave.set()
    b.leave.set()
    await asyncio.gather(a.task, b.task)


async def test_places_are_given_in_the_order_of_arrival() -> None:
    door = Door(running=1, waiting=3)
    guests = [await door.guest(name) for name in "abcd"]
    assert door.order == ["a"]
    assert door.admission.waiting == 3
    for guest in guests:
        guest.leave.set()
    await asyncio.gather(*(guest.task for guest in guests))
    assert door.order == ["a", "b", "c", "d"]
    assert door.admission.waiting == 0


async def test_a_waiter_is_seated_as_soon_as_a_place_is_free() -> None:
    door = Door(running=1, waiting=1)
    a, b = await door.guest("a"), await door.guest("b")
    assert not b.seated.is_set()
    a.leave.set()
    await asyncio.wait_for(b.seated.wait(), 5)
    b.leave.set()
    await asyncio.gather(a.task, b.task)


async def test_beyond_the_queue_there_is_overload() -> None:
    door = Door(running=1, waiting=2)
    guests = [await door.guest(name) for name in "abc"]
    with pytest.raises(Overloaded, match="2 are waiting") as caught:
        async with RequestSlots(door.admission).slot():
            pytest.fail("there is no place")
    assert caught.value.retry_after == 1
    assert door.admission.waiting == 2
    for guest in guests:
        guest.leave.set()
    await asyncio.gather(*(guest.task for guest in guests))
    assert door.order == ["a", "b", "c"]


async def test_without_a_queue_a_taken_place_is_overload_and_a_free_one_is_not() -> None:
    door = Door(running=1, waiting=0)
    a = await door.guest("a")
    with pytest.raises(Overloaded):
        async with RequestSlots(door.admission).slot():
            pytest.fail("there is no place")
    a.leave.set()
    await a.task
    async with RequestSlots(door.admission).slot():
        assert door.admission.waiting == 0


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    door = Door(running=1, waiting=1)
    a, b = await door.guest("a"), await door.guest("b")
    b.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await b.task
    assert door.admission.waiting == 0
    c = await door.guest("c")
    assert door.admission.waiting == 1
    a.leave.set()
    c.leave.set()
    await asyncio.gather(a.task, c.task)
    assert door.order == ["a", "c"]


async def test_a_waiter_cancelled_as_its_place_comes_free_passes_it_on() -> None:
    door = Door(running=1, waiting=2)
    a, b, c = [await door.guest(name) for name in "abc"]
    a.leave.set()
    await a.task
    b.task.cancel()
    await asyncio.gather(b.task, return_exceptions=True)
    await asyncio.wait_for(c.seated.wait(), 5)
    c.leave.set()
    await c.task
    assert door.admission.waiting == 0
    async with RequestSlots(door.admission).slot():
        pass


async def test_a_place_is_released_on_an_error() -> None:
    door = Door(running=1, waiting=1)
    a, b = await door.guest("a"), await door.guest("b")
    a.fails = ValueError("broken")
    a.leave.set()
    with pytest.raises(ValueError, match="broken"):
        await a.task
    await asyncio.wait_for(b.seated.wait(), 5)
    b.leave.set()
    await b.task


async def test_a_place_is_released_on_cancellation() -> None:
    door = Door(running=1, waiting=1)
    a, b = await door.guest("a"), await door.guest("b")
    a.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await a.task
    await asyncio.wait_for(b.seated.wait(), 5)
    b.leave.set()
    await b.task
    assert door.admission.waiting == 0


async def visit(slots: RequestSlots, leave: asyncio.Event) -> None:
    async with slots.slot():
        await leave.wait()


async def test_of_a_body_with_many_answers_one_stands_before_the_door() -> None:
    admission, many = Admission(running=2, waiting=1), asyncio.Event()
    slots = RequestSlots(admission)
    answers = [asyncio.ensure_future(visit(slots, many)) for _ in range(9)]
    await asyncio.sleep(0)
    assert (admission.running, admission.waiting) == (2, 1)
    many.set()
    await asyncio.wait_for(asyncio.gather(*answers), 5)
    assert (admission.running, admission.waiting) == (0, 0)


async def test_who_comes_after_a_body_with_many_answers_waits_for_one_of_them() -> None:
    admission, order = Admission(running=1, waiting=5), list[str]()
    slots = RequestSlots(admission)

    async def answer(slots: RequestSlots, name: str) -> None:
        async with slots.slot():
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(
        *(answer(slots, f"many {number}") for number in range(4)), answer(RequestSlots(admission), "one")
    )
    assert order.index("one") == 2
    assert (admission.running, admission.waiting) == (0, 0)


async def test_once_a_body_is_let_in_a_full_queue_turns_none_of_its_answers_away() -> None:
    admission, leave = Admission(running=1, waiting=0), asyncio.Event()
    slots = RequestSlots(admission)
    first = asyncio.ensure_future(visit(slots, leave))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(visit(slots, leave))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        async with RequestSlots(admission).slot():
            pytest.fail("there is no place")
    leave.set()
    await asyncio.wait_for(asyncio.gather(first, second), 5)
    assert (admission.running, admission.waiting) == (0, 0)
