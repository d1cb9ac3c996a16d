"""OPEA's own wire: six bodies on /v1/chat/completions, from the first microservice (2024) to Enterprise-RAG (2026).

A body is known by its marker: `query`, `initial_query` or `messages`. The first two are answered as the first
microservice did, the third as OpenAI does; `Switches` takes the forms of the later services instead.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import orjson
from pydantic import Field, PrivateAttr

from comps.core.errors import LLMError
from comps.core.prompts import text_of
from comps.core.types import JSON, Document, Event, Generation, GenerationRequest, Message, Sampling
from comps.dialects import framing
from comps.dialects.base import Dialect, Fact, GenerationCall, House, Style
from comps.dialects.framing import Stamp
from comps.dialects.opea_bodies import DataBody, Documents, Messages, Question, echoed

PATH = "/v1/chat/completions"
OPEA = Style(lambda error: {"detail": str(error)})
"""OPEA's services are FastAPI's."""
OPENAI = Style(framing.openai_error)

_MANY = 2**31 - 1
_MOST_COMPARED = 50_000_000
"""Characters that may be looked at to find documents in messages: some hundredths of a second."""
_FACT, _OTHER = "Intel Gaudi 2 has 96 GB of HBM2E memory on board.", "Deep learning is a part of machine learning."


@dataclass(frozen=True, slots=True)
class Switches:
    """What the sibling services do differently from one another.

    Attributes:
        stream: How a query's answer is streamed: `bytes` (data: b'…'), `text` (data: '…', Enterprise-RAG 1) or
            `openai` (chunks).
        messages: How a messages body is answered: `openai`, or `enterprise_rag` (version 2).
        disable_streaming: Answer whole, whatever is asked.
        output_guard: An output guard comes next: answer whole, as a document that carries its parameters on.
    """

    stream: Literal["bytes", "text", "openai"] = "bytes"
    messages: Literal["openai", "enterprise_rag"] = "openai"
    disable_streaming: bool = False
    output_guard: bool = False


class OpeaCall(GenerationCall):
    """The fields that all bodies of this dialect share. `null` is the same as leaving a field out."""

    style = OPEA
    defaults: ClassVar[Mapping[str, float]]
    """The sampling that applies where the body is silent."""

    model: str | None = Field(None, description="The served model's name, where several are served.")
    max_tokens: int | None = Field(None, gt=0, le=_MANY, description="The same as max_new_tokens; the smaller counts.")
    max_new_tokens: int | None = Field(None, gt=0, le=_MANY, description="The most tokens to generate.")
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy.")
    top_k: int | None = Field(None, gt=0, le=_MANY)
    top_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = Field(None, description="Generation ends before any of these, which are not shown.")
    stream: bool | None = None
    streaming: bool | None = Field(None, description="An older name of stream; stream wins.")

    documents: Documents | None = Field(
        None, description="Reranked documents: strings, or objects with text and title."
    )
    retrieved_docs: Documents | None = Field(None, description="Documents not reranked; the first top_n are taken.")
    reranked_docs: Documents | None = None
    top_n: int | None = Field(None, gt=0, description="How many of retrieved_docs are taken; 1 if left out.")
    data: DataBody | None = Field(None, description="Enterprise-RAG 2: may hold reranked_docs.")
    chat_template: str | None = Field(None, description="A prompt template with {context} and {question}.")
    language: Literal["auto", "en", "zh"] | None = Field(None, description="Of the default prompt template.")

    id: str | None = Field(None, description="Of the pipeline; no effect here.")
    index_name: str | None = Field(None, description="For the retriever; no effect here.")
    input_guardrail_params: dict[str, Any] | None = Field(None, description="For a guard before; no effect here.")
    output_guardrail_params: dict[str, Any] | None = Field(None, description="For a guard behind; carried on.")

    _switches: Switches = PrivateAttr(default=Switches())

    def model_post_init(self, context: Any) -> None:
        self._switches = context or Switches()

    @property
    def streamed(self) -> bool:
        if self._switches.disable_streaming or self._switches.output_guard:
            return False
        return self._asked_to_stream

    @property
    def _asked_to_stream(self) -> bool:
        asked = self.streaming if self.stream is None else self.stream
        return self._streams_untold if asked is None else asked

    @property
    def _streams_untold(self) -> bool:
        return True

    def sampling(self) -> Sampling:
        """What the body says of sampling, and the defaults for the rest."""
        given = {name: getattr(self, name) for name in _SAMPLING if getattr(self, name) is not None}
        if limits := [value for name in _LIMITS if (value := getattr(self, name, None)) is not None]:
            given["max_tokens"] = min(limits)
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(**{**self.defaults, **given}, stop=tuple(text for text in stop if text))

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        wanted = [name for name in (*_SAMPLING, "stop") if getattr(self, name) not in (None, [], "")]
        lost = [name for name in wanted if name not in capabilities]
        if "max_tokens" not in capabilities:
            lost += [name for name in _LIMITS[1:] if getattr(self, name, None) is not None]
        if None not in (self.stream, self.streaming) and self.stream != self.streaming:
            lost.append("streaming")
        if self.retrieved_docs and len(self.retrieved_docs) > (self.top_n or 1):
            lost.append(f"retrieved_docs[{self.top_n or 1}:]")
        lost += [f"data.{name}" for name in (self.data and self.data.model_extra) or ()]
        return lost + super().ignored(capabilities)

    def gathered(self) -> tuple[Document, ...]:
        """The documents of all fields, best first."""
        bodies = (self.documents or []) + (self.reranked_docs or []) + (self.retrieved_docs or [])[: self.top_n or 1]
        return (*(document for body in bodies for document in body.documents()), *self._unwritten())

    def _unwritten(self) -> list[Document]:
        """Those of the documents in `data` that the prompt does not hold yet."""
        return self._sent_along()

    def _sent_along(self) -> list[Document]:
        """The documents in `data`."""
        bodies = (self.data and self.data.reranked_docs) or []
        return [document for body in bodies for document in body.documents()]

    def _request(self, messages: tuple[Message, ...]) -> GenerationRequest:
        return GenerationRequest(
            prompt=messages,
            documents=self.gathered(),
            template=self.chat_template,
            language=self.language or "auto",
            sampling=self.sampling(),
            model=self.model,
        )


_LIMITS = ("max_tokens", "max_new_tokens", "max_completion_tokens")
_SAMPLING = tuple(name for name in Sampling.__dataclass_fields__ if name != "stop")


class _Question(OpeaCall):
    """What the two question bodies share: the first microservice's answer."""

    marker: ClassVar[str]
    defaults = {
        "max_tokens": 1024,
        "top_k": 10,
        "top_p": 0.95,
        "typical_p": 0.95,
        "temperature": 0.01,
        "repetition_penalty": 1.03,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
    }

    @property
    def question(self) -> str:
        """What is asked."""
        return str(getattr(self, self.marker))

    def requests(self) -> Sequence[GenerationRequest]:
        return [self._request((Message("user", self.question),))]

    def reply(self, generations: Sequence[Generation], stamp: Stamp) -> JSON:
        document = {"id": stamp.id, "text": generations[0].text, "prompt": self.question}
        if self._switches.output_guard:
            guard = self.output_guardrail_params
            return {**document, "streaming": self._asked_to_stream, "output_guardrail_params": guard}
        return document

    def reply_stream(self, events: AsyncGenerator[Event], stamp: Stamp) -> AsyncGenerator[bytes]:
        if self._switches.stream == "openai":
            return framing.chat_chunks(events, stamp)
        return framing.repr_stream(events, framing.bytes_literal if self._switches.stream == "bytes" else repr)

    def error_item(self, error: LLMError) -> bytes:
        if self._switches.stream == "openai":
            return framing.sse(orjson.dumps(framing.openai_error(error)))
        return framing.sse(b"[ERROR]")


