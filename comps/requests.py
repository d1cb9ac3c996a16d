"""What is read of a request before its body means something: its id, its path, and its body's encoding."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Awaitable, Sequence
from functools import partial
from random import getrandbits
from typing import TypeVar

from starlette.types import Message, Receive, Scope, Send

from comps.body_memory import BodyMemory
from comps.core.beside import beside
from comps.core.errors import BodyTooLarge, Malformed, UnsupportedEncoding
from comps.responses import Response

T = TypeVar("T")

REQUEST_ID_HEADER = b"x-request-id"
REQUEST_ID_OF_SCOPE = "opea_llm.request_id"
"""The key of ASGI's scope with the id of the request, once it has one."""
_ID = re.compile(r"[\x21-\x7e]{1,200}")
_TRACE_PARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,100})?"
)
_TRACE_STATE = re.compile(rb"[ -~]{1,512}")
_SLASHES = re.compile("//+")
_AUTOMATIC, _RAW = 47, -15
"""zlib's window bits: for gzip and zlib headers, and for deflate without a header, which some clients send."""
_WINDOWS = {b"gzip": (_AUTOMATIC,), b"x-gzip": (_AUTOMATIC,), b"deflate": (_AUTOMATIC, _RAW)}
"""The content encodings that are read, with their window bits."""
_MOST_ENCODINGS = 3
_MOST_MEMBERS = 2000
"""The most members of a body in gzip; 16 MB in the blocks of bgzip are 250. An empty one has 20 bytes, and takes
microseconds."""
_PIECE = 16384
"""Bytes that are decompressed at once: what follows a member is copied."""
_SOON_DECODED = 10_000
"""In bytes; the rest is decompressed beside the event loop."""
_MOST_OF_A_BYTE = 1032
"""The bytes that zlib makes of one at most: https://zlib.net/zlib_tech.html"""
_SMALL = 65_536
"""The bytes of a body for which no room is taken: connections have as many of each request anyway."""


class ClientGone(Exception):
    """The client closed the connection, so there is no reply."""


def request_id(sent: bytes | None) -> str:
    """Returns the id that a client sent, if it is of 1 to 200 visible ASCII characters; otherwise a new one.

    Args:
        sent: The header `X-Request-Id`; None if there is none.
    """
    if sent is not None and _ID.fullmatch(said := sent.decode("latin-1")):
        return said
    return f"{getrandbits(128):032x}"


