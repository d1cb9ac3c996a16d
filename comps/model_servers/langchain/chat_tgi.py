"""LangChain's chat model for TGI, over this project's own way to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import fields
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

from comps.core.ports import ModelServer
from comps.core.types import Event, Message, Prompt, Sampling, TextDelta
from comps.model_servers.langchain.chat_model import CONTINUE, EventChunk, message_of

_SAMPLING = frozenset(field.name for field in fields(Sampling))
_OWN = ("model", "n", "stream", "stream_options")
"""What LangChain sends with each call, and is of no use here."""


class ChatTGI(ChatHuggingFace):
    """ChatHuggingFace, with the client that it asks exchanged: a server reached and read as without LangChain."""

    @classmethod
    def over(cls, server: ModelServer, model: str = "") -> ChatTGI:
        """LangChain's model over `server`, under the name `model`; LangChain's own defaults do not apply."""
        return cls(llm=_Endpoint(model=model or "tgi", streaming=True, async_client=_Client(server)))

    def validate_llm(self) -> ChatTGI:  # type: ignore[override]  # A validator of pydantic's.
        """LangChain's own imports langchain-community, which warns at once that it is no longer maintained."""
        return self

    def _resolve_model_id(self) -> None:
        self.model_id = self.llm.model

    @property
    def _default_params(self) -> dict[str, Any]:
        return {}

    def _create_message_dicts(
        self, messages: list[BaseMessage], stop: list[str] | None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        sent, params = super()._create_message_dicts(messages, stop)
        for message, one in zip(messages, sent, strict=True):
            given = message_of(message)
            one.update({"role": given.role, "content": given.content, **given.extra})
        return sent, params

    async def _astream(self, messages: Any, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        """As LangChain's, each piece with its event; closing it closes the answer at once."""
        answer = _Answer()
        generations: Any = super()._astream(messages, *args, answer=answer, **kwargs)
        async with answer.opened, aclosing(generations):
            async for generation in generations:
                message = generation.message
                generation.message = EventChunk.of(
                    answer.event,
                    content=message.content,
                    additional_kwargs=message.additional_kwargs,
                    response_metadata=message.response_metadata,
                    tool_call_chunks=message.tool_call_chunks,
                    usage_metadata=message.usage_metadata,
                )
                yield generation


class _Endpoint(HuggingFaceEndpoint):
    """What ChatHuggingFace looks for its client in."""

    def validate_environment(self) -> _Endpoint:  # type: ignore[override]  # A validator of pydantic's.
        """LangChain's own makes clients that would go another way, with a token out of the environment."""
        return self


class _Client:
    """What ChatHuggingFace needs of huggingface_hub's AsyncInferenceClient."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server

    async def chat_completion(
        self, messages: list[dict[str, Any]], answer: _Answer, **given: Any
    ) -> AsyncGenerator[dict[str, Any]]:
        prompt: Prompt = tuple(_message(**message) for message in messages)
        if given.pop(CONTINUE, False):
            prompt = str(messages[0]["content"])
        given["stop"] = tuple(given.get("stop") or ())
        sampling = Sampling(**{name: value for name, value in given.items() if name in _SAMPLING})
        options = given.pop("extra_body", {})
        options = {name: given[name] for name in given if name not in _SAMPLING and name not in _OWN} | options
        chunks = answer.chunks(self._server.generate(prompt, sampling, options))
        answer.opened.push_async_callback(chunks.aclose)
        return chunks


def _message(role: str, content: Any, **extra: Any) -> Message:
    return Message(role, content, extra)


class _Answer:
    """An answer on its way through LangChain, which takes piece by piece."""

    def __init__(self) -> None:
        self.opened = AsyncExitStack()
        self.event: Event = TextDelta("")
        """The one that the last piece was made of."""

    async def chunks(self, events: AsyncGenerator[Event]) -> AsyncGenerator[dict[str, Any]]:
        """Each event as ChatCompletionStreamOutput has it."""
        async with aclosing(events):
            async for self.event in events:
                yield _chunk(self.event)


def _chunk(event: Event) -> dict[str, Any]:
    if isinstance(event, TextDelta):
        extra = dict(event.extra or {})
        logprobs = extra.pop("logprobs", None)
        return {"choices": [{"delta": {"role": "assistant", "content": event.text, **extra}, "logprobs": logprobs}]}
    chunk: dict[str, Any] = {"choices": [{"delta": {"role": "assistant"}, "finish_reason": event.reason}]}
    if usage := event.usage:
        chunk["usage"] = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    return chunk
