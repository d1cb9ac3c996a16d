"""A model server that misbehaves at the level of TCP: it plays a script of bytes, pauses and resets."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypeAlias

TOKENS = 6
"""Of an answer, unless a test says otherwise."""
EVENTS, JSON = b"text/event-stream", b"application/json"


class Then(Enum):
    """What a script does other than writing."""

    RESET = "close the connection with a reset"
    CLOSE = "close the connection"
    HANG = "keep the connection open and write nothing more, until the client leaves"


@dataclass(frozen=True)
class Pause:
    """A pause, in seconds."""

    seconds: float


Step: TypeAlias = bytes | Then | Pause | asyncio.Event
"""Bytes to write, an end, a pause, or an event to wait for."""
Script: TypeAlias = Iterable[Step]


@dataclass(frozen=True)
class Reply:
    """A good reply, before it is spoilt.

    Args:
        pieces: The body, a token or an event a piece.
        media_type: The media type of the body.
    """

    pieces: tuple[bytes, ...]
    media_type: bytes = JSON

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def head(self, *headers: bytes) -> bytes:
        """The status line and the headers; without further ones the body is chunked."""
        lines = (
            b"HTTP/1.1 200 OK",
            b"Content-Type: " + self.media_type,
            *(headers or (b"Transfer-Encoding: chunked",)),
        )
        return b"".join(line + b"\r\n" for line in (*lines, b""))

    @property
    def chunks(self) -> list[bytes]:
        """The pieces as HTTP chunks, without the end of the body."""
        return [chunk(piece) for piece in self.pieces]


Fault: TypeAlias = Callable[[Reply], Script]


def chunk(data: bytes) -> bytes:
    """An HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def nothing_wrong(reply: Reply) -> Script:
    """The reply as it is."""
    yield reply.head()
    yield from reply.chunks
    yield b"0\r\n\r\n"


def token(number: int, mark: str = "") -> str:
    """The text of a token: its number, and a character of three bytes."""
    return f" {mark}{number}€"


def _dumped(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def openai_reply(tokens: list[str], streamed: bool) -> Reply:
    """OpenAI's reply."""
    usage = {"prompt_tokens": 1, "completion_tokens": len(tokens), "total_tokens": 1 + len(tokens)}
    if not streamed:
        choice = {"index": 0, "message": {"role": "assistant", "content": "".join(tokens)}, "finish_reason": "stop"}
        return _in_pieces(_dumped({"choices": [choice], "usage": usage}), len(tokens))
    chunks: list[Any] = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in tokens]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage}]
    return Reply((*(b"data: %b\n\n" % _dumped(one) for one in chunks), b"data: [DONE]\n\n"), EVENTS)


def tgi_reply(tokens: list[str], streamed: bool) -> Reply:
    """The reply of TGI's own API."""
    details = {"finish_reason": "eos_token", "generated_tokens": len(tokens), "input_length": 1}
    if not streamed:
        return _in_pieces(_dumped({"generated_text": "".join(tokens), "details": details}), len(tokens))
    events: list[dict[str, Any]] = [{"token": {"id": 1, "text": text, "special": False}} for text in tokens]
    events[-1] |= {"generated_text": "".join(tokens), "details": details}
    return Reply(tuple(b"data:%b\n\n" % _dumped(one) for one in events), EVENTS)


def _in_pieces(body: bytes, number: int) -> Reply:
    size = len(body) // number + 1
    return Reply(tuple(body[at : at + size] for at in range(0, len(body), size)))


class FaultyServer:
    """A running model server with OpenAI's API and TGI's.

    Args:
        fault: How the replies with answers are spoilt; a test may change it.
        tokens: The number of tokens of an answer.
        mark: What the texts of its tokens have before their numbers.
    """

    def __init__(self, fault: Fault = nothing_wrong, tokens: int = TOKENS, mark: str = "") -> None:
        self.fault = fault
        self.tokens = [token(number, mark) for number in range(tokens)]
        self.on_accept: Script = ()
        """What is done with a new connection before a request is read."""
        self.everywhere = False
        """Whether replies without answers are spoilt as well."""
        self.reads = True
        """Whether requests are read to their end."""
        self.answers = 0
        """The number of answers that were requested."""
        self.port = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        self._writers.add(writer)
        try:
            going_on = await self._play(self.on_accept, reader, writer)
            while going_on:
                going_on = await self._one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; returns whether another may come."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        if not self.reads and first.startswith("POST"):
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # It is a transport to read from as well.
            await asyncio.Event().wait()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = first.split()[1]
        asked = json.loads(body) if body else {}
        reply = self._answer(path, asked)
        self.answers += bool(reply)
        fault = self.fault if reply or self.everywhere else nothing_wrong
        return await self._play(fault(reply or Reply((_dumped(_fact(path, asked)),))), reader, writer)

    def _answer(self, path: str, asked: dict[str, Any]) -> Reply | None:
        """The reply with an answer; None on other paths."""
        if path.endswith("/completions"):
            return openai_reply(self.tokens, bool(asked.get("stream")))
        if path in ("/generate", "/generate_stream"):
            return tgi_reply(self.tokens, path == "/generate_stream")
        return None

    async def _play(self, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Play a script; returns whether the connection is still open."""
        for step in script:
            if isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            elif isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, asyncio.Event):
                await step.wait()
            else:
                await _end(step, reader, writer)
                return False
        return True

    def reset_all(self) -> None:
        """Close all connections with a reset."""
        for writer in list(self._writers):
            reset(writer)

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[FaultyServer]:
        """Listen until the end of the block; again on the same port, if it has listened before."""

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            serving = asyncio.ensure_future(self.serve(reader, writer))
            self._connections.add(serving)
            serving.add_done_callback(self._connections.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", self.port, ssl=tls, backlog=1000)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.reset_all()
            for serving in list(self._connections):
                serving.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)


def _fact(path: str, asked: dict[str, Any]) -> Any:
    """The reply on a path that has no answers."""
    if path == "/chat_tokenize":
        text = asked["messages"][-1]["content"]
        return {"templated_text": text, "tokenize_response": [{"id": 1, "text": text, "start": 0, "stop": len(text)}]}
    if path == "/tokenize":
        return []
    return {"data": [], "max_total_tokens": 100_000}


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset: its socket lingers for no time."""
    connection = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _end(how: Then, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if how is Then.RESET:
        reset(writer)
    elif how is Then.HANG:
        await reader.read()


def cut(reply: Reply, pieces: int) -> Reply:
    """The first pieces of a reply."""
    return replace(reply, pieces=reply.pieces[:pieces])