def trace_headers(parent: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Returns the lines of W3C's trace headers, to be passed on as they came; empty if `traceparent` is malformed.

    https://www.w3.org/TR/trace-context/

    Args:
        parent: The value of `traceparent`.
        headers: All headers of the request.
    """
    if not _TRACE_PARENT.fullmatch(parent):
        return b""
    state = b",".join(value.strip() for name, value in headers if name == b"tracestate")
    lines = b"traceparent: %b\r\n" % parent
    return lines + b"tracestate: %b\r\n" % state if _TRACE_STATE.fullmatch(state) else lines


def plain_path(path: str) -> str:
    """Returns a path without a slash at its end, and without repeated ones."""
    return _SLASHES.sub("/", path).rstrip("/") or "/"


def with_request_id(send: Send, said: str, further: bytes | None = None) -> Send:
    """Returns ASGI's `send`, with the request's id added to the headers of the response.

    Args:
        send: ASGI's `send`.
        said: The id.
        further: A further name of the header.
    """
    names = (REQUEST_ID_HEADER, further) if further else (REQUEST_ID_HEADER,)

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if all(name.lower() != REQUEST_ID_HEADER for name, _ in headers):
                message = {**message, "headers": [*headers, *((name, said.encode()) for name in names)]}
        await send(message)

    return send_with_id


def without_body(send: Send) -> Send:
    """Returns ASGI's `send` for a HEAD request: the headers of GET, and no body."""

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_head


class Incoming:
    """A body that is received, and whether its client is still there.

    What waits for a server's `receive` may be cancelled, and loses nothing.

    Args:
        receive: ASGI's `receive`.
        most: The maximum number of bytes.
    """

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self._content = bytearray()
        self._more = True

    async def whole(self) -> bytes:
        """Returns the body.

        Raises:
            BodyTooLarge: It has more than the maximum; the rest is not received.
            ClientGone: The client left before its end.
        """
        while self._more:
            await self._receive_more()
        return bytes(self._content)

    async def take_room(self, memory: BodyMemory, request: object, size: int, caller: str) -> None:
        """Take room for the body, as `BodyMemory.take`.

        While it waits, it is received, as far as there is room for that: only behind it comes the end of a client.

        Raises:
            ClientGone: The client left.
            BodyTooLarge: See `whole`.
            Overloaded: There was no room for too long.
        """
        if not memory.take_at_once(request, size, caller):
            await self.unless_gone(memory.take(request, size, caller), self._ahead(memory.ahead, request, size, caller))

    async def unless_gone(self, waiting: Awaitable[T], receiving: Awaitable[None] | None = None) -> T:
        """Returns the result of what is waited for, which is cancelled if the client leaves first.

        Args:
            waiting: What is waited for.
            receiving: What receives meanwhile; None: `until_gone`.

        Raises:
            ClientGone: The client left.
        """
        tasks = asyncio.ensure_future(waiting), asyncio.ensure_future(receiving or self.until_gone())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[1].done():
                tasks[1].result()
            return await tasks[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def until_gone(self) -> None:
        """Receive what there is until the client leaves.

        Raises:
            ClientGone: It has left.
            BodyTooLarge: See `whole`.
        """
        while True:
            await self._receive_more()

    async def _ahead(self, room: BodyMemory | None, request: object, size: int, caller: str) -> None:
        """Receive the body, all but its beginning in room of its own, which is given back."""
        while self._more and len(self._content) < _SMALL:
            await self._receive_more()
        if room is None:
            return
        try:
            if self._more:
                await room.take(request, size, caller)
            await self.until_gone()
        finally:
            room.give_back(request)

    async def _receive_more(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        self._content += message.get("body", b"")
        if len(self._content) > self._most:
            raise _too_large(self._most)
        self._more = message.get("more_body", False)


async def read_body(
    response: Response, scope: Scope, receive: Receive, most: int, memory: BodyMemory, caller: str = ""
) -> bytes:
    """Returns the request's body, decompressed.

    Args:
        response: The response to the request, which may have the body already.
        scope: ASGI's scope of the request.
        receive: ASGI's `receive`.
        most: The maximum number of bytes, before and after decompression.
        memory: The room for a body that may be large; it has to be given back.
        caller: Who sent the request; empty if callers have no names.

    Raises:
        BodyTooLarge: The body has more than `most` bytes; the rest is not received.
        UnsupportedEncoding: The content encoding is not known.
        Malformed: The body cannot be decompressed.
        ClientGone: The client left before the end of the body, or before there was room for it.
        Overloaded: There was no room for the body for too long.
    """
    encodings = b""
    for name, value in scope["headers"]:
        if name == b"content-encoding":
            encodings += b"," + value
    body = response.request_body
    if body is not None and not encodings:
        if len(body) > most:
            raise _too_large(most)
        return body
    needed = _needed(body, scope, most, is_compressed=bool(encodings))
    incoming = Incoming(receive, most)
    if needed > _SMALL:
        await incoming.take_room(memory, response, needed, caller)
    body = await incoming.whole()
    if encodings:
        body = await _without_encodings(body, encodings[1:], most)
    if needed > _SMALL:
        memory.settle(response, len(body))
    return body


async def _without_encodings(body: bytes, encodings: bytes, most: int) -> bytes:
    """Returns a body decompressed; `encodings` are separated by commas."""
    applied = encodings.lower().split(b",")
    if len(applied) > _MOST_ENCODINGS:
        raise UnsupportedEncoding(f"{len(applied)} encodings, one within the other", f"{_MOST_ENCODINGS} at most")
    for encoding in reversed(applied):
        decode = partial(_decoded, body, encoding.strip(), most)
        body = decode() if len(body) <= _SOON_DECODED else await beside(decode)
    return body


def _needed(body: bytes | None, scope: Scope, most: int, *, is_compressed: bool) -> int:
    """Returns the bytes that a body has at most, decompressed.

    Raises:
        BodyTooLarge: It says that it has more than `most`.
    """
    if body is None:
        declared = dict(scope["headers"]).get(b"content-length", b"")
        size = int(declared) if declared.isdigit() else most
    else:
        size = len(body)
    if size > most:
        raise _too_large(most)
    return min(size * _MOST_OF_A_BYTE, most) if is_compressed else size


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"larger than the {most} bytes that are read", "body")


def _decoded(body: bytes, encoding: bytes, most: int) -> bytes:
    """Returns a body without one content encoding."""
    if encoding in (b"", b"identity"):
        return body
    if encoding not in _WINDOWS:
        raise UnsupportedEncoding(encoding.decode("latin-1"), "gzip, deflate")
    for window in _WINDOWS[encoding]:
        try:
            unpacked = _unpacked(body, window, most)
        except zlib.error:
            continue
        if unpacked is not None:
            return unpacked
    message = f"not {encoding.decode()}, as its content-encoding says"
    raise Malformed(message, "body", [{"type": "json_invalid", "loc": (), "msg": message}])


def _unpacked(body: bytes, window: int, most: int) -> bytes | None:
    """Returns a decompressed body of at most `most` bytes; None if it is not whole.

    Raises:
        BodyTooLarge: It has more bytes, or too many members.
        zlib.error: It is not compressed in this way.
    """
    unpacked, members, unpacker = bytearray(), 0, zlib.decompressobj(window)
    for place in range(0, len(body), _PIECE):
        rest = body[place : place + _PIECE]
        while rest:  # gzip may have several members.
            if unpacker.eof:
                unpacker, members = zlib.decompressobj(window), members + 1
            unpacked += unpacker.decompress(rest, most + 1 - len(unpacked))
            if len(unpacked) > most or members >= _MOST_MEMBERS:
                raise _too_large(most)
            rest = unpacker.unused_data
    return bytes(unpacked) if unpacker.eof else None
