"""Server-sent events out of bytes that may be cut anywhere.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable


async def sse_data(chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes]:
    """The data of each event; comments, other fields and events without data are passed over."""
    rest = b""
    lines: list[bytes] = []
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                lines.append(line[5:].removeprefix(b" "))
            elif not line and lines:
                yield b"\n".join(lines)
                lines = []
    if rest.startswith(b"data:"):  # Some servers leave out the last empty line.
        lines.append(rest.rstrip(b"\r")[5:].removeprefix(b" "))
    if lines:
        yield b"\n".join(lines)
