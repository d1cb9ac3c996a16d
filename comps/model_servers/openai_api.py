"""Any server that speaks OpenAI's API: the shared client, in aiohttp; what differs between servers is in subclasses."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, ClassVar

import aiohttp
import orjson

from comps.core.errors import (
    InvalidRequest,
    ModelServerError,
    Overloaded,
    Refused,
    SettingsError,
    Unreachable,
)
from comps.core.errors import Timeout as ServerTimeout
from comps.core.types import JSON, Event, Finished, ModelInfo, Prompt, Sampling, TextDelta, Usage
from comps.model_servers.sse import sse_data
from comps.model_servers.target import Target

_CONNECT_SECONDS, _READ_SECONDS = 10.0, 300.0
"""To connect, and between two pieces of an answer, the first one included."""
_IDLE_SECONDS = 4.0
"""Connections are let go before the server does so: uvicorn closes an idle one after 5 s."""
_DESCRIBE = aiohttp.ClientTimeout(total=5.0)
_FRESH_SECONDS = 2.0
"""How long a description of the server is taken for true."""


_REASON = re.compile("[a-z_]{1,40}")


class OpenAIAPI:
    """A server with `/v1/chat/completions`, `/v1/completions` and `/v1/models`.

    Answers are always streamed from it, so that closing one ends it there as well.

    Args:
        model_name: The name that the server knows the model by.
        endpoint: Its URL, with or without `/v1`.
        api_key: Sent as a bearer token if there is one.
        verify: Whether its TLS certificate is checked.
    """

    honoured: ClassVar[frozenset[str]] = frozenset(
        ("max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop")
    )
    """The fields of `Sampling` that the server knows, under the same names."""

    def __init__(self, model_name: str, endpoint: str, *, api_key: str = "", verify: bool = True) -> None:
        self._model_name = model_name
        self._base = endpoint.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._verify = verify
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._info: ModelInfo | None = None
        self._described = 0.0

    @classmethod
    def open(cls, target: Target) -> OpenAIAPI:
        if not target.endpoint.startswith(("http://", "https://")):
            raise SettingsError(
                "model_server_endpoint (LLM_MODEL_SERVER_ENDPOINT): the URL of the model server is needed"
            )
        if "@" in target.endpoint:
            raise SettingsError("model_server_endpoint: no user or password in the URL; a key goes into LLM_API_KEY")
        return cls(target.model_name, target.endpoint, api_key=target.access.api_key, verify=target.access.verify)

    async def describe(self) -> ModelInfo:
        if self._info is None or time.monotonic() - self._described > _FRESH_SECONDS:
            with _translated():
                async with self._pool().get(f"{self._base}/models", timeout=_DESCRIBE) as response:
                    await _check(response)
                    self._info = self._read_info(orjson.loads(await response.read()))
            self._described = time.monotonic()
        return self._info

    def _read_info(self, listing: JSON) -> ModelInfo:
        """Ours among the listed models; a server may know it by an alias that it does not list."""
        mine: dict[str, Any] = next((model for model in listing["data"] if model["id"] == self._model_name), {})
        window = mine.get("max_model_len")
        return ModelInfo(self._model_name, window if isinstance(window, int) else None, self.honoured)

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> AsyncGenerator[Event]:
        path, body = self._request(prompt, sampling, options)
        with _translated():
            async with self._pool().post(f"{self._base}/{path}", data=orjson.dumps(body)) as response:
                await _check(response)
                async with aclosing(_events(response)) as events:
                    async for event in events:
                        yield event

    def _request(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> tuple[str, JSON]:
        """The path below /v1 and the body that ask for an answer."""
        body = {
            "model": self._model_name,
            **self._sampling(sampling),
            **options,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if isinstance(prompt, str):
            return "completions", {**body, "prompt": prompt}
        messages = [{"role": message.role, "content": message.content} for message in prompt]
        return "chat/completions", {**body, "messages": messages}

    def _sampling(self, sampling: Sampling) -> dict[str, JSON]:
        """The sampling fields of the body; those that are not set are the server's to decide."""
        fields = {name: getattr(sampling, name) for name in sorted(self.honoured)}
        return {name: value for name, value in fields.items() if value not in (None, ())}

    def _pool(self) -> aiohttp.ClientSession:
        """The connections, without a hidden cap; made on first use, since they belong to the running event loop."""
        if self._session is None or self._loop is not asyncio.get_running_loop():
            self._loop = asyncio.get_running_loop()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS, ssl=self._verify),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS),
                headers={"Content-Type": "application/json", **self._headers},
            )
        return self._session

    async def aclose(self) -> None:
        if self._session:
            await self._session.close()


