"""The deadlines of an exchange with a model server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from comps.core.errors import Timeout as ServerTimeout
from comps.core.tallies import TIMEOUTS
from comps.model_servers.target import Access

NEVER = float("inf")


class Deadlines:
    """The deadlines of an exchange. There is one timer; moving a deadline only changes a number.

    Args:
        first: Seconds until the first token or the whole answer; 0: no limit.
        between: Seconds between two tokens; 0: no limit.
        total: Seconds until the end; 0: no limit.
    """

    __slots__ = ("_between", "_end", "_first", "_late", "_suspended", "_timer", "last_token", "loop")

    def __init__(self, first: float = 0.0, between: float = 0.0, total: float = 0.0) -> None:
        self.loop = asyncio.get_running_loop()
        """The running event loop, looked up once per exchange."""
        now = self.loop.time()
        self._between = between or NEVER
        self._end = now + (total or NEVER)
        self._first = now + (first or NEVER)
        self.last_token = NEVER
        """The time of the last token on the loop's clock, by which the deadline moves. A reader says what is one."""
        self._suspended = False
        self._late: Callable[[Exception], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._start_timer(now)

    @classmethod
    def of_stream(cls, access: Access) -> Deadlines:
        """Returns the deadlines of a streamed answer."""
        return cls(access.first_token_seconds, access.between_tokens_seconds, access.total_seconds)

    @classmethod
    def of_whole(cls, access: Access) -> Deadlines:
        """Returns the deadlines of a whole answer, which arrives in one piece."""
        return cls(access.first_token_seconds, 0.0, access.total_seconds)

    def watch(self, late: Callable[[Exception], None]) -> None:
        """Call `late` with a timeout error if a deadline is missed before `stop`."""
        self._late = late

    def restart(self) -> None:
        """Watch the same deadlines again, after `stop`, for a request that is sent again."""
        self.stop()
        self.last_token = NEVER
        self._suspended = False
        self._start_timer(self.loop.time())

    def suspend(self) -> None:
        """Suspend the deadline between tokens while the reader makes the server wait; the total remains."""
        self._suspended = True

    def resume(self) -> None:
        """End `suspend`."""
        self._suspended = False
        self.last_token = self.loop.time()

    @property
    def left(self) -> float:
        """Seconds to the deadline; infinite without one."""
        return self._due - self.loop.time()

    @property
    def _due(self) -> float:
        if self._suspended:
            return self._end
        return min(self._first if self.last_token == NEVER else self.last_token + self._between, self._end)

    def missed(self) -> ServerTimeout:
        """Counts a deadline that was missed, and returns the error."""
        begun = self.last_token != NEVER
        TIMEOUTS["total" if self._due == self._end else "between_tokens" if begun else "first_token"] += 1
        return ServerTimeout(f"the model server did not {'go on' if begun else 'begin'} in time")

    def stop(self) -> None:
        """Cancel the timer."""
        self._late = None
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = self.loop.time()
        self._timer = None
        if now < self._due:
            self._start_timer(now)
        elif self._late:
            self._late(self.missed())

    def _start_timer(self, now: float) -> None:
        """Start the timer for the earliest possible deadline, so that tokens need not move it."""
        when = min(self._due, now + self._between)
        if when != NEVER:
            self._timer = self.loop.call_at(when, self._look)
