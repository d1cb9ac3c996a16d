"""Admission: slots and the queue for them, in order of arrival. Requests that leave keep neither."""

from __future__ import annotations

import asyncio

import pytest

from comps.admission import Admission, RequestSlots
from comps.core.errors import Overloaded


class Client:
    """A client with one request, which keeps its slot until `leave` is set."""

    def __init__(self, admission: Admission, order: list[str], name: str) -> None:
        self._admission = admission
        self._order = order
        self._name = name
        self._sent = asyncio.Event()
        self.admitted = asyncio.Event()
        self.leave = asyncio.Event()
        self.fails: Exception | None = None
        self.task = asyncio.ensure_future(self._request())

    async def _request(self) -> None:
        self._sent.set()
        async with RequestSlots(self._admission).slot():
            self._order.append(self._name)
            self.admitted.set()
            await self.leave.wait()
            if self.fails:
                raise self.fails

    async def sent(self) -> Client:
        """Return once the request has a slot, is in the queue, or was refused."""
        await self._sent.wait()
        return self


class Queue:
    """The admission of a service, and the order in which its clients were admitted."""

    def __init__(self, running: int, waiting: int) -> None:
        self.admission = Admission(running, waiting)
        self.order: list[str] = []

    async def client(self, name: str) -> Client:
        return await Client(self.admission, self.order, name).sent()


async def test_requests_are_admitted_at_once_while_slots_are_free() -> None:
    queue = Queue(running=2, waiting=0)
    a, b = await queue.client("a"), await queue.client("b")
    assert a.admitted.is_set()
    assert b.admitted.is_set()
    assert queue.admission.waiting == 0
    a.leave.set()
    b.leave.set()
    await asyncio.gather(a.task, b.task)


async def test_slots_are_given_in_the_order_of_arrival() -> None:
    queue = Queue(running=1, waiting=3)
    clients = [await queue.client(name) for name in "abcd"]
    assert queue.order == ["a"]
    assert queue.admission.waiting == 3
    for client in clients:
        client.leave.set()
    await asyncio.gather(*(client.task for client in clients))
    assert queue.order == ["a", "b", "c", "d"]
    assert queue.admission.waiting == 0


async def test_a_queued_request_is_admitted_as_soon_as_a_slot_is_free() -> None:
    queue = Queue(running=1, waiting=1)
    a, b = await queue.client("a"), await queue.client("b")
    assert not b.admitted.is_set()
    a.leave.set()
    await asyncio.wait_for(b.admitted.wait(), 5)
    b.leave.set()
    await asyncio.gather(a.task, b.task)


async def test_a_full_queue_is_overload() -> None:
    queue = Queue(running=1, waiting=2)
    clients = [await queue.client(name) for name in "abc"]
    with pytest.raises(Overloaded, match="2 are waiting") as caught:
        async with RequestSlots(queue.admission).slot():
            pytest.fail("there is no slot")
    assert caught.value.retry_after == 1
    assert queue.admission.waiting == 2
    for client in clients:
        client.leave.set()
    await asyncio.gather(*(client.task for client in clients))
    assert queue.order == ["a", "b", "c"]


async def test_without_a_queue_a_taken_slot_is_overload_and_a_free_one_is_not() -> None:
    queue = Queue(running=1, waiting=0)
    a = await queue.client("a")
    with pytest.raises(Overloaded):
        async with RequestSlots(queue.admission).slot():
            pytest.fail("there is no slot")
    a.leave.set()
    await a.task
    async with RequestSlots(queue.admission).slot():
        assert queue.admission.waiting == 0


async def test_a_cancelled_request_leaves_the_queue() -> None:
    queue = Queue(running=1, waiting=1)
    a, b = await queue.client("a"), await queue.client("b")
    b.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await b.task
    assert queue.admission.waiting == 0
    c = await queue.client("c")
    assert queue.admission.waiting == 1
    a.leave.set()
    c.leave.set()
    await asyncio.gather(a.task, c.task)
    assert queue.order == ["a", "c"]


async def test_a_request_cancelled_as_its_slot_becomes_free_passes_it_on() -> None:
    queue = Queue(running=1, waiting=2)
    a, b, c = [await queue.client(name) for name in "abc"]
    a.leave.set()
    await a.task
    b.task.cancel()
    await asyncio.gather(b.task, return_exceptions=True)
    await asyncio.wait_for(c.admitted.wait(), 5)
    c.leave.set()
    await c.task
    assert queue.admission.waiting == 0
    async with RequestSlots(queue.admission).slot():
        pass


async def test_a_slot_is_released_on_an_error() -> None:
    queue = Queue(running=1, waiting=1)
    a, b = await queue.client("a"), await queue.client("b")
    a.fails = ValueError("broken")
    a.leave.set()
    with pytest.raises(ValueError, match="broken"):
        await a.task
    await asyncio.wait_for(b.admitted.wait(), 5)
    b.leave.set()
    await b.task


async def test_a_slot_is_released_on_cancellation() -> None:
    queue = Queue(running=1, waiting=1)
    a, b = await queue.client("a"), await queue.client("b")
    a.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await a.task
    await asyncio.wait_for(b.admitted.wait(), 5)
    b.leave.set()
    await b.task
    assert queue.admission.waiting == 0


async def hold_slot(slots: RequestSlots, leave: asyncio.Event) -> None:
    async with slots.slot():
        await leave.wait()


async def test_of_a_body_with_many_answers_one_is_in_the_queue() -> None:
    admission, many = Admission(running=2, waiting=1), asyncio.Event()
    slots = RequestSlots(admission)
    answers = [asyncio.ensure_future(hold_slot(slots, many)) for _ in range(9)]
    await asyncio.sleep(0)
    assert (admission.running, admission.waiting) == (2, 1)
    many.set()
    await asyncio.wait_for(asyncio.gather(*answers), 5)
    assert (admission.running, admission.waiting) == (0, 0)


async def test_the_request_after_a_body_with_many_answers_waits_for_one_of_them() -> None:
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


async def test_once_a_body_is_admitted_a_full_queue_refuses_none_of_its_answers() -> None:
    admission, leave = Admission(running=1, waiting=0), asyncio.Event()
    slots = RequestSlots(admission)
    first = asyncio.ensure_future(hold_slot(slots, leave))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(hold_slot(slots, leave))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        async with RequestSlots(admission).slot():
            pytest.fail("there is no slot")
    leave.set()
    await asyncio.wait_for(asyncio.gather(first, second), 5)
    assert (admission.running, admission.waiting) == (0, 0)
