"""A response on its way to the client: started once, written in chunks, and told when the client leaves.

The server of this project offers a way to write to the connection at once, by an extension in ASGI's scope. Any other
server gets what is written by ASGI's `send`, one message after the other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, TypeAlias

from starlette.types import Receive, Scope, Send

EXTENSION = "opea_llm.response"
"""The key in `scope["extensions"]` under which a server offers a `Response`."""
_MOST_WAITING = 65_536
"""Bytes that wait for ASGI's `send` before the writer is told to wait."""

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]


class Response(Protocol):
    """The response to one request. Writes return at once and cost the client's connection one HTTP chunk each."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The running event loop, which takes a system call to find out."""
        ...

    @property
    def request_body(self) -> bytes | None:
        """The body of the request, if all of it has arrived already; None: it is to be received."""
        ...

    @property
    def items(self) -> int:
        """How many parts of the body have been written: in a stream one for each token, and few others."""
        ...

    def start(self, status: int, headers: Headers) -> None:
        """Send the status line and the headers, with the first part of the body at the latest.

        A body without a `content-length` is sent in chunks.
        """
        ...

    def write(self, data: bytes) -> None:
        """Send a part of the body, not empty, as one chunk."""
        ...

    def end(self) -> None:
        """Send the end of the body."""
        ...

    def cut_off(self) -> None:
        """Close the connection without the end of the body: how a stream fails whose dialect has no words for it."""
        ...

    def cork(self) -> None:
        """Keep what is written from here on, until the end or for two rounds of the event loop: one packet for all."""
        ...

    @property
    def full(self) -> bool:
        """Whether the client does not read as fast as is written."""
        ...

    async def drain(self) -> None:
        """Wait until it has caught up, or left."""
        ...

    def on_leave(self, leave: Callable[[], None] | None) -> None:
        """Call this once when the client leaves before the end; None: nobody wants to know."""
        ...

    async def aclose(self) -> None:
        """Wait until all that was written is on its way."""
        ...


def response_to(scope: Scope, receive: Receive, send: Send) -> Response:
    """The response to a request whose body has been received.

    It is taken out of the scope: as they refer to each other, they would be left to the garbage collector.
    """
    offered: Response | None = (scope.get("extensions") or {}).pop(EXTENSION, None)
    return SentResponse(receive, send) if offered is None else offered


class SentResponse:
    """A response by ASGI's own means.

    Args:
        receive: Tells that the client has left.
        send: Takes one message after the other.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.items = 0
        self._waiting: deque[dict[str, object]] = deque()
        self._size = 0
        self._sending: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._leave: Callable[[], None] | None = None
        self._has_left = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    @property
    def request_body(self) -> bytes | None:
        return None

    def start(self, status: int, headers: Headers) -> None:
        self._put({"type": "http.response.start", "status": status, "headers": list(headers)})

    def write(self, data: bytes) -> None:
        self.items += 1
        self._size += len(data)
        self._put({"type": "http.response.body", "body": data, "more_body": True})

    def end(self) -> None:
        self._put({"type": "http.response.body", "body": b""})

    def cut_off(self) -> None:
        """An ASGI server closes the connection itself when an application returns before the end."""

    def cork(self) -> None:
        """Messages are sent one by one in any case."""

    def _put(self, message: dict[str, object]) -> None:
        if self._has_left:
            return
        self._waiting.append(message)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.ensure_future(self._send_all())

    async def _send_all(self) -> None:
        while self._waiting:
            message = self._waiting.popleft()
            try:
                await self._send(message)
            except OSError:  # How some servers say that the client has left.
                self._has_left = True
                self._waiting.clear()
                self._size = 0
                if self._leave:
                    self._leave()
                return
            if isinstance(body := message.get("body"), bytes):
                self._size -= len(body)

    @property
    def full(self) -> bool:
        return self._size > _MOST_WAITING

    async def drain(self) -> None:
        if self._sending:
            await asyncio.shield(self._sending)

    def on_leave(self, leave: Callable[[], None] | None) -> None:
        self._leave = leave
        if self._watching:
            self._watching.cancel()
            self._watching = None
        if leave:
            self._watching = asyncio.ensure_future(self._watch(leave))

    async def _watch(self, leave: Callable[[], None]) -> None:
        with suppress(Exception):  # Ray's `receive` raises when it cancels the request: the client has left as well.
            while (await self._receive())["type"] != "http.disconnect":
                pass
        self._watching = None
        leave()

    async def aclose(self) -> None:
        await self.drain()
