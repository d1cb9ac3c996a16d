"""How many requests may be answered at once, and how many may wait for a place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from comps.core.errors import InvalidRequest, Overloaded


class Admission:
    """A fixed number of places, and a queue of fixed length before them; first come, first served.

    Args:
        running: How many answers may be made at once.
        waiting: How many more may wait.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._most_running = running
        self._places = asyncio.Semaphore(running)
        self._turn = asyncio.Lock()
        self._most_waiting = waiting
        self.waiting = 0
        """Requests before the door."""
        self.running = 0
        """Places that are held."""

    @asynccontextmanager
    async def places(self, number: int = 1) -> AsyncIterator[None]:
        """So many places, held until the block is left; whoever is cancelled while waiting leaves the queue.

        Raises:
            InvalidRequest: There are not so many.
            Overloaded: The queue is full.
        """
        if number > self._most_running:
            raise InvalidRequest(
                f"it asks for {number} answers at once, and no more than {self._most_running} are made"
            )
        if (self._turn.locked() or self._places.locked()) and self.waiting >= self._most_waiting:
            raise Overloaded(f"too many requests: {self.waiting} are waiting already")
        held = 0
        self.waiting += 1
        try:
            try:
                # Whoever needs several gets them before the next one gets any: two who each hold some would wait for
                # each other.
                async with self._turn:
                    while held < number:
                        await self._places.acquire()
                        held += 1
                        self.running += 1
            finally:
                self.waiting -= 1
            yield
        finally:
            self.running -= held
            for _ in range(held):
                self._places.release()
