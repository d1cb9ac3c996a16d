"""Tools of the Messages API as OpenAI's functions.

https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from comps.core.errors import InvalidRequest, shown_name
from comps.core.types import JSON

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_READ = ("type", "name", "description", "input_schema", "strict")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
"""OpenAI's words for the types of `tool_choice`, beside `tool`."""


def _checked_tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        kind = tool["type"]
        raise ValueError(
            f"tools of type {shown_name(kind)} are Anthropic's own; a tool here has a name and its input_schema"
        )
    if not (isinstance(tool.get("name"), str) and _NAME.fullmatch(tool["name"])):
        raise ValueError("a tool needs a name of at most 128 letters, digits, underscores and dashes")
    if not isinstance(tool.get("input_schema"), dict):
        raise ValueError("a tool needs its input_schema, an object")
    if not isinstance(tool.get("description"), str | None) or not isinstance(tool.get("strict"), bool | None):
        raise ValueError("the description of a tool is a string, and strict is true or false")
    return tool


def _checked_choice(choice: dict[str, Any]) -> dict[str, Any]:
    kind = choice.get("type")
    if kind not in (*_CHOICES, "tool"):
        raise ValueError("its type is auto, any, tool or none")
    if kind == "tool" and not isinstance(choice.get("name"), str):
        raise ValueError("the type tool needs the name of the tool")
    if not isinstance(choice.get("disable_parallel_tool_use"), bool | None):
        raise ValueError("disable_parallel_tool_use is true or false")
    return choice


Tool = Annotated[dict[str, Any], AfterValidator(_checked_tool)]
ToolChoice = Annotated[dict[str, Any], AfterValidator(_checked_choice)]


def options_of_tools(tools: Sequence[Mapping[str, Any]], choice: Mapping[str, Any] | None) -> dict[str, JSON]:
    """Returns OpenAI's options for tools.

    Raises:
        InvalidRequest: The choice demands a tool that there is not.
    """
    options: dict[str, JSON] = {"tools": [_function(tool) for tool in tools]} if tools else {}
    if choice is None:
        return options
    kind = choice["type"]
    if kind in ("any", "tool") and not tools:
        raise InvalidRequest(f"its type {kind} needs tools", "tool_choice")
    options["tool_choice"] = _CHOICES.get(kind)
    if kind == "tool":
        name = choice["name"]
        if all(tool["name"] != name for tool in tools):
            raise InvalidRequest(f"there is no tool {shown_name(name)}", "tool_choice.name")
        options["tool_choice"] = {"type": "function", "function": {"name": name}}
    if choice.get("disable_parallel_tool_use"):
        options["parallel_tool_calls"] = False
    return options if tools else {}


def _function(tool: Mapping[str, Any]) -> JSON:
    named = {name: tool[name] for name in ("name", "description") if tool.get(name)}
    strict = {"strict": True} if tool.get("strict") else {}
    return {"type": "function", "function": {**named, "parameters": tool["input_schema"], **strict}}


def unread_of_tools(tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the names of the fields of tools that have no effect."""
    for tool in tools:
        yield from (name for name, value in tool.items() if value and name not in _READ)
