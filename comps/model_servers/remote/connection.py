"""An HTTP/1.1 connection, with keep-alive and without pipelining, and the pool of idle ones.

Responses are parsed by httptools, which is Node.js's parser: https://github.com/MagicStack/httptools.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from errno import ETIMEDOUT
from typing import cast

import httptools

from comps.core.errors import ModelServerError
from comps.model_servers.remote.exchange import Broken, Exchange, StreamExchange, too_long

_IDLE_SECONDS = 4.0
"""Seconds after which idle connections are closed; less than the 5 s after which uvicorn does it."""
MOST_OF_HEAD = 262_144
"""The maximum size of status line and headers, and of what else is no body: trailers, chunk extensions; in bytes."""
_STALE_SECONDS = 0.5
"""Seconds after a request within which a closed connection counts as one that was closed while it was idle."""
_ENDLESS = "the model server sent headers without an end"
_CHECKED = 4096
"""Bytes between two checks for backpressure."""
_LARGE_READ = 65_536
"""Bytes that are read of a stream at once behind which other connections have their turn. uvloop reads 256 KB as often
as there are, 32 times, which may have 50,000 events."""


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection.

    Args:
        idle: The pool to which the connection returns after an exchange, if it can be reused.
    """

    def __init__(self, idle: IdleConnections) -> None:
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self.used = False
        """Whether the connection has had an exchange before."""
        self._begin_response()

    def _begin_response(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._head_length = 0
        self._unchecked = 0
        self._without_body = 0
        self._has_body = False
        """Whether a part of the body has come since the last check."""
        self._has_begun = False
        self._has_head = False
        self._has_ended = False
        self._in_body = False
        self._can_stay = False

    def start(self, exchange: Exchange) -> None:
        """Send the exchange's request; the response is passed to the exchange."""
        assert self._transport
        self._begin_response()
        self._exchange = exchange
        self._sent_at = exchange.deadlines.loop.time()
        self._transport.write(exchange.request)

    @property
    def usable(self) -> bool:
        """Whether the connection is open."""
        return self._transport is not None and not self._transport.is_closing()

    def release(self) -> None:
        """End the exchange: return the connection to the pool, or close it if the response is incomplete."""
        self._exchange = None
        self.used = True
        transport = self._transport
        is_free = transport and transport.is_reading() and not transport.get_write_buffer_size()
        if self.usable and self._can_stay and is_free:
            self._idle.put(self)
        else:
            self.close()

    def close(self) -> None:
        """Close the connection at once; unread data is dropped."""
        exchange, self._exchange = self._exchange, None
        if exchange:
            exchange.fail(Broken("it was closed"))
        if self._transport:
            self._transport.abort()

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclasses of asyncio's.

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None or self._has_ended:
            self._drop_surplus()
            return
        self._has_begun = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._drop_malformed(exchange)
            return
        if not self._has_head:
            self._limit_head(len(data), exchange)
            return
        if exchange.ended:
            return
        if exchange.is_done:
            exchange.await_rest()
        self._unchecked += len(data)
        if self._unchecked > _CHECKED:
            self._check(exchange, len(data))

    def _check(self, exchange: Exchange, read: int) -> None:
        """Check now and then whether the reader keeps up, and whether what arrives is a body, and not too long.

        Args:
            exchange: The running one.
            read: The bytes that have just been read.
        """
        self._without_body = 0 if self._has_body else self._without_body + self._unchecked
        self._has_body = False
        exchange.arrived += self._unchecked
        self._unchecked = 0
        if self._without_body > MOST_OF_HEAD:
            exchange.fail(ModelServerError(_ENDLESS))
        elif exchange.arrived > exchange.most_arriving:
            exchange.fail(too_long(exchange.most_arriving))
        elif exchange.full:
            self._pause(exchange)
        elif read > _LARGE_READ and isinstance(exchange, StreamExchange) and self._transport:
            self._transport.pause_reading()  # More has probably come; others have their turn before it.
            exchange.deadlines.loop.call_soon(self._go_on, exchange)

    def _go_on(self, exchange: StreamExchange) -> None:
        if self.usable and self._transport and not exchange.resume:
            self._transport.resume_reading()

    def _drop_surplus(self) -> None:
        """Handle data after a response: the connection is not reused."""
        self._can_stay = False
        if self._exchange is None:
            self.close()

    def _drop_malformed(self, exchange: Exchange) -> None:
        self._can_stay = False
        if not self._has_ended:  # Data after a complete response does not make it invalid.
            exchange.fail(Broken("what came is no HTTP"))

    def _limit_head(self, size: int, exchange: Exchange) -> None:
        self._head_length += size
        if self._head_length > MOST_OF_HEAD:
            exchange.fail(ModelServerError(_ENDLESS))

    def _pause(self, exchange: Exchange) -> None:
        """Backpressure: pause reading until the reader has drained."""
        transport = self._transport
        if isinstance(exchange, StreamExchange) and exchange.resume is None and transport:

            def resume() -> None:
                exchange.resume = None
                if not transport.is_closing():
                    transport.resume_reading()

            transport.pause_reading()
            exchange.resume = resume
            exchange.wake()

    def connection_lost(self, error: Exception | None) -> None:
        exchange, self._exchange, self._transport = self._exchange, None, None
        del self._parser  # It refers to this connection: a cycle.
        if exchange is None or exchange.ended:
            return
        if self._has_head and not error and not {b"content-length", b"transfer-encoding"} & self._headers.keys():
            exchange.complete()  # A body without a length ends with the connection.
            return
        vanished = isinstance(error, OSError) and error.errno == ETIMEDOUT
        # After that time, the server has probably read the request.
        at_once = exchange.deadlines.loop.time() - self._sent_at < _STALE_SECONDS
        exchange.fail(
            Broken(_why_lost(error), unanswered=self.used and not self._has_begun and at_once and not vanished)
        )

    # --- httptools' callbacks ---

    def on_message_begin(self) -> None:
        """Called before a status line. A second response has no request, so the connection is not reused."""
        if self._has_ended:
            self._can_stay = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called with each header and each trailer; trailers are ignored."""
        if not self._has_head:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Called after the last header."""
        status = self._parser.get_status_code()
        if self._has_ended:
            return
        if status < 200:  # An interim response: the final one follows.
            self._headers = {}
            return
        self._has_head = self._in_body = True
        if self._exchange:
            self._exchange.head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        """Called with each part of the body or of a chunk."""
        exchange = self._exchange
        if exchange is None or exchange.ended or not self._in_body:
            return
        self._has_body = True
        try:
            exchange.take(data)
        except Exception as error:
            exchange.fail(error)

    def on_message_complete(self) -> None:
        """Called after the body."""
        if self._has_head and self._exchange and not self._has_ended:
            self._has_ended, self._in_body = True, False
            self._can_stay = self._parser.should_keep_alive()
            self._exchange.complete()


def _why_lost(error: Exception | None) -> str:
    """Returns why an open connection is lost, without an address."""
    number = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    if number:
        return os.strerror(number).lower()
    return type(error).__name__ if error else "it was closed"


class IdleConnections:
    """Pool of idle connections. One timer closes those that were idle for too long.

    Args:
        loop: The event loop of the connections.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._connections: list[tuple[Connection, float]] = []
        """The connections with the times since which they are idle, the latest last."""
        self._timer: asyncio.TimerHandle | None = None

    def put(self, connection: Connection) -> None:
        """Add a connection."""
        self._connections.append((connection, self.loop.time()))
        if self._timer is None:
            self._timer = self.loop.call_later(_IDLE_SECONDS, self._close_old)

    def take(self) -> Connection | None:
        """Removes and returns the open connection that was used last; None if there is none."""
        oldest = self.loop.time() - _IDLE_SECONDS
        while self._connections:
            connection, since = self._connections.pop()
            if connection.usable and since > oldest:
                return connection
            connection.close()
        return None

    def _close_old(self) -> None:
        oldest = self.loop.time() - _IDLE_SECONDS
        while self._connections and not (self._connections[0][0].usable and self._connections[0][1] > oldest):
            self._connections.pop(0)[0].close()
        next_look = self._connections[0][1] + _IDLE_SECONDS if self._connections else 0.0
        self._timer = self.loop.call_at(next_look, self._close_old) if next_look else None

    def close(self) -> None:
        """Close all idle connections."""
        while self._connections:
            self._connections.pop()[0].close()
        if self._timer:
            self._timer.cancel()
            self._timer = None
