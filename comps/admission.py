"""How many requests may be answered at once, and how many may wait for a place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from comps.core.errors import Overloaded


class Admission:
    """A fixed number of places, and a queue of fixed length before them; first come, first served.

    Args:
        running: How many requests may generate at once.
        waiting: How many more may wait.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._places = asyncio.Semaphore(running)
        self._most_waiting = waiting
        self.waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place, held until the block is left; whoever is cancelled while waiting leaves the queue.

        Raises:
            Overloaded: The queue is full.
        """
        if self._places.locked() and self.waiting >= self._most_waiting:
            raise Overloaded(f"too many requests: {self.waiting} are waiting already")
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._places.release()
