"""LangChain between the core and a model server: a chat model as a `ModelServer`, a `ModelServer` as a chat model."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCall, ToolCallChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, PrivateAttr, SkipValidation, TypeAdapter

from comps.core.deltas import ToolCalls
from comps.core.generator import collect
from comps.core.ports import ModelServer
from comps.core.prompts import text_of
from comps.core.types import (
    JSON,
    Event,
    Finished,
    Generation,
    Message,
    Prompt,
    Sampling,
    TextDelta,
    Usage,
)

T = TypeVar("T")

_ROLES: dict[type[BaseMessage], str] = {
    HumanMessage: "user",
    AIMessage: "assistant",
    SystemMessage: "system",
    ToolMessage: "tool",
}
CONTINUE = "continue_text"
"""The call argument that says: the one message is text to continue, not a conversation to answer."""
_DEVELOPER = {"__openai_role__": "developer"}
"""How LangChain writes this role into a system message."""
_EXTRA = "message_extra"
"""Where a message keeps its further fields in OpenAI's form."""
FOR_MESSAGES = frozenset(("messages.name", "messages.tool_calls", "messages.tool_call_id"))
"""Of those, what LangChain's messages have a place for as well."""
_PARTS = "content_parts"
"""Where a message keeps parts in the model server's own form: LangChain rewrites some of those in its content."""
_REASONS = {
    "end_turn": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "refusal": "content_filter",
    "safety": "content_filter",
}
"""Why an answer ended, in the words of Anthropic, Hugging Face and Google."""
_DETAILS = (
    ("input_token_details", "cache_read", "prompt_tokens_details", "cached_tokens"),
    ("output_token_details", "reasoning", "completion_tokens_details", "reasoning_tokens"),
)
"""What LangChain calls a kind of token, and what OpenAI does."""
_CALLS = TypeAdapter(list[ToolCall])
_WORD = re.compile("[a-z_]{1,40}")


class EventChunk(AIMessageChunk):
    """A piece of an answer as LangChain has it, and the event that it was made from: a message has no place for all
    that an event may hold, such as the number of a choice. Where it is written down, it is LangChain's own."""

    _event: Event | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, event: Event, **fields: Any) -> EventChunk:
        chunk = cls(**fields)
        chunk._event = event
        return chunk

    @property
    def event(self) -> Event | None:
        """None for what LangChain adds itself, and for a sum of chunks."""
        return self._event

    @classmethod
    def lc_id(cls) -> list[str]:
        return AIMessageChunk.lc_id()


