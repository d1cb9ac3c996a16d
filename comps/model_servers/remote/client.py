"""A model server over HTTP: connections, credentials, TLS, proxies, patience, and what its failures stand for."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from email.utils import parsedate_to_datetime
from errno import ETIMEDOUT
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

from comps.core.errors import (
    InvalidRequest,
    ModelServerError,
    Overloaded,
    PromptTooLong,
    Refused,
    SettingsError,
    Unreachable,
)
from comps.core.errors import Timeout as ServerTimeout
from comps.core.sockets import notice_silence
from comps.core.types import JSON
from comps.model_servers.remote.oauth import ClientCredentials
from comps.model_servers.remote.sse import sse_data
from comps.model_servers.target import Access

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

_IDLE_SECONDS = 4.0
"""Connections are let go before the server does so: uvicorn closes an idle one after 5 s."""
_NO_STREAM = ("application/json", "text/html")
"""What comes instead of a stream from something else than a model server. Others may have a stream mislabelled."""
_STALLED_SECONDS = 20.0
"""How long a model server may take nothing of a request: then its host is gone, or no longer answers."""
_FACTS_SECONDS = 5.0
"""How long a model server may take to tell of itself, which is no work for it."""
_MOST = 4000
"""How many bytes are read of a body that is no answer."""
_NAME = re.compile(r"[\w.\[\]-]{1,100}", re.ASCII)
_LIMITS = ("max_tokens", "max_completion_tokens")
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error")
"""What OpenAI and llama-server call a prompt that is too long."""
_SAYS_TOO_LONG = re.compile(
    r"^(?!.*_tokens' is too large)"
    r".*(maximum context length|longer than the (maximum model|model's context) length)"
)
"""How vLLM and SGLang say so; of max_tokens, vLLM says much the same."""
_NEVER = float("inf")
_REST_SECONDS = 0.05
"""How long the last bytes behind an answer are waited for, so that the connection can be used again."""


class HTTP:
    """The way to one server; opens nothing before it is used.

    Args:
        endpoint: The URL that paths are added to.
        access: How it is reached.

    Raises:
        SettingsError: A file for TLS cannot be read, or the URL is none.
    """

    def __init__(self, endpoint: str, access: Access) -> None:
        self._base = endpoint.rstrip("/")
        self._access = access
        self._ssl = _ssl_context(access)
        if not access.api_key.isprintable():
            raise SettingsError("api_key (LLM_API_KEY): it has a line break in it, or something else that no key has")
        self._proxy = _proxy_for(endpoint, "model_server_endpoint")
        self._oauth: ClientCredentials | None = None
        if url := access.token_url:
            self._oauth = ClientCredentials(url, access.client_id, access.client_secret, _proxy_for(url, "token_url"))
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def get(self, path: str) -> JSON:
        """What the server tells of itself at `path`, as JSON (or None, if the body is empty)."""
        return await self._whole("GET", path, None, _FACTS_SECONDS)

    async def post(self, path: str, body: JSON) -> JSON:
        """The whole answer to `body`, as JSON."""
        return await self._whole("POST", path, body, self._access.first_token_seconds)

    async def stream(self, path: str, body: JSON) -> AsyncGenerator[bytes]:
        """The data of each server-sent event that answers `body`, up to `[DONE]` or the end of the body; closing it
        closes the connection.

        Raises:
            InvalidRequest, Overloaded, Refused, Unreachable, Timeout: What the server's failure stands for.
        """
        patience = _Patience(self._access)
        with _translated():
            async with self._response("POST", path, body, patience.first) as response:
                if (kind := response.content_type) in _NO_STREAM:
                    async with timeout(patience.first):
                        said = _brief(await _beginning(response)) or "nothing"
                    raise ModelServerError(f"the model server answered with {kind}, no event stream: {said}")
                try:
                    async with aclosing(sse_data(response.content.iter_any())) as events:
                        patience.start(response.content)
                        async for data in events:
                            patience.stop()
                            if data == b"[DONE]":
                                break
                            yield data
                            patience.start(response.content)
                finally:
                    patience.end()
                # With the last bytes read, the connection can be used again.
                with suppress(asyncio.TimeoutError, aiohttp.ClientError):
                    async with timeout(_REST_SECONDS):
                        await response.content.read()

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session:
            await self._session.close()

    async def _whole(self, method: str, path: str, body: JSON, seconds: float) -> JSON:
        with _translated():
            async with timeout(seconds or None), self._response(method, path, body, None) as response:
                content = await response.read()
                return orjson.loads(content) if content else None

    @asynccontextmanager
    async def _response(
        self, method: str, path: str, body: JSON, seconds: float | None
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """An answer whose status is 200; raises what any other stands for."""
        async with AsyncExitStack() as opened:
            async with timeout(seconds):
                asking = self._ask(method, path, None if body is None else orjson.dumps(body))
                response = await opened.enter_async_context(await asking)
                await _check(response)
            yield response

    async def _ask(self, method: str, path: str, data: bytes | None) -> aiohttp.ClientResponse:
        """The head of an answer; a token that the server does not accept is renewed once."""
        session = self._pool()
        if not self._oauth:
            return await self._send(session, method, path, data, {})
        token = await self._oauth.token(session)
        response = await self._send(session, method, path, data, {"Authorization": f"Bearer {token}"})
        if response.status == 401:
            response.release()
            token = await self._oauth.token(session, refused=token)
            response = await self._send(session, method, path, data, {"Authorization": f"Bearer {token}"})
        return response

    async def _send(
        self, session: aiohttp.ClientSession, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        def request() -> Awaitable[aiohttp.ClientResponse]:
            # A redirect would take what is asked to a server that nobody has named, or make a GET of it.
            url = self._base + path
            return session.request(method, url, data=data, headers=headers, proxy=self._proxy, allow_redirects=False)

        try:
            return await request()
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            # A server may close an idle connection at the moment at which it is used; nothing has been sent on yet.
            if getattr(error, "errno", None) == ETIMEDOUT:  # Its host has vanished.
                raise
            return await request()

    def _pool(self) -> aiohttp.ClientSession:
        """The connections, without a hidden cap; made on first use, since they belong to the running event loop."""
        if self._session is None or self._loop is not asyncio.get_running_loop():
            self._loop = asyncio.get_running_loop()
            # The session asks for tokens too, and where they are had the key is nobody's business.
            key = "" if self._oauth else self._access.api_key
            connect = self._access.connect_seconds or None
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=_IDLE_SECONDS, ssl=self._ssl, socket_factory=_socket
                ),
                cookie_jar=aiohttp.DummyCookieJar(),  # One would tie all requests to the server that gave it.
                timeout=aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=connect),
                headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
            )
        return self._session


def _socket(info: aiohttp.AddrInfoType) -> socket.socket:
    """A socket for an address; it notices when the model server's host is gone."""
    family, kind, protocol, *_ = info
    made = socket.socket(family, kind, protocol)
    notice_silence(made, _STALLED_SECONDS)
    return made


