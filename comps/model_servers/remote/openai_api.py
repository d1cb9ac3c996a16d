"""Client of any server with OpenAI's API. Subclasses implement what differs between servers."""

from __future__ import annotations

import asyncio
import re
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from struct import iter_unpack
from typing import Any, ClassVar, TypeVar

from comps.core.answers import collect
from comps.core.beside import beside
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
from comps.model_servers.remote.chunks import ChunkReader
from comps.model_servers.remote.client import HTTP
from comps.model_servers.remote.failures import checked_answer
from comps.model_servers.remote.oauth import retrieve_exception
from comps.model_servers.remote.whole_answers import whole_answer
from comps.model_servers.target import Access, Target

T = TypeVar("T")

_FRESH_SECONDS = 2.0
"""Seconds for which a description is cached."""
_NEWER_NAME = re.compile(r"max_completion_tokens\W* instead")
"""OpenAI's error about max_tokens for its reasoning models. The newer name is used only after this error, because many
servers ignore it and answer without a limit."""
_MOST_OF_VECTOR = 1_000_000
"""The maximum size of a vector in JSON, in bytes, on the average of a response."""
_VECTORS_AT_ONCE = 10
"""Vectors that are checked within the event loop."""
_VERSION = re.compile(r"v\d+\w*")
_ROUTE = re.compile(r"((/chat)?/completions|/generate(_stream)?)/?$")
"""An endpoint's path at the end of a configured URL, which should not be there."""
_WINDOWS = ("max_model_len", "context_window", "context_length", "max_context_length", "n_ctx")
"""The fields with the context window in `/v1/models`: of vLLM and SGLang, Groq, OpenRouter and Together, LM Studio, and
llama.cpp (in `meta`)."""

NO_ROUTE = {*range(400, 502)} - {401, 403, 407}
"""The statuses of routes without which there is an answer all the same: there is none, or it fails. Others say that a
proxy does not reach the server, that the URL is another one, or that the key is not accepted."""

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
"""OpenAI's options other than sampling, as far as they can be streamed; `messages.*` stands for the further fields of
messages. Source: https://platform.openai.com/docs/api-reference/chat/create,
    https://platform.openai.com/docs/api-reference/completions
"""


