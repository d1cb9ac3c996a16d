"""OPEA's API: six bodies on /v1/chat/completions, from the first microservice (2024) to Enterprise-RAG (2026).

A body is recognised by its marker: `query`, `initial_query` or `messages`. The first two are answered as by the first
microservice, and whole as by GenAIComps 1.3 as well; the third as by OpenAI. `Switches` chooses the forms of the later
services instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import orjson
from pydantic import Field, ModelWrapValidatorHandler, model_validator

from comps.core.citations import cited_numbers
from comps.core.errors import LLMError
from comps.core.prompts import numbered, own_number, text_of
from comps.core.types import JSON, Generation, GenerationRequest, Message
from comps.dialects.openai import CHAT, MODELS, OPENAI, ChatCall
from comps.dialects.shared import framing
from comps.dialects.shared.base import Dialect, Route, ServiceStatus, Style, Writer
from comps.dialects.shared.bodies import AskingMessages, Question, echoed
from comps.dialects.shared.examples import FACT, OTHER_FACT
from comps.dialects.shared.fields import DocumentsCall, matters
from comps.dialects.shared.framing import ResponseMetadata
from comps.dialects.shared.writers import ChatChunks, ChunksAndSources, LiteralEvents, TextChunks, bytes_literal

OPEA = Style(lambda error: {"detail": str(error)})
"""OPEA's services have the errors of FastAPI."""

