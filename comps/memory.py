"""Memory: when garbage is collected, and what is returned to the system after a storm of requests.

Neither Python nor glibc returns it by itself.

Python's allocator returns memory by the megabyte (an arena), when nothing is left in it. A few objects of 50 bytes that
outlive a storm keep most of its arenas. glibc returns each free page of 4 KB when it is told to. So in a storm objects
are allocated by glibc, which takes 4 to 12 % more of the service's processor time, and otherwise by Python.

glibc returns a block at once if it is large, but what is large grows with the blocks that are used, up to 32 MB.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc

from comps.core.beside import is_busy

STORM = 200
"""Requests at once that make a storm; it ends with half of them."""
_LOOK_SECONDS, _LOOKS = 5.0, 12
"""Seconds between two looks, and at how many of them after a storm memory is given back: connections are kept for a
while after their requests."""
_COLLECTION_LOOKS, _MOST_WAITED = 12, 108
"""Looks between two collections of all garbage, and for how many more one waits for a quiet moment."""
_NEVER = 1_000_000_000
_RAW, _OURS = 0, (1, 2)
"""The domains of Python's allocators: `PYMEM_DOMAIN_RAW`, which is glibc's, and those of buffers and objects."""
_M_MMAP_THRESHOLD, _LARGE = -3, 524_288
"""The option of glibc, and from which size on, in bytes, a block is large: above the 256 KB that asyncio allocates for
each read from a socket. To return those would take a fifth of the time of a request."""


def return_large_blocks() -> None:
    """Have large blocks, such as bodies, returned when they are freed: https://man7.org/linux/man-pages/man3/mallopt.3.html"""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def collect_seldom() -> None:
    """Have what is there now left alone by the garbage collector, and all garbage collected only by `Memory.look`.

    To look through all of what a service has loaded takes 0.1 s, and through a large answer of a model server or 2,000
    open streams 0.2 s, in which no other thread runs. Python itself collects young garbage, as nearly all is, and no
    answer needs more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], _NEVER)


class Memory:
    """Has memory allocated in such a way, and given back in time, that little of it is left after a storm."""

    def __init__(self) -> None:
        self._allocators = Allocators()
        self._looks = 0
        """At how many looks memory is still to be given back."""
        self._next_look = 0.0
        self._until_collection = _COLLECTION_LOOKS
        """Looks until all garbage is collected; below zero while that waits for a quiet moment."""

    def in_storm(self) -> None:
        """A request came in a storm."""
        self._allocators.use_glibc()
        self._looks = _LOOKS

    def look(self, now: float, running: int) -> None:
        """Collect garbage now and then, and give memory back if a storm is over.

        Args:
            now: The time of the event loop.
            running: How many requests run.
        """
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        if self._looks and running < STORM // 2:
            self._looks -= 1
            self._allocators.use_python()
            self._until_collection = min(self._until_collection, 1)
        self._until_collection -= 1
        is_quiet = running < STORM // 2 and not is_busy()  # With large bodies or answers.
        waits = not is_quiet and self._until_collection > -_MOST_WAITED
        if self._until_collection <= 0 and not waits:
            self._until_collection = _COLLECTION_LOOKS
            gc.collect()
            asyncio.get_running_loop().call_soon(_trim)  # Each of the two may take 20 ms.


class _Allocator(ctypes.Structure):
    """`PyMemAllocatorEx`: an allocator of Python's."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("ctx", "malloc", "calloc", "realloc", "free"))


class Allocators:
    """Where Python's objects are allocated: https://docs.python.org/3/c-api/memory.html#customize-memory-allocators

    They are freed by Python's allocator at all times, which hands to glibc what is not in its arenas, as it does with
    all blocks of more than 512 bytes. Another allocator, such as that with debug hooks, is left as it is, as is any
    other C library.
    """

    def __init__(self) -> None:
        self._pythons: dict[int, _Allocator] = {}
        """Python's allocators by domain, while glibc's are used."""

    def use_glibc(self) -> None:
        """Have objects allocated by glibc."""
        if self._pythons or not (_can_trim() and _name() == b"pymalloc"):
            return
        glibc = _allocator(_RAW)
        self._pythons = {domain: _allocator(domain) for domain in _OURS}
        for domain, one in self._pythons.items():
            _set(domain, _Allocator(one.ctx, glibc.malloc, glibc.calloc, one.realloc, one.free))

    def use_python(self) -> None:
        """Have objects allocated by Python, as from the start."""
        for domain, one in self._pythons.items():
            _set(domain, one)
        self._pythons = {}


def _name() -> bytes:
    """Returns the name of Python's allocator; empty if it has none, or Python does not tell."""
    name = getattr(ctypes.pythonapi, "_PyMem_GetCurrentAllocatorName", None)
    if name is None:
        return b""
    name.restype = ctypes.c_char_p
    return name() or b""


def _allocator(domain: int) -> _Allocator:
    found = _Allocator()
    ctypes.pythonapi.PyMem_GetAllocator(domain, ctypes.byref(found))
    return found


def _set(domain: int, allocator: _Allocator) -> None:
    ctypes.pythonapi.PyMem_SetAllocator(domain, ctypes.byref(allocator))


def _can_trim() -> bool:
    return hasattr(ctypes.CDLL(None), "malloc_trim")


def _trim() -> None:
    """Return free memory to the system: https://man7.org/linux/man-pages/man3/malloc_trim.3.html"""
    if _can_trim():
        ctypes.CDLL(None).malloc_trim(0)
