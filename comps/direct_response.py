"""A response that is written to uvicorn's connection without a coroutine between an event and its HTTP chunk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from comps.responses import Headers

_LONG = 100_000
"""Bytes of a part of a body that is not copied."""


class DirectResponse:
    """A response that is written directly to the connection; see `comps.responses.Response`.

    Args:
        cycle: uvicorn's state of the request, kept as its own `send` keeps it.
        loop: The event loop.
    """

    __slots__ = (
        "_chunked",
        "_corked",
        "_cycle",
        "_flow",
        "_head",
        "_is_open",
        "_leave",
        "_loop",
        "_transport",
        "items",
    )

    def __init__(self, cycle: RequestResponseCycle, loop: asyncio.AbstractEventLoop) -> None:
        self._cycle = cycle
        self._loop = loop
        self._flow = cycle.flow
        self._transport = cycle.transport
        self._leave: Callable[[], None] | None = None
        self.items = 0
        self._is_open = False
        """Whether a part of the body is written as it is: in chunks, after the head, not corked, to a client."""
        self._chunked = True
        self._corked: list[bytes] | None = None
        self._head = b""
        """The status line and the headers, until they are sent in one packet with the first part of the body."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    @property
    def request_body(self) -> bytes | None:
        cycle = self._cycle
        return None if cycle.more_body or cycle.disconnected else bytes(cycle.body)

    def start(self, status: int, headers: Headers) -> None:
        cycle = self._cycle
        if cycle.disconnected:
            return
        cycle.response_started = True
        if cycle.more_body and (status == 413 or cycle.waiting_for_100_continue):  # The body is not waited for.
            cycle.keep_alive = False
        cycle.waiting_for_100_continue = False
        has_length = any(name == b"content-length" for name, _ in headers)
        self._chunked = not has_length and cycle.scope["http_version"] != "1.0"
        content = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *headers):
            content += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            content.append(b"connection: close\r\n")
        content.append(b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n")
        head = b"".join(content)
        lines = len(cycle.default_headers) + len(headers) + (not cycle.keep_alive) + self._chunked + 2
        if not head.count(b"\n") == head.count(b"\r") == lines:
            raise ValueError("a line break in a header")
        self._head = head

    def write(self, data: bytes) -> None:
        self.items += 1
        if self._is_open:  # As for nearly all tokens.
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
            return
        if self._cycle.disconnected:
            return
        if len(data) > _LONG:
            self._write_long(data)
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head:
            data = self._head + data
            self._head = b""
            if self._chunked:
                self.cork()  # A short answer may end with what the model server has just sent.
        if self._corked is None:
            self._transport.write(data)
        else:
            self._corked.append(data)

    def _write_long(self, data: bytes) -> None:
        """Write a part of the body at once, with what is corked, and copy none of it."""
        framed = (b"%x\r\n" % len(data), data, b"\r\n") if self._chunked else (data,)
        pieces = (*(self._corked or ()), self._head, *framed)
        self._head = b""
        if self._corked is None:
            self._is_open = self._chunked
        else:
            self._corked = []
        self._transport.writelines([piece for piece in pieces if piece])

    def cork(self) -> None:
        if self._corked is None:
            self._corked, self._is_open = [], False
            # Two rounds of the event loop: in the first one the task learns that the answer has ended.
            self._loop.call_soon(self._loop.call_soon, self._uncork)

    def _uncork(self) -> None:
        corked, self._corked = self._corked, None
        if self._cycle.disconnected:
            return
        if corked:
            self._transport.write(b"".join(corked))
        self._is_open = self._chunked and not self._head

    def end(self) -> None:
        cycle = self._cycle
        if cycle.disconnected or cycle.response_complete:
            return
        last = self._head + (b"0\r\n\r\n" if self._chunked else b"")
        if self._corked:
            last, self._corked = b"".join((*self._corked, last)), None
        if last:
            self._transport.write(last)
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive and not cycle.more_body:
            self._transport.close()
        cycle.on_response()

    def cut_off(self) -> None:
        self._uncork()
        self._cycle.disconnected, self._is_open = True, False
        self._transport.close()

    @property
    def full(self) -> bool:
        return self._flow.write_paused

    async def drain(self) -> None:
        await self._flow.drain()

    def on_leave(self, leave: Callable[[], None] | None) -> None:
        self._leave = leave
        if leave and self._cycle.disconnected:
            self.left()

    @property
    def complete(self) -> bool:
        """Whether its end has been sent."""
        return self._cycle.response_complete

    def left(self) -> None:
        """The client has left."""
        cycle = self._cycle
        if cycle.response_complete:
            return
        cycle.disconnected, self._is_open = True, False
        cycle.message_event.set()
        leave, self._leave = self._leave, None
        if leave:
            leave()

    async def aclose(self) -> None:
        self._uncork()