class QueryCall(_Question):
    """A question, with or without documents."""

    marker = "query"
    examples = {
        "A question": {
            "query": "What is Deep Learning?",
            "max_new_tokens": 17,
            "top_k": 10,
            "top_p": 0.95,
            "typical_p": 0.95,
            "temperature": 0.01,
            "repetition_penalty": 1.03,
            "streaming": False,
        },
        "A question with documents": {
            "query": "How much memory does Gaudi 2 have?",
            "documents": [{"title": "Gaudi 2", "text": _FACT}, _OTHER],
            "max_tokens": 32,
            "stream": False,
        },
    }

    query: Question


class InitialQueryCall(_Question):
    """A question as a retriever or reranker passes it on, with its documents."""

    marker = "initial_query"
    examples = {
        "From a reranker": {
            "initial_query": "How much memory does Gaudi 2 have?",
            "reranked_docs": [{"text": _FACT}, {"text": _OTHER}],
            "max_new_tokens": 32,
            "streaming": False,
        },
        "From a retriever": {
            "initial_query": "How much memory does Gaudi 2 have?",
            "retrieved_docs": [{"text": _FACT}, {"text": _OTHER}],
            "top_n": 1,
            "max_new_tokens": 32,
            "streaming": False,
        },
    }

    initial_query: Question


