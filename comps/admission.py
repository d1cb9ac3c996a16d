"""Admission: how many requests of a model are answered at once, how many wait for a slot, and which of them is next.

Callers take turns (fair queueing, RFC 970): each gets the next slot for its oldest request. When the queue is full, the
newest request of the caller with the most waiting ones gives its place to a caller that has at least two fewer (longest
queue drop). Where callers have no names, they are one caller: first come, first served.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from math import ceil
from time import monotonic
from typing import TypeAlias

from comps.core.errors import Overloaded

log = logging.getLogger("opea_llm")

QUEUE_FULL, KEY_SHARE, WAITED_TOO_LONG = "queue_full", "key_share", "waited_too_long"
"""Reasons of a refusal."""
_LONGEST_RETRY = 60
"""Seconds; OpenAI's clients ignore a longer `Retry-After`."""
_SMOOTHING = 0.1
"""The weight of the newest value in the average time that a slot is taken."""

Waiter: TypeAlias = "asyncio.Future[str | None]"
"""A waiting request: its result is None when it has a slot, or else why it gets none."""


class Admission:
    """The slots of one model, and the queue for them.

    Args:
        running: How many answers may be made at once.
        waiting: How many requests may wait.
        wait_seconds: How long a request may wait, in seconds; 0: no limit.
        on_waited: Called with the seconds that a request waited until it got a slot.
    """

    def __init__(
        self, running: int, waiting: int, wait_seconds: float = 0.0, on_waited: Callable[[float], None] | None = None
    ) -> None:
        self.max_running = running
        self.max_waiting = waiting
        self.wait_seconds = wait_seconds
        self.running = 0
        """Slots that are taken: all of them, as long as a request waits."""
        self.waiting = 0
        """Requests in the queue."""
        self.refused = dict.fromkeys((QUEUE_FULL, KEY_SHARE, WAITED_TOO_LONG), 0)
        """The number of refused requests by reason."""
        self._on_waited = on_waited
        self._queues: OrderedDict[str, OrderedDict[Waiter, bool]] = OrderedDict()
        """Each caller's requests, the oldest first, and whether they may be refused; the next caller first."""
        self._taken_seconds = 0.0
        """How long a slot is taken, on average of those given back while all were taken; 0: not known."""

    def take(self) -> bool:
        """Take a slot; returns False if none is free."""
        if self.running == self.max_running:
            return False
        self.running += 1
        return True

    def has_place(self, caller: str) -> bool:
        """Whether there is a slot, or a place in the queue, for a new request of a caller."""
        if self.running < self.max_running or self.waiting < self.max_waiting:
            return True
        return self._gives_way(caller) is not None

    def refusal(self, caller: str) -> Overloaded:
        """Returns why there is no place for a new request of a caller, and counts the refusal."""
        own = len(self._queues.get(caller, ()))
        if own and len(self._queues) > 1:
            self.refused[KEY_SHARE] += 1
            return self._overloaded(f"too many requests with this key: {own} of them are waiting already")
        self.refused[QUEUE_FULL] += 1
        return self._overloaded(f"too many requests: {self.waiting} are waiting already")

    async def wait(self, caller: str, *, may_refuse: bool = True) -> float:
        """Wait for a slot, and take it; returns the seconds. Who is cancelled meanwhile leaves the queue.

        Args:
            caller: Whose request it is.
            may_refuse: Whether it may be refused.

        Raises:
            Overloaded: The queue is full, the request waited too long, or its place went to another caller.
        """
        if may_refuse and self.waiting >= self.max_waiting:
            if not self.has_place(caller):
                raise self.refusal(caller)
            if gives_way := self._gives_way(caller):
                said = "too many requests with this key: the newest one gave its place to another key"
                self._end(*gives_way, KEY_SHARE, said)
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        self._queues.setdefault(caller, OrderedDict())[waiter] = may_refuse
        self.waiting += 1
        began = monotonic()
        timer = None
        if may_refuse and self.wait_seconds:
            said = f"too many requests: no slot became free within {self.wait_seconds:g} s"
            timer = loop.call_later(self.wait_seconds, self._end, caller, waiter, WAITED_TOO_LONG, said)
        try:
            refused = await waiter
        except asyncio.CancelledError:
            self._remove(caller, waiter)
            if not waiter.cancelled() and waiter.result() is None:
                self._pass_on()
            raise
        finally:
            if timer:
                timer.cancel()
        if refused:
            raise self._overloaded(refused)
        waited = monotonic() - began
        if self._on_waited:
            self._on_waited(waited)
        log.debug("waited %.3f s for a slot; %d more wait", waited, self.waiting)
        return waited

    def give_back(self, since: float) -> None:
        """Give a slot back; the next request in the queue gets it.

        Args:
            since: When it was taken, by `time.monotonic`.
        """
        if self.running < self.max_running:
            self.running -= 1
            return
        taken = monotonic() - since
        known = self._taken_seconds
        self._taken_seconds = known + (taken - known) * _SMOOTHING if known else taken
        self._pass_on()

    def _pass_on(self) -> None:
        """Give a slot to the next request in the queue, if there is one."""
        while self._queues:
            caller, queue = next(iter(self._queues.items()))
            waiter = next(iter(queue))
            self._queues.move_to_end(caller)
            self._remove(caller, waiter)
            if not waiter.done():
                waiter.set_result(None)
                return
        self.running -= 1

    def _gives_way(self, caller: str) -> tuple[str, Waiter] | None:
        """Returns the request that gives its place in a full queue to one of this caller; None if none has to."""
        if not self._queues:
            return None
        other, longest = max(self._queues.items(), key=lambda one: len(one[1]))
        if len(longest) < len(self._queues.get(caller, ())) + 2:
            return None
        return next(((other, waiter) for waiter in reversed(longest) if longest[waiter]), None)

    def _end(self, caller: str, waiter: Waiter, reason: str, said: str) -> None:
        """Refuse a waiting request."""
        self._remove(caller, waiter)
        if not waiter.done():
            self.refused[reason] += 1
            waiter.set_result(said)

    def _remove(self, caller: str, waiter: Waiter) -> None:
        """Take a request out of the queue, if it is there."""
        queue = self._queues.get(caller, OrderedDict())
        if queue.pop(waiter, None) is not None:
            self.waiting -= 1
            if not queue:
                del self._queues[caller]

    def _overloaded(self, said: str) -> Overloaded:
        """Returns a refusal, with the seconds in which those that wait now will have slots."""
        seconds = ceil((self.waiting + 1) * self._taken_seconds / self.max_running)
        return Overloaded(said, min(max(seconds, 1), _LONGEST_RETRY))


