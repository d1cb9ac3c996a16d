"""Answers as LangChain has them, piece by piece or whole: how they are made, and how they are read again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.messages.tool import ToolCallChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk
from pydantic import PrivateAttr

from comps.core.answers import Collector, broken_off
from comps.core.ports import Answer
from comps.core.tool_calls import ToolCalls
from comps.core.types import JSON, Event, Finished, Generation
from comps.model_servers.langchain.messages import delta_of, reason_of, usage_metadata, usage_of


class EventChunk(AIMessageChunk):
    """A piece of an answer as LangChain has it, and the event that it was made from: a message has no place for all
    that an event may hold, such as the number of a choice. Where it is written down, it is LangChain's own."""

    _event: Event | None = PrivateAttr(default=None)

    @property
    def event(self) -> Event | None:
        """None for what LangChain adds itself, and for a sum of chunks."""
        return self._event

    @classmethod
    def lc_id(cls) -> list[str]:
        return AIMessageChunk.lc_id()


class WholeMessage(AIMessage):
    """A whole answer as LangChain has it, and the generation that it was made from."""

    _generation: Generation | None = PrivateAttr(default=None)

    @property
    def generation(self) -> Generation | None:
        """None where LangChain has made the message anew, such as one that comes out of a cache on a disk."""
        return self._generation

    @classmethod
    def lc_id(cls) -> list[str]:
        return AIMessage.lc_id()


Metadata: TypeAlias = Callable[[str], dict[str, Any]]
"""The `response_metadata` of an answer, by why it ended."""

_MESSAGE = EventChunk(content="")
_CHUNK = ChatGenerationChunk(message=_MESSAGE)
"""What chunks are copied from: to copy one costs half of what it does to validate one."""


def chunk_of(event: Event, metadata: Metadata) -> ChatGenerationChunk:
    """An event as a chunk that carries it; LangChain knows one choice, and of others gets nothing but the event."""
    message = _message(event, metadata)
    message._event = event
    return _CHUNK.model_copy(update={"message": message, "text": message.content})


def _message(event: Event, metadata: Metadata) -> EventChunk:
    if event.choice:
        return _copy()
    if isinstance(event, Finished):
        return _copy(response_metadata=metadata(event.reason), usage_metadata=usage_metadata(event.usage))
    if not event.extra:
        return _copy(content=event.text)
    return EventChunk(**_said(event.text, event.extra), tool_call_chunks=_call_chunks(event.extra.get("tool_calls")))


def _copy(**fields: Any) -> EventChunk:
    lists: dict[str, Any] = {"tool_calls": [], "invalid_tool_calls": [], "tool_call_chunks": []}
    return _MESSAGE.model_copy(update={"additional_kwargs": {}, "response_metadata": {}, **lists, **fields})


def whole_of(generation: Generation, metadata: Metadata) -> ChatGeneration:
    """A choice of a whole answer as a message that carries it."""
    extra = generation.extra or {}
    fields = _said(generation.text, extra)
    fields["response_metadata"] |= metadata(generation.reason)
    # A chunk tells which calls can be read.
    called = AIMessageChunk(content="", tool_call_chunks=_call_chunks(extra.get("tool_calls")))
    message = WholeMessage(
        **fields,
        tool_calls=called.tool_calls,
        invalid_tool_calls=called.invalid_tool_calls,
        usage_metadata=usage_metadata(generation.usage),
    )
    message._generation = generation
    return ChatGeneration(message=message)


def _said(text: str, extra: Mapping[str, JSON]) -> dict[str, Any]:
    """A text, and what came with it, as fields of a message, as far as LangChain can put pieces of it together."""
    logprobs = extra.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    return {
        "content": text,
        "additional_kwargs": {name: value for name, value in extra.items() if isinstance(value, str)},
        "response_metadata": {"logprobs": {"content": tokens}} if isinstance(tokens, list) else {},
    }


def _call_chunks(pieces: JSON) -> list[ToolCallChunk]:
    """Pieces of tool calls, if LangChain can read them; whoever asked gets them in any case."""
    if not (isinstance(pieces, list) and all(_is_function(piece) for piece in pieces)):
        return []
    return [
        ToolCallChunk(
            name=piece["function"].get("name"),
            args=piece["function"].get("arguments"),
            id=piece.get("id"),
            index=piece.get("index"),
        )
        for piece in pieces
    ]


def _is_function(piece: JSON) -> bool:
    function = piece.get("function")
    return (
        isinstance(function, dict)
        and isinstance(piece.get("id"), str | None)
        and all(isinstance(function.get(name), str | None) for name in ("name", "arguments"))
    )


class MessageReader:
    """Reads the messages of a LangChain chat model, the pieces of an answer or a whole one, and writes what they say.

    A message that carries an event or a generation is that. Of any other, text, reasoning, tool calls, logprobs and
    `additional_kwargs` are what it says, and the tokens of all of them are added up, as LangChain does.

    Args:
        answer: Where it is written to.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._calls = ToolCalls()
        self._reason = ""
        self._usage: UsageMetadata | None = None
        self._carried = False
        self._ended = False

    def read(self, message: BaseMessage) -> None:
        """Write what a message says."""
        if isinstance(message, EventChunk):
            if message.event:
                self._carried = True
                self._write(message.event)
        else:
            self._write(delta_of(message, self._calls))
            self._reason = reason_of(message) or self._reason
            if isinstance(message, AIMessage) and message.usage_metadata:
                self._usage = add_usage(self._usage, message.usage_metadata)

    def _write(self, event: Event) -> None:
        if isinstance(event, Finished):
            self._ended = True
            self._answer.finished(event)
        elif event.extra:
            self._answer.delta(event)
        elif event.text:
            self._answer.text(event.text, event.choice)

    def close(self) -> None:
        """Write the end, if no event was one: with an empty reason if no message says why.

        Raises:
            ModelServerError: There were events, but none was an end.
        """
        if not self._carried:
            self._answer.finished(Finished(self._reason, usage_of(self._usage)))
        elif not self._ended:
            raise broken_off()


def generation_of(message: BaseMessage) -> Generation:
    """A whole answer of a LangChain chat model."""
    if isinstance(message, WholeMessage) and message.generation:
        return message.generation
    collector = Collector()
    reader = MessageReader(collector)
    reader.read(message)
    reader.close()
    return collector.generation()
