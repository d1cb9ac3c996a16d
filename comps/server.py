"""The HTTP server: uvicorn with a protocol class of our own.

It adds to uvicorn's protocol:
- a `Response` that writes to the connection without a coroutine between an event and its HTTP chunk (see `responses`);
- a callback when the client leaves;
- requests with an `Upgrade` are handled as if they had none: https://www.rfc-editor.org/rfc/rfc9110#section-7.8. Java's
  HttpClient and `curl --http2` send one with their first request;
- no chunked coding for HTTP/1.0 clients, which do not support it;
- the limits of `connections`.

And to uvicorn's server, that it accepts connections as fast as they come, that it looks at the deadlines of all
connections, that it sleeps until it is told to end, and then ends in these steps:
1. It is not ready, and still accepts for `pre_stop_seconds`. Responses say `connection: close`, so that clients open
   their next connections elsewhere.
2. The listening sockets and the idle connections are closed. Running requests have `drain_seconds` to end.
3. Those that have not ended are cancelled, which the handler answers with an error in the form of the dialect.
4. The models are closed.
Told to end at once, it goes to the third step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from math import inf
from socket import socket
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from comps.connections import LimitedConnection
from comps.direct_response import DirectResponse
from comps.limits import Limits
from comps.memory import STORM, Memory, return_large_blocks
from comps.responses import EXTENSION

_ACCEPTED_AT_ONCE = 16
"""Connections that are accepted in a round of the event loop."""
_UPGRADE_HEADERS = (b"upgrade", b"http2-settings")


_ERROR_SECONDS = 2.0
"""Seconds that cancelled requests have to send their errors."""


class State(ServerState):
    """What the connections of a server share."""

    ending = False
    """Whether the server was told to end: responses say `connection: close`."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()


