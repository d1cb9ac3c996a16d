"""Memory after a storm of requests: it is returned to the system, which neither Python nor glibc does by itself.

Python returns a megabyte of its memory (an arena) when nothing is left in it. A few objects of 50 bytes keep it: those
that are made anew every second, and those that asyncio and uvloop keep for reuse when they are freed, 250 of a kind.
So these are made anew where memory is dense: all gaps are filled for a second, in which everything short-lived moves,
and then the objects that are kept for reuse are replaced by new ones.

glibc returns a block at once if it is large, but what is large grows with the blocks that are used, up to 32 MB.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from itertools import repeat

_LOOK_SECONDS = 5.0
"""Seconds between two looks."""
_STORM = 100
"""Requests at once that make a storm."""
_MOVING_SECONDS = 3.0
"""In which whatever is made anew every second has been made anew."""
_BLOCKS = range(48, 513, 16)
"""The sizes of objects that are in arenas, and are not smaller than a `bytes`, in bytes."""
_SMALL_BLOCK, _SMALL_GAPS, _GAPS = 64, 10, 2
"""For each request of a storm, gaps of a size that are filled: up to this many bytes, and above."""
_REUSED = 300
"""More than asyncio and uvloop keep of a kind of object, which is 255 and 250."""
_M_MMAP_THRESHOLD, _LARGE = -3, 524_288
"""The option of glibc, and from which size on, in bytes, a block is large: above the 256 KB that asyncio allocates for
each read from a socket. To return those would take a fifth of the time of a request."""


def return_large_blocks() -> None:
    """Have large blocks, such as bodies, returned when they are freed: https://man7.org/linux/man-pages/man3/mallopt.3.html"""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


class Memory:
    """Looks at how many requests run, and gives memory back when a storm is over."""

    def __init__(self) -> None:
        self._peaks = [0, 0]
        """The most requests at once, before the last look and since.

        Memory is given back twice, since connections to model servers are kept for a while after the requests.
        """
        self._next_look = 0.0
        self._gaps: Gaps | None = None

    def look(self, now: float, running: int) -> None:
        """Give memory back if a storm is over.

        Args:
            now: The time of the event loop.
            running: How many requests run.
        """
        self._peaks[1] = max(self._peaks[1], running)
        if now < self._next_look:
            return
        if self._gaps:
            self._gaps.give_back()
            self._gaps = None
        peak = max(self._peaks)
        is_over = peak >= _STORM and running <= peak // 10
        if is_over:
            self._gaps = Gaps(peak)
        self._next_look = now + (_MOVING_SECONDS if is_over else _LOOK_SECONDS)
        self._peaks = [self._peaks[1], running]


class Gaps:
    """The gaps in Python's memory, filled until they are given back with all that is unused around them.

    Args:
        requests: How many requests there were at once.
    """

    def __init__(self, requests: int) -> None:
        gc.collect()
        empty = b"".__sizeof__()
        self._filled = [list(map(bytes, repeat(size - empty, requests * _gaps(size)))) for size in _BLOCKS]
        self._filled_with_floats = list(map(float, range(requests * _SMALL_GAPS)))
        self._spread = _reused()
        """What was kept for reuse, wherever it is."""
        self._dense = _reused()

    def give_back(self) -> None:
        """Return free memory to the system: https://man7.org/linux/man-pages/man3/malloc_trim.3.html"""
        self._dense.clear()  # These are now kept for reuse, and the others are not.
        self._spread.clear()
        self._filled.clear()
        self._filled_with_floats.clear()
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # Only glibc has it.
        if trim:
            trim(0)


def _gaps(size: int) -> int:
    return _SMALL_GAPS if size <= _SMALL_BLOCK else _GAPS


def _reused() -> list[object]:
    """Returns objects of the kinds that asyncio and uvloop keep for reuse: calls, timers and awaited futures."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    timers = [loop.call_later(_LOOK_SECONDS, _nothing) for _ in range(_REUSED)]
    for timer in timers:
        timer.cancel()
    calls = [loop.call_soon(_nothing) for _ in range(_REUSED)]
    return [*timers, *calls, *(future.__await__() for _ in range(_REUSED))]


def _nothing() -> None:
    """What the calls do."""
