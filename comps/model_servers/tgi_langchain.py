"""LangChain's chat model for TGI, over this project's own way to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import fields
from typing import Any

from langchain_core.outputs import ChatGenerationChunk
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

from comps.core.ports import ModelServer
from comps.core.types import Event, Message, Prompt, Sampling, TextDelta

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
        """LangChain's own imports langchain-community to look for two classes that are gone from there."""
        return self

    def _resolve_model_id(self) -> None:
        self.model_id = self.llm.model

    @property
    def _default_params(self) -> dict[str, Any]:
        return {}

    async def _astream(self, messages: Any, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        """As LangChain's; closing it closes the answer at once, and not when the garbage is collected."""
        async with AsyncExitStack() as stack:
            chunks: Any = super()._astream(messages, *args, opened=stack, **kwargs)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk


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
        self, messages: list[dict[str, Any]], opened: AsyncExitStack, **given: Any
    ) -> AsyncGenerator[dict[str, Any]]:
        prompt: Prompt = tuple(Message(message["role"], message["content"]) for message in messages)
        if given.pop("continue_text", False):
            prompt = str(messages[0]["content"])
        given["stop"] = tuple(given.get("stop") or ())
        sampling = Sampling(**{name: value for name, value in given.items() if name in _SAMPLING})
        options = {name: given[name] for name in given if name not in _SAMPLING and name not in _OWN}
        chunks = _chunks(self._server.generate(prompt, sampling, options))
        opened.push_async_callback(chunks.aclose)
        return chunks


async def _chunks(events: AsyncGenerator[Event]) -> AsyncGenerator[dict[str, Any]]:
    """Events as ChatCompletionStreamOutput has them."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                extra = dict(event.extra or {})
                logprobs = extra.pop("logprobs", None)
                yield {
                    "choices": [{"delta": {"role": "assistant", "content": event.text, **extra}, "logprobs": logprobs}]
                }
                continue
            yield {"choices": [{"delta": {"role": "assistant"}, "finish_reason": event.reason}]}
            if usage := event.usage:
                counted = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
                yield {"choices": [], "usage": {**counted, "total_tokens": sum(counted.values())}}
