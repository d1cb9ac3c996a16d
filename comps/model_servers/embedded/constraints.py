"""Structured output: the options that constrain an answer, of all APIs that have some, read into one `Constraint`.

Sources:
    https://platform.openai.com/docs/guides/structured-outputs      response_format
    https://docs.vllm.ai/en/latest/features/structured_outputs.html guided_*, structured_outputs
    https://huggingface.co/docs/text-generation-inference/guidance  grammar, an object
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from comps.core.errors import InvalidRequest
from comps.core.types import JSON

JSON_SCHEMA: Final = "json_schema"
REGEX: Final = "regex"
CHOICE: Final = "choice"
GRAMMAR: Final = "grammar"

ANY_OBJECT: Mapping[str, JSON] = {"type": "object"}
"""The schema of any JSON object."""
_DEEPEST = 64
"""How many levels a schema may have: a converter that calls itself for each level must not run out of stack."""
_LONGEST = 100_000
"""In characters, of a schema as JSON, a regular expression or a grammar: compiling it takes a second or so."""


@dataclass(frozen=True)
class Constraint:
    """What every answer to a request matches as a whole."""

    kind: str
    """`json_schema`, `regex`, `choice` or `grammar`."""
    value: JSON
    """A JSON schema, an object; a regular expression; a list of texts; or a grammar in the engine's own form of EBNF,
    whose first rule is `root`."""
    field: str
    """The field of the request that it comes from, for errors."""


def constraint_of(options: Mapping[str, JSON]) -> Constraint | None:
    """The constraint in a request's options; None if there is none.

    Args:
        options: Those of `ModelServer.generate`.

    Raises:
        InvalidRequest: An option is malformed, or there is more than one constraint.
    """
    found = [
        constraint
        for name, read in _READERS.items()
        if options.get(name) is not None and (constraint := read(options[name], name))
    ]
    if len(found) > 1:
        raise InvalidRequest(f"it cannot be combined with {found[0].field}", found[1].field)
    return found[0] if found else None


def schema_constraint(schema: JSON, field: str) -> Constraint:
    """The constraint of a JSON schema; as text, it is decoded.

    Raises:
        InvalidRequest: It is no object, or too large.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise InvalidRequest("a JSON schema as text must be valid JSON", field) from None
    if not isinstance(schema, dict):
        raise InvalidRequest("a JSON schema must be an object", field)
    if _depth(schema) > _DEEPEST:
        raise InvalidRequest(f"a JSON schema may have {_DEEPEST} levels at most", field)
    return Constraint(JSON_SCHEMA, _not_too_long(schema, field), field)


def _depth(value: JSON) -> int:
    """How many levels of objects and lists there are; counting stops behind the most that there may be."""
    level, depth = [value], 0
    while level and depth <= _DEEPEST:
        depth += 1
        inner = [one for one in level if isinstance(one, dict | list)]
        level = [part for one in inner for part in (one.values() if isinstance(one, dict) else one)]
    return depth


def _not_too_long(value: JSON, field: str) -> JSON:
    if len(value if isinstance(value, str) else json.dumps(value)) > _LONGEST:
        raise InvalidRequest(f"it may have {_LONGEST} characters at most", field)
    return value


def _schema(value: JSON, field: str) -> Constraint | None:
    return schema_constraint(value, field)


def _any_object(value: JSON, field: str) -> Constraint | None:
    if not isinstance(value, bool):
        raise InvalidRequest("it must be true or false", field)
    return Constraint(JSON_SCHEMA, dict(ANY_OBJECT), field) if value else None


def _text(kind: str) -> Callable[[JSON, str], Constraint | None]:
    def read(value: JSON, field: str) -> Constraint | None:
        if not isinstance(value, str) or not value:
            raise InvalidRequest("it must be a text that is not empty", field)
        return Constraint(kind, _not_too_long(value, field), field)

    return read


def _choice(value: JSON, field: str) -> Constraint | None:
    if not (isinstance(value, list) and value and all(isinstance(one, str) and one for one in value)):
        raise InvalidRequest("it must be a list of texts that are not empty", field)
    _not_too_long(value, field)
    return Constraint(CHOICE, list(dict.fromkeys(value)), field)


def _response_format(value: JSON, field: str) -> Constraint | None:
    """OpenAI's types, and `json` and `regex`, which TGI has. Some clients send the schema beside the type."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "regex":
        return _text(REGEX)(value.get("value"), f"{field}.value")
    if kind not in ("json_schema", "json_object", "json"):
        raise InvalidRequest("its type must be text, json_object or json_schema", field)
    for name in ("json_schema", "value", "schema"):
        if (given := value.get(name)) is not None:
            named = name == "json_schema" or (isinstance(given, dict) and isinstance(given.get("schema"), dict))
            path = f"{field}.{name}.schema" if named else f"{field}.{name}"
            return schema_constraint(given.get("schema") if named and isinstance(given, dict) else given, path)
    if kind == "json_object":
        return Constraint(JSON_SCHEMA, dict(ANY_OBJECT), field)
    raise InvalidRequest("a JSON schema must be an object", f"{field}.{kind}")


def _grammar(value: JSON, field: str) -> Constraint | None:
    """A grammar as text, or TGI's object with a type."""
    if not isinstance(value, dict):
        return _text(GRAMMAR)(value, field)
    kind, field = value.get("type"), f"{field}.value"
    if kind == "regex":
        return _text(REGEX)(value.get("value"), field)
    if kind == "json":
        return schema_constraint(value.get("value"), field)
    if kind == "json_schema" and isinstance(value.get("value"), dict):
        return schema_constraint(value["value"].get("schema"), f"{field}.schema")
    raise InvalidRequest("its type must be json, json_schema or regex", field.replace(".value", ".type"))


def _structured_outputs(value: JSON, field: str) -> Constraint | None:
    """vLLM's object, which has one of several constraints."""
    if not isinstance(value, dict):
        raise InvalidRequest("it must be an object", field)
    inner = {f"guided_{name}": one for name, one in value.items() if one is not None}
    for name in inner:
        if name not in _READERS:
            known = "json, json_object, regex, choice or grammar"
            raise InvalidRequest(f"it is not known here; known: {known}", name.replace("guided_", f"{field}."))
    found = [
        constraint
        for name, one in inner.items()
        if (constraint := _READERS[name](one, name.replace("guided_", f"{field}.", 1)))
    ]
    if len(found) > 1:
        raise InvalidRequest("it must have one constraint, and no more", field)
    return found[0] if found else None


_READERS: Mapping[str, Callable[[JSON, str], Constraint | None]] = {
    "response_format": _response_format,
    "guided_json": _schema,
    "guided_json_object": _any_object,
    "guided_regex": _text(REGEX),
    "guided_choice": _choice,
    "guided_grammar": _text(GRAMMAR),
    "structured_outputs": _structured_outputs,
    "grammar": _grammar,
}

_ONE_KIND = {"guided_regex": REGEX, "guided_choice": CHOICE, "guided_grammar": GRAMMAR}
"""The kind of constraint that an option holds, if it is not a JSON schema and not one of several kinds."""


def options_for(kinds: AbstractSet[str]) -> frozenset[str]:
    """The options that an engine honours which has these kinds of constraints."""
    return frozenset(name for name in _READERS if _ONE_KIND.get(name, JSON_SCHEMA) in kinds)
