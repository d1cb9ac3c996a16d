"""Circuit breaker: keeps requests from a model server that fails, and finds out by one of them when it is back.

closed ──failures──► open ──after a pause──► half-open: one request is the probe ──answers──► closed
                       ▲                         │
                       └────────fails────────────┘

https://learn.microsoft.com/azure/architecture/patterns/circuit-breaker
"""

from __future__ import annotations

import logging
from collections.abc import Callable

_FIRST_PAUSE = 1.0
"""Seconds for which it is open the first time; twice as many each further time."""


class CircuitBreaker:
    """The state of one model server. Times are in seconds on a monotonic clock.

    Args:
        tell: Called at each change with the level for the log and what happened, such as `is set aside for 1 s: …`.
        failures: Consecutive failures after which it opens.
        longest: The longest time for which it is open.
    """

    def __init__(self, tell: Callable[[int, str], None], failures: int = 1, longest: float = 30.0) -> None:
        self._tell = tell
        self._threshold = failures
        self._longest = longest
        self._failures = 0
        """Consecutive failures while it is closed."""
        self._openings = 0
        """Consecutive openings without an answer between them."""
        self.generation = 0
        """How often it has opened. A failure of a call that began before the last time is ignored."""
        self.is_probed = False
        """Whether a probe is running."""
        self.open_until: float | None = None
        """The time after which one call is sent as a probe; None: it is closed."""

    @property
    def state(self) -> str:
        """One of `CIRCUIT_STATES`."""
        return "closed" if self.open_until is None else "half-open" if self.is_probed else "open"

    def allows(self, now: float) -> bool:
        """Returns whether a call may be sent now: it is closed, or due for a probe and none is running."""
        return self.open_until is None or (self.open_until <= now and not self.is_probed)

    def begin(self, now: float) -> Call:
        """Record the beginning of a call, which may be one that the state does not allow."""
        is_probe = self.open_until is not None and self.allows(now)
        if is_probe:
            self.is_probed = True
            self._tell(logging.INFO, "is tried again")
        return Call(self, self.generation, is_probe, counts=self.open_until is None or is_probe)

    def close(self) -> None:
        """Close it without an answer to a request, because a description shows that the model server is back."""
        if self.open_until is not None:
            self.open_until = None
            self.is_probed = False
            self._tell(logging.INFO, "is back")

    def answers(self) -> None:
        """Record an answer: close it, and forget all failures."""
        self._failures = self._openings = 0
        if self.open_until is not None:
            self.close()

    def open(self, now: float, why: str) -> None:
        """Open it.

        Args:
            now: The time.
            why: The error, for the log.
        """
        pause = min(_FIRST_PAUSE * 2.0 ** min(self._openings, 10), self._longest)
        self._openings += 1
        self.generation += 1
        self._failures = 0
        self.is_probed = False
        self.open_until = now + pause
        self._tell(logging.WARNING, f"is set aside for {pause:.0f} s: {why}")

    def fails(self, now: float, why: str, at_once: bool) -> None:
        """Record a failure; see `Call.fails`."""
        self._failures += 1
        if at_once or self.open_until is not None or self._failures >= self._threshold:
            self.open(now, why)


class Call:
    """A call of the model server behind a circuit breaker.

    Args:
        breaker: The circuit breaker.
        generation: How often it had opened when the call began.
        is_probe: Whether the call is the probe.
        counts: Whether a failure of the call counts: not if it began while the circuit breaker was open.
    """

    __slots__ = ("_breaker", "_counts", "_generation", "_is_probe")

    def __init__(self, breaker: CircuitBreaker, generation: int, is_probe: bool, counts: bool) -> None:
        self._breaker = breaker
        self._generation = generation
        self._is_probe = is_probe
        self._counts = counts

    @property
    def is_of_now(self) -> bool:
        """Whether the circuit breaker has not opened since the call began."""
        return self._breaker.generation == self._generation

    def fails(self, now: float, why: str, at_once: bool = False) -> None:
        """Record that the call failed.

        Args:
            now: The time.
            why: The error, for the log.
            at_once: Whether one failure is enough to open the circuit breaker.
        """
        if self._counts and self.is_of_now:
            self._breaker.fails(now, why, at_once)

    def end(self) -> None:
        """Record the end of the call."""
        if self._is_probe and self.is_of_now:
            self._breaker.is_probed = False
