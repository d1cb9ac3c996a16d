"""Any server that speaks OpenAI's API: the shared client; what differs between servers is in subclasses."""

from __future__ import annotations

import asyncio
import re
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import isfinite
from struct import iter_unpack
from typing import Any, ClassVar, TypeVar

from comps.core.answers import collect
from comps.core.errors import InvalidRequest, ModelServerError, Refused, SettingsError
from comps.core.ports import Answer
from comps.core.types import (
    JSON,
    Embeddings,
    Generation,
    Message,
    ModelInfo,
    Prompt,
    Sampling,
    only,
)
from comps.model_servers.remote.addresses import checked_url
from comps.model_servers.remote.chunks import ChunkReader, whole_answer
from comps.model_servers.remote.client import HTTP
from comps.model_servers.remote.failures import checked_answer
from comps.model_servers.remote.oauth import retrieve_exception
from comps.model_servers.target import Access, Target

T = TypeVar("T")

_FRESH_SECONDS = 2.0
"""How long a description of the server is taken for true."""
_NEWER_NAME = re.compile(r"max_completion_tokens\W* instead")
"""How OpenAI refuses max_tokens for its reasoning models. The newer name is not used unasked: many a server passes over
it, and answers without a limit."""
_VERSION = re.compile(r"v\d+\w*")
_ROUTE = re.compile(r"((/chat)?/completions|/generate(_stream)?)/?$")
"""What is asked, at the end of a URL that was copied whole."""
_WINDOWS = ("max_model_len", "context_window", "context_length", "max_context_length", "n_ctx")
"""What servers call the context window of a listed model: vLLM and SGLang, Groq, OpenRouter and Together, LM Studio,
llama.cpp (below `meta`)."""

OPENAI_OPTIONS = frozenset(
    (
        "audio",
        "echo",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "messages.*",
        "metadata",
        "modalities",
        "moderation",
        "n",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "service_tier",
        "store",
        "suffix",
        "tool_choice",
        "tools",
        "top_logprobs",
        "user",
        "verbosity",
        "web_search_options",
    )
)
"""What OpenAI's own API knows besides sampling, of what can be streamed; `messages.*` stands for the further fields of
messages. https://platform.openai.com/docs/api-reference/chat/create, https://platform.openai.com/docs/api-reference/completions
"""


