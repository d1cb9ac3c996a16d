"""`Connections`: opens HTTP/1.1 connections to one server, direct or through a proxy, and runs exchanges on them."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from base64 import b64encode
from collections.abc import Sequence
from urllib.parse import SplitResult, unquote

from aiohappyeyeballs import AddrInfoType, start_connection

from comps.core.errors import Unreachable, told_at
from comps.core.retries import Retries
from comps.core.sockets import notice_silence
from comps.core.tallies import RETRIES, TIMEOUTS
from comps.model_servers.remote.addresses import shown
from comps.model_servers.remote.connection import MOST_OF_HEAD, Connection, IdleConnections
from comps.model_servers.remote.deadlines import NEVER, Deadlines
from comps.model_servers.remote.exchange import Broken, Exchange
from comps.model_servers.remote.failures import why_unreachable

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

_STALLED_SECONDS = 20.0
"""Seconds for which a model server may acknowledge nothing of a request before the connection fails."""
_NEXT_ADDRESS_SECONDS = 0.25
"""Seconds before the next address of a host is tried in parallel (Happy Eyeballs, RFC 8305)."""
_PORTS = {"http": 80, "https": 443}


class Connections:
    """The connections to one server. Their number is unlimited, and they belong to the running event loop.

    Args:
        target: The server's URL.
        proxy: The URL of an HTTP proxy; None for direct connections.
        tls: The TLS context; None for plain HTTP.
        connect_seconds: The deadline for a new connection, in seconds; 0: no limit.
        name: What the server is, for the errors.
        retries: The budget of POST requests that are sent again on another connection; None: no limit.
    """

    def __init__(
        self,
        target: SplitResult,
        proxy: SplitResult | None,
        tls: ssl.SSLContext | None,
        connect_seconds: float,
        name: str,
        retries: Retries | None = None,
    ) -> None:
        self._target = target
        self._name = name
        self._retries = retries
        self._proxy = proxy
        self._tls = tls
        self._connect_seconds = connect_seconds
        self._idle: IdleConnections | None = None
        self._open: set[Connection] = set()
        self._look_up: asyncio.Future[Sequence[AddrInfoType]] | None = None
        """The look-up of the host's addresses that is under way."""

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
                    if not (broken.unanswered and self._may_repeat(exchange)):
                        raise
                exchange.reset()
            await self._run_on(await self._made(self._idle, exchange.deadlines), exchange)
        finally:
            exchange.close()

    def _may_repeat(self, exchange: Exchange) -> bool:
        if self._retries is None or exchange.request.startswith(b"GET"):
            RETRIES[self._retries.model if self._retries else "", "kept_connection"] += 1
            return True
        return self._retries.take("kept_connection")

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
                raise told_at(deadlines.missed(), self._at) from error
            TIMEOUTS["connect"] += 1
            raise self._unreachable(f"no connection within {seconds:g} s") from error
        except OSError as error:
            reset = isinstance(error, ConnectionResetError) and self._tls
            why, further = ("no TLS connection could be made", "connection reset") if reset else why_unreachable(error)
            passes = not isinstance(error, ssl.SSLError | socket.gaierror)
            raise self._unreachable(why, further, tls=isinstance(error, ssl.SSLError), passes=passes) from error

    def _unreachable(self, why: str, further: str = "", tls: bool = False, passes: bool = False) -> Unreachable:
        """Returns the error of a connection that cannot be opened.

        Args:
            why: The reason, without an address.
            further: What only the operator is told.
            tls: Whether TLS failed; through a proxy it is end to end.
            passes: See `Unreachable`.
        """
        if self._proxy and not tls:
            why = f"the proxy before it does not answer: {why}"
        said = f"{self._name} cannot be reached: "
        told = f"{why} ({further})" if further else why
        return Unreachable(said + why, operator_text=f"{said}{self._at}: {told}", passes=passes)

    @property
    def _at(self) -> str:
        """The address of the server, and of the proxy before it, for the operator."""
        return shown(self._target) + (f" through {shown(self._proxy)}" if self._proxy else "")

    async def _connect(self, to: SplitResult, idle: IdleConnections) -> Connection:
        loop = asyncio.get_running_loop()
        assert to.hostname
        addresses = await self._resolved(to.hostname, to.port or _PORTS[to.scheme])
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

    async def _resolved(self, host: str, port: int) -> Sequence[AddrInfoType]:
        """Returns the addresses of a host.

        Numeric addresses are parsed without a thread, of which there are few. A look-up takes one until it ends, so
        concurrent connections share it; it goes on if one of them is given up.
        """
        try:
            numeric = socket.AI_NUMERICHOST
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=numeric)
        except socket.gaierror:
            pass
        look_up = self._look_up
        if look_up is None or look_up.get_loop() is not asyncio.get_running_loop():
            look_up = self._look_up = asyncio.ensure_future(_looked_up(host, port))
            look_up.add_done_callback(self._forget)
        return await asyncio.shield(look_up)

    def _forget(self, ended: asyncio.Future[Sequence[AddrInfoType]]) -> None:
        if self._look_up is ended:
            self._look_up = None
        if not ended.cancelled():
            ended.exception()  # asyncio logs exceptions that are never retrieved.

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
            if refused := await tunnel.opened:
                why = f"the proxy before {self._name} does not let this service through"
                raise Unreachable(why, operator_text=f"{why}: {self._at}: {refused}")
            connection = Connection(idle)
            secure = await asyncio.get_running_loop().start_tls(transport, connection, self._tls, server_hostname=host)
        except BaseException:
            transport.abort()
            raise
        if secure is None:
            raise told_at(Unreachable(f"the proxy before {self._name} closed the connection"), self._at)
        connection.connection_made(secure)
        return connection

    def close(self) -> None:
        """Close all connections."""
        if self._idle and self._idle.loop is asyncio.get_running_loop():
            self._idle.close()
        self._idle = None
        if self._look_up and self._look_up.get_loop() is asyncio.get_running_loop():
            self._look_up.cancel()
        for connection in list(self._open):
            connection.close()


class _Tunnel(asyncio.Protocol):
    """A connection to a proxy, up to the response to CONNECT."""

    def __init__(self) -> None:
        self.opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Its result is why the proxy refuses; empty: it does not."""
        self._said = b""

    def data_received(self, data: bytes) -> None:
        self._said += data
        if self.opened.done() or (b"\r\n\r\n" not in self._said and len(self._said) < MOST_OF_HEAD):
            return
        status = self._said.partition(b"\r\n")[0].partition(b" ")[2]
        self.opened.set_result("" if status.startswith(b"2") else f"it answers {status.decode('latin-1')[:100]}")

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_result("it closed the connection")


def proxy_credentials(proxy: SplitResult) -> str | None:
    """Returns the value of `Proxy-Authorization` for the user in a proxy's URL; None if it has no user."""
    if proxy.username is None:
        return None
    said = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return f"Basic {b64encode(said.encode()).decode()}"


async def _looked_up(host: str, port: int) -> Sequence[AddrInfoType]:
    """Returns the addresses of a host's name, by the system's resolver, in a thread."""
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)


def _socket(info: AddrInfoType) -> socket.socket:
    """Returns a socket for an address, with TCP keepalive; see `notice_silence`."""
    family, kind, protocol, *_ = info
    made = socket.socket(family, kind, protocol)
    notice_silence(made, _STALLED_SECONDS)
    return made