class OpenAIAPI:
    """Client of `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings` and `/v1/models`.

    Closing the connection of a stream stops generation. `stops_whole` says whether this holds for whole answers as
    well.

    Args:
        model_name: The server's name for the model.
        endpoint: The server's URL, with or without `/v1`. Another version in its path (`/v3`, `/v1beta/openai`) is used
            instead of `/v1`.
        access: Credentials, TLS and deadlines.
        context_window: The context window in tokens; None: as the server reports it.

    Raises:
        SettingsError: A setting is invalid; see `HTTP`.
    """

    honoured: ClassVar[frozenset[str]] = frozenset(
        ("max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop")
    )
    """The fields of `Sampling` that the server supports, under the same names."""
    options: ClassVar[frozenset[str]] = OPENAI_OPTIONS
    """The options that the server supports."""
    stops_whole: ClassVar[bool] = False
    """Whether the server stops generating a whole answer when the connection closes. Many, such as llama.cpp's
    and llama-cpp-python's, stop only in streams."""
    keeps_deadlines: ClassVar[bool] = True
    """Whether it keeps the deadlines of `access` itself; see `with_deadlines`."""
    _limit = "max_tokens"
    """The server's name of the field `max_tokens`."""

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

    @property
    def asks_whole(self) -> bool:
        """Whether whole answers are requested as such; otherwise they are streamed and collected."""
        wanted = self.access.whole_answers
        return self.stops_whole if wanted == "auto" else wanted == "whole"

    async def describe(self) -> ModelInfo:
        if self._info is None or time.monotonic() - self._described > _FRESH_SECONDS:
            # Concurrent requests share one task, which is shielded: it goes on if one of them is cancelled.
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
        """Fetches the description from `/v1/models`. A server without that endpoint counts as ready."""
        told = self._told(await self._fact(f"{self._api}/models"))
        window = self._context_window or next(
            (told[name] for name in _WINDOWS if isinstance(told.get(name), int)), None
        )
        honoured = self.honoured | self.options
        if isinstance(told.get("honours"), list):  # The server is an instance of this service.
            honoured &= set(told["honours"])
        return ModelInfo(self.model_name, window, honoured, str(told.get("root") or ""))

    async def _fact(self, path: str) -> JSON:
        """Returns the JSON response to a GET request; None if the server has no such route.

        Raises:
            LLMError: The server, or a proxy before it, says something else than that; see `HTTP.get`.
        """
        try:
            return await self.http.get(path)
        except Refused as refused:
            if refused.status not in NO_ROUTE:
                raise
        except (InvalidRequest, ValueError):
            pass
        return None

    def _told(self, listing: JSON) -> dict[str, Any]:
        """Returns the list's entry of our model, `meta` included; empty if it is not listed (it may be an alias)."""
        listed = (listing.get("data") or listing.get("models")) if isinstance(listing, dict) else listing
        models = [model for model in listed if isinstance(model, dict)] if isinstance(listed, list) else []
        mine: dict[str, Any] = next((model for model in models if model.get("id") == self.model_name), {})
        meta = mine.get("meta")
        return {**mine, **meta} if isinstance(meta, dict) else mine

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        path, body = self.request(prompt, sampling, options)
        await self.stream(path, body, answer)

    async def complete(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> Generation:
        """See `Completes`."""
        path, body = self.request(prompt, sampling, options)
        return await self.whole(path, body)

    async def stream(self, path: str, body: dict[str, JSON], answer: Answer, is_collected: bool = False) -> None:
        """Send a body from `request` or `asking` as a streaming request, and write the answer; see `HTTP.stream`."""
        reader = ChunkReader(answer)
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with checked_answer():
            await self._with_limit(streamed, lambda asked: self.http.stream(path, asked, reader, is_collected))
            reader.close()

    async def whole(self, path: str, body: dict[str, JSON]) -> Generation:
        """Returns the whole answer to such a body, streamed and collected unless `asks_whole`."""
        if not self.asks_whole:
            return await collect(partial(self.stream, is_collected=True), path, body)
        with checked_answer():
            response = await self._with_limit(body, lambda asked: self.http.response(path, asked))
            return await whole_answer(response)

    async def _with_limit(self, body: dict[str, JSON], ask: Callable[[dict[str, JSON]], Awaitable[T]]) -> T:
        """Call `ask` with the body, with `max_tokens` under the server's name of that field."""
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
        """Returns the path and the body of a generation request."""
        if isinstance(prompt, str):
            return self.asking({"prompt": prompt}, sampling, options)
        return self.asking({"messages": [wire_message(message) for message in prompt]}, sampling, options)

    def asking(
        self, asked: Mapping[str, JSON], sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[str, dict[str, JSON]]:
        """Returns the path and the body for a `prompt` or `messages` in OpenAI's form."""
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
        """Returns the sampling fields of the body, without those that are not set."""
        said = [(name, getattr(sampling, name)) for name in self._sampling_fields]
        return {name: value for name, value in said if value is not None and value != ()}

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        body = {"model": self.model_name, "input": list(texts), "encoding_format": "float"}
        with checked_answer():
            answer = await self.http.post(f"{self._api}/embeddings", body, len(texts) * _MOST_OF_VECTOR, repeats=True)
            if len(texts) <= _VECTORS_AT_ONCE:
                return _embeddings(answer, len(texts))
            return await beside(_embeddings, answer, len(texts))

    async def aclose(self) -> None:
        if self._describing and _of_this_loop(self._describing):
            self._describing.cancel()
        await self.http.aclose()


def _embeddings(answer: Any, texts: int) -> Embeddings:
    """Parses the response to a request for embeddings of so many texts."""
    items = sorted(answer["data"], key=lambda item: int(item["index"]))
    vectors = tuple(_vector(item["embedding"]) for item in items)
    if len(vectors) != texts:
        raise ModelServerError(f"the model server gave {len(vectors)} vectors for {texts} texts")
    if len({len(vector) for vector in vectors}) > 1:
        raise ValueError("vectors of several lengths")
    return Embeddings(vectors, (answer.get("usage") or {}).get("prompt_tokens"))


def _vector(said: JSON) -> list[float]:
    """Parses a vector: a list of numbers, or base64 of little-endian float32, which some servers always send.

    Raises:
        ValueError: It is no vector of finite numbers.
    """
    if isinstance(said, str):
        said = [number for (number,) in iter_unpack("<f", b64decode(said, validate=True))]
    if not (isinstance(said, list) and said and set(map(type, said)) <= {int, float} and all(map(isfinite, said))):
        raise ValueError("no vector")
    return said


def wire_message(message: Message) -> dict[str, JSON]:
    """Returns a message in OpenAI's form. Reasoning goes under both of its names: of `reasoning_content`, which others
    read, vLLM reads nothing (https://github.com/vllm-project/vllm/issues/38488)."""
    content = None if message.content == "" and message.extra.get("tool_calls") else message.content
    wired = {"role": message.role, "content": content, **message.extra}
    if "reasoning_content" in wired:
        wired.setdefault("reasoning", wired["reasoning_content"])
    return wired


def check_endpoint(endpoint: str) -> None:
    """Check the URL of a model server.

    Raises:
        SettingsError: It is empty or invalid, contains credentials, or ends in the path of an endpoint.
    """
    if not endpoint:
        raise SettingsError("model_server_endpoint (LLM_MODEL_SERVER_ENDPOINT): the URL of the model server is needed")
    if "@" in endpoint:
        raise SettingsError("model_server_endpoint: no user or password in the URL; a key goes into LLM_API_KEY")
    path = checked_url(endpoint, "model_server_endpoint").path
    if end := _ROUTE.search(path):
        raise SettingsError(f"model_server_endpoint = {endpoint}: leave {end[0]} away, requests add it")


def split_endpoint(endpoint: str) -> tuple[str, str]:
    """Splits a URL into the server's root and the path of the API; the path is `/v1` unless the URL has a version."""
    scheme, _, rest = endpoint.rstrip("/").partition("://")
    host, *segments = rest.split("/")
    version = next((at for at, segment in enumerate(segments) if _VERSION.fullmatch(segment)), None)
    root, api = (segments, ["v1"]) if version is None else (segments[:version], segments[version:])
    return f"{scheme}://{'/'.join([host, *root])}", "/" + "/".join(api)


def _of_this_loop(task: asyncio.Task[ModelInfo]) -> bool:
    return task.get_loop() is asyncio.get_running_loop()


def _renamed(body: dict[str, JSON], limit: str) -> dict[str, JSON]:
    """Returns the body with `max_tokens` under another name."""
    return {limit if name == "max_tokens" else name: value for name, value in body.items()}