class MessagesCall(OpeaCall):
    """A conversation, as OpenAI's clients send it, with documents if there are any."""

    marker = "messages"
    examples = {
        "A conversation with documents": {
            "messages": [
                {"role": "system", "content": "You answer in one sentence."},
                {"role": "user", "content": "How much memory does Gaudi 2 have?"},
            ],
            "documents": [_FACT],
            "max_tokens": 32,
        },
        "From Enterprise-RAG": {
            "messages": [{"role": "user", "content": "How much memory does Gaudi 2 have?"}],
            "data": {"reranked_docs": [{"text": _FACT, "metadata": {"url": "https://example.com/gaudi"}}]},
            "max_new_tokens": 32,
            "stream": False,
        },
    }
    style = OPENAI
    defaults = {"max_tokens": 1024, "temperature": 0.01}

    messages: Messages = Field(description="A list of messages, or one question as a string.")
    max_completion_tokens: int | None = Field(None, gt=0, le=_MANY, description="OpenAI's newer name of max_tokens.")
    stream_options: dict[str, Any] | None = Field(None, description="include_usage adds the usage to a stream.")

    @property
    def _enterprise_rag(self) -> bool:
        return self._switches.messages == "enterprise_rag"

    @property
    def _streams_untold(self) -> bool:
        return self._enterprise_rag

    def sampling(self) -> Sampling:
        sampling = super().sampling()
        if not self._enterprise_rag:
            return sampling
        silent: dict[str, Any] = {
            name: value for name, value in _Question.defaults.items() if getattr(sampling, name) is None
        }
        return replace(sampling, **silent)

    def requests(self) -> Sequence[GenerationRequest]:
        return [self._request(tuple(message.message() for message in self.messages))]

    def _unwritten(self) -> list[Document]:
        # Enterprise-RAG has written its documents into the messages already, and sends them along to be echoed.
        said = "\n".join(text_of(body.content or "") for body in self.messages)
        along = self._sent_along()
        if len(said) * len(along) > _MOST_COMPARED:
            return along
        return [document for document in along if document.text not in said]

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        extra = {name for body in self.messages for name, value in (body.model_extra or {}).items() if value}
        return super().ignored(capabilities) + [f"messages.{name}" for name in sorted(extra)]

    def reply(self, generations: Sequence[Generation], stamp: Stamp) -> JSON:
        if not (self._enterprise_rag or self._switches.output_guard):
            return framing.chat_completion(generations[0], stamp)
        return {
            "id": stamp.id,
            "text": generations[0].text,
            "prompt": next((text_of(body.content or "") for body in self.messages if body.role == "user"), ""),
            "stream": self._asked_to_stream,
            "choices": [framing.chat_choice(generations[0])],
            "output_guardrail_params": self.output_guardrail_params,
            "data": {"reranked_docs": [echoed(document) for document in self._sent_along()]},
        }

    async def reply_stream(self, events: AsyncGenerator[Event], stamp: Stamp) -> AsyncGenerator[bytes]:
        include_usage = bool(self.stream_options and self.stream_options.get("include_usage"))
        async for item in framing.chat_chunks(events, stamp, include_usage):
            yield item
        if self._enterprise_rag and self.data is not None:
            tail = {"reranked_docs": [echoed(document) for document in self._sent_along()]}
            yield b"json: " + orjson.dumps(tail) + b"\n\n"

    def error_item(self, error: LLMError) -> bytes:
        return framing.sse(orjson.dumps(framing.openai_error(error)))


def _health_check(house: House) -> JSON:
    """Readiness: 200 when the model can answer, 503 until then"""
    if house.not_ready:
        raise house.not_ready
    return {
        "Service Title": house.name,
        "Service Description": "OPEA Microservice Infrastructure",
        "Version": house.version,
    }


def _statistics(house: House) -> JSON:
    """Latencies of the last answers, in seconds"""
    return {house.name: house.statistics}


def _models(house: House) -> JSON:
    """The models that answer here, as OpenAI lists them"""
    models = [
        {
            "id": model.name,
            "object": "model",
            "created": house.started,
            "owned_by": house.name,
            "max_model_len": model.context_window,
        }
        for model in house.models
    ]
    return {"object": "list", "data": models}


def opea(switches: Switches) -> Dialect:
    """The dialect, as the switches have it."""
    return Dialect(
        name="opea",
        calls={PATH: (QueryCall, InitialQueryCall, MessagesCall)},
        style=OPEA,
        facts={
            "GET /v1/health_check": Fact(_health_check),
            "GET /v1/statistics": Fact(_statistics, asks_models=False),
            "GET /v1/models": Fact(_models),
        },
        switches=switches,
    )