class _Patience:
    """How long an answer is waited for. One timer watches all of its events: a deadline is a number that moves.

    The time that whoever reads the answer takes is not the server's, and counts towards the total only.
    """

    def __init__(self, access: Access) -> None:
        now = time.monotonic()
        self._between = access.between_tokens_seconds or _NEVER
        self._end = now + (access.total_seconds or _NEVER)
        self._first = min(now + (access.first_token_seconds or _NEVER), self._end)
        self._begun = False
        self._due = _NEVER
        self._timer: asyncio.TimerHandle | None = None

    @property
    def first(self) -> float | None:
        """Seconds left to the first event; None: no limit."""
        return None if self._first == _NEVER else max(self._first - time.monotonic(), 0.0)

    def start(self, content: aiohttp.StreamReader) -> None:
        """The next event is waited for."""
        self._due = min(time.monotonic() + self._between, self._end) if self._begun else self._first
        if self._timer is None:
            self._watch(content)

    def stop(self) -> None:
        """It is there."""
        self._due = _NEVER
        if not self._begun:
            self._begun = True
            self.end()  # The timer was set for the first event, which may be far off.

    def end(self) -> None:
        """Nothing more is waited for."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _watch(self, content: aiohttp.StreamReader) -> None:
        self._timer = None
        if self._due == _NEVER:
            return
        if (wait := self._due - time.monotonic()) > 0:
            self._timer = asyncio.get_running_loop().call_later(wait, self._watch, content)
        else:
            content.set_exception(
                ServerTimeout(f"the model server did not {'go on' if self._begun else 'begin'} in time")
            )


def _ssl_context(access: Access) -> ssl.SSLContext | bool:
    """What certificates are checked against and which one is shown; made once, since it reads files."""
    if not (access.ca_file or access.client_certificate):
        return access.verify
    try:
        context = ssl.create_default_context(cafile=access.ca_file or None)
        if access.client_certificate:
            # A key with a passphrase would ask for it on the terminal.
            context.load_cert_chain(access.client_certificate, access.client_key or None, password=_no_password)
    except OSError as error:  # SSLError is one: what it says does not name the file.
        keys = [key for key in ("ca_file", "client_certificate", "client_key") if getattr(access, key)]
        files = ", ".join(f"{key} = {getattr(access, key)}" for key in keys)
        raise SettingsError(f"{files}: no usable certificate: {error.strerror or error}") from None
    if not access.verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _no_password() -> str:
    raise OSError("the key is protected by a passphrase")


def checked_url(url: str, key: str) -> SplitResult:
    """A URL in its parts.

    Args:
        url: The URL.
        key: The setting that has it.

    Raises:
        SettingsError: It is none that could be asked.
    """
    try:
        parts = urlsplit(url)
        if not url.startswith(("http://", "https://")):
            raise ValueError("a URL is needed, which begins with http:// or https://")
        if any(character.isspace() for character in url):
            raise ValueError("no space may be in a URL")
        if not parts.hostname or parts.port == 0:
            raise ValueError("no host, or no port, in this URL")
    except ValueError as error:  # Of urlsplit and port as well.
        raise SettingsError(f"{key} = {url}: {error}") from None
    return parts


def _proxy_for(endpoint: str, key: str) -> str | None:
    """The proxy that the environment names for this host: http_proxy, https_proxy, all_proxy, but for no_proxy.

    Raises:
        SettingsError: The setting `key`, which has this URL, has none that could be asked; or the proxy's is none.
    """
    url = checked_url(endpoint, key)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.netloc):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise SettingsError(f"{url.scheme}_proxy: only HTTP proxies are known here, no {proxy.partition(':')[0]}")
    return proxy


async def _check(response: aiohttp.ClientResponse) -> None:
    """Raise what an answer that is none stands for."""
    if response.status == 200:
        return
    if response.status in (301, 302, 303, 307, 308):
        raise Refused(response.status, "it redirects to another URL, which is not followed")
    text = await _beginning(response)
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        document = {"error": text.strip() or response.reason}
    error = document.get("error", document) if isinstance(document, dict) else document
    message = error_message(error)
    if response.status in (401, 403):  # What it says of our key is not for a caller.
        raise Refused(response.status, "it does not accept this service's key")
    if response.status in (400, 413, 422):
        raise _refusal(error if isinstance(error, dict) else {}, f"the model server refused it: {message}")
    if response.status == 429:
        raise Overloaded(f"the model server is busy: {message}", _retry_after(response))
    if response.status == 503:
        raise Unreachable(f"the model server is not ready: {message}", _retry_after(response))
    raise Refused(response.status, message)


def _refusal(error: dict[str, JSON], said: str) -> InvalidRequest:
    """What the caller has to mend; `error` is the server's own."""
    field = param if isinstance(param := error.get("param"), str) and _NAME.fullmatch(param) else None
    coded = any(error.get(name) in _TOO_LONG for name in ("code", "type"))
    if not coded and (field in _LIMITS or not _SAYS_TOO_LONG.search(said)):
        return InvalidRequest(said, field)
    tokens, window = error.get("n_prompt_tokens"), error.get("n_ctx")  # llama-server's numbers.
    if isinstance(tokens, int) and isinstance(window, int):
        return PromptTooLong(tokens, window)
    return PromptTooLong(0, 0, said=said)


