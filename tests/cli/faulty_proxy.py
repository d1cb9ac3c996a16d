"""Proxies before a service, each with one fault that real proxies have."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

from tests.service import Connection

Relay = Callable[["Stream"], Awaitable[None]]


class Stream:
    """A chunked response on its way through the proxy."""

    def __init__(self, upstream: Connection, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self._reading = asyncio.ensure_future(self._read(upstream))
        self.is_at_end = False

    async def _read(self, upstream: Connection) -> None:
        chunk = None
        while chunk != b"":
            chunk = await upstream.chunk()
            self._chunks.put_nowait(chunk)

    async def chunk(self) -> bytes:
        """The next chunk; empty at the end."""
        chunk = await self._chunks.get()
        self.is_at_end = not chunk
        return chunk

    async def chunk_within(self, seconds: float) -> bytes | None:
        """The next chunk; None if none comes in time."""
        try:
            return await asyncio.wait_for(self.chunk(), seconds)
        except asyncio.TimeoutError:
            return None

    async def write(self, *chunks: bytes) -> None:
        for chunk in chunks:
            self.writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        await self.writer.drain()

    def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")

    def stop(self) -> None:
        self._reading.cancel()


async def faithful(stream: Stream) -> None:
    """Passes each chunk on as it comes."""
    while chunk := await stream.chunk():
        await stream.write(chunk)
    stream.end()


async def buffering(stream: Stream) -> None:
    """Keeps the response back to its end."""
    kept = []
    while chunk := await stream.chunk():
        kept.append(chunk)
    await stream.write(*kept)
    stream.end()


async def in_blocks(stream: Stream) -> None:
    """Keeps chunks back until there are six."""
    kept = []
    while chunk := await stream.chunk():
        kept.append(chunk)
        if len(kept) == 6:
            await stream.write(*kept)
            kept = []
    await stream.write(*kept)
    stream.end()


async def joining(stream: Stream) -> None:
    """Joins chunks that come within 15 ms."""
    chunk = await stream.chunk()
    while chunk:
        following = await stream.chunk_within(0.015)
        if following is None:
            await stream.write(chunk)
            chunk = await stream.chunk()
        else:
            await stream.write(chunk + following)
            chunk = b"" if stream.is_at_end else await stream.chunk()
    stream.end()


async def splitting(stream: Stream) -> None:
    """Cuts each chunk in two."""
    while chunk := await stream.chunk():
        await stream.write(chunk[:20], chunk[20:])
    stream.end()


async def compressing(stream: Stream) -> None:
    """Compresses the response, event by event."""
    packer = zlib.compressobj(wbits=31)
    while chunk := await stream.chunk():
        await stream.write(packer.compress(chunk) + packer.flush(zlib.Z_SYNC_FLUSH))
    await stream.write(packer.flush())
    stream.end()


async def with_nagle(stream: Stream) -> None:
    """Has not set TCP_NODELAY, so that a small write waits for the acknowledgement of the one before."""
    stream.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    await faithful(stream)


async def impatient(stream: Stream) -> None:
    """Closes a stream that is silent for 0.3 s."""
    while chunk := await stream.chunk_within(0.3):
        await stream.write(chunk)
    if stream.is_at_end:
        stream.end()


async def short(stream: Stream) -> None:
    """Ends the response properly after five chunks."""
    for _ in range(5):
        await stream.write(await stream.chunk())
    stream.end()


def another_clock(head: bytes) -> bytes:
    """Puts the header Date an hour ahead."""
    date = format_datetime(datetime.now(timezone.utc) + timedelta(hours=1), usegmt=True)
    return re.sub(rb"(?mi)^date: .*?\r$", f"date: {date}\r".encode(), head)


@asynccontextmanager
async def before(
    port: int,
    relay: Relay = faithful,
    *,
    of_head: Callable[[bytes], bytes] = lambda head: head,
    of_body: Callable[[bytes], bytes] = lambda body: body,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """A proxy before the service on a port; yields its own port.

    Args:
        port: The service's.
        relay: Passes streams on.
        of_head: Changes the head of each response.
        of_body: Changes each whole body, but not its length.
        tls: Its certificate; None: none.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = Connection(*await asyncio.open_connection("127.0.0.1", port))
        with suppress(OSError, asyncio.IncompleteReadError):
            await _exchange(reader, writer, upstream)
        upstream.close()
        writer.close()

    async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: Connection) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", asked)
        upstream.writer.write(asked + await reader.readexactly(int(length[1]) if length else 0))
        head = await upstream.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if relay is compressing and not length:
            head = head.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")
        writer.write(of_head(head))
        if length:
            writer.write(of_body(await upstream.reader.readexactly(int(length[1]))))
            return
        stream = Stream(upstream, writer)
        try:
            await relay(stream)
        finally:
            stream.stop()

    async with await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]
