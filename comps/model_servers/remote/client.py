"""HTTP client of one model server: credentials, deadlines and errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

import orjson

from comps.core.errors import ModelServerError, SettingsError, Unreachable, told_at
from comps.core.types import JSON
from comps.model_servers.remote.addresses import checked_url, tls_context
from comps.model_servers.remote.chunks import raise_reported
from comps.model_servers.remote.deadlines import Deadlines
from comps.model_servers.remote.exchange import Broken, Exchange, Reader, StreamExchange, has_succeeded
from comps.model_servers.remote.failures import brief, failure
from comps.model_servers.remote.oauth import NAME as TOKEN_SERVER
from comps.model_servers.remote.oauth import ClientCredentials
from comps.model_servers.remote.parsing import parse_answer
from comps.model_servers.remote.site import Site
from comps.model_servers.remote.sse import media_type
from comps.model_servers.target import Access

log = logging.getLogger("opea_llm")
E = TypeVar("E", bound=Exchange)

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
        self._site = Site(url, tls, access.connect_seconds, retries=access.retries)
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
        asked = await self._succeeded(partial(self._whole, "GET", path, b"", 0), _deadlines_of_facts)
        return await _document(asked)

    async def post(self, path: str, body: JSON, most: int = 0, *, repeats: bool = False) -> JSON:
        """Returns the JSON response to a POST request; see `get`. An object that is an error is raised as one.

        Args:
            path: The path below the base URL.
            body: The JSON body of the request.
            most: The maximum number of bytes of the response; 0: as many as an answer may have.
            repeats: Whether the request is sent again if the server has not begun it.
        """
        document = await _document(await self.response(path, body, most, repeats=repeats))
        if isinstance(document, dict):
            raise_reported(document)
        return document

    async def response(self, path: str, body: JSON, most: int = 0, *, repeats: bool = True) -> Exchange:
        """Returns the response to a POST request, with headers and body; see `post`, and `get` for errors."""
        ask = partial(self._whole, "POST", path, orjson.dumps(body), most)
        return await self._succeeded(ask, partial(Deadlines.of_whole, self._access), repeats)

    async def stream(self, path: str, body: JSON, reader: Reader, is_collected: bool = False) -> Mapping[bytes, bytes]:
        """Send a POST request and pass the data of each server-sent event to `reader`; returns the response's headers.

        It ends at `[DONE]`, at the end of the body, or when the reader returns True. Cancellation closes the
        connection. The request is sent again if the server has not begun it.

        Args:
            path: The path below the base URL.
            body: The JSON body of the request.
            reader: Reads the events.
            is_collected: Whether the answer is kept in memory, so that its length has a limit.

        Raises:
            InvalidRequest, Overloaded, Refused, Unreachable, Timeout: See `failure`.
            ModelServerError: The connection broke, or the response is no event stream; and the errors of the reader.
        """
        data = orjson.dumps(body)

        def ask(credentials: bytes, deadlines: Deadlines) -> StreamExchange:
            request = self._site.request("POST", path, data, credentials)
            return StreamExchange(request, deadlines, reader, self._unread, is_collected)

        asked = await self._succeeded(ask, partial(Deadlines.of_stream, self._access), repeats=True)
        if asked.is_json and asked.body:  # Some servers and proxies answer whole, whatever is asked.
            reader.event(asked.body)
        elif not asked.streams:
            kind = media_type(asked.headers).decode("latin-1")  # One of a few.
            # What the body says may be an answer, which is in no error.
            log.debug("no event stream, but: %s", brief(asked.body.decode("utf-8", "replace")))
            size = f"{len(asked.body)} bytes" if asked.body else "nothing"
            told = f"the model server answered with {kind}, no event stream: {size}"
            raise told_at(ModelServerError(told), self._site.address)
        return asked.headers

    async def aclose(self) -> None:
        """Close all connections."""
        self._site.connections.close()
        if self._oauth:
            self._oauth.close()

    def _whole(
        self, method: str, path: str, data: bytes, most: int, credentials: bytes, deadlines: Deadlines
    ) -> Exchange:
        return Exchange(self._site.request(method, path, data, credentials), deadlines, most, self._unread)

    async def _succeeded(
        self, ask: Callable[[bytes, Deadlines], E], deadlines_of: Callable[[], Deadlines], repeats: bool = False
    ) -> E:
        """Returns a request's exchange after a response with a status of success; see `get` for errors.

        A request is sent again with a new token if the token is refused, and, if it `repeats`, after a pause if the
        server has not begun it. The deadlines hold for all of these together.

        Args:
            ask: Returns an exchange of the request, given the credentials and the deadlines.
            deadlines_of: Returns the deadlines, which begin then.
            repeats: Whether the request is sent again.
        """
        credentials, number = await self._credentials(), 0
        deadlines = deadlines_of()
        repeats = repeats and self._access.repeats
        if repeats:
            self._access.retries.add_request()
        while True:
            asked = ask(credentials, deadlines)
            try:
                await self._run(asked)
                if asked.status == 401 and self._oauth:
                    credentials = await self._credentials(refused=credentials)
                    deadlines.restart()
                    asked = ask(credentials, deadlines)
                    await self._run(asked)
                if has_succeeded(asked.status):
                    return asked
                raise told_at(failure(asked.status, asked.headers, asked.body), self._site.address)
            except Unreachable as error:
                pause = self._pause(error, asked, deadlines, number) if repeats else None
                if pause is None:
                    raise
            await asyncio.sleep(pause)
            deadlines.restart()
            number += 1

    def _pause(self, error: Unreachable, asked: Exchange, deadlines: Deadlines, number: int) -> float | None:
        """Returns the pause before a request is sent again, in seconds; None if it must not be.

        It is sent again only if it cannot have been begun: no connection could be opened, or the server answered 503.
        """
        if not (error.passes or asked.status == 503):
            return None
        is_told = b"retry-after" in asked.headers or b"retry-after-ms" in asked.headers
        least = float(error.retry_after or 0) if is_told else 0.0
        return self._access.retries.pause(number, "unreachable", least, deadlines.left)

    async def _run(self, exchange: Exchange) -> None:
        try:
            await self._site.connections.run(exchange)
        except Broken as error:
            broken = f"the connection to the model server broke: {error}"
            raise told_at(ModelServerError(broken), self._site.address) from error
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


def _deadlines_of_facts() -> Deadlines:
    return Deadlines(_FACTS_SECONDS)


async def _document(exchange: Exchange) -> JSON:
    return await parse_answer(exchange.body) if exchange.body else None
