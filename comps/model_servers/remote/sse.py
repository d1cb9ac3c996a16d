"""Server-sent events out of bytes that may be cut anywhere.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

from collections.abc import Callable

from comps.core.errors import ModelServerError

_LONGEST = 64_000_000
"""Bytes of an event; more than that is none, and would only fill the memory."""
_BOM = b"\xef\xbb\xbf"
_CR = 13


class EventStream:
    """Calls back with the data of each event; comments, other fields and events without data are passed over.

    Args:
        on_data: Called with the data of an event, in the call of `feed` that brings its end.
    """

    __slots__ = ("_begun", "_length", "_lines", "_on_data", "_pieces")

    def __init__(self, on_data: Callable[[bytes], None]) -> None:
        self._on_data = on_data
        self._pieces: list[bytes] = []
        """Of a line that has not ended yet, put together once: it may be long."""
        self._length = 0
        """Bytes of the event that has not ended yet."""
        self._lines: list[bytes] = []
        """The data of that event."""
        self._begun = False
        """Whether any bytes have come."""

    def feed(self, data: bytes) -> None:
        """Read the next bytes.

        Raises:
            ModelServerError: An event does not end.
        """
        whole = data.startswith(b"data: ") and data.find(b"\n") == len(data) - 2 and data.endswith(b"\n\n")
        if whole and not self._pieces and not self._lines and data[-3] != _CR:  # One event, as nearly all arrive.
            self._begun = True
            self._on_data(data[6:-2])
            return
        self._feed_any(data)

    def _feed_any(self, data: bytes) -> None:
        if not self._begun:
            data = self._without_bom(data)
        self._length += len(data)
        if self._length > _LONGEST:
            raise ModelServerError("the model server sent an event without an end")
        self._pieces.append(data)
        if b"\n" not in data:
            return
        *whole, rest = b"".join(self._pieces).split(b"\n")
        self._pieces = [rest] if rest else []
        for line in whole:
            self._line(line.removesuffix(b"\r"))
        self._length = len(rest) + sum(map(len, self._lines))

    def _without_bom(self, data: bytes) -> bytes:
        """The first bytes, without a byte order mark, which may come in pieces."""
        data = b"".join([*self._pieces, data])
        self._pieces = []
        self._begun = not _BOM.startswith(data)
        return data.removeprefix(_BOM)

    def _line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._lines.append(line[5:].removeprefix(b" "))
        elif not line and self._lines:
            lines, self._lines = self._lines, []
            self._on_data(b"\n".join(lines))

    def close(self) -> None:
        """Read the end: some servers leave out the last empty line."""
        rest, self._pieces = b"".join(self._pieces), []
        self._line(rest.removesuffix(b"\r"))
        self._line(b"")
