"""OpenAI's API: chat, completions, embeddings and models. https://platform.openai.com/docs/api-reference

Sampling and documents work as in every dialect. Fields that only some model servers know (tools, a response format,
logprobs …) are passed to those, and reported as ignored by the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import Field

from comps.core.errors import InvalidRequest, LLMError
from comps.core.prompts import text_of
from comps.core.types import (
    CALLS_ON_DEMAND,
    JSON,
    Document,
    Embeddings,
    Generation,
    GenerationRequest,
    ModelInfo,
    Prompt,
)
from comps.dialects.shared import framing
from comps.dialects.shared.base import Dialect, EmbeddingCall, Route, ServiceStatus, Style, Switches, Writer
from comps.dialects.shared.bodies import Messages, unread_in
from comps.dialects.shared.examples import FACT, WEATHER
from comps.dialects.shared.fields import MANY, SAMPLED, DocumentsCall, matters
from comps.dialects.shared.framing import ResponseMetadata
from comps.dialects.shared.openai_values import (
    TOKEN_IDS,
    Alternatives,
    Function,
    ResponseFormat,
    Schema,
    StreamOptions,
    Texts,
    TextsAlone,
    TokenIds,
    Tool,
)
from comps.dialects.shared.vectors import in_base64
from comps.dialects.shared.writers import ChatChunks, TextChunks

CHAT = "/v1/chat/completions"
OPENAI = Style(framing.openai_error)

_MOST_COMPARED = 50_000_000
"""The most characters to search for documents in messages, which takes some hundredths of a second."""
_COMMON_OPTIONS = ("n", "logit_bias", "response_format", "user")
_CHAT_OPTIONS = (
    *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
    *("logprobs", "top_logprobs", "reasoning_effort", "verbosity", "modalities", "audio", "prediction"),
    *("web_search_options", "moderation", "metadata", "store", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
)
_TEXT_OPTIONS = ("logprobs", "echo", "suffix", "best_of")
_READ_HERE = frozenset(("messages", "model", "stream"))
"""Fields that no model server needs to know."""
_NO_OPTIONS = frozenset((*_COMMON_OPTIONS, *_CHAT_OPTIONS, *_TEXT_OPTIONS, "max_total_tokens"))
"""Undeclared fields that are not passed on: OpenAI has them on the other path, and the last one only `Sampling` has."""


class OpenAICall(DocumentsCall):
    """What the bodies that ask for text have in common."""

    style = OPENAI
    _switches: ClassVar[Any] = Switches()
    _option_fields: ClassVar[Mapping[str, None]] = dict.fromkeys(_COMMON_OPTIONS)
    """The fields that only some model servers know."""

    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128, description="How many answers to make.")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Of tokens by their ids, -100 to 100."
    )
    response_format: ResponseFormat | None = Field(None, description="text, json_object or json_schema.")
    user: str | None = None

    @property
    def streamed(self) -> bool:
        return bool(self.stream) and not self._switches.disable_streaming

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _request(self, prompt: Prompt) -> GenerationRequest:
        """A request with this prompt and all other fields of the body."""
        return GenerationRequest(
            prompt=prompt,
            documents=self.all_documents(),
            **self.of_documents(),
            sampling=self.sampling(),
            defaulted=self.defaulted,
            options=self.options(),
            quoted=self.quoted_documents,
        )

    def options(self) -> dict[str, JSON]:
        """The fields that only some model servers know. An undeclared field may be one of them."""
        options = {**self.sent_fields(self._option_fields), **self.template_options}
        if self.model_extra:
            options.update(pair for pair in self.model_extra.items() if pair[1] is not None and _may_be_option(pair[0]))
        return options

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        extra = self.model_extra or {}
        lost = [name for name in super().ignored(capabilities) if name not in extra]
        wishes = self.sent_fields(self._option_fields)
        lost += [name for name, value in wishes.items() if name not in capabilities and matters(name, value)]
        unknown = [name for name in extra if name not in capabilities or not _may_be_option(name)]
        lost += [name for name in unknown if matters(name, extra[name])]
        if self.stream_options and self.stream_options.model_extra:
            lost += [f"stream_options.{name}" for name, value in self.stream_options.model_extra.items() if value]
        return lost

    def error_item(self, error: LLMError) -> bytes:
        return framing.sse(orjson.dumps(framing.openai_error(error)))


def _may_be_option(name: str) -> bool:
    """Whether an undeclared field may be an option of a model server. `messages.*` are names of capabilities."""
    return name not in _NO_OPTIONS and not name.startswith("messages.")


class ChatCall(OpenAICall):
    """A conversation, with documents if there are any."""

    marker = "messages"
    examples = {
        "A conversation": {
            "messages": [
                {"role": "developer", "content": "You answer in one sentence."},
                {"role": "user", "content": "What is Deep Learning?"},
            ],
            "max_completion_tokens": 32,
        },
        "With documents": {
            "messages": [{"role": "user", "content": "How much memory does Gaudi 2 have?"}],
            "documents": [FACT],
            "max_completion_tokens": 32,
        },
        "With a tool": {
            "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
            "tools": [WEATHER],
            "max_completion_tokens": 32,
        },
    }
    _option_fields = dict.fromkeys((*_COMMON_OPTIONS, *_CHAT_OPTIONS))

    messages: Messages = Field(description="A list of messages, or one question as a string.")
    max_completion_tokens: int | None = Field(None, gt=0, le=MANY, description="OpenAI's newer name of max_tokens.")
    tools: list[Tool] | None = None
    tool_choice: str | Schema | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = Field(None, description="An older form of tools.")
    function_call: str | Schema | None = Field(None, description="An older form of tool_choice.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Needs logprobs.")
    reasoning_effort: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    modalities: list[str] | None = None
    audio: Schema | None = None
    prediction: Schema | None = None
    web_search_options: Schema | None = None
    moderation: Schema | None = None
    metadata: Schema | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Schema | None = None

    def requests(self) -> Sequence[GenerationRequest]:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("it needs logprobs to be true", "top_logprobs")
        return [self._request(tuple(message.message() for message in self.messages))]

    @cached_property
    def quoted_documents(self) -> tuple[Document, ...]:
        # Enterprise-RAG quotes its documents in the messages, and sends them as well, to be returned.
        if not (documents := self.data_documents()):
            return ()
        text = "\n".join(text_of(body.content or "") for body in self.messages)
        if len(text) * len(documents) > _MOST_COMPARED:
            return ()
        return tuple(document for document in documents if document.text.strip() in text)

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        if CALLS_ON_DEMAND in capabilities and self._leaves_calls_to_the_model:
            capabilities = capabilities - {"tools", "functions"}
        takes_all = "messages.*" in capabilities
        sent = self.model_fields_set - _READ_HERE
        if takes_all and not self.model_extra and sent <= SAMPLED and sent <= capabilities:
            return []  # As nearly always.
        return super().ignored(capabilities) + unread_in(self.messages, capabilities)

    @property
    def _leaves_calls_to_the_model(self) -> bool:
        choice = self.tool_choice or self.function_call or "auto"
        if isinstance(choice, dict):
            return choice.get("type") == "allowed_tools" and "required" not in str(choice)
        return choice == "auto"

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        return self.with_report(framing.chat_completion(generations[0], metadata), metadata)

    def writer(self, metadata: ResponseMetadata, write: Callable[[bytes], None]) -> Writer:
        return ChatChunks(metadata, write, self.include_usage, bool(self.include_report))


class CompletionCall(OpenAICall):
    """Text to continue, or several of them, with documents if there are any."""

    marker = "prompt"
    examples = {
        "One text": {"prompt": "Deep learning is", "max_tokens": 16},
        "Several": {"prompt": ["Deep learning is", "Paris is"], "max_tokens": 16, "temperature": 0},
        "Streamed": {"prompt": "Deep learning is", "max_tokens": 16, "stream": True},
    }
    defaults = {"max_tokens": 16}
    _option_fields = dict.fromkeys((*_COMMON_OPTIONS, *_TEXT_OPTIONS))

    prompt: Texts | TokenIds = Field(
        description="A text, or a list of texts; or the ids of tokens, where the model server takes them."
    )
    max_tokens: int | None = Field(
        None, ge=0, le=MANY, description="The most tokens to generate; 0 where the model server echoes."
    )
    logprobs: Alternatives = Field(None, description="How many alternatives to each token; 0: none.")
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = Field(None, ge=0, le=20, description="At least n; 0 is the same as leaving it out.")

    def requests(self) -> Sequence[GenerationRequest]:
        if self.best_of and self.best_of < (self.n or 1):
            raise InvalidRequest("it must be at least n", "best_of")
        if isinstance(self.prompt[0], str):
            first, *others = self.prompt
            request = self._request(str(first))
            return [request, *(replace(request, prompt=text) for text in others)]
        if self.all_documents() or self.prompt_template:
            field = "documents" if self.all_documents() else "chat_template"
            raise InvalidRequest("token ids are passed on as they are, so nothing can be written around them", field)
        request = self._request("")
        options = [{**request.options, TOKEN_IDS: ids} for ids in self.prompt]
        return [replace(request, options=one) for one in options]

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        if TOKEN_IDS not in capabilities and not isinstance(self.prompt[0], str):
            raise InvalidRequest("token ids are taken by no model server but a vLLM; send text to complete", "prompt")
        if self.max_tokens == 0 and "echo" not in capabilities:
            raise InvalidRequest("it must be at least 1 where the model server echoes no prompt", "max_tokens")
        if self.logprobs and "top_logprobs" not in capabilities:  # From 1 on it asks for alternatives.
            capabilities = capabilities - {"logprobs"}
        return super().ignored(capabilities)

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        return self.with_report(framing.text_completion(generations, metadata), metadata)

    def writer(self, metadata: ResponseMetadata, write: Callable[[bytes], None]) -> Writer:
        return TextChunks(metadata, write, self.include_usage, bool(self.include_report))


class EmbeddingsCall(EmbeddingCall):
    """Texts to embed."""

    marker = "input"
    examples = {
        "One text": {"input": "Deep learning is a part of machine learning."},
        "Several": {"input": ["Deep learning", "Bread and butter"], "encoding_format": "base64"},
    }
    style = OPENAI

    input: TextsAlone = Field(description="A text, or a list of texts.")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64: little-endian float32.")
    dimensions: int | None = Field(None, gt=0, description="Refused unless the model's vectors have so many.")
    user: str | None = None

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        return [*(["user"] if self.user else []), *super().ignored(capabilities)]

    def texts(self) -> Sequence[str]:
        return self.input

    def reply(self, embeddings: Embeddings, metadata: ResponseMetadata) -> JSON:
        length = len(embeddings.vectors[0])
        if self.dimensions not in (None, length):
            raise InvalidRequest(f"the vectors of {metadata.model} have {length} dimensions", "dimensions")
        encode = in_base64 if self.encoding_format == "base64" else list
        tokens = embeddings.prompt_tokens
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": encode(vector)}
                for index, vector in enumerate(embeddings.vectors)
            ],
            "model": metadata.model,
            "usage": None if tokens is None else {"prompt_tokens": tokens, "total_tokens": tokens},
        }


def _models(status: ServiceStatus) -> JSON:
    """The models that answer here"""
    return {"object": "list", "data": [_model_object(model, status) for model in status.models]}


def _model(status: ServiceStatus) -> JSON:
    """One of the models that answer here"""
    return _model_object(status.named_model(), status)


def _model_object(model: ModelInfo, status: ServiceStatus) -> JSON:
    return {
        "id": model.name,
        "object": "model",
        "created": status.started,
        "owned_by": status.name,
        "max_model_len": model.context_window,
        "honours": sorted(model.capabilities) or None,
    }


MODELS = {
    "GET /v1/models": Route(_models, style=OPENAI),
    "GET /v1/models/{model:path}": Route(_model, style=OPENAI),
}


def openai(switches: Switches) -> Dialect:
    """The dialect with these switches."""
    return Dialect(
        name="openai",
        calls={CHAT: (ChatCall,), "/v1/completions": (CompletionCall,), "/v1/embeddings": (EmbeddingsCall,)},
        style=OPENAI,
        routes=MODELS,
        switches=switches,
        about="OpenAI's API, for its clients, LangChain, LlamaIndex and Haystack. A body may have `documents`.",
    )
