"""langchain-openai's chat model over this project's own way to a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import fields
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import ConfigDict, SkipValidation, model_validator

from comps.core.types import JSON, Event, Finished, Sampling, TextDelta
from comps.model_servers.langchain.chat_model import (
    CONTINUE,
    EventChunk,
    additional,
    has_own_form,
    message_of,
    one_by_one,
)
from comps.model_servers.remote.openai_api import OpenAIAPI, wire_message

_SAMPLING = tuple(field.name for field in fields(Sampling))
_OURS = ("model", "stream", "stream_options")
"""What the server's own requests hold anyway."""


class ChatOpenAIAPI(BaseChatOpenAI):
    """A LangChain chat model for a server that speaks OpenAI's API.

    langchain-openai makes requests out of messages and messages out of answers; between the two stands `server` and not
    OpenAI's SDK, so that the server is reached, waited for and understood as without LangChain.

    Every field of `Sampling` may be given to a call under that name, whether OpenAI knows it or not; what the server
    does not honour is left out.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    server: SkipValidation[OpenAIAPI]

    @classmethod
    def over(cls, server: OpenAIAPI, model: str = "") -> ChatOpenAIAPI:
        """The chat model over `server`, under the name `model`."""
        return cls(server=server, model=model or server.model_name)

    @model_validator(mode="before")
    @classmethod
    def _without_sdk(cls, values: dict[str, Any]) -> dict[str, Any]:
        client = _Client(values["server"])
        return {
            # None of these may come from the environment, or from what langchain-openai thinks of a model's name.
            "api_key": "",
            "http_socket_options": (),
            "use_responses_api": False,
            "stream_chunk_timeout": None,
            **values,
            "client": client,
            "async_client": client,
            "streaming": True,
            "stream_usage": True,
        }

    def _get_request_payload(self, input_: Any, *, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        payload = super()._get_request_payload(input_, stop=stop, **kwargs)
        for message, sent in zip(self._convert_input(input_).to_messages(), payload["messages"], strict=True):
            if has_own_form(message):
                sent.update(wire_message(message_of(message)))
        if payload.pop(CONTINUE, False):
            payload["prompt"] = payload.pop("messages")[0]["content"]
        if "response_format" in payload:  # Where it is, langchain-openai leaves this way for another one of the SDK.
            form = payload.pop("response_format")
            payload["extra_body"] = {"response_format": form, **(payload.get("extra_body") or {})}
        return payload

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], default_chunk_class: type, base_generation_info: dict[str, Any] | None
    ) -> ChatGenerationChunk | None:
        generation = super()._convert_chunk_to_generation_chunk(chunk, default_chunk_class, base_generation_info)
        if generation:
            message: Any = generation.message
            event = chunk["event"]
            more = additional(event) if isinstance(event, TextDelta) and event.choice == 0 else {}
            more.pop("tool_calls", None)  # They are in `tool_call_chunks`.
            generation.message = EventChunk.of(
                event,
                content=message.content,
                additional_kwargs=more,
                response_metadata=message.response_metadata,
                tool_call_chunks=message.tool_call_chunks,
                usage_metadata=message.usage_metadata,
            )
        return generation

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chunks: Any = self._astream(messages, stop, **kwargs)
        for chunk in one_by_one(chunks):
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


class _Client:
    """What langchain-openai needs of OpenAI's SDK."""

    def __init__(self, server: OpenAIAPI) -> None:
        self._server = server

    async def create(
        self, extra_body: dict[str, JSON] | None = None, **given: Any
    ) -> aclosing[AsyncGenerator[dict[str, Any]]]:
        asked: dict[str, JSON] = {name: given.pop(name) for name in ("messages", "prompt") if name in given}
        known = {name: given.pop(name) for name in _SAMPLING if name in given}
        stop = known.get("stop") or ()
        sampling = Sampling(**{**known, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})
        options = {name: value for name, value in given.items() if name not in _OURS} | (extra_body or {})
        return aclosing(_chunks(self._server.events(*self._server.asking(asked, sampling, options))))


async def _chunks(events: AsyncGenerator[Event]) -> AsyncGenerator[dict[str, Any]]:
    """Events as OpenAI's chunks, each with the event itself. LangChain knows one choice: of others it gets nothing but
    the event."""
    async with aclosing(events):
        async for event in events:
            yield {"choices": [] if event.choice else [_choice(event)], "usage": _usage(event), "event": event}


def _choice(event: Event) -> dict[str, Any]:
    if isinstance(event, Finished):
        return {"delta": {"role": "assistant"}, "finish_reason": event.reason}
    delta: dict[str, Any] = {"role": "assistant", "content": event.text}
    extra = event.extra or {}
    if (calls := extra.get("tool_calls")) and _are_tool_calls(calls):
        delta["tool_calls"] = calls
    logprobs = extra.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    return {"delta": delta, "logprobs": {"content": tokens} if isinstance(tokens, list) else None}


def _are_tool_calls(calls: JSON) -> bool:
    """Whether LangChain can read them; whoever asked gets them in any case."""
    return isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("index"), int) and _is_function(call.get("function"))
        for call in calls
    )


def _is_function(function: JSON) -> bool:
    return isinstance(function, dict) and all(
        isinstance(function.get(name), str | None) for name in ("name", "arguments")
    )


def _usage(event: Event) -> dict[str, Any] | None:
    if event.choice or isinstance(event, TextDelta) or event.usage is None:
        return None
    counted = event.usage
    return {
        "prompt_tokens": counted.prompt_tokens,
        "completion_tokens": counted.completion_tokens,
        "total_tokens": counted.prompt_tokens + counted.completion_tokens,
        **counted.details,
    }
