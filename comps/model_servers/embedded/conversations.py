"""Conversations as an engine's chat template takes them: functions, calls and their results in its own fields where the
template has some, as text where it has none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from comps.core.prompts import only_text, plain_roles
from comps.core.types import JSON, Message, Prompt
from comps.model_servers.embedded.tools import ARGUMENTS, NAME, Tools, calls_as_text

_OF_TOOLS = ("tool_calls", "tool_call_id", "name")
"""The fields of a message that chat templates with functions read."""


def knows_tools(chat_template: str) -> bool:
    """Whether a chat template, in Jinja, renders functions, calls and their results."""
    return "tools" in chat_template and "tool_calls" in chat_template


def messages_for(prompt: Prompt, tools: Tools | None, chat_template: str) -> JSON:
    """The prompt as an engine takes it: text to continue as it is, or messages with `role`, `content` and what the
    chat template reads besides.

    Args:
        prompt: What is to be answered.
        tools: The functions that the answer may call; None: none.
        chat_template: The model's, in Jinja; empty: unknown.

    Raises:
        InvalidRequest: A message has a part that is no text.
    """
    if isinstance(prompt, str):
        return prompt
    conversation = plain_roles(prompt)
    assert not isinstance(conversation, str)
    if knows_tools(chat_template):
        return [_with_tools(message) for message in conversation]
    turns = _as_text(conversation)
    return _instructed(turns, tools.instruction()) if tools and tools.demanded else turns


def _with_tools(message: Message) -> dict[str, JSON]:
    """A message with its tool calls, whose arguments chat templates take as objects."""
    further = {name: message.extra[name] for name in _OF_TOOLS if message.extra.get(name)}
    if calls := _calls_of(message):
        further["tool_calls"] = [
            {"type": "function", "id": call["id"], "function": {NAME: call[NAME], ARGUMENTS: call[ARGUMENTS]}}
            for call in calls
        ]
    role = "tool" if message.role == "function" else message.role
    return {"role": role, "content": only_text(message), **further}


def _as_text(conversation: Iterable[Message]) -> list[dict[str, JSON]]:
    """The messages with calls and their results as text. Successive results are one turn of the user's, since many chat
    templates want turns of user and assistant to alternate."""
    names: dict[JSON, str] = {}
    turns: list[dict[str, JSON]] = []
    follows = False
    for message in conversation:
        calls, content = _calls_of(message), only_text(message)
        names.update((call["id"], str(call[NAME])) for call in calls)
        is_result = message.role in ("tool", "function")
        if is_result:
            name = names.get(message.extra.get("tool_call_id"), message.extra.get("name"))
            content = f"The function {name} returned:\n{content}" if name else f"The function returned:\n{content}"
        elif calls:
            written = calls_as_text([{NAME: call[NAME], ARGUMENTS: call[ARGUMENTS]} for call in calls])
            content = "\n".join(filter(None, (content, written)))
        if is_result and follows:
            turns[-1]["content"] += f"\n\n{content}"
        else:
            turns.append({"role": "user" if is_result else message.role, "content": content})
        follows = is_result
    return turns


def _calls_of(message: Message) -> list[dict[str, JSON]]:
    """The calls of an earlier answer: id, name and arguments, as an object if they are one in JSON."""
    given = message.extra.get("tool_calls") or []
    older = message.extra.get("function_call")
    calls = [{"function": older}] if older else given if isinstance(given, list) else []
    functions = [(call.get("id"), call.get("function")) for call in calls if isinstance(call, Mapping)]
    return [
        {"id": identity, NAME: function.get(NAME, ""), ARGUMENTS: _decoded(function.get(ARGUMENTS))}
        for identity, function in functions
        if isinstance(function, Mapping)
    ]


def _decoded(arguments: JSON) -> JSON:
    if not isinstance(arguments, str):
        return arguments or {}
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments


def _instructed(turns: Sequence[dict[str, JSON]], instruction: str) -> list[dict[str, JSON]]:
    """The messages with an instruction behind the user's last turn, since not every template takes a system message."""
    last = max((at for at, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    if last is None:
        return [*turns, {"role": "user", "content": instruction}]
    told = {**turns[last], "content": "\n\n".join(filter(None, (turns[last]["content"], instruction)))}
    return [*turns[:last], told, *turns[last + 1 :]]
