"""OPEA's own wire: six bodies on /v1/chat/completions, from the first microservice (2024) to Enterprise-RAG (2026).

A body is known by its marker: `query`, `initial_query` or `messages`. The first two are answered as the first
microservice did, the third as OpenAI does; `Switches` takes the forms of the later services instead.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import orjson
from pydantic import Field, PrivateAttr

from comps.core.citations import cited_numbers
from comps.core.errors import LLMError
from comps.core.prompts import numbered, own_number, text_of
from comps.core.types import JSON, Event, Generation, GenerationRequest, Message, Sampling, TextDelta
from comps.dialects.openai import CHAT, MODELS, OPENAI, ChatCall
from comps.dialects.shared import framing
from comps.dialects.shared.base import Dialect, Route, ServiceStatus, Style
from comps.dialects.shared.bodies import AskingMessages, Question, echoed
from comps.dialects.shared.fields import DocumentsCall
from comps.dialects.shared.framing import ResponseMetadata

OPEA = Style(lambda error: {"detail": str(error)})
"""OPEA's services are FastAPI's."""

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


class OpeaCall(DocumentsCall):
    """What all bodies of this dialect have in common."""

    style = OPEA

    streaming: bool | None = Field(None, description="An older name of stream; stream wins.")

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

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        contradicts = None not in (self.stream, self.streaming) and self.stream != self.streaming
        return [*(["streaming"] if contradicts else []), *super().ignored(capabilities)]


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
        return [
            GenerationRequest(
                prompt=(Message("user", self.question),),
                documents=self.gathered(),
                template=self.chat_template,
                language=self.language or "auto",
                sampling=self.sampling(),
            )
        ]

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        said = generations[0]
        document = {"id": metadata.id, "text": said.text, "prompt": self.question, **framing.cited(said.extra)}
        document = self.with_report(document, metadata)
        if self._switches.output_guard:
            guard = self.output_guardrail_params
            return {**document, "streaming": self._asked_to_stream, "output_guardrail_params": guard}
        return document

    def reply_stream(self, events: AsyncGenerator[Event], metadata: ResponseMetadata) -> AsyncGenerator[bytes]:
        if self._switches.stream == "openai":
            return framing.chat_chunks(events, metadata, include_report=bool(self.include_report))
        spell = framing.bytes_literal if self._switches.stream == "bytes" else repr
        return framing.repr_stream(events, spell, metadata.reports if self.include_report else None)

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


class MessagesCall(OpeaCall, ChatCall):
    """A conversation, as OpenAI's clients send it, with documents if there are any."""

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

    messages: AskingMessages = Field(description="A list of messages, or one question as a string.")

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

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        if not (self._enterprise_rag or self._switches.output_guard):
            return super().reply(generations, metadata)
        reply = {
            "id": metadata.id,
            "text": generations[0].text,
            "prompt": next((text_of(body.content or "") for body in self.messages if body.role == "user"), ""),
            "stream": self._asked_to_stream,
            "choices": [framing.chat_choice(choice, index) for index, choice in enumerate(generations[0].choices)],
            "output_guardrail_params": self.output_guardrail_params,
            "data": self._sources(set().union(*(cited_numbers(choice.extra) for choice in generations[0].choices))),
        }
        return self.with_report(reply, metadata)

    async def reply_stream(self, events: AsyncGenerator[Event], metadata: ResponseMetadata) -> AsyncGenerator[bytes]:
        has_tail = self._enterprise_rag and self.data is not None
        numbers: set[int] = set()
        async for item in super().reply_stream(_noting(events, numbers) if has_tail else events, metadata):
            yield item
        if has_tail:
            yield b"json: " + orjson.dumps(self._sources(numbers)) + b"\n\n"

    def _sources(self, cited: AbstractSet[int]) -> JSON:
        """Of the documents that were sent along those that the answer cites; all of them where it cites none, so that
        there is always something to show."""
        named = {one.text for one in numbered(self.gathered() or ()) if one.number in cited}
        ours = {one.text for one in self.gathered() or ()}
        along = self.sent_along()
        chosen = [one for one in along if one.text in named or (one.text not in ours and own_number(one) in cited)]
        return {"reranked_docs": [echoed(document) for document in chosen or along]}


async def _noting(events: AsyncGenerator[Event], numbers: set[int]) -> AsyncGenerator[Event]:
    """The events; the numbers of the documents that they cite go into `numbers`."""
    async for event in events:
        if isinstance(event, TextDelta) and event.extra:
            numbers |= cited_numbers(event.extra)
        yield event


def _health_check(status: ServiceStatus) -> JSON:
    """Readiness: 200 when the model can answer, 503 until then"""
    if status.not_ready:
        raise status.not_ready
    return {
        "Service Title": status.name,
        "Service Description": "OPEA Microservice Infrastructure",
        "Version": status.version,
    }


def _statistics(status: ServiceStatus) -> JSON:
    """Latencies of the last answers, in seconds"""
    return {status.name: status.statistics}


def opea(switches: Switches) -> Dialect:
    """The dialect, as the switches have it."""
    return Dialect(
        name="opea",
        calls={CHAT: (QueryCall, InitialQueryCall, MessagesCall)},
        style=OPEA,
        routes={
            "GET /v1/health_check": Route(_health_check),
            "GET /v1/statistics": Route(_statistics, asks_models=False),
            **MODELS,
        },
        switches=switches,
    )
