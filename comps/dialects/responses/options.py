"""Functions, formats and choices of this API, as the options of OpenAI's chat API.

https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from comps.core.errors import InvalidRequest, shown_name
from comps.core.types import JSON
from comps.dialects.shared.fields import matters

SAME = dict.fromkeys(
    (
        *("parallel_tool_calls", "user", "safety_identifier", "service_tier", "moderation"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    )
)
"""The fields that have the same name and form in the chat API."""
NAMES: Mapping[str, str] = {
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include.message.output_text.logprobs",
}
"""The fields of this API, by the options that they become."""
_OF_OTHER_APIS = frozenset(
    (
        *("messages", "n", "best_of", "echo", "suffix", "logprobs", "logit_bias", "modalities", "audio", "prediction"),
        *("functions", "function_call", "response_format", "reasoning_effort", "verbosity", "web_search_options"),
        *("prompt_token_ids", "max_total_tokens", "max_completion_tokens"),
    )
)
"""Undeclared fields that are not passed on: they are the chat API's, which has them under other names or whose answers
have no place here."""
_FUNCTION = ("name", "description", "parameters", "strict")
_OF_OPENAI = "{} is a tool that OpenAI runs; here the model can call functions, of the type function"
_FILE_SEARCH = ", and answers from the documents that the body has in `documents`"


def may_be(name: str) -> bool:
    """Whether an undeclared field may be an option of a model server. `messages.*` are names of capabilities."""
    return name not in _OF_OTHER_APIS and not name.startswith("messages.")


def tools(given: Sequence[dict[str, JSON]]) -> list[JSON]:
    """The functions in the chat API's form.

    Raises:
        InvalidRequest: A tool is no function, or has no name.
    """
    found = []
    for place, tool in enumerate(given):
        kind = tool.get("type")
        if kind != "function":
            further = _FILE_SEARCH if kind == "file_search" else ""
            message = _OF_OPENAI.format(shown_name(kind)) + further if kind else "a tool needs a type: function"
            raise InvalidRequest(message, f"tools.{place}.type")
        if not isinstance(told(tool).get("name"), str):
            raise InvalidRequest("a function needs a name", f"tools.{place}.name")
        function = {name: value for name, value in told(tool).items() if name in _FUNCTION and value is not None}
        found.append({"type": "function", "function": function})
    return found


def told(tool: dict[str, JSON]) -> dict[str, JSON]:
    """A tool as this API has it; some clients send that of the chat API, with all of it in `function`."""
    if isinstance(inner := tool.get("function"), dict):
        tool = {"type": "function", **inner}
    return {**tool, "parameters": tool.get("parameters"), "strict": tool.get("strict")}


def told_choice(choice: str | dict[str, JSON]) -> JSON:
    """A choice as this API has it."""
    inner = choice.get("function") if isinstance(choice, dict) else None
    return {**inner, "type": "function"} if isinstance(inner, dict) else choice


def told_format(form: dict[str, JSON]) -> dict[str, JSON]:
    """A format as this API has it."""
    inner = form.get("json_schema")
    return {"name": "answer", **inner, "type": "json_schema"} if isinstance(inner, dict) else form


def ignored_of_tools(given: Sequence[dict[str, JSON]]) -> list[str]:
    """The names of the fields of functions that the chat API does not have."""
    names = (name for tool in given for name, value in told(tool).items() if matters(name, value))
    return [f"tools.{name}" for name in dict.fromkeys(names) if name not in (*_FUNCTION, "type")]


def tool_choice(choice: str | dict[str, JSON]) -> JSON:
    """A choice in the chat API's form.

    Raises:
        InvalidRequest: It names something that is no function.
    """
    if isinstance(choice, str):
        return choice
    if choice.get("type") == "allowed_tools":
        named = choice.get("tools")
        if not isinstance(named, list) or choice.get("mode") not in ("auto", "required"):
            raise InvalidRequest("allowed_tools needs a mode, auto or required, and a list of tools", "tool_choice")
        allowed = [_named(one, f"tool_choice.tools.{place}") for place, one in enumerate(named)]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": allowed}}
    return _named(choice, "tool_choice")


def _named(choice: JSON, place: str) -> dict[str, JSON]:
    named = told_choice(choice) if isinstance(choice, dict) else {}
    if named.get("type") != "function":
        raise InvalidRequest("only functions can be called here: it must be of the type function", place)
    if not isinstance(named.get("name"), str):
        raise InvalidRequest("it must name a function", place)
    return {"type": "function", "function": {"name": named["name"]}}


def leaves_calls_to_the_model(choice: JSON) -> bool:
    """Whether a choice in the chat API's form leaves it to the model whether it calls anything."""
    if isinstance(choice, dict):
        return bool(choice.get("type") == "allowed_tools" and choice["allowed_tools"]["mode"] == "auto")
    return choice in (None, "auto")


def response_format(form: dict[str, JSON]) -> dict[str, JSON]:
    """A format in the chat API's form, where a schema is in an object of its own.

    Raises:
        InvalidRequest: It has no known type, or no schema.
    """
    kind = form.get("type")
    if kind in ("text", "json_object"):
        return {"type": kind}
    if kind != "json_schema":
        raise InvalidRequest("it must be text, json_object or json_schema", "text.format.type")
    schema = told_format(form)
    if not isinstance(schema.get("schema"), dict):
        raise InvalidRequest("the type json_schema needs a schema, an object", "text.format.schema")
    named = {name: value for name, value in schema.items() if name != "type" and value is not None}
    return {"type": "json_schema", "json_schema": {"name": "answer", **named}}
