"""Memory after a storm of requests: it is returned to the system, which neither Python nor glibc does by itself."""

from __future__ import annotations

import ctypes
import gc

_LOOKS = 30
"""Seconds between two looks."""
_STORM = 100
"""Requests at once that make a storm."""


class Memory:
    """Looks at how many requests run, and gives memory back when a storm is over."""

    def __init__(self) -> None:
        self._peaks = [0, 0]
        """The most requests at once, before the last look and since.

        Memory is given back twice, since connections to model servers are kept for a while after the requests.
        """
        self._next_look = 0.0

    def look(self, now: float, running: int) -> None:
        """Give memory back if a storm is over.

        Args:
            now: The time of the event loop.
            running: How many requests run.
        """
        self._peaks[1] = max(self._peaks[1], running)
        if now < self._next_look:
            return
        self._next_look = now + _LOOKS
        peak = max(self._peaks)
        self._peaks = [self._peaks[1], running]
        if peak >= _STORM and running <= peak // 10:
            give_back()


def give_back() -> None:
    """Collect garbage, and return free memory to the system: https://man7.org/linux/man-pages/man3/malloc_trim.3.html"""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # Only glibc has it.
    if trim:
        trim(0)
