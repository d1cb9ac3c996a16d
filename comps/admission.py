"""How many answers may be made at once, and how many requests may wait for a slot."""

from __future__ import annotations

import asyncio
from types import TracebackType

from comps.core.errors import Overloaded


class Admission:
    """A fixed number of slots, and a queue of fixed length before them; first come, first served.

    Args:
        running: How many answers may be made at once.
        waiting: How many requests may wait.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.slots = asyncio.Semaphore(running)
        self.most_waiting = waiting
        self.waiting = 0
        """Requests in the queue."""
        self.running = 0
        """Slots that are taken."""


class RequestSlots:
    """The slots of one request, one for each of its answers.

    Each answer takes a slot and gives it back by itself, but only one of them at a time stands in the queue: the next
    request waits for one of them, however many they are.

    Args:
        admission: Where the slots are.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._turn: asyncio.Lock | None = None
        """Held by the answer that stands in the queue; made when the first one has to."""
        self._admitted = False

    def slot(self) -> Slot:
        """A slot, taken for the time of an `async with` block; who is cancelled while waiting leaves the queue.

        Raises:
            Overloaded: On entering: the queue is full, and no answer of this request has had a slot yet.
        """
        return Slot(self)

    async def take(self) -> None:
        """Take a slot; see `slot`."""
        admission = self._admission
        if not ((self._turn and self._turn.locked()) or admission.slots.locked()):
            await admission.slots.acquire()  # It does not wait.
        else:
            self._turn = self._turn or asyncio.Lock()
            async with self._turn:
                await self._wait(admission)
        self._admitted = True
        admission.running += 1

    async def _wait(self, admission: Admission) -> None:
        if admission.slots.locked() and admission.waiting >= admission.most_waiting and not self._admitted:
            raise Overloaded(f"too many requests: {admission.waiting} are waiting already")
        admission.waiting += 1
        try:
            await admission.slots.acquire()
        finally:
            admission.waiting -= 1
        self._admitted = True

    def give_back(self) -> None:
        """Give a slot back."""
        self._admission.running -= 1
        self._admission.slots.release()


class Slot:
    """A slot of a request; see `RequestSlots.slot`."""

    __slots__ = ("_slots",)

    def __init__(self, slots: RequestSlots) -> None:
        self._slots = slots

    async def __aenter__(self) -> None:
        await self._slots.take()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._slots.give_back()