class ChatModelServer(BaseChatModel):
    """A LangChain chat model over one of this project's model servers.

    >>> from comps.model_servers.scripted import Scripted
    >>> ChatModelServer(server=Scripted([["Hello", "!"]])).invoke("Hi").content
    'Hello!'

    Every field of `Sampling` may be given here as the default of all calls, or to a single call.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    server: SkipValidation[ModelServer]
    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    max_total_tokens: int | None = None

    @classmethod
    def over(cls, server: ModelServer, model: str = "") -> ChatModelServer:
        """The chat model over `server`, under the name `model`."""
        return cls(server=server, model=model)

    @property
    def _llm_type(self) -> str:
        return "opea-llm"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"model": self.model, **{field.name: getattr(self, field.name) for field in fields(Sampling)}}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        sampling = self._sampling(stop, kwargs)
        params["ls_provider"] = "opea-llm"
        if model := kwargs.get("model", self.model):
            params["ls_model_name"] = model
        if sampling.temperature is not None:
            params["ls_temperature"] = sampling.temperature
        if sampling.max_tokens is not None:
            params["ls_max_tokens"] = sampling.max_tokens
        return params

    def _sampling(self, stop: Sequence[str] | None, given: Mapping[str, Any]) -> Sampling:
        values = {field.name: given.get(field.name, getattr(self, field.name)) for field in fields(Sampling)}
        return Sampling(**{**values, "stop": tuple(self.stop if stop is None else stop)})

    def _events(
        self, messages: list[BaseMessage], stop: Sequence[str] | None, given: Mapping[str, Any]
    ) -> AsyncGenerator[Event]:
        known = {field.name for field in fields(Sampling)} | {CONTINUE, "extra_body"}
        options = {name: value for name, value in given.items() if name not in known} | given.get("extra_body", {})
        prompt: Prompt = tuple(message_of(message) for message in messages)
        if given.get(CONTINUE):
            prompt = str(messages[0].content)
        return self.server.generate(prompt, self._sampling(stop, given), options)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(self._events(messages, stop, kwargs)) as events:
            async for event in events:
                chunk = ChatGenerationChunk(message=self._chunk(event))
                if run_manager and isinstance(event, TextDelta):
                    await run_manager.on_llm_new_token(event.text, chunk=chunk)
                yield chunk

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._result(await collect(self._events(messages, stop, kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for event in one_by_one(self._events(messages, stop, kwargs)):
            chunk = ChatGenerationChunk(message=self._chunk(event))
            if run_manager and isinstance(event, TextDelta):
                run_manager.on_llm_new_token(event.text, chunk=chunk)
            yield chunk

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._result(wait_for(collect(self._events(messages, stop, kwargs))))

    def _chunk(self, event: Event) -> AIMessageChunk:
        if event.choice != 0:
            return EventChunk.of(event, content="")
        if isinstance(event, TextDelta):
            return EventChunk.of(event, content=event.text, additional_kwargs=additional(event))
        metadata = self._metadata(event.reason)
        return EventChunk.of(event, content="", response_metadata=metadata, usage_metadata=_usage_metadata(event.usage))

    def _result(self, generation: Generation) -> ChatResult:
        message = AIMessage(
            generation.text,
            response_metadata=self._metadata(generation.reason),
            usage_metadata=_usage_metadata(generation.usage),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _metadata(self, reason: str) -> dict[str, Any]:
        return {"finish_reason": reason, **({"model_name": self.model} if self.model else {})}


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Do something in the one event loop that all synchronous calls share: what a model server keeps open belongs to a
    loop, so it must not be another one each time."""
    return asyncio.run_coroutine_threadsafe(work, _background_loop()).result()


@cache
def _background_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def one_by_one(items: AsyncGenerator[T]) -> Iterator[T]:
    """Each of `items`, without an event loop around; closing it closes them."""
    try:
        while (item := wait_for(anext_or_none(items))) is not None:
            yield item
    finally:
        wait_for(items.aclose())


async def anext_or_none(items: AsyncGenerator[T]) -> T | None:
    return await anext(items, None)


def to_langchain(prompt: Prompt, ours: bool = False) -> list[BaseMessage]:
    """A prompt as messages; text is one message of the user.

    Args:
        prompt: What is asked.
        ours: The chat model takes a message's parts in the model server's own form, so that LangChain, which fails at
            some of them, needs no more than their text.
    """
    if isinstance(prompt, str):
        return [HumanMessage(prompt)]
    return [_to_langchain(message, text_of(message.content) if ours else message.content) for message in prompt]


async def events_of(messages: AsyncIterator[BaseMessage]) -> AsyncGenerator[Event]:
    """What the pieces of a streamed answer say; closing it closes them.

    Pieces that carry an event are that event. Of any others, text, reasoning, tool calls, logprobs and
    `additional_kwargs` are deltas, and the end comes last, with an empty reason if none of them says why.
    """
    reason = ""
    usage: Usage | None = None
    carried = False
    calls = ToolCalls()
    try:
        async for message in messages:
            if isinstance(message, EventChunk):
                if message.event:
                    carried = True
                    yield message.event
                continue
            if delta := _delta(message, calls):
                yield delta
            reason = reason_of(message) or reason
            usage = _usage(message) or usage
    finally:
        await messages.aclose()  # type: ignore[attr-defined]  # It is a generator, though declared an iterator.
    if not carried:
        yield Finished(reason, usage)


def _delta(message: BaseMessage, calls: ToolCalls) -> TextDelta | None:
    extra = {name: value for name, value in message.additional_kwargs.items() if isinstance(value, str | list | dict)}
    if thoughts := "".join(str(block.get(block["type"], "")) for block in _blocks(message, "reasoning", "thinking")):
        extra["reasoning_content"] = thoughts
    if pieces := extra.get("tool_calls") or tool_calls_of(message):
        extra["tool_calls"] = calls.numbered(pieces)
    if logprobs := message.response_metadata.get("logprobs"):
        extra["logprobs"] = logprobs
    text = str(message.text)
    return TextDelta(text, extra=extra or None) if text or extra else None


