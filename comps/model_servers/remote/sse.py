"""Parser of server-sent events (SSE). The bytes may be split anywhere.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from comps.core.errors import ModelServerError

_LONGEST = 64_000_000
"""The maximum size of an event, in bytes."""
_KEEP_ALIVE = (b"ping", b"pong", b"keepalive", b"heartbeat")
"""The names of events that only keep the connection open, which some servers send as data."""
BRACE = ord("{")
"""The first byte of nearly all data."""
_BOM = b"\xef\xbb\xbf"
EVENTS = b"text/event-stream"
_LINES = (b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/x-jsonlines")
"""The media types of a JSON document a line."""
STREAMS = (EVENTS, *_LINES)
_NO_STREAM = (b"application/json", b"text/html")
"""The media types of which only a body that begins like an event stream is parsed as one."""
_EVENT_BEGINS = re.compile(rb"(?:data|event|id|retry)?:")
BLANK = _BOM + b" \t\r\n"
"""The bytes before the beginning of a body: of a byte order mark, and whitespace."""
_SPACE = 32


def media_type(headers: Mapping[bytes, bytes]) -> bytes:
    """Returns the media type of a response, without parameters, in lower case; empty: it has none."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


def parser_for(kind: bytes, begin: bytes) -> type[EventStream] | type[JSONLines] | None:
    """Returns the parser of a stream, which servers and proxies may mislabel; None if it is none.

    Args:
        kind: The media type.
        begin: The beginning of the body, without `BLANK`.
    """
    if kind in _LINES:
        return JSONLines
    is_json = begin[:1] in (b"{", b"[")
    return None if is_json or (kind in _NO_STREAM and not _EVENT_BEGINS.match(begin)) else EventStream


def keeps_alive(name: bytes) -> bool:
    """Returns whether the name of an event, or its data, says that it only keeps the connection open."""
    return name.lower().replace(b"-", b"").replace(b"_", b"") in _KEEP_ALIVE


def is_done(data: bytes) -> bool:
    """Returns whether the data of an event ends the stream: `[DONE]`, however it is quoted."""
    return data.strip(b' \t"') == b"[DONE]"


class EventStream:
    """Incremental SSE parser. Comments, fields other than `data` and `event`, and events without data are ignored, and
    those that only keep the connection open. llama.cpp's field `error` is read as the data of an event of that name.

    Args:
        on_event: Called with the data and the name of each event, from `feed`. Most events have no name.
    """

    __slots__ = ("_after_cr", "_begun", "_data_length", "_length", "_lines", "_name", "_on_event", "_pieces")

    def __init__(self, on_event: Callable[[bytes, bytes], None]) -> None:
        self._on_event = on_event
        self._pieces: list[bytes] = []
        """The pieces of an unfinished line. They are joined only once, since the line may be long."""
        self._length = 0
        """The size of the unfinished event, in bytes."""
        self._data_length = 0
        self._lines: list[bytes] = []
        """The data lines of the unfinished event."""
        self._name = b""
        """The name of the unfinished event."""
        self._begun = False
        """Whether the first bytes, which may be a byte order mark, have been read."""
        self._after_cr = False
        """Whether the last byte was a CR, which a LF may follow."""

    def feed(self, data: bytes) -> None:
        """Parse the next bytes.

        Raises:
            ModelServerError: An event exceeds the maximum size; and the errors of `on_event`.
        """
        line, _, rest = data.partition(b"\n")
        is_whole = rest == b"\n" and line[:6] == b"data: " and line[-1] > _SPACE
        if is_whole and not self._pieces and not self._lines and not self._name:  # Fast path: exactly one event.
            self._begun = True
            self._on_event(line[6:], b"")
            return
        self._feed_any(data)

    def _feed_any(self, data: bytes) -> None:
        if not self._begun:
            data = self._without_bom(data)
        if self._after_cr or b"\r" in data:
            data = self._without_cr(data)
        self._length += len(data)
        if self._length > _LONGEST:
            raise ModelServerError("the model server sent an event without an end")
        self._pieces.append(data)
        if b"\n" not in data:
            return
        *whole, rest = b"".join(self._pieces).split(b"\n")
        self._pieces = [rest] if rest else []
        for line in whole:
            self._line(line)
        self._length = len(rest) + self._data_length

    def _without_bom(self, data: bytes) -> bytes:
        """Returns the first bytes without the byte order mark, which may be split."""
        data = b"".join([*self._pieces, data])
        self._pieces = []
        self._begun = not _BOM.startswith(data)
        return data.removeprefix(_BOM)

    def _without_cr(self, data: bytes) -> bytes:
        """Returns bytes with LF for CRLF, which may be split, and for CR alone."""
        if self._after_cr:
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._lines.append(line[5:].removeprefix(b" "))
            self._data_length += len(line)
        elif line.startswith(b"event:"):
            self._name = line[6:].strip()
        elif line.startswith(b"error:"):
            self._name = b"error"
            self._lines.append(line[6:])
        elif not line:
            data, name = b"\n".join(self._lines), self._name
            self._lines, self._name, self._data_length = [], b"", 0
            if data.strip() and not (name and keeps_alive(name)):
                self._on_event(data, name)

    def close(self) -> None:
        """Parse the end of the stream, at which some servers omit the last empty line."""
        rest, self._pieces = b"".join(self._pieces), []
        self._line(rest)
        self._line(b"")


class JSONLines:
    """Incremental parser of a JSON document a line: https://github.com/ndjson/ndjson-spec.

    Args:
        on_event: Called with each document and an empty name, from `feed`.
    """

    __slots__ = ("_length", "_on_event", "_pieces")

    def __init__(self, on_event: Callable[[bytes, bytes], None]) -> None:
        self._on_event = on_event
        self._pieces: list[bytes] = []
        """The pieces of an unfinished line."""
        self._length = 0

    def feed(self, data: bytes) -> None:
        """Parse the next bytes.

        Raises:
            ModelServerError: A line exceeds the maximum size; and the errors of `on_event`.
        """
        *whole, rest = data.split(b"\n")
        for end in whole:
            self._pieces.append(end)
            self.close()
        self._length += len(rest)
        if self._length > _LONGEST:
            raise ModelServerError("the model server sent an event without an end")
        self._pieces.append(rest)

    def close(self) -> None:
        """Parse the unfinished line."""
        line, self._pieces, self._length = b"".join(self._pieces).strip(), [], 0
        if line.removeprefix(_BOM):
            self._on_event(line.removeprefix(_BOM), b"")
