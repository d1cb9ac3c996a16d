"""Connections to one server: opened directly or through a proxy, kept for the next request, one exchange at a time.

HTTP/1.1 is read by httptools, the parser of Node.js: https://github.com/MagicStack/httptools.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from base64 import b64encode
from errno import ETIMEDOUT
from typing import cast
from urllib.parse import SplitResult, unquote

import httptools
from aiohappyeyeballs import AddrInfoType, start_connection

from comps.core.errors import ModelServerError, Unreachable
from comps.core.sockets import notice_silence
from comps.model_servers.remote.exchange import Broken, Exchange, StreamExchange

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

_IDLE_SECONDS = 4.0
"""Connections are let go before the server does so: uvicorn closes an idle one after 5 s."""
_STALLED_SECONDS = 20.0
"""How long a model server may take nothing of a request: then its host is gone, or no longer answers."""
_NEXT_ADDRESS_SECONDS = 0.25
"""After how long the next address of a host is tried beside the one before (RFC 8305)."""
_MOST_OF_HEAD = 262_144
"""Bytes of a status line and headers."""
_CHECKED = 4096
"""After so many bytes it is looked whether the reader keeps up."""
_PORTS = {"http": 80, "https": 443}


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection.

    Args:
        idle: Keeps it when an exchange is over and it can be used again.
    """

    def __init__(self, idle: IdleConnections) -> None:
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self.used = False
        """Whether there was an exchange before."""
        self._begin_response()

    def _begin_response(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._head_length = 0
        self._unchecked = 0
        self._has_begun = False
        self._has_head = False
        self._can_stay = False

    def start(self, exchange: Exchange) -> None:
        """Send a request; its response goes to the exchange."""
        assert self._transport
        self._begin_response()
        self._exchange = exchange
        self._transport.write(exchange.request)

    @property
    def usable(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def release(self) -> None:
        """The exchange is over: keep the connection, or close it if the response has not ended."""
        self._exchange = None
        self.used = True
        if self.usable and self._can_stay:
            self._idle.put(self)
        else:
            self.close()

    def close(self) -> None:
        """Close at once; what the server still sends is not read."""
        self._exchange = None
        if self._transport:
            self._transport.abort()

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own are of no class of asyncio's.

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:  # Nobody has asked for anything.
            self.close()
            return
        self._has_begun = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            exchange.fail(Broken("what came is no HTTP"))
            return
        if not self._has_head:
            self._head_length += len(data)
            if self._head_length > _MOST_OF_HEAD:
                exchange.fail(ModelServerError("the model server sent headers without an end"))
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

    def _pause(self, exchange: Exchange) -> None:
        """Let the server wait until what it has sent was taken on."""
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
            exchange.complete()  # The end of the body is that of the connection.
            return
        vanished = isinstance(error, OSError) and error.errno == ETIMEDOUT
        said = type(error).__name__ if error else "it was closed"
        exchange.fail(Broken(said, unanswered=self.used and not self._has_begun and not vanished))

    # --- httptools' callbacks ---

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called with each header, and with each trailer."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Called behind the last header."""
        status = self._parser.get_status_code()
        if status < 200:  # An interim response: the final one follows.
            self._headers = {}
            return
        self._has_head = True
        if self._exchange:
            self._exchange.head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        """Called with each part of the body, and with each chunk's."""
        exchange = self._exchange
        if exchange is None or exchange.ended or not self._has_head:
            return
        try:
            exchange.take(data)
        except Exception as error:
            exchange.fail(error)

    def on_message_complete(self) -> None:
        """Called behind the body."""
        if self._has_head and self._exchange:
            self._can_stay = self._parser.should_keep_alive()
            self._exchange.complete()


class IdleConnections:
    """Connections that wait for the next request. One timer closes those that have waited too long.

    Args:
        loop: The event loop that they belong to.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._connections: list[tuple[Connection, float]] = []
        """Each with the time at which it came; the last one came last."""
        self._timer: asyncio.TimerHandle | None = None

    def put(self, connection: Connection) -> None:
        """Keep a connection."""
        self._connections.append((connection, self.loop.time()))
        if self._timer is None:
            self._timer = self.loop.call_later(_IDLE_SECONDS, self._close_old)

    def take(self) -> Connection | None:
        """A connection that is open, the one that was used last."""
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
        """Close all of them."""
        while self._connections:
            self._connections.pop()[0].close()
        if self._timer:
            self._timer.cancel()
            self._timer = None


class Connections:
    """The connections to one server, without a hidden cap; they belong to the event loop that runs.

    Args:
        target: The server's URL.
        proxy: That of an HTTP proxy to go through, or None.
        tls: For connections by TLS.
        connect_seconds: How long a connection may take to be made; 0: no limit.
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
        """Send a request and wait for the end of its exchange; cancelling it closes the connection.

        Raises:
            Unreachable: No connection can be made.
            Broken: It broke before the end.
            ModelServerError: What came makes no sense, or not in time.
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
                    # A server may close an idle connection at the moment at which it is used.
                    if not broken.unanswered:
                        raise
                exchange.reset()
            await self._run_on(await self._made(self._idle), exchange)
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

    async def _made(self, idle: IdleConnections) -> Connection:
        """A new connection."""
        through = self._proxy or self._target
        try:
            async with timeout(self._connect_seconds or None):
                return await self._connect(through, idle)
        except asyncio.TimeoutError as error:
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
        addresses = await loop.getaddrinfo(
            to.hostname, to.port or _PORTS[to.scheme], type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )
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
        """A connection by TLS through the proxy, from end to end."""
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
        assert secure
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
    """A connection to a proxy, up to its answer to CONNECT."""

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
    """The value of `Proxy-Authorization`, of the user and the password in a proxy's URL."""
    if proxy.username is None:
        return None
    said = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return f"Basic {b64encode(said.encode()).decode()}"


def _socket(info: AddrInfoType) -> socket.socket:
    """A socket for an address; it notices when the model server's host is gone."""
    family, kind, protocol, *_ = info
    made = socket.socket(family, kind, protocol)
    notice_silence(made, _STALLED_SECONDS)
    return made
