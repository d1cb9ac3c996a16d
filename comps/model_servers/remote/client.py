"""HTTP client of one model server: credentials, deadlines and errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

import orjson

from comps.core.errors import ModelServerError, SettingsError, told_at
from comps.core.types import JSON
from comps.model_servers.remote.addresses import checked_url, tls_context
from comps.model_servers.remote.deadlines import Deadlines
from comps.model_servers.remote.exchange import Broken, Exchange, Reader, StreamExchange, has_succeeded
from comps.model_servers.remote.failures import brief, failure
from comps.model_servers.remote.oauth import NAME as TOKEN_SERVER
from comps.model_servers.remote.oauth import ClientCredentials
from comps.model_servers.remote.site import Site
from comps.model_servers.remote.sse import media_type
from comps.model_servers.target import Access

log = logging.getLogger("opea_llm")

_FACTS_SECONDS = 5.0
"""The deadline for GET requests, which need no generation, in seconds."""


class HTTP:
    """HTTP client of one server. Connections are opened when they are needed.

    Args:
        endpoint: The base URL.
        access: Credentials, TLS and deadlines.

    Raises:
        SettingsError: The URL or the key is invalid, or a file for TLS cannot be read.
    """

    def __init__(self, endpoint: str, access: Access) -> None:
        url = checked_url(endpoint.rstrip("/"), "model_server_endpoint")
        if not access.api_key.isprintable():
            raise SettingsError("api_key (LLM_API_KEY): it has a line break in it, or something else that no key has")
        self._access = access
        tls = tls_context(access) if _needs_tls(access, url) else None
        self._site = Site(url, tls, access.connect_seconds)
        self._oauth: ClientCredentials | None = None
        if access.token_url:
            tokens = Site(checked_url(access.token_url, "token_url"), tls, access.connect_seconds, TOKEN_SERVER)
            self._oauth = ClientCredentials(tokens, access.client_id, access.client_secret)
        # With OAuth, the API key is not sent.
        key = "" if self._oauth else access.api_key
        self._unread = 401 if self._oauth else 0
        """The status of a refused token. The request is repeated with a new one, so the body is not read."""
        self._key = f"Authorization: Bearer {key}\r\n".encode() if key else b""

    async def get(self, path: str) -> JSON:
        """Returns the JSON response to a GET request; None if the body is empty.

        Raises:
            InvalidRequest, Overloaded, Refused, Unreachable, Timeout: See `failure`.
            ModelServerError: The connection broke.
            ValueError: The body is not JSON; see `checked_answer`.
        """
        return _document(await self._whole("GET", path, b"", lambda: Deadlines(_FACTS_SECONDS)))

    async def post(self, path: str, body: JSON) -> JSON:
        """Returns the JSON response to a POST request; see `get`."""
        return _document(await self.response(path, body))

    async def response(self, path: str, body: JSON) -> Exchange:
        """Returns the response to a POST request, with headers and body; see `get` for errors."""
        return await self._whole("POST", path, orjson.dumps(body), lambda: Deadlines.of_whole(self._access))

    async def stream(self, path: str, body: JSON, reader: Reader) -> None:
        """Send a POST request and pass the data of each server-sent event to `reader`.

        It ends at `[DONE]`, at the end of the body, or when the reader returns True. Cancellation closes the
        connection.

        Args:
            path: The path below the base URL.
            body: The JSON body of the request.
            reader: Reads the events.

        Raises:
            InvalidRequest, Overloaded, Refused, Unreachable, Timeout: See `failure`.
            ModelServerError: The connection broke, or the response is no event stream; and the errors of the reader.
        """
        data = orjson.dumps(body)

        def exchange(credentials: bytes) -> StreamExchange:
            request = self._site.request("POST", path, data, credentials)
            return StreamExchange(request, Deadlines.of_stream(self._access), reader, self._unread)

        credentials = await self._credentials()
        asked = exchange(credentials)
        await self._run(asked)
        if asked.status == 401 and self._oauth:
            asked = exchange(await self._credentials(refused=credentials))
            await self._run(asked)
        if not has_succeeded(asked.status):
            raise told_at(failure(asked.status, asked.headers, asked.body), self._site.address)
        if asked.is_json and asked.body:  # Some servers and proxies answer whole, whatever is asked.
            reader.event(asked.body)
        elif not asked.streams:
            kind = media_type(asked.headers).decode("latin-1")  # One of a few.
            # What the body says may be an answer, which is in no error.
            log.debug("no event stream, but: %s", brief(asked.body.decode("utf-8", "replace")))
            size = f"{len(asked.body)} bytes" if asked.body else "nothing"
            error = ModelServerError(f"the model server answered with {kind}, no event stream: {size}")
            raise told_at(error, self._site.address)

    async def aclose(self) -> None:
        """Close all connections."""
        self._site.connections.close()
        if self._oauth:
            self._oauth.close()

    async def _whole(self, method: str, path: str, data: bytes, deadlines: Callable[[], Deadlines]) -> Exchange:
        credentials = await self._credentials()
        asked = Exchange(self._site.request(method, path, data, credentials), deadlines(), unread=self._unread)
        await self._run(asked)
        if asked.status == 401 and self._oauth:
            credentials = await self._credentials(refused=credentials)
            asked = Exchange(self._site.request(method, path, data, credentials), deadlines(), unread=self._unread)
            await self._run(asked)
        if not has_succeeded(asked.status):
            raise told_at(failure(asked.status, asked.headers, asked.body), self._site.address)
        return asked

    async def _run(self, exchange: Exchange) -> None:
        try:
            await self._site.connections.run(exchange)
        except Broken as error:
            broken = ModelServerError(f"the connection to the model server broke: {error}")
            raise told_at(broken, self._site.address) from error
        except ModelServerError as error:
            told_at(error, self._site.address)
            raise

    async def _credentials(self, refused: bytes = b"") -> bytes:
        """Returns the `Authorization` header, with the API key, or with a token that is not the refused one."""
        if self._oauth is None:
            return self._key
        prefix = b"Authorization: Bearer "
        token = await self._oauth.token(refused.removeprefix(prefix).rstrip().decode())
        return prefix + token.encode() + b"\r\n"


def _needs_tls(access: Access, url: SplitResult) -> bool:
    """Returns whether a TLS context is needed: for https, and to check certificate files at start-up."""
    https = "https" in (url.scheme, urlsplit(access.token_url).scheme)
    return https or bool(access.ca_file or access.client_certificate)


def _document(exchange: Exchange) -> JSON:
    return orjson.loads(exchange.body) if exchange.body else None