class RequestSlots:
    """The slots of one request, one for each of its answers.

    The request is admitted, or refused, with its first slot. Each answer then takes a slot and gives it back by itself,
    but only one of them at a time stands in the queue: the next request waits for one of them, however many they are.

    Args:
        admission: Where the slots are.
        caller: Whose request it is; empty if callers have no names.
        since: When it began, by `time.monotonic`.
    """

    __slots__ = ("_admission", "_caller", "_has_slot", "_since", "_turn", "waited")

    def __init__(self, admission: Admission, caller: str, since: float) -> None:
        self._admission = admission
        self._caller = caller
        self._since = since
        self.waited = 0.0
        """Seconds that the request waited for its first slot."""
        self._has_slot = False
        """Whether there is a slot for the next answer."""
        self._turn: asyncio.Lock | None = None
        """Held by the answer that stands in the queue; made when the first one has to."""

    def check(self) -> None:
        """Raise `Overloaded` if `enter` would do so now."""
        admission = self._admission
        if admission.running == admission.max_running and not admission.has_place(self._caller):
            raise admission.refusal(self._caller)

    async def enter(self) -> None:
        """Take the first slot, for the first answer, unless it is taken already.

        Raises:
            Overloaded: See `Admission.wait`.
        """
        if self._has_slot:
            return
        if not self._admission.take():
            self.waited = await self._admission.wait(self._caller)
            self._since = monotonic()
        self._has_slot = True

    async def take(self) -> None:
        """Take a slot for one answer of a request that has been admitted."""
        if self._has_slot:
            self._has_slot = False
            return
        self._turn = self._turn or asyncio.Lock()
        async with self._turn:
            if not self._admission.take():
                await self._admission.wait(self._caller, may_refuse=False)
                self._since = monotonic()

    def give_back(self) -> None:
        """Give back the slot of an answer."""
        self._admission.give_back(self._since)

    def close(self) -> None:
        """Give back the first slot, if no answer took it."""
        if self._has_slot:
            self._has_slot = False
            self._admission.give_back(self._since)