class OpenAIAPI:
    """A server with `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings` and `/v1/models`.

    It stops generating once the connection of a request closes, of a whole answer as of a stream.

    Args:
        model_name: The name that the server knows the model by.
        endpoint: Its URL, with or without `/v1`; with another version in its path (`/v3`, `/v1beta/openai`), that one.
        access: How it is reached.
        context_window: In tokens; None asks the server.
    """

    honoured: ClassVar[frozenset[str]] = frozenset(
        ("max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop")
    )
    """The fields of `Sampling` that the server knows, under the same names."""
    options: ClassVar[frozenset[str]] = OPENAI_OPTIONS
    """The options that it knows."""
    _limit = "max_tokens"
    """What the server calls the most tokens to generate."""

    def __init__(
        self, model_name: str, endpoint: str, access: Access | None = None, context_window: int | None = None
    ) -> None:
        self.model_name = model_name
        root, api = split_endpoint(endpoint)
        self.access = access or Access()
        self.http = HTTP(root, self.access)
        self._api = api
        self._context_window = context_window
        self._sampling_fields = sorted(self.honoured)
        self._info: ModelInfo | None = None
        self._described = 0.0
        self._describing: asyncio.Task[ModelInfo] | None = None

    @classmethod
    def open(cls, target: Target) -> OpenAIAPI:
        check_endpoint(target.endpoint)
        return cls(target.model_name, target.endpoint, target.access, target.context_window)

    async def describe(self) -> ModelInfo:
        if self._info is None or time.monotonic() - self._described > _FRESH_SECONDS:
            # Of many requests at once, one asks for all; it goes on if that one is cancelled.
            if self._describing is None or self._describing.done() or not _of_this_loop(self._describing):
                self._describing = asyncio.ensure_future(self._ask())
                self._describing.add_done_callback(retrieve_exception)
            return await asyncio.shield(self._describing)
        return self._info

    async def _ask(self) -> ModelInfo:
        with checked_answer():
            self._info = await self._facts()
        self._described = time.monotonic()
        return self._info

    async def _facts(self) -> ModelInfo:
        """What the server says of the model; one that lists none is there all the same."""
        window, honoured = self._context_window, self.honoured | self.options
        try:
            listing = await self.http.get(f"{self._api}/models")
        except Refused as refused:
            if refused.status not in (404, 405, 501):
                raise
        else:
            told = self._told(listing)
            window = window or next((told[name] for name in _WINDOWS if isinstance(told.get(name), int)), None)
            if isinstance(told.get("honours"), list):  # It is one of these services itself.
                honoured &= set(told["honours"])
        return ModelInfo(self.model_name, window, honoured)

    def _told(self, listing: JSON) -> dict[str, Any]:
        """What is said of ours among the listed models; a server may know it by an alias that it does not list."""
        mine: dict[str, Any] = next((model for model in listing["data"] if model["id"] == self.model_name), {})
        return {**mine, **(mine.get("meta") or {})}

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        path, body = self.request(prompt, sampling, options)
        await self.stream(path, body, answer)

    async def complete(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> Generation:
        """See `Completes`."""
        path, body = self.request(prompt, sampling, options)
        return await self.whole(path, body)

    async def stream(self, path: str, body: dict[str, JSON], answer: Answer) -> None:
        """Write the streamed answer to a body that `request` or `asking` made."""
        reader = ChunkReader(answer)
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with checked_answer():
            await self._with_limit(streamed, lambda asked: self.http.stream(path, asked, reader))
            reader.close()

    async def whole(self, path: str, body: dict[str, JSON]) -> Generation:
        """The whole answer to such a body, asked for whole, or streamed and collected if `access` says so."""
        if self.access.streams_whole:
            return await collect(self.stream, path, body)
        with checked_answer():
            return whole_answer(await self._with_limit(body, lambda asked: self.http.response(path, asked)))

    async def _with_limit(self, body: dict[str, JSON], ask: Callable[[dict[str, JSON]], Awaitable[T]]) -> T:
        """Ask with the most tokens to generate under the name that the server has for it."""
        if "max_tokens" not in body:
            return await ask(body)
        if self._limit != "max_tokens":
            return await ask(_renamed(body, self._limit))
        try:
            return await ask(body)
        except InvalidRequest as refusal:
            if not _NEWER_NAME.search(str(refusal)):
                raise
        self._limit = "max_completion_tokens"
        return await ask(_renamed(body, self._limit))

    def request(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> tuple[str, dict[str, JSON]]:
        """The path and the body that ask for an answer."""
        if isinstance(prompt, str):
            return self.asking({"prompt": prompt}, sampling, options)
        return self.asking({"messages": [wire_message(message) for message in prompt]}, sampling, options)

    def asking(
        self, asked: Mapping[str, JSON], sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[str, dict[str, JSON]]:
        """The same for a `prompt` or `messages` in OpenAI's own form."""
        body = {
            "model": self.model_name,
            **self._sampling(sampling),
            **options,
            **asked,
        }
        return f"{self._api}/{'completions' if 'prompt' in asked else 'chat/completions'}", body

    async def translated(
        self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[Prompt, Sampling, Mapping[str, JSON]]:
        """See `Translates`."""
        return prompt, only(sampling, self.honoured), options

    def _sampling(self, sampling: Sampling) -> dict[str, JSON]:
        """The sampling fields of the body; those that are not set are the server's to decide."""
        said = [(name, getattr(sampling, name)) for name in self._sampling_fields]
        return {name: value for name, value in said if value is not None and value != ()}

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        body = {"model": self.model_name, "input": list(texts), "encoding_format": "float"}
        with checked_answer():
            answer = await self.http.post(f"{self._api}/embeddings", body)
            items = sorted(answer["data"], key=lambda item: int(item["index"]))
            vectors = tuple(_vector(item["embedding"]) for item in items)
            if len(vectors) != len(texts):
                raise ModelServerError(f"the model server gave {len(vectors)} vectors for {len(texts)} texts")
            if len({len(vector) for vector in vectors}) > 1:
                raise ValueError("vectors of several lengths")
            return Embeddings(vectors, (answer.get("usage") or {}).get("prompt_tokens"))

    async def aclose(self) -> None:
        if self._describing and _of_this_loop(self._describing):
            self._describing.cancel()
        await self.http.aclose()


def _vector(said: JSON) -> list[float]:
    """A vector, as a list of numbers or as little-endian float32 in base64, which some servers always send."""
    if isinstance(said, str):
        said = [number for (number,) in iter_unpack("<f", b64decode(said, validate=True))]
    if not (isinstance(said, list) and said and set(map(type, said)) <= {int, float} and all(map(isfinite, said))):
        raise ValueError("no vector")
    return said


def wire_message(message: Message) -> dict[str, JSON]:
    """A message in OpenAI's form."""
    content = None if message.content == "" and message.extra.get("tool_calls") else message.content
    return {"role": message.role, "content": content, **message.extra}


def check_endpoint(endpoint: str) -> None:
    """Whether it is a URL that a model server can be reached at.

    Raises:
        SettingsError: It is not.
    """
    if not endpoint:
        raise SettingsError("model_server_endpoint (LLM_MODEL_SERVER_ENDPOINT): the URL of the model server is needed")
    if "@" in endpoint:
        raise SettingsError("model_server_endpoint: no user or password in the URL; a key goes into LLM_API_KEY")
    path = checked_url(endpoint, "model_server_endpoint").path
    if end := _ROUTE.search(path):
        raise SettingsError(f"model_server_endpoint = {endpoint}: leave {end[0]} away, requests add it")


def split_endpoint(endpoint: str) -> tuple[str, str]:
    """A server's URL without its API's version, and the path from there to the API: `/v1` unless the URL has one."""
    scheme, _, rest = endpoint.rstrip("/").partition("://")
    host, *segments = rest.split("/")
    version = next((at for at, segment in enumerate(segments) if _VERSION.fullmatch(segment)), None)
    root, api = (segments, ["v1"]) if version is None else (segments[:version], segments[version:])
    return f"{scheme}://{'/'.join([host, *root])}", "/" + "/".join(api)


def _of_this_loop(task: asyncio.Task[ModelInfo]) -> bool:
    return task.get_loop() is asyncio.get_running_loop()


def _renamed(body: dict[str, JSON], limit: str) -> dict[str, JSON]:
    """A body with the most tokens to generate under another name."""
    return {limit if name == "max_tokens" else name: value for name, value in body.items()}
