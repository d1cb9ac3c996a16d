"""The core's messages as LangChain has them, and what LangChain's messages say in the core's words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

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
from pydantic import TypeAdapter

from comps.core.finish_reasons import finish_reason
from comps.core.prompts import text_of
from comps.core.tool_calls import ToolCalls
from comps.core.types import JSON, Message, Prompt, TextDelta, Usage

_ROLES: dict[type[BaseMessage], str] = {
    HumanMessage: "user",
    AIMessage: "assistant",
    SystemMessage: "system",
    ToolMessage: "tool",
}
_DEVELOPER = {"__openai_role__": "developer"}
"""How LangChain writes this role into a system message."""
_EXTRA = "message_extra"
"""Where a message keeps its further fields in OpenAI's form."""
FOR_MESSAGES = frozenset(("messages.name", "messages.tool_calls", "messages.tool_call_id"))
"""Of those, what LangChain's messages have a place for as well."""
_PARTS = "content_parts"
"""Where a message keeps parts in the model server's own form: LangChain rewrites some of those in its content."""
_DETAILS = (
    ("input_token_details", "cache_read", "prompt_tokens_details", "cached_tokens"),
    ("output_token_details", "reasoning", "completion_tokens_details", "reasoning_tokens"),
)
"""What LangChain calls a kind of token, and what OpenAI does."""
_CALLS = TypeAdapter(list[ToolCall])


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


def message_of(message: BaseMessage) -> Message:
    """A message of LangChain's in the core's words; what it was given in the model server's own form comes back so."""
    content: Any = message.additional_kwargs.get(_PARTS, message.content)
    return Message(_role_of(message), content, message.additional_kwargs.get(_EXTRA, {}))


def _role_of(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    role = next((role for kind, role in _ROLES.items() if isinstance(message, kind)), message.type)
    return str(message.additional_kwargs.get("__openai_role__", role))


def as_sent(messages: Sequence[BaseMessage], sent: Sequence[Mapping[str, JSON]]) -> Prompt:
    """Messages in the core's words, as a chat model of LangChain's would send them; but what they were given in the
    model server's own form, which LangChain rewrites, is as it was.

    Args:
        messages: The messages.
        sent: The same, as they would be sent in OpenAI's form.
    """
    return tuple(_as_sent(message, one) for message, one in zip(messages, sent, strict=True))


def _as_sent(message: BaseMessage, sent: Mapping[str, JSON]) -> Message:
    if not message.additional_kwargs.keys().isdisjoint((_PARTS, _EXTRA)):
        return message_of(message)
    extra = {name: value for name, value in sent.items() if name not in ("role", "content")}
    return Message(_role_of(message), "" if sent["content"] is None else sent["content"], extra)


def delta_of(message: BaseMessage, calls: ToolCalls) -> TextDelta:
    """What a message, or a piece of one, says: its text, and what came with it in OpenAI's form.

    Args:
        message: Of the model.
        calls: The tool calls of the answer so far.
    """
    extra = {name: value for name, value in message.additional_kwargs.items() if isinstance(value, str | list | dict)}
    if thoughts := "".join(str(block.get(block["type"], "")) for block in _blocks(message, "reasoning", "thinking")):
        extra["reasoning_content"] = thoughts
    if pieces := extra.get("tool_calls") or _tool_calls_of(message):
        extra["tool_calls"] = calls.numbered(pieces)
    if logprobs := message.response_metadata.get("logprobs"):
        extra["logprobs"] = logprobs
    return TextDelta(str(message.text), extra=extra or None)


def _blocks(message: BaseMessage, *kinds: str) -> list[dict[str, Any]]:
    """The parts of a message that are of one of these types."""
    return [block for block in message.content if isinstance(block, dict) and block.get("type") in kinds]


def _tool_calls_of(message: BaseMessage) -> list[JSON]:
    """Tool calls, or pieces of them, in the form of OpenAI's deltas."""
    if isinstance(message, AIMessageChunk):
        return [_tool_call(call) for call in message.tool_call_chunks]
    if isinstance(message, AIMessage):
        calls = [_tool_call({**call, "args": json.dumps(call["args"])}) for call in message.tool_calls]
        return calls + [_tool_call({**call}) for call in message.invalid_tool_calls]
    return []


def _tool_call(call: ToolCallChunk | dict[str, Any]) -> JSON:
    function = {"arguments": call["args"] or "", **({"name": call["name"]} if call["name"] else {})}
    named = {"id": call["id"], "type": "function"} if call["id"] else {}
    return {"index": call.get("index"), **named, "function": function}


def reason_of(message: BaseMessage) -> str | None:
    """Why the answer ended, in OpenAI's words; None if the message does not say it."""
    metadata = message.response_metadata
    said = next((metadata[key] for key in ("finish_reason", "stop_reason", "done_reason") if metadata.get(key)), None)
    if said is None:
        return None
    reason = finish_reason(said)
    return "tool_calls" if reason == "function_call" else reason  # LangChain makes them tool calls.


def usage_of(counted: Mapping[str, Any] | None) -> Usage | None:
    """The tokens of a message's `usage_metadata`."""
    if not counted:
        return None
    details: dict[str, dict[str, int]] = {}
    for side, kind, name, ours in _DETAILS:
        if (number := counted.get(side, {}).get(kind)) is not None:
            details[name] = {ours: number}
    return Usage(counted["input_tokens"], counted["output_tokens"], details)


def usage_metadata(usage: Usage | None) -> UsageMetadata | None:
    """The same the other way round."""
    if usage is None:
        return None
    counted: Any = {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    for side, kind, name, ours in _DETAILS:
        if (number := usage.details.get(name, {}).get(ours)) is not None:
            counted[side] = {kind: number}
    return cast(UsageMetadata, counted)
