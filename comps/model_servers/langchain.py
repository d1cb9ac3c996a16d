"""LangChain between the core and a model server: a chat model as a `ModelServer`, a `ModelServer` as a chat model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, fields
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
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, SkipValidation

from comps.core.errors import ModelServerError
from comps.core.generator import collect
from comps.core.ports import ModelServer
from comps.core.types import (
    JSON,
    Event,
    Finished,
    Generation,
    Message,
    ModelInfo,
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
_CONTINUE = "continue_text"
"""The call argument that says: the one message is text to continue, not a conversation to answer."""


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
        known = {field.name for field in fields(Sampling)} | {_CONTINUE}
        options = {name: value for name, value in given.items() if name not in known}
        prompt: Prompt = tuple(_from_langchain(message) for message in messages)
        if given.get(_CONTINUE):
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
        events = self._events(messages, stop, kwargs)
        try:
            while (event := wait_for(_next(events))) is not None:
                chunk = ChatGenerationChunk(message=self._chunk(event))
                if run_manager and isinstance(event, TextDelta):
                    run_manager.on_llm_new_token(event.text, chunk=chunk)
                yield chunk
        finally:
            wait_for(events.aclose())

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._result(wait_for(collect(self._events(messages, stop, kwargs))))

    def _chunk(self, event: Event) -> AIMessageChunk:
        if isinstance(event, TextDelta):
            return AIMessageChunk(content=event.text, additional_kwargs=dict(event.extra or {}))
        metadata = self._metadata(event.reason)
        return AIMessageChunk(content="", response_metadata=metadata, usage_metadata=_usage_metadata(event.usage))

    def _result(self, generation: Generation) -> ChatResult:
        message = AIMessage(
            generation.text,
            response_metadata=self._metadata(generation.reason),
            usage_metadata=_usage_metadata(generation.usage),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _metadata(self, reason: str) -> dict[str, Any]:
        return {"finish_reason": reason, **({"model_name": self.model} if self.model else {})}


class ThroughLangChain:
    """A model server whose tokens come by way of a LangChain chat model, so that LangChain's callbacks and traces see
    every request.

    Args:
        chat_model: What is asked.
        server: What the chat model speaks to, where it is described and closed.
    """

    def __init__(self, chat_model: BaseChatModel, server: ModelServer) -> None:
        self._chat_model = chat_model
        self._server = server

    async def describe(self) -> ModelInfo:
        return await self._server.describe()

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> AsyncGenerator[Event]:
        given: dict[str, Any] = {name: value for name, value in asdict(sampling).items() if value is not None}
        stop = list(given.pop("stop")) or None
        if isinstance(prompt, str):
            messages: list[BaseMessage] = [HumanMessage(prompt)]
            given[_CONTINUE] = True
        else:
            messages = [_to_langchain(message) for message in prompt]
        reason: str | None = None
        usage: Usage | None = None
        chunks = self._chat_model.astream(messages, stop=stop, **given, **options)
        try:
            async for chunk in chunks:
                if chunk.text or chunk.additional_kwargs:
                    yield TextDelta(chunk.text, extra=chunk.additional_kwargs or None)
                reason = chunk.response_metadata.get("finish_reason", reason)
                usage = _usage(chunk) or usage
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]  # It is a generator, though declared an iterator.
        if reason is None:
            raise ModelServerError("the model server broke off in the middle of the answer")
        yield Finished(reason, usage)

    async def aclose(self) -> None:
        await self._server.aclose()


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Do something in the one event loop that all synchronous calls share: what a model server keeps open belongs to a
    loop, so it must not be another one each time."""
    return asyncio.run_coroutine_threadsafe(work, _background_loop()).result()


@cache
def _background_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


async def _next(events: AsyncGenerator[Event]) -> Event | None:
    return await anext(events, None)


def _usage_metadata(usage: Usage | None) -> UsageMetadata | None:
    if usage is None:
        return None
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def _usage(chunk: AIMessageChunk) -> Usage | None:
    counted = chunk.usage_metadata
    return Usage(counted["input_tokens"], counted["output_tokens"]) if counted else None


def _from_langchain(message: BaseMessage) -> Message:
    role = message.role if isinstance(message, ChatMessage) else _ROLES.get(type(message), message.type)
    content: Any = message.content
    return Message(role, content)


def _to_langchain(message: Message) -> BaseMessage:
    content: Any = message.content
    for kind, role in _ROLES.items():
        if role == message.role and kind is not ToolMessage:
            return kind(content)
    return ChatMessage(content=content, role=message.role)