async def _events(response: aiohttp.ClientResponse) -> AsyncGenerator[Event]:
    """What a stream of chunks says; the end comes last, when its usage has arrived too."""
    reasons: dict[int, str] = {}
    usage: Usage | None = None
    async with aclosing(sse_data(response.content.iter_any())) as items:
        async for data in items:
            if data == b"[DONE]":
                break
            chunk = _chunk(data)
            usage = _usage(chunk) or usage
            for choice in chunk.get("choices") or ():
                number = choice.get("index", 0)
                if delta := _delta(choice, number):
                    yield delta
                if reason := choice.get("finish_reason"):
                    reasons[number] = (_REASON.fullmatch(reason) and reason) or "unknown"
    if not reasons:
        raise ModelServerError("the model server broke off in the middle of the answer")
    for number, reason in reasons.items():
        yield Finished(reason, usage, number)


def _chunk(data: bytes) -> dict[str, Any]:
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise ModelServerError("the model server sent something that is no JSON in its stream") from None
    if not isinstance(chunk, dict):
        raise ModelServerError("the model server sent something that is no chunk in its stream")
    if error := chunk.get("error"):
        raise ModelServerError(f"the model server failed: {_message(error)}")
    return chunk


def _delta(choice: dict[str, Any], number: int) -> TextDelta | None:
    """The text of a choice, whether it is of a chat (`delta`) or not (`text`), and what comes with it."""
    delta = choice.get("delta") or {"content": choice.get("text")}
    text = delta.get("content") or ""
    extra = {name: value for name, value in delta.items() if name not in ("role", "content") and value is not None}
    if choice.get("logprobs"):
        extra["logprobs"] = choice["logprobs"]
    return TextDelta(text, number, extra or None) if text or extra else None


def _usage(chunk: dict[str, Any]) -> Usage | None:
    counted = chunk.get("usage")
    return Usage(counted["prompt_tokens"], counted["completion_tokens"]) if counted else None


async def _check(response: aiohttp.ClientResponse) -> None:
    """Raise what an answer that is none stands for."""
    if response.status == 200:
        return
    text = (await response.content.read(4000)).decode("utf-8", "replace")
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        document = {"error": text.strip() or response.reason}
    error = document.get("error", document) if isinstance(document, dict) else document
    message = _message(error)
    if response.status in (401, 403):  # What it says of our key is not for a caller.
        raise Refused(response.status, "it does not accept this service's key")
    if response.status in (400, 413, 422):
        raise InvalidRequest(f"the model server refused it: {message}")
    if response.status == 429:
        retry_after = response.headers.get("Retry-After", "")
        raise Overloaded(f"the model server is busy: {message}", int(retry_after) if retry_after.isdigit() else 1)
    if response.status == 503:
        raise Unreachable(f"the model server is not ready: {message}")
    raise Refused(response.status, message)


def _message(error: JSON) -> str:
    """What a server says in its error, which may be an object, a string or anything."""
    said = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
    return " ".join(str(said).split())[:500]


@contextmanager
def _translated() -> Iterator[None]:
    """aiohttp's errors into ours, for whatever is done inside."""
    try:
        yield
    except asyncio.TimeoutError as error:
        raise ServerTimeout("the model server did not answer in time") from error
    except aiohttp.ClientConnectorError as error:
        raise Unreachable("the model server cannot be reached") from error
    except aiohttp.ClientError as error:
        raise ModelServerError(f"the connection to the model server broke: {type(error).__name__}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelServerError("the model server's answer makes no sense") from error
