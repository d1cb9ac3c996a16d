"""Admission: slots and the queue for them. Requests that leave keep neither."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from comps.admission import Admission, RequestSlots
from comps.core.errors import Overloaded


class Client:
    """A client with one request, which keeps its slot until `leave` is set."""

    def __init__(self, admission: Admission, order: list[str], name: str, key: str = "") -> None:
        self._slots = RequestSlots(admission, key, monotonic())
        self._order = order
        self._name = name
        self._sent = asyncio.Event()
        self.admitted = asyncio.Event()
        self.leave = asyncio.Event()
        self.fails: Exception | None = None
        self.task = asyncio.ensure_future(self._request())

    async def _request(self) -> None:
        self._sent.set()
        await self._slots.enter()
        try:
            self._order.append(self._name)
            self.admitted.set()
            await self.leave.wait()
            if self.fails:
                raise self.fails
        finally:
            self._slots.close()

    async def sent(self) -> Client:
        """Return once the request has a slot, is in the queue, or was refused."""
        await self._sent.wait()
        return self


class Queue:
    """The admission of a model, and the order in which its clients were admitted."""

    def __init__(self, running: int, waiting: int, wait_seconds: float = 0) -> None:
        self.waited: list[float] = []
        self.admission = Admission(running, waiting, wait_seconds, self.waited.append)
        self.order: list[str] = []

    async def client(self, name: str, key: str = "") -> Client:
        return await Client(self.admission, self.order, name, key).sent()

    async def clients(self, *names: str) -> list[Client]:
        """One client after the other; the first letter of a name is its key."""
        return [await self.client(name, name[0]) for name in names]

    @property
    def counts(self) -> tuple[int, int]:
        return self.admission.running, self.admission.waiting


async def ended(*clients: Client) -> list[str]:
    """Have clients leave once they are admitted; returns the names of the refused ones."""
    for client in clients:
        client.leave.set()
    results = await asyncio.wait_for(asyncio.gather(*(one.task for one in clients), return_exceptions=True), 5)
    assert all(result is None or isinstance(result, Overloaded) for result in results), results
    return [client._name for client, result in zip(clients, results, strict=True) if result]


async def test_requests_are_admitted_at_once_while_slots_are_free() -> None:
    queue = Queue(running=2, waiting=0)
    a, b = await queue.client("a"), await queue.client("b")
    assert a.admitted.is_set()
    assert b.admitted.is_set()
    assert queue.counts == (2, 0)
    await ended(a, b)
    assert queue.counts == (0, 0)
    assert queue.waited == []


async def test_slots_are_given_in_the_order_of_arrival_to_callers_without_names() -> None:
    queue = Queue(running=1, waiting=3)
    clients = [await queue.client(name) for name in "abcd"]
    assert queue.order == ["a"]
    assert queue.counts == (1, 3)
    assert await ended(*clients) == []
    assert queue.order == ["a", "b", "c", "d"]
    assert queue.counts == (0, 0)
    assert len(queue.waited) == 3
    assert all(0 <= seconds < 60 for seconds in queue.waited)


async def test_a_full_queue_is_overload() -> None:
    queue = Queue(running=1, waiting=2)
    clients = [await queue.client(name) for name in "abc"]
    assert not queue.admission.has_place("")
    with pytest.raises(Overloaded, match="2 are waiting") as caught:
        await RequestSlots(queue.admission, "", monotonic()).enter()
    assert caught.value.retry_after == 1
    assert queue.counts == (1, 2)
    assert queue.admission.refused == {"queue_full": 1, "key_share": 0, "waited_too_long": 0}
    assert await ended(*clients) == []
    assert queue.order == ["a", "b", "c"]


async def test_without_a_queue_a_taken_slot_is_overload_and_a_free_one_is_not() -> None:
    queue = Queue(running=1, waiting=0)
    a = await queue.client("a")
    with pytest.raises(Overloaded):
        RequestSlots(queue.admission, "", monotonic()).check()
    with pytest.raises(Overloaded):
        await RequestSlots(queue.admission, "", monotonic()).enter()
    await ended(a)
    RequestSlots(queue.admission, "", monotonic()).check()
    b = await queue.client("b")
    assert b.admitted.is_set()
    assert await ended(b) == []


@pytest.mark.parametrize(
    ("waiting", "running", "seconds", "told"),
    [
        (0, 1, 7, 7),  # The next slot.
        (2, 1, 4, 12),  # Two that wait, and then this one.
        (2, 2, 4, 6),  # Two slots come free in that time.
        (2, 1, 0.001, 1),  # At least one second.
        (2, 1, 900, 60),  # At most a minute.
    ],
)
async def test_a_refusal_tells_when_those_that_wait_will_have_slots(
    waiting: int, running: int, seconds: float, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("comps.admission.monotonic", lambda: now)
    queue = Queue(running, waiting)
    full = [await queue.client(f"before {number}") for number in range(running)]
    for client in full:
        client._slots._since = now - seconds
    await ended(*full[:1])
    full = full[1:] + [await queue.client(f"now {number}") for number in range(waiting + 1)]
    assert queue.admission.refusal("").retry_after == told
    assert await ended(*full) == []


async def test_who_waits_too_long_is_refused_and_leaves_the_queue() -> None:
    queue = Queue(running=1, waiting=2, wait_seconds=0.01)
    a, b, c = [await queue.client(name) for name in "abc"]
    for late in (b, c):
        with pytest.raises(Overloaded, match="no slot became free"):
            await asyncio.wait_for(late.task, 5)
    assert queue.counts == (1, 0)
    assert queue.admission.refused["waited_too_long"] == 2
    assert await ended(a) == []
    assert queue.counts == (0, 0)


async def test_who_has_a_slot_is_not_refused_however_long_it_takes() -> None:
    queue = Queue(running=1, waiting=1, wait_seconds=0.02)
    a, b = await queue.client("a"), await queue.client("b")
    await ended(a)
    await asyncio.wait_for(b.admitted.wait(), 5)
    await asyncio.sleep(0.05)  # Longer than a request may wait.
    assert await ended(b) == []


async def test_a_cancelled_request_leaves_the_queue_at_once() -> None:
    queue = Queue(running=1, waiting=1)
    a, b = await queue.client("a"), await queue.client("b")
    b.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await b.task
    assert queue.counts == (1, 0)
    c = await queue.client("c")
    assert queue.counts == (1, 1)
    assert await ended(a, c) == []
    assert queue.order == ["a", "c"]


@pytest.mark.parametrize("rounds", [0, 1])
async def test_a_request_cancelled_as_its_slot_becomes_free_passes_it_on(rounds: int) -> None:
    queue = Queue(running=1, waiting=2)
    a, b, c = [await queue.client(name) for name in "abc"]
    a.leave.set()
    if rounds:
        await a.task
    b.task.cancel()
    await asyncio.gather(b.task, return_exceptions=True)
    await asyncio.wait_for(c.admitted.wait(), 5)
    assert queue.order == (["a", "b", "c"] if rounds else ["a", "c"])
    await ended(a, c)
    assert queue.counts == (0, 0)


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_slot_is_released_when_its_request(how: str) -> None:
    queue = Queue(running=1, waiting=1)
    a, b = await queue.client("a"), await queue.client("b")
    if how == "fails":
        a.fails = ValueError("broken")
        a.leave.set()
    else:
        a.task.cancel()
    with pytest.raises((ValueError, asyncio.CancelledError)):
        await a.task
    await asyncio.wait_for(b.admitted.wait(), 5)
    assert await ended(b) == []
    assert queue.counts == (0, 0)


async def test_callers_take_turns() -> None:
    queue = Queue(running=1, waiting=9)
    clients = await queue.clients("a0", "a1", "a2", "a3", "b1", "b2", "c1")
    assert await ended(*clients) == []
    assert queue.order == ["a0", "a1", "b1", "c1", "a2", "b2", "a3"]


@pytest.mark.parametrize(
    ("arrive", "refused"),
    [
        ("a1 a2 a3 a4 a5", "a5"),  # Alone: the last to come.
        ("a1 a2 a3 a4 b1", "a4"),  # The newest of who has more than its share.
        ("a1 a2 a3 a4 b1 b2", "a3 a4"),
        ("a1 a2 a3 a4 b1 b2 b3", "a3 a4 b3"),  # Half of the places for each of two.
        ("a1 a2 a3 a4 b1 b2 a5", "a3 a4 a5"),
        ("a1 a2 a3 a4 b1 b2 c1", "a2 a3 a4"),
        ("a1 b1 c1 d1 e1", "e1"),  # Nobody has more than one.
    ],
)
async def test_nobody_fills_the_queue_alone(arrive: str, refused: str) -> None:
    queue = Queue(running=1, waiting=4)
    running = await queue.client("running", "a")
    clients = await queue.clients(*arrive.split())
    assert queue.counts == (1, 4)
    assert sorted(await ended(running, *clients)) == refused.split()
    counts = queue.admission.refused
    of_share = refused not in ("a5", "e1")
    assert (counts["key_share"], counts["queue_full"]) == ((len(refused.split()), 0) if of_share else (0, 1))
    assert queue.counts == (0, 0)


async def holding(slots: RequestSlots, leave: asyncio.Event) -> None:
    await slots.take()
    try:
        await leave.wait()
    finally:
        slots.give_back()


async def test_of_a_body_with_many_answers_one_is_in_the_queue() -> None:
    queue, many = Queue(running=2, waiting=1), asyncio.Event()
    slots = RequestSlots(queue.admission, "", monotonic())
    await slots.enter()
    answers = [asyncio.ensure_future(holding(slots, many)) for _ in range(9)]
    await asyncio.sleep(0)
    assert queue.counts == (2, 1)
    many.set()
    await asyncio.wait_for(asyncio.gather(*answers), 5)
    assert queue.counts == (0, 0)


async def test_the_request_after_a_body_with_many_answers_waits_for_one_of_them() -> None:
    admission, order = Admission(running=1, waiting=5), list[str]()

    async def answer(slots: RequestSlots, name: str) -> None:
        await slots.take()
        order.append(name)
        await asyncio.sleep(0)
        slots.give_back()

    async def other() -> None:
        slots = RequestSlots(admission, "", monotonic())
        await slots.enter()
        await answer(slots, "one")

    slots = RequestSlots(admission, "", monotonic())
    await slots.enter()
    await asyncio.gather(*(answer(slots, f"many {number}") for number in range(4)), other())
    assert order.index("one") == 2
    assert (admission.running, admission.waiting) == (0, 0)


async def test_once_a_body_is_admitted_none_of_its_answers_is_refused() -> None:
    queue, leave = Queue(running=1, waiting=1, wait_seconds=0.01), asyncio.Event()
    slots = RequestSlots(queue.admission, "a", monotonic())
    await slots.enter()
    answers = [asyncio.ensure_future(holding(slots, leave)) for _ in range(2)]
    await asyncio.sleep(0)
    assert queue.counts == (1, 1)
    for key in ("a", "b"):
        with pytest.raises(Overloaded):
            await RequestSlots(queue.admission, key, monotonic()).enter()
    await asyncio.sleep(0.03)  # Longer than a request may wait.
    leave.set()
    await asyncio.wait_for(asyncio.gather(*answers), 5)
    assert queue.counts == (0, 0)


async def test_a_body_that_ends_before_its_answers_keeps_no_slot() -> None:
    queue = Queue(running=1, waiting=0)
    slots = RequestSlots(queue.admission, "", monotonic())
    await slots.enter()
    await slots.enter()  # It is one slot.
    assert queue.counts == (1, 0)
    slots.close()
    slots.close()
    assert queue.counts == (0, 0)
