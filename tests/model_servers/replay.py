"""A loopback server that plays recordings of real model servers back, cut up as a test likes."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

TRAFFIC = Path(__file__).parent / "traffic"


@dataclass
class Reply:
    """What is answered on a path: a status, headers, and a body in pieces, with a pause behind the last if told to."""

    pieces: list[bytes]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    again: bytes = b""
    """Sent behind the last piece every few milliseconds, for as long as the client stays."""
    hang: bool = False
    """Keep the connection open behind the last piece, as a server does that is still generating."""
    break_off: bool = False
    """Close the connection in the middle of the body."""
    unanswered: bool = False
    """Close the connection instead of an answer, as a server does to one that was idle for too long."""


def recorded(server: str, case: str, size: int | None = None) -> Reply:
    """A recorded reply, its body in pieces of `size` bytes, or as it came."""
    recording = json.loads((TRAFFIC / server / f"{case}.json").read_text("utf-8"))
    body = recording["body_raw"].encode()
    pieces = [chunk.encode() for _, chunk in recording.get("chunks", [])] or [body]
    if size:
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return Reply(pieces, recording["status"], {"Content-Type": recording["headers"]["content-type"]})


def sse(*documents: object) -> Reply:
    """A stream of events made up by a test: documents as JSON, bytes as they are."""
    pieces = [one if isinstance(one, bytes) else b"data: " + json.dumps(one).encode() + b"\n\n" for one in documents]
    return Reply(pieces, headers={"Content-Type": "text/event-stream"})


class Replay:
    """The running server: what it was asked, and when a client left."""

    def __init__(self, replies: Mapping[str, Reply | list[Reply]]) -> None:
        self.replies = replies
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.connections = 0
        self.reached, self.left = asyncio.Event(), asyncio.Event()
        self.url = ""
        self.serving: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = first.split()[1]
        self.reached.set()
        self.asked.append((path, headers, _document(body, headers)))
        reply = self.replies[path]
        if isinstance(reply, list):
            reply = reply.pop(0) if len(reply) > 1 else reply[0]
        if reply.unanswered:
            return False
        head = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        writer.write(f"HTTP/1.1 {reply.status} X\r\n{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for piece in reply.pieces:
            writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
        while reply.again and not writer.is_closing():
            writer.write(b"%x\r\n" % len(reply.again) + reply.again + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)
        if reply.hang:
            await reader.read()
            self.left.set()
        if reply.hang or reply.break_off:
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def _document(body: bytes, headers: Mapping[str, str]) -> Any:
    if "form" in headers.get("content-type", ""):
        return dict(parse_qsl(body.decode()))
    return json.loads(body) if body else None


@asynccontextmanager
async def replaying(
    replies: Mapping[str, Reply | list[Reply]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[Replay]:
    """A server that answers each path with its reply, or with one of a list after the other (the last one for good)."""
    replay = Replay(replies)

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        replay.serving.add(asyncio.ensure_future(replay.serve(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls, backlog=1000)
    replay.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield replay
    finally:
        server.close()
        for task in replay.serving:
            task.cancel()
        await asyncio.gather(*replay.serving, return_exceptions=True)
