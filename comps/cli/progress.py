"""Progress on a terminal, for what takes longer than two seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic

_SECONDS = 2.0
_TICK = 0.5
_CLEAR = "\r\x1b[K"


@contextmanager
def progress(text: str, after: float = _SECONDS) -> Iterator[Callable[[], None]]:
    """Shows, on standard error, what the block waits for and how long it has; only on a terminal.

    Args:
        text: What takes so long.
        after: Seconds after which it is shown.

    Yields:
        A function that ends it before the block does; calling it again does nothing.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    started, ended = monotonic(), Event()
    thread = Thread(target=_show, args=(text, after, started, ended), daemon=True)
    thread.start()

    def end() -> None:
        if not ended.is_set():
            ended.set()
            thread.join()

    try:
        yield end
    finally:
        end()


def _show(text: str, after: float, started: float, ended: Event) -> None:
    wait, shown = after, False
    while not ended.wait(wait):
        sys.stderr.write(f"{_CLEAR}{text} … {monotonic() - started:.0f} s")
        sys.stderr.flush()
        wait, shown = _TICK, True
    if shown:
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()