class Server(uvicorn.Server):
    """uvicorn's server, with an end of our own. uvicorn itself looks ten times a second whether it shall end.

    Args:
        config: uvicorn's configuration; `timeout_graceful_shutdown` is `drain_seconds`.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state: State = State()
        self.pre_stop_seconds = 0.0
        """Seconds between being not ready and accepting no more."""
        self.cut_off = 0
        """The number of requests that were cancelled at the end."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()
        self._sweeping: asyncio.TimerHandle | None = None
        self._ending_at_once = asyncio.Event()

    async def startup(self, sockets: list[socket] | None = None) -> None:
        return_large_blocks()
        await super().startup(sockets and [one for first in sockets for one in (first, *_copies(first))])
        self._sweep()

    def _sweep(self) -> None:
        """Look at the deadlines of all connections, and again after a while; no request sets a timer."""
        loop = asyncio.get_running_loop()
        now, limits = loop.time(), getattr(self.config.app, "limits", None) or Limits()
        connections: list[Any] = list(self.server_state.connections)
        for connection in connections:
            if connection.stalled(now):
                connection.give_up()
            elif connection.deadline <= now:
                connection.overdue()
        self.server_state.memory.look(now, len(self.server_state.tasks))
        self._sweeping = loop.call_later(limits.sweep_seconds, self._sweep)

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        if not self.should_exit:
            await self._tick_until(self._ending)
        if self.pre_stop_seconds and not self.force_exit:
            await self.pre_stop()

    async def pre_stop(self) -> None:
        """Go on answering for `pre_stop_seconds`."""
        await self._tick_until(self._ending_at_once, self.pre_stop_seconds)

    async def _tick_until(self, event: asyncio.Event, seconds: float = inf) -> None:
        """Wait for an event, or until some seconds have passed. Each second, the header `date` is renewed."""
        now = asyncio.get_running_loop().time
        until = now() + seconds
        while not event.is_set() and (left := until - now()) > 0:
            await self.on_tick(0)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(event.wait(), min(left, 1))

    def end(self) -> None:
        """End after the running requests. It may be called by a signal handler and by other threads."""
        self.should_exit = self.server_state.ending = True
        if self._loop:
            self._loop.call_soon_threadsafe(self._ending.set)

    def end_at_once(self) -> None:
        """End without waiting for running requests: they get an error. It may be called from where `end` may be."""
        self.force_exit = True
        self.end()
        if self._loop:
            self._loop.call_soon_threadsafe(self._ending_at_once.set)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Close all, from the listening sockets to the models."""
        state = self.server_state
        await asyncio.sleep(0)  # What has arrived by now is accepted,
        for server in self.servers:
            server.close()
        for one in sockets or ():
            one.close()
        await asyncio.sleep(0)  # and read.
        for connection in list(state.connections):
            connection.shutdown()
        await self._until_idle(self.config.timeout_graceful_shutdown or 0, lambda: self.force_exit)
        if state.tasks:
            self.cut_off = len(state.tasks)
            for task in state.tasks:
                task.cancel()
            await self._until_idle(_ERROR_SECONDS)
        if self._sweeping:
            self._sweeping.cancel()
        await self.lifespan.shutdown()

    async def _until_idle(self, seconds: float, unless: Callable[[], bool] = lambda: False) -> None:
        """Wait until no connection and no request is left, some seconds have passed, or `unless` says so."""
        state, now = self.server_state, asyncio.get_running_loop().time
        until, pause = now() + seconds, 0.0
        while (state.connections or state.tasks) and now() < until and not unless():
            await asyncio.sleep(pause)
            pause = min(pause + 0.001, 0.05)


def _copies(listening: socket) -> list[socket]:
    """Returns further file descriptors of a listening socket.

    libuv accepts one connection of each in a round of the event loop (uv__server_io in
    https://github.com/libuv/libuv/blob/v1.x/src/unix/stream.c). With hundreds of busy streams a round takes many
    milliseconds, so that new connections, probes of /health among them, would wait for seconds.
    """
    return [listening.dup() for _ in range(_ACCEPTED_AT_ONCE - 1)]


class ServerProtocol(LimitedConnection):
    """One client connection."""

    server_state: State

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():  # The head is parsed once more, without what asks for an upgrade.
            return
        self.accept_head()
        if len(self.server_state.tasks) >= STORM:
            self.server_state.memory.in_storm()
        super().on_headers_complete()
        cycle = self.cycle
        response = DirectResponse(cycle, self.loop)
        self.responses = [one for one in self.responses if not one.complete]
        self.responses.append(response)
        extensions: dict[Any, Any] = cycle.scope.setdefault("extensions", {})
        extensions[EXTENSION] = response
        if self.pipeline:  # For which uvicorn has just paused reading.
            self.notice_end()
        if self.server_state.ending:
            cycle.keep_alive = False
        if cycle.scope["http_version"] == "1.0":
            cycle.send = _without_chunks(cycle)  # type: ignore[assignment, method-assign]

    def feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade(data[upgrade.args[0] :])
            except httptools.HttpParserCallbackError:  # It is refused already, or has a URL that is none.
                self.refuse_malformed("invalid HTTP: the URL cannot be read")
                return
            except httptools.HttpParserError as error:
                self.refuse_malformed(f"invalid HTTP: {error}")
                return

    def _without_upgrade(self, rest: bytes) -> bytes:
        """Returns the request whose head was just parsed without its upgrade headers, followed by `rest`."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.refuse_malformed("this is no proxy")
            return b""
        head = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(option for option in options if option.lower() not in _UPGRADE_HEADERS)
            if value and name not in _UPGRADE_HEADERS:
                head.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join([*head, b"", rest])


def _without_chunks(cycle: RequestResponseCycle) -> Callable[[Any], Any]:
    """Returns uvicorn's `send` for clients without chunked coding: closing the connection ends the body."""
    send = cycle.send
    is_open = False

    async def send_plain(message: Any) -> None:
        nonlocal is_open
        if message["type"] == "http.response.start":
            is_open = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
            if is_open:
                cycle.chunked_encoding = False
        elif is_open:
            cycle.expected_content_length += len(message.get("body", b""))
        await send(message)

    return send_plain
