"""Structured output: the options of several APIs, read into one constraint."""

from __future__ import annotations

import json
from typing import Any

import pytest

from comps.core.errors import InvalidRequest
from comps.model_servers.embedded.constraints import CHOICE, GRAMMAR, JSON_SCHEMA, REGEX, constraint_of, options_for

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ANY = {"type": "object"}


def nested(levels: int) -> Any:
    return {"items": nested(levels - 1)} if levels else {}


@pytest.mark.parametrize(
    ("options", "kind", "value", "field"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            *("json_schema", SCHEMA, "response_format.json_schema.schema"),
        ),
        ({"response_format": {"type": "json_object"}}, "json_schema", ANY, "response_format"),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            "json_schema",
            SCHEMA,
            "response_format.schema",
        ),
        ({"response_format": {"type": "json", "value": SCHEMA}}, "json_schema", SCHEMA, "response_format.value"),
        (
            {"response_format": {"type": "json_schema", "value": {"name": "x", "schema": SCHEMA}}},
            *("json_schema", SCHEMA, "response_format.value.schema"),
        ),
        ({"response_format": {"type": "regex", "value": "a+"}}, "regex", "a+", "response_format.value"),
        ({"guided_json": SCHEMA}, "json_schema", SCHEMA, "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", SCHEMA, "guided_json"),
        ({"guided_json_object": True}, "json_schema", ANY, "guided_json_object"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_choice": ["a", "b", "a"]}, "choice", ["a", "b"], "guided_choice"),
        ({"guided_grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"', "guided_grammar"),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", SCHEMA, "structured_outputs.json"),
        ({"structured_outputs": {"json_object": True}}, "json_schema", ANY, "structured_outputs.json_object"),
        ({"structured_outputs": {"regex": "a"}}, "regex", "a", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a"], "json": None}}, "choice", ["a"], "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "root ::= a"}}, "grammar", "root ::= a", "structured_outputs.grammar"),
        ({"grammar": "root ::= a"}, "grammar", "root ::= a", "grammar"),
        ({"grammar": {"type": "regex", "value": "a"}}, "regex", "a", "grammar.value"),
        ({"grammar": {"type": "json", "value": SCHEMA}}, "json_schema", SCHEMA, "grammar.value"),
        (
            {"grammar": {"type": "json_schema", "value": {"schema": SCHEMA}}},
            *("json_schema", SCHEMA, "grammar.value.schema"),
        ),
    ],
)
def test_every_form_of_a_constraint_is_read(options: dict[str, Any], kind: str, value: Any, field: str) -> None:
    assert options.keys() <= options_for({JSON_SCHEMA, REGEX, CHOICE, GRAMMAR})
    constraint = constraint_of(options)
    assert constraint
    assert (constraint.kind, constraint.value, constraint.field) == (kind, value, field)


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"n": 2}, {"response_format": {"type": "text"}}, {"response_format": None}),
        *({"guided_json_object": False}, {"structured_outputs": {}}, {"structured_outputs": {"regex": None}}),
    ],
)
def test_what_constrains_nothing_is_no_constraint(options: dict[str, Any]) -> None:
    assert constraint_of(options) is None


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "text, json_object or json_schema"),
        ({"response_format": "json"}, "response_format", "text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "must be an object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            *("response_format.json_schema.schema", "must be an object"),
        ),
        ({"guided_json": "{"}, "guided_json", "valid JSON"),
        ({"guided_json": [1]}, "guided_json", "must be an object"),
        ({"guided_json": nested(100)}, "guided_json", "64 levels"),
        ({"guided_json": {"enum": ["a" * 100_001]}}, "guided_json", "100000 characters"),
        ({"guided_json_object": "yes"}, "guided_json_object", "true or false"),
        ({"guided_regex": ""}, "guided_regex", "not empty"),
        ({"guided_regex": 5}, "guided_regex", "must be a text"),
        ({"guided_choice": []}, "guided_choice", "list of texts"),
        ({"guided_choice": ["a", ""]}, "guided_choice", "list of texts"),
        ({"guided_choice": "a"}, "guided_choice", "list of texts"),
        ({"guided_grammar": "a" * 100_001}, "guided_grammar", "100000 characters"),
        ({"grammar": {"type": "xml", "value": "a"}}, "grammar.type", "json, json_schema or regex"),
        ({"structured_outputs": []}, "structured_outputs", "must be an object"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "not known here"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs", "one constraint"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice", "list of texts"),
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex", "cannot be combined with guided_json"),
        (
            {"response_format": {"type": "json_object"}, "guided_choice": ["a"]},
            *("guided_choice", "cannot be combined with response_format"),
        ),
    ],
)
def test_what_cannot_be_a_constraint_is_refused_by_name(options: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        constraint_of(options)
    assert caught.value.field == field