_MORE_THAN_TEXT = (
    *("n", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
    *("logprobs", "top_logprobs", "modalities", "audio"),
)
"""The options with which an answer is more than one text."""


@dataclass(frozen=True, slots=True)
class Switches:
    """How OPEA's services differ from each other.

    Attributes:
        stream: The stream that answers a question: `bytes` (data: b'…'), `text` (data: '…', Enterprise-RAG 1),
            `openai` (chunks of a chat) or `text_completion` (chunks of a completion, GenAIComps from 1.3 on).
        messages: The answer to messages: `openai`, or `enterprise_rag` (version 2).
        disable_streaming: Never stream, even if asked to.
        output_guard: An output guard is next in the pipeline: never stream, and pass its parameters on.
        string_messages: How messages that are a string are answered: as a list of `messages` is, or as a `query`
            (GenAIComps from 1.3 on).
    """

    stream: Literal["bytes", "text", "openai", "text_completion"] = "bytes"
    messages: Literal["openai", "enterprise_rag"] = "openai"
    disable_streaming: bool = False
    output_guard: bool = False
    string_messages: Literal["messages", "query"] = "messages"


class OpeaCall(DocumentsCall):
    """What all bodies of this dialect have in common."""

    style = OPEA
    any_model = True

    streaming: bool | None = Field(None, description="An older name of stream; stream wins.")

    id: str | None = Field(None, description="Of the pipeline; no effect here.")
    index_name: str | None = Field(None, description="For the retriever; no effect here.")
    input_guardrail_params: dict[str, Any] | None = Field(None, description="For a guard before; no effect here.")
    output_guardrail_params: dict[str, Any] | None = Field(None, description="For a guard behind; carried on.")

    _switches: ClassVar[Switches] = Switches()

    @property
    def streamed(self) -> bool:
        if self._switches.disable_streaming or self._switches.output_guard:
            return False
        return self._asked_to_stream

    @property
    def _asked_to_stream(self) -> bool:
        asked = self.streaming if self.stream is None else self.stream
        return self._streams_by_default if asked is None else asked

    @property
    def _streams_by_default(self) -> bool:
        return True

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        contradicts = None not in (self.stream, self.streaming) and self.stream != self.streaming
        return [*(["streaming"] if contradicts else []), *super().ignored(capabilities)]

    def _answer_to_question(self, question: str, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        """A question's whole answer: that of the first microservice, and beside it a `text_completion`, which pipelines
        read from GenAIComps 1.3 on. A body with the older `streaming` comes from before, and gets the first alone."""
        answer = generations[0]
        document = {"id": metadata.id, "text": answer.text, "prompt": question}
        is_old = self.streaming is not None and self.stream is None
        if not is_old or self._switches.stream == "text_completion":
            document = {**document, **framing.text_completion(generations, metadata), "id": metadata.id}
        document = self.with_report({**document, **framing.citations_in(answer.extra)}, metadata)
        if self._switches.output_guard:
            guard = self.output_guardrail_params
            return {**document, "streaming": self._asked_to_stream, "output_guardrail_params": guard}
        return document

    def _stream_to_question(
        self, metadata: ResponseMetadata, write: Callable[[bytes], None], include_usage: bool = False
    ) -> Writer:
        """The writer of a question's streamed answer."""
        form, include_report = self._switches.stream, bool(self.include_report)
        if form == "openai":
            return ChatChunks(metadata, write, include_usage, include_report)
        if form == "text_completion":
            return TextChunks(metadata, write, include_usage, include_report)
        literal = bytes_literal if form == "bytes" else repr
        return LiteralEvents(write, literal, metadata.reports if include_report else None)

    def _error_to_question(self, error: LLMError) -> bytes:
        """The last item of a question's stream that failed."""
        if self._writes_literals:
            return framing.sse(b"[ERROR]")
        return framing.sse(orjson.dumps(framing.openai_error(error)))

    @property
    def _writes_literals(self) -> bool:
        """Whether a question's stream has texts alone, as Python's literals."""
        return self._switches.stream in ("bytes", "text")


class _Question(OpeaCall):
    """What the two bodies with a question have in common: the first microservice's answer."""

    marker: ClassVar[str]
    defaults = {
        "max_tokens": 1024,
        "top_k": 10,
        "top_p": 0.95,
        "typical_p": 0.95,
        "temperature": 0.01,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
    }

    @property
    def question(self) -> str:
        return str(getattr(self, self.marker))

    def requests(self) -> Sequence[GenerationRequest]:
        return [
            GenerationRequest(
                prompt=(Message("user", self.question),),
                documents=self.all_documents(),
                **self.of_documents(),
                options=self.template_options,
                sampling=self.sampling(),
                defaulted=self.defaulted,
            )
        ]

    @property
    def takes_comments(self) -> bool:
        return not self._writes_literals

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        return self._answer_to_question(self.question, generations, metadata)

    def writer(self, metadata: ResponseMetadata, write: Callable[[bytes], None]) -> Writer:
        return self._stream_to_question(metadata, write)

    def error_item(self, error: LLMError) -> bytes:
        return self._error_to_question(error)


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
            "streaming": False,
        },
        "A question with documents": {
            "query": "How much memory does Gaudi 2 have?",
            "documents": [{"title": "Gaudi 2", "text": FACT}, OTHER_FACT],
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
            "reranked_docs": [{"text": FACT}, {"text": OTHER_FACT}],
            "max_new_tokens": 32,
            "streaming": False,
        },
        "From a retriever": {
            "initial_query": "How much memory does Gaudi 2 have?",
            "retrieved_docs": [{"text": FACT}, {"text": OTHER_FACT}],
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
            "documents": [FACT],
            "max_tokens": 32,
        },
        "From Enterprise-RAG": {
            "messages": [{"role": "user", "content": "How much memory does Gaudi 2 have?"}],
            "data": {"reranked_docs": [{"text": FACT, "metadata": {"url": "https://example.com/gaudi"}}]},
            "max_new_tokens": 32,
            "stream": False,
        },
    }
    style = OPENAI
    defaults = {"max_tokens": 1024, "temperature": 0.01}

    messages: AskingMessages = Field(description="A list of messages, or one question as a string.")

    _is_string: ClassVar[bool] = False
    """Whether `messages` came as a string. The class has the default, as for `_switches`."""

    @model_validator(mode="wrap")
    @classmethod
    def _note_string(cls, body: Any, validated: ModelWrapValidatorHandler[MessagesCall]) -> MessagesCall:
        call = validated(body)
        if isinstance(body, dict) and isinstance(body.get("messages"), str):
            call.__dict__["_is_string"] = True
        return call

    @property
    def question(self) -> str:
        return next((text_of(body.content or "") for body in self.messages if body.role == "user"), "")

    @property
    def _is_question(self) -> bool:
        """Whether the answer is that to a question, instead of a conversation."""
        return self._is_string and self._switches.string_messages == "query"

    @property
    def takes_comments(self) -> bool:
        return not (self._is_question and self._writes_literals)

    @property
    def _lost_in_literals(self) -> tuple[str, ...]:
        """The options whose answers have more than one text, if the answer's form has no place for more."""
        return _MORE_THAN_TEXT if self._is_question and self.streamed and self._writes_literals else ()

    def options(self) -> dict[str, JSON]:
        options, lost = super().options(), self._lost_in_literals
        return {name: value for name, value in options.items() if name not in lost} if lost else options

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        lost = super().ignored(capabilities)
        if not self._lost_in_literals:
            return lost
        sent = super().options()
        further = [name for name in self._lost_in_literals if name not in lost and matters(name, sent.get(name))]
        return lost + further

    @property
    def _enterprise_rag(self) -> bool:
        return self._switches.messages == "enterprise_rag"

    @property
    def promised_citations(self) -> str | None:
        return "on" if self._enterprise_rag else None

    @property
    def _streams_by_default(self) -> bool:
        return self._enterprise_rag

    @property
    def defaulted(self) -> AbstractSet[str]:
        own = super().defaulted
        return own | self.not_sent(_Question.defaults) if self._enterprise_rag else own

    def sampling_fields(self) -> dict[str, Any]:
        fields = super().sampling_fields()
        return {**_Question.defaults, **fields} if self._enterprise_rag else fields

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        if self._is_question:
            return self._answer_to_question(self.question, generations, metadata)
        if not (self._enterprise_rag or self._switches.output_guard):
            return super().reply(generations, metadata)
        reply = {
            "id": metadata.id,
            "text": generations[0].text,
            "prompt": self.question,
            "stream": self._asked_to_stream,
            "choices": [framing.chat_choice(choice, index) for index, choice in enumerate(generations[0].choices)],
            "output_guardrail_params": self.output_guardrail_params,
            "data": self._sources(set().union(*(cited_numbers(choice.extra) for choice in generations[0].choices))),
        }
        return self.with_report(reply, metadata)

    def writer(self, metadata: ResponseMetadata, write: Callable[[bytes], None]) -> Writer:
        if self._is_question:
            return self._stream_to_question(metadata, write, self.include_usage)
        if not self._enterprise_rag or self.data is None:
            return super().writer(metadata, write)
        return ChunksAndSources(metadata, write, self.include_usage, bool(self.include_report), self._sources)

    def error_item(self, error: LLMError) -> bytes:
        return self._error_to_question(error) if self._is_question else super().error_item(error)

    def _sources(self, cited: AbstractSet[int]) -> JSON:
        """The documents in `data` that the answer cites; all of them if it cites none, so that clients can show some.

        Args:
            cited: The numbers of the cited documents: ours, or the `citation_id`s of those that the messages quote.
        """
        given = numbered(self.all_documents() or ())
        ours = {one.text.strip() for one in given}
        named = {one.text.strip() for one in given if one.number in cited}
        sent = self.data_documents()
        chosen = [
            one
            for one in sent
            if (text := one.text.strip()) in named or (text not in ours and own_number(one) in cited)
        ]
        return {"reranked_docs": [echoed(document) for document in chosen or sent]}


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
    """The dialect with these switches."""
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
        about="OPEA's LLM microservices, GenAIComps and Enterprise-RAG: a question, and documents to answer it from.",
    )
