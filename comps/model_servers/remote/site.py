"""`Site`: a server's URL, the constant part of its requests, and its connections."""

from __future__ import annotations

import ssl
from urllib.parse import SplitResult, quote

from comps.core.request_id import REQUEST_ID, TRACE_HEADERS
from comps.core.retries import Retries
from comps.model_servers.remote.addresses import proxy_for, shown
from comps.model_servers.remote.connections import Connections, proxy_credentials


class Site:
    """A server's URL, the constant part of its requests, and its connections.

    Args:
        url: The base URL.
        tls: The TLS context; None for plain HTTP.
        connect_seconds: The deadline for a new connection, in seconds; 0: no limit.
        name: What the server is, for the errors.
        retries: See `Connections`.
    """

    def __init__(
        self,
        url: SplitResult,
        tls: ssl.SSLContext | None,
        connect_seconds: float,
        name: str = "the model server",
        retries: Retries | None = None,
    ) -> None:
        self.address = shown(url)
        """The URL as the operator sees it, without credentials."""
        proxy = proxy_for(url)
        if tls is None and proxy is not None and proxy.scheme == "https":
            tls = ssl.create_default_context()
        host = url.netloc.rpartition("@")[2]
        if not host.isascii():
            port = f":{url.port}" if url.port else ""
            host = (url.hostname or "").encode("idna").decode() + port
        self._path = quote(url.path, safe="/%:@!$&'()*+,;=~")
        further = b""
        if proxy is not None and url.scheme == "http":  # To a proxy, the request has the whole URL.
            self._path = f"http://{host}{self._path}"
            if credentials := proxy_credentials(proxy):
                further = f"Proxy-Authorization: {credentials}\r\n".encode("latin-1")
        self._root = "" if url.path else "/"
        self._query = f"?{url.query}" if url.query else ""
        self._constant = (
            f" HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\nAccept-Encoding: identity\r\nUser-Agent: opea-llm\r\n"
        ).encode("latin-1") + further
        self.connections = Connections(url, proxy, tls, connect_seconds, name, retries)

    def request(
        self, method: str, path: str, data: bytes, credentials: bytes, kind: bytes = b"application/json"
    ) -> bytes:
        """Returns an HTTP request as bytes.

        Args:
            method: GET or POST.
            path: The path below the base URL.
            data: The body.
            credentials: The `Authorization` header with its line break, or nothing.
            kind: The media type of the body.
        """
        target = f"{method} {self._path}{path or self._root}{self._query}".encode("latin-1")
        if said := REQUEST_ID.get():
            credentials += b"X-Request-Id: %b\r\n%b" % (said.encode(), TRACE_HEADERS.get())
        content = b"Content-Type: %b\r\nContent-Length: %d\r\n" % (kind, len(data)) if method == "POST" else b""
        return b"".join((target, self._constant, credentials, content, b"\r\n", data))
