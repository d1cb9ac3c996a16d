"""HTTP/1.1 connections to one server, direct or through a proxy, with keep-alive and without pipelining.

Responses are parsed by httptools, which is Node.js's parser: https://github.com/MagicStack/httptools.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from base64 import b64encode
from collections.abc import Sequence
from errno import ETIMEDOUT
from typing import cast
from urllib.parse import SplitResult, unquote

import httptools
from aiohappyeyeballs import AddrInfoType, start_connection

from comps.core.errors import ModelServerError, Unreachable
from comps.core.sockets import notice_silence
from comps.model_servers.remote.exchange import NEVER, Broken, Deadlines, Exchange, StreamExchange

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

_IDLE_SECONDS = 4.0
"""Seconds after which idle connections are closed; less than the 5 s after which uvicorn does it."""
_STALLED_SECONDS = 20.0
"""Seconds for which a model server may acknowledge nothing of a request before the connection fails."""
_NEXT_ADDRESS_SECONDS = 0.25
"""Seconds before the next address of a host is tried in parallel (Happy Eyeballs, RFC 8305)."""
_MOST_OF_HEAD = 262_144
"""The maximum size of status line and headers, in bytes."""
_STALE_SECONDS = 0.5
"""Seconds after a request within which a closed connection counts as one that was closed while it was idle."""
_CHECKED = 4096
"""Bytes between two checks for backpressure."""
_PORTS = {"http": 80, "https": 443}


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
        self._has_begun = False
        self._has_head = False
        self._has_ended = False
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
            self._unchecked = 0
            if exchange.full:
                self._pause(exchange)

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
        if self._head_length > _MOST_OF_HEAD:
            exchange.fail(ModelServerError("the model server sent headers without an end"))

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
        if exchange is None or exchange.ended:
            return
        if self._has_head and not error and not {b"content-length", b"transfer-encoding"} & self._headers.keys():
            exchange.complete()  # A body without a length ends with the connection.
            return
        vanished = isinstance(error, OSError) and error.errno == ETIMEDOUT
        said = type(error).__name__ if error else "it was closed"
        # After that time, the server has probably read the request.
        at_once = exchange.deadlines.loop.time() - self._sent_at < _STALE_SECONDS
        exchange.fail(Broken(said, unanswered=self.used and not self._has_begun and at_once and not vanished))

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
        self._has_head = True
        if self._exchange:
            self._exchange.head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        """Called with each part of the body or of a chunk."""
        exchange = self._exchange
        if exchange is None or exchange.ended or not self._has_head or self._has_ended:
            return
        try:
            exchange.take(data)
        except Exception as error:
            exchange.fail(error)

    def on_message_complete(self) -> None:
        """Called after the body."""
        if self._has_head and self._exchange and not self._has_ended:
            self._has_ended = True
            self._can_stay = self._parser.should_keep_alive()
            self._exchange.complete()


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


class Connections:
    """The connections to one server. Their number is unlimited, and they belong to the running event loop.

    Args:
        target: The server's URL.
        proxy: The URL of an HTTP proxy; None for direct connections.
        tls: The TLS context; None for plain HTTP.
        connect_seconds: The deadline for a new connection, in seconds; 0: no limit.
    """

    def __init__(
        self, target: SplitResult, proxy: SplitResult | None, tls: ssl.SSLContext | None, connect_seconds: float
    ) -> None:
        self._target = target
        self._proxy = proxy
        self._tls = tls
        self._connect_seconds = connect_seconds
        self._idle: IdleConnections | None = None
        self._open: set[Connection] = set()

    async def run(self, exchange: Exchange) -> None:
        """Run an exchange to its end. Cancellation closes the connection.

        Raises:
            Unreachable: No connection can be opened.
            Broken: The connection broke before the end.
            ModelServerError: The response is invalid, or missed a deadline (`Timeout`).
        """
        loop = exchange.deadlines.loop
        if self._idle is None or self._idle.loop is not loop:
            self._idle = IdleConnections(loop)
        try:
            connection = self._idle.take()
            if connection is not None:
                try:
                    await self._run_on(connection, exchange)
                    return
                except Broken as broken:
                    # The server may have closed the idle connection just before it was used.
                    if not broken.unanswered:
                        raise
                exchange.reset()
            await self._run_on(await self._made(self._idle, exchange.deadlines), exchange)
        finally:
            exchange.deadlines.stop()

    async def _run_on(self, connection: Connection, exchange: Exchange) -> None:
        self._open.add(connection)
        try:
            connection.start(exchange)
            await exchange.wait()
        except BaseException:
            connection.close()
            raise
        finally:
            self._open.discard(connection)
        connection.release()

    async def _made(self, idle: IdleConnections, deadlines: Deadlines) -> Connection:
        """Opens a connection."""
        through = self._proxy or self._target
        left = deadlines.left
        seconds = min(self._connect_seconds or NEVER, left)
        try:
            async with timeout(None if seconds == NEVER else seconds):
                return await self._connect(through, idle)
        except asyncio.TimeoutError as error:
            if seconds == left:
                raise deadlines.missed() from error
            raise Unreachable(f"the model server cannot be reached{self._at_proxy}") from error
        except ssl.SSLCertVerificationError as error:
            raise Unreachable("the model server cannot be reached: its certificate is not trusted here") from error
        except ssl.SSLError as error:
            raise Unreachable("the model server cannot be reached: no TLS connection could be made") from error
        except socket.gaierror as error:
            raise Unreachable("the model server cannot be reached: its name cannot be resolved") from error
        except OSError as error:
            why = ": no TLS connection could be made" if isinstance(error, ConnectionResetError) and self._tls else ""
            raise Unreachable(f"the model server cannot be reached{why or self._at_proxy}") from error

    @property
    def _at_proxy(self) -> str:
        return ": the proxy before it does not answer" if self._proxy else ""

    async def _connect(self, to: SplitResult, idle: IdleConnections) -> Connection:
        loop = asyncio.get_running_loop()
        assert to.hostname
        addresses = await _resolved(to.hostname, to.port or _PORTS[to.scheme])
        connected = await start_connection(
            addresses, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS, interleave=1, socket_factory=_socket
        )
        tunnelled = self._proxy is not None and self._target.scheme == "https"
        tls = self._tls if to.scheme == "https" else None
        try:
            transport, connection = await loop.create_connection(
                lambda: _Tunnel() if tunnelled else Connection(idle),
                sock=connected,
                ssl=tls,
                server_hostname=to.hostname if tls else None,
            )
        except BaseException:
            connected.close()
            raise
        return await self._tunnel(transport, connection, idle) if isinstance(connection, _Tunnel) else connection

    async def _tunnel(self, transport: asyncio.Transport, tunnel: _Tunnel, idle: IdleConnections) -> Connection:
        """Opens a TLS connection through a proxy, with CONNECT; TLS is end to end."""
        assert self._proxy
        assert self._tls
        host, port = self._target.hostname, self._target.port or _PORTS["https"]
        authority = f"[{host}]:{port}" if host and ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        if credentials := proxy_credentials(self._proxy):
            lines.append(f"Proxy-Authorization: {credentials}")
        try:
            transport.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
            await tunnel.opened
            connection = Connection(idle)
            secure = await asyncio.get_running_loop().start_tls(transport, connection, self._tls, server_hostname=host)
        except BaseException:
            transport.abort()
            raise
        if secure is None:
            raise Unreachable("the proxy before the model server closed the connection")
        connection.connection_made(secure)
        return connection

    def close(self) -> None:
        """Close all connections."""
        if self._idle and self._idle.loop is asyncio.get_running_loop():
            self._idle.close()
        self._idle = None
        for connection in list(self._open):
            connection.close()


class _Tunnel(asyncio.Protocol):
    """A connection to a proxy, up to the response to CONNECT."""

    def __init__(self) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._said = b""

    def data_received(self, data: bytes) -> None:
        self._said += data
        if self.opened.done() or (b"\r\n\r\n" not in self._said and len(self._said) < _MOST_OF_HEAD):
            return
        status = self._said.split(b" ", 2)[1:2]
        if status and status[0].startswith(b"2"):
            self.opened.set_result(None)
        else:
            self._refuse()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self._refuse()

    def _refuse(self) -> None:
        self.opened.set_exception(Unreachable("the proxy before the model server does not let this service through"))


def proxy_credentials(proxy: SplitResult) -> str | None:
    """Returns the value of `Proxy-Authorization` for the user in a proxy's URL; None if it has no user."""
    if proxy.username is None:
        return None
    said = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return f"Basic {b64encode(said.encode()).decode()}"


async def _resolved(host: str, port: int) -> Sequence[AddrInfoType]:
    """Returns the addresses of a host. Numeric addresses are parsed without a thread, of which there are few."""
    try:
        numeric = socket.AI_NUMERICHOST
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=numeric)
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)


def _socket(info: AddrInfoType) -> socket.socket:
    """Returns a socket for an address, with TCP keepalive; see `notice_silence`."""
    family, kind, protocol, *_ = info
    made = socket.socket(family, kind, protocol)
    notice_silence(made, _STALLED_SECONDS)
    return made
