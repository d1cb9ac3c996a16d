"""How many answers may be made at once, and how many bodies may wait for a place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from comps.core.errors import Overloaded


class Admission:
    """A fixed number of places, and a queue of fixed length before them; first come, first served.

    Args:
        running: How many answers may be made at once.
        waiting: How many bodies may wait.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.slots = asyncio.Semaphore(running)
        self.most_waiting = waiting
        self.waiting = 0
        """Requests in the queue."""
        self.running = 0
        """Places that are held."""


class RequestSlots:
    """The answers of one body.

    Each takes a slot and gives it back by itself, but only one at a time stands in the queue: the next request in the
    queue waits for one of them, however many they are.

    Args:
        admission: Where they ask.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._turn = asyncio.Lock()
        self._let_in = False

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A place, held until the block is left; whoever is cancelled while waiting leaves the queue.

        Raises:
            Overloaded: The queue is full, and none of this body has been let in yet.
        """
        admission = self._admission
        async with self._turn:
            if admission.slots.locked() and admission.waiting >= admission.most_waiting and not self._let_in:
                raise Overloaded(f"too many requests: {admission.waiting} are waiting already")
            admission.waiting += 1
            try:
                await admission.slots.acquire()
            finally:
                admission.waiting -= 1
            self._let_in = True
        admission.running += 1
        try:
            yield
        finally:
            admission.running -= 1
            admission.slots.release()
