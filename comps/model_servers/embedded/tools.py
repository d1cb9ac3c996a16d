"""Tools: what a request says about functions, and how an embedded model is brought to call one.

A choice that demands a call (`required`, or a function by its name) constrains the answer to the call as JSON, whatever
the model. With `auto`, only a model whose chat template has functions calls them by itself, in its own format.
Source: https://platform.openai.com/docs/guides/function-calling
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from comps.core.errors import InvalidRequest
from comps.core.types import JSON
from comps.model_servers.embedded.constraints import Constraint, schema_constraint

_NO_ARGUMENTS: Mapping[str, JSON] = {"type": "object", "properties": {}, "additionalProperties": False}

NAME, ARGUMENTS = "name", "arguments"
"""The fields of a call as a model writes it."""


@dataclass(frozen=True)
class Tools:
    """The functions that an answer may call."""

    functions: tuple[Mapping[str, JSON], ...]
    """In OpenAI's form: name, description, parameters. Of a choice that demands a call, those that it allows."""
    demanded: bool
    """Whether the answer has to be a call."""
    several: bool
    """Whether an answer may call more than one; one that has to be a call calls one."""
    is_older_form: bool
    """Whether the request has `functions`, and the answer gets a `function_call`."""

    @property
    def field(self) -> str:
        """The field of the request that has the functions."""
        return "functions" if self.is_older_form else "tools"

    @property
    def names(self) -> frozenset[str]:
        return frozenset(str(function["name"]) for function in self.functions)

    @property
    def listed(self) -> list[JSON]:
        """The functions as chat templates take them."""
        return [{"type": "function", "function": dict(function)} for function in self.functions]

    def constraint(self) -> Constraint:
        """What a demanded call matches: the arguments of the only function, or an object with name and arguments."""
        schemas = [_parameters(function, self.field) for function in self.functions]
        if len(schemas) == 1:
            return schema_constraint(schemas[0], self.field)
        places = {str(function["name"]): f"#/$defs/{at}" for at, function in enumerate(self.functions)}
        calls = [
            {
                "type": "object",
                "properties": {NAME: {"const": name}, ARGUMENTS: {"$ref": place}},
                "required": [NAME, ARGUMENTS],
                "additionalProperties": False,
            }
            for name, place in places.items()
        ]
        moved = {str(at): _moved(schema, f"#/$defs/{at}") for at, schema in enumerate(schemas)}
        return schema_constraint({"anyOf": calls, "$defs": moved}, self.field)

    def instruction(self) -> str:
        """What tells a model of the functions whose chat template cannot."""
        listed = "\n".join(json.dumps(function, ensure_ascii=False) for function in self.functions)
        if len(self.functions) == 1:
            return f"Call this function. Answer with its arguments alone, as a JSON object.\n{listed}"
        form = json.dumps({NAME: "…", ARGUMENTS: {}}, ensure_ascii=False)
        return f"Call one of these functions. Answer with the call alone, as a JSON object: {form}\n{listed}"


def tools_of(options: Mapping[str, JSON]) -> Tools | None:
    """The tools in a request's options; None if it has none, or must call none.

    Args:
        options: Those of `ModelServer.generate`: `tools`, `tool_choice` and `parallel_tool_calls`, or `functions` and
            `function_call`.

    Raises:
        InvalidRequest: The choice demands a function that is not there, or what is no function.
    """
    is_older_form = not options.get("tools") and bool(options.get("functions"))
    field = "function_call" if is_older_form or not options.get("tool_choice") else "tool_choice"
    choice = options.get(field) or "auto"
    given = options.get("functions") if is_older_form else [*map(_function, options.get("tools") or ())]
    functions = [one for one in given or () if one is not None]
    demanded, allowed = _read_choice(choice, field)
    if allowed is not None:
        known = {str(function["name"]): function for function in functions}
        if missing := [name for name in allowed if name not in known]:
            raise InvalidRequest(f"there is no function of the name {missing[0]}", field)
        functions = [known[name] for name in dict.fromkeys(allowed)]
    if demanded and not functions:
        raise InvalidRequest("it demands a call, and there is no function to call", field)
    if choice == "none" or not functions:
        return None
    return Tools(tuple(functions), demanded, options.get("parallel_tool_calls") is not False, is_older_form)


def _function(tool: JSON) -> Mapping[str, JSON] | None:
    """The function of a tool; None if it is a tool of another type."""
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    return function if isinstance(function, dict) and isinstance(function.get("name"), str) else None


def _read_choice(choice: JSON, field: str) -> tuple[bool, list[str] | None]:
    """Whether a choice demands a call, and of which functions; None: of any."""
    if choice in ("auto", "none"):
        return False, None
    if choice in ("required", "any"):
        return True, None
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools":
            allowed = choice.get("allowed_tools", choice)
            return allowed.get("mode") == "required", [_name(tool, field) for tool in allowed.get("tools") or ()]
        return True, [_name(choice, field)]
    raise InvalidRequest("it must be none, auto, required, or an object that names a function", field)


def _name(named: JSON, field: str) -> str:
    """The name in `{"type": "function", "function": {"name": …}}`, or in `{"name": …}`."""
    function = named.get("function", named) if isinstance(named, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise InvalidRequest("it must name a function", field)
    return name


def _parameters(function: Mapping[str, JSON], field: str) -> dict[str, JSON]:
    """The schema of a function's arguments, an object."""
    schema = function.get("parameters") or _NO_ARGUMENTS
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise InvalidRequest(f"the parameters of {function['name']} must be a JSON schema of an object", field)
    return {"type": "object", **schema}


def _moved(schema: JSON, place: str) -> JSON:
    """A schema whose references to itself are right where it is a part of another one.

    Args:
        schema: The schema, or a part of it.
        place: Where the schema is put, as a reference.
    """
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: _moved(one, place) for name, one in schema.items()}
    reference = moved.get("$ref")
    return {**moved, "$ref": place + reference[1:]} if isinstance(reference, str) and reference[:1] == "#" else moved


def calls_as_text(calls: Sequence[Mapping[str, JSON]]) -> str:
    """Calls of earlier answers as a model writes them, one a line."""
    return "\n".join(json.dumps(call, ensure_ascii=False) for call in calls)
