"""The memory that bodies of requests take together: a body for which there is no room is not read until there is."""

from __future__ import annotations

import asyncio
from collections import deque

from comps.core.errors import Overloaded


class BodyMemory:
    """The room for bodies that are read and answered. It is given in the order in which it was asked for.

    A body waits in its connection, of which nothing is read meanwhile, so that its client waits to send it.

    Args:
        most: The bytes of all bodies together; one body alone may have more.
        seconds: How long a body may wait; 0: no limit.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self.held = 0
        """The bytes of all bodies that have room."""
        self._sizes: dict[object, int] = {}
        self._waiting: deque[tuple[object, int, asyncio.Future[None]]] = deque()

    async def take(self, request: object, size: int) -> None:
        """Wait for room, and take it; it is taken until `give_back`, whatever happens meanwhile.

        Args:
            request: Whose body it is.
            size: The bytes that it has at most.

        Raises:
            Overloaded: It waited too long.
        """
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, size, granted))
        self._grant()
        try:
            await asyncio.wait_for(granted, self._seconds or None)
        except asyncio.TimeoutError:
            most = f"{self._most // 1_000_000} MB"
            raise Overloaded(f"too many large requests: the bodies of others fill the {most} that there are") from None
        finally:
            if granted.cancelled():
                self._grant()

    def settle(self, request: object, size: int) -> None:
        """Give back what a body has turned out not to need."""
        self.held += size - self._sizes[request]
        self._sizes[request] = size
        self._grant()

    def give_back(self, request: object) -> None:
        """Give back the room of a request, if it has any."""
        self.held -= self._sizes.pop(request, 0)
        self._grant()

    def _grant(self) -> None:
        """Give room to those that wait, as far as there is some; one that has given up is passed over."""
        while self._waiting:
            request, size, granted = self._waiting[0]
            if not granted.done():
                if self.held and self.held + size > self._most:
                    return
                self.held += size
                self._sizes[request] = size
                granted.set_result(None)
            self._waiting.popleft()
