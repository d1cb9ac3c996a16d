"""Files that are read again when they change, without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

CHECK_SECONDS = 1.0
"""The time between two looks at the files."""


class WatchedFiles:
    """Files by their paths. A change of time, size or file is noticed, as when Kubernetes replaces a secret's link.

    Make it before the files are read, so that no change is missed.

    Args:
        paths: The paths; empty ones are left out.
        reload: Called in a thread after a change. What it raises is its own affair: it has to log it.
    """

    def __init__(self, paths: Iterable[str], reload: Callable[[], None]) -> None:
        self._paths = [path for path in paths if path]
        self._reload = reload
        self._seen = self._stamps()

    async def watch(self) -> None:
        """Look once a second, until this is cancelled."""
        while self._paths:
            await asyncio.sleep(CHECK_SECONDS)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Read the files again if one of them has changed."""
        stamps = self._stamps()
        if stamps != self._seen:
            self._seen = stamps
            self._reload()

    def _stamps(self) -> list[tuple[int, ...]]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: str) -> tuple[int, ...]:
    try:
        state = Path(path).stat()
    except OSError:
        return ()
    return state.st_mtime_ns, state.st_size, state.st_ino, state.st_dev
