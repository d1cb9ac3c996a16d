"""`KeepAlive`: writes comments into a silent stream, so that proxies do not close the connection.

https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

COMMENT = b": keep-alive\n\n"
_LOOKS = 4
"""How often a stream is looked at within the time after which it counts as silent."""


class KeepAlive:
    """Watches a stream from now on; it looks at the stream from time to time, so that a token costs nothing.

    Args:
        seconds: How long the stream may be silent, in seconds; a comment is written at most a quarter later.
        has_written: Returns whether something was written since the last call.
        comment: Writes a comment.
    """

    def __init__(self, seconds: float, has_written: Callable[[], bool], comment: Callable[[], None]) -> None:
        self._pause = seconds / _LOOKS
        self._has_written = has_written
        self._comment = comment
        self._silent = 0
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._pause, self._look)

    def _look(self) -> None:
        self._silent = 0 if self._has_written() else self._silent + 1
        if self._silent >= _LOOKS:
            self._silent = 0
            self._comment()
        self._timer = self._loop.call_later(self._pause, self._look)

    def stop(self) -> None:
        """Stop watching."""
        self._timer.cancel()
