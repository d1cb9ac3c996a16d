"""Server-sent events out of bytes that may be cut anywhere.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable

from comps.core.errors import ModelServerError

_LONGEST = 64_000_000
"""Bytes of a line; more than that is no event, and would only fill the memory."""
_BOM = b"\xef\xbb\xbf"


async def sse_data(chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes]:
    """The data of each event; comments, other fields and events without data are passed over.

    Raises:
        ModelServerError: A line does not end.
    """
    pieces: list[bytes] = []  # Of a line that has not ended yet, put together once: it may be long.
    length = 0
    lines: list[bytes] = []
    async for chunk in chunks:
        pieces.append(chunk)
        length += len(chunk)
        if b"\n" not in chunk:
            if length > _LONGEST:
                raise ModelServerError("the model server sent a line without an end")
            continue
        *whole, rest = b"".join(pieces).split(b"\n")
        pieces, length = [rest], len(rest)
        for line in whole:
            line = line.rstrip(b"\r").removeprefix(_BOM)
            if line.startswith(b"data:"):
                lines.append(line[5:].removeprefix(b" "))
            elif not line and lines:
                yield b"\n".join(lines)
                lines = []
    rest = b"".join(pieces)
    if rest.startswith(b"data:"):  # Some servers leave out the last empty line.
        lines.append(rest.rstrip(b"\r")[5:].removeprefix(b" "))
    if lines:
        yield b"\n".join(lines)