def _blocks(message: BaseMessage, *kinds: str) -> list[dict[str, Any]]:
    """The parts of a message that are of one of these types."""
    return [block for block in message.content if isinstance(block, dict) and block.get("type") in kinds]


def _usage_metadata(usage: Usage | None) -> UsageMetadata | None:
    if usage is None:
        return None
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def additional(delta: TextDelta) -> dict[str, Any]:
    """What else a delta says, as far as LangChain can put the pieces of it together again."""
    extra = delta.extra or {}
    return {name: value for name, value in extra.items() if isinstance(value, str) or name == "tool_calls"}


def tool_calls_of(message: BaseMessage) -> list[JSON]:
    """Tool calls, or pieces of them, in the form of OpenAI's deltas."""
    if isinstance(message, AIMessageChunk):
        return [_tool_call(call) for call in message.tool_call_chunks]
    if isinstance(message, AIMessage):
        return [_tool_call({**call, "args": json.dumps(call["args"])}) for call in message.tool_calls]
    return []


def _tool_call(call: ToolCallChunk | dict[str, Any]) -> JSON:
    function = {"arguments": call["args"] or "", **({"name": call["name"]} if call["name"] else {})}
    named = {"id": call["id"], "type": "function"} if call["id"] else {}
    return {"index": call.get("index"), **named, "function": function}


def reason_of(message: BaseMessage) -> str | None:
    """Why the answer ended, in OpenAI's words."""
    metadata = message.response_metadata
    said = next((metadata[key] for key in ("finish_reason", "stop_reason", "done_reason") if metadata.get(key)), None)
    if said is None:
        return None
    word = str(said).lower()
    return _REASONS.get(word, word) if _WORD.fullmatch(word) else "unknown"


def _usage(message: BaseMessage) -> Usage | None:
    counted: Mapping[str, Any] | None = message.usage_metadata if isinstance(message, AIMessage) else None
    if not counted:
        return None
    details: dict[str, dict[str, int]] = {}
    for side, kind, name, ours in _DETAILS:
        if (number := counted.get(side, {}).get(kind)) is not None:
            details[name] = {ours: number}
    return Usage(counted["input_tokens"], counted["output_tokens"], details)


def message_of(message: BaseMessage) -> Message:
    """A message of LangChain's in the core's words; what it was given in the model server's own form comes back so."""
    role = message.role if isinstance(message, ChatMessage) else _ROLES.get(type(message), message.type)
    content: Any = message.additional_kwargs.get(_PARTS, message.content)
    extra = message.additional_kwargs.get(_EXTRA, {})
    return Message(message.additional_kwargs.get("__openai_role__", role), content, extra)


def has_own_form(message: BaseMessage) -> bool:
    """Whether there is something in it that LangChain does not send as it was given."""
    return not message.additional_kwargs.keys().isdisjoint((_PARTS, _EXTRA))


def _to_langchain(message: Message, content: Any) -> BaseMessage:
    further: dict[str, Any] = {_PARTS: message.content} if isinstance(message.content, list) else {}
    if message.extra:
        further[_EXTRA] = dict(message.extra)
    given: dict[str, Any] = {"additional_kwargs": further}
    if isinstance(name := message.extra.get("name"), str):
        given["name"] = name
    if message.role == "developer":
        return SystemMessage(content, **{**given, "additional_kwargs": {**further, **_DEVELOPER}})
    if message.role == "assistant":
        return AIMessage(content, tool_calls=_calls(message.extra.get("tool_calls")), **given)
    if message.role == "tool" and isinstance(message.extra.get("tool_call_id"), str):
        return ToolMessage(content, tool_call_id=message.extra["tool_call_id"], **given)
    for kind, role in _ROLES.items():
        if role == message.role and kind is not ToolMessage:
            return kind(content, **given)
    return ChatMessage(content=content, role=message.role, **given)


def _calls(given: JSON) -> list[ToolCall]:
    """Tool calls in OpenAI's form as LangChain has them; none if they are not in that form."""
    try:
        return _CALLS.validate_python(
            [
                {"name": call["function"]["name"], "args": json.loads(call["function"]["arguments"]), "id": call["id"]}
                for call in given or ()
            ]
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