async def _beginning(response: aiohttp.ClientResponse) -> str:
    """The first bytes of a body that is no answer, as text."""
    said = b""
    while len(said) < _MOST and (piece := await response.content.read(_MOST - len(said))):
        said += piece
    return said.decode("utf-8", "replace")


def _retry_after(response: aiohttp.ClientResponse) -> int:
    """Seconds: the header has them, or a date."""
    said = response.headers.get("Retry-After", "")
    with suppress(ValueError):
        return max(int(said), 0)
    with suppress(ValueError, OverflowError):
        return max(int(parsedate_to_datetime(said).timestamp() - time.time()) + 1, 1)
    return 1


def error_message(error: JSON) -> str:
    """What a server says in its error, which may be an object, a string or anything."""
    said = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
    return _brief(str(said))


def _brief(text: str) -> str:
    return " ".join(text.split())[:500]


@contextmanager
def _translated() -> Iterator[None]:
    """aiohttp's errors into ours, for whatever is done inside."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise Unreachable(f"the model server cannot be reached{_why(error)}") from error
    except asyncio.TimeoutError as error:
        raise ServerTimeout("the model server did not begin in time") from error
    except aiohttp.ClientHttpProxyError as error:
        raise Unreachable("the proxy before the model server does not let this service through") from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise ModelServerError(f"the connection to the model server broke: {type(error).__name__}") from error


@contextmanager
def checked_answer() -> Iterator[None]:
    """For reading an answer: one that is not built as it should be is an error of the model server."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise ModelServerError("the model server's answer makes no sense") from error


def _why(error: Exception) -> str:
    """What whoever runs this service can mend, without an address that callers need not know."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return ": its certificate is not trusted here"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return ": no TLS connection could be made"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return ": the proxy before it does not answer"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return ": its name cannot be resolved"
    return ""
