"""The memory that bodies of requests take together: a body for which there is no room is not read until there is."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from typing import TypeAlias

from comps.core.errors import Overloaded

_Granted: TypeAlias = "asyncio.Future[None]"
"""Its end is that there is room."""


class BodyMemory:
    """The room for bodies that are read and answered. Callers take turns, each in the order of its requests.

    Args:
        most: The bytes of all bodies together; one body alone may have more.
        seconds: How long a body may wait; 0: no limit.
        share: The bytes of the bodies of one caller together; one body alone may have more. None: `most`.
        ahead: The room in which bodies are read while they wait for this one. Of the others the beginning is read, and
            their clients wait to send the rest. None: there is none.
    """

    def __init__(self, most: int, seconds: float, share: int | None = None, ahead: BodyMemory | None = None) -> None:
        self._most = most
        self._seconds = seconds
        self._share = most if share is None else share
        self.ahead = ahead
        self.held = 0
        """The bytes of all bodies that have room."""
        self._held_by: Counter[str] = Counter()
        self._sizes: dict[object, tuple[str, int]] = {}
        """The callers and the bytes of requests that have room."""
        self._queues: OrderedDict[str, OrderedDict[_Granted, tuple[object, int]]] = OrderedDict()
        """The requests that wait, and the bytes that their bodies have at most, by callers; the next caller first."""

    def take_at_once(self, request: object, size: int, caller: str = "") -> bool:
        """Take room, as `take`; returns False if it would have to wait."""
        if self._queues or not self._fits(size) or not self._is_within_share(caller, size):
            return False
        self._hold(request, caller, size, size)
        return True

    async def take(self, request: object, size: int, caller: str = "") -> None:
        """Wait for room, and take it; it is taken until `give_back`, whatever happens meanwhile.

        Args:
            request: Whose body it is.
            size: The bytes that it has at most.
            caller: Who sent it; empty if callers have no names.

        Raises:
            Overloaded: It waited too long.
        """
        granted: _Granted = asyncio.get_running_loop().create_future()
        self._queues.setdefault(caller, OrderedDict())[granted] = request, size
        self._grant()
        try:
            await asyncio.wait_for(granted, self._seconds or None)
        except asyncio.TimeoutError:
            most = f"{self._most // 1_000_000} MB"
            raise Overloaded(f"too many large requests: the bodies of others fill the {most} that there are") from None
        finally:
            if granted.cancelled():
                self._remove(caller, granted)
                self._grant()

    @property
    def waiting(self) -> int:
        """The bodies for which there is no room yet."""
        return sum(map(len, self._queues.values()))

    def settle(self, request: object, size: int) -> None:
        """Give back what a body has turned out not to need."""
        caller, before = self._sizes[request]
        self._hold(request, caller, size - before, size)
        self._grant()

    def give_back(self, request: object) -> None:
        """Give back the room of a request, if it has any."""
        caller, size = self._sizes.get(request, ("", 0))
        self._hold(request, caller, -size, 0)
        self._grant()

    def _hold(self, request: object, caller: str, more: int, size: int) -> None:
        """Note that a request has room of a size now, which is that much more than before; 0: it has none."""
        self.held += more
        self._held_by[caller] += more
        self._sizes[request] = caller, size
        if not size:
            del self._sizes[request]
        if not self._held_by[caller]:
            del self._held_by[caller]

    def _grant(self) -> None:
        """Give room to those that wait, as far as there is some."""
        while (caller := next(filter(self._may_have_more, self._queues), None)) is not None:
            granted, (request, size) = next(iter(self._queues[caller].items()))
            if not granted.done():
                if not self._fits(size):
                    return
                self._hold(request, caller, size, size)
                granted.set_result(None)
            self._queues.move_to_end(caller)
            self._remove(caller, granted)

    def _remove(self, caller: str, granted: _Granted) -> None:
        """Take a request out of the queue, if it is there."""
        queue = self._queues.get(caller, OrderedDict())
        if queue.pop(granted, None) is not None and not queue:
            del self._queues[caller]

    def _fits(self, size: int) -> bool:
        return not self.held or self.held + size <= self._most

    def _is_within_share(self, caller: str, size: int) -> bool:
        held = self._held_by[caller]
        return not held or held + size <= self._share

    def _may_have_more(self, caller: str) -> bool:
        """Whether the oldest waiting body of a caller is within its share, or is not wanted any more."""
        granted, (_, size) = next(iter(self._queues[caller].items()))
        return granted.done() or self._is_within_share(caller, size)
