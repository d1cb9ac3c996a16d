"""Functions in a request, calls in the text of an answer, and calls of earlier answers as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest

from comps.core.answers import Collector
from comps.core.errors import InvalidRequest
from comps.core.types import Finished, Message, TextDelta
from comps.model_servers.embedded.constraints import JSON_SCHEMA
from comps.model_servers.embedded.questions import Question, question_of
from comps.model_servers.embedded.tool_calls import is_recognised
from comps.model_servers.embedded.tools import tools_of

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TREE = {
    "type": "object",
    "properties": {"node": {"$ref": "#/$defs/Node"}},
    "required": ["node"],
    "$defs": {"Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}, "n": {"type": "integer"}}}},
}
WEATHER = {"name": "weather", "description": "The weather in a city.", "parameters": CITY}
GROW = {"name": "grow", "parameters": TREE}
TOOLS = [{"type": "function", "function": function} for function in (WEATHER, GROW)]
NAMED = {"type": "function", "function": {"name": "grow"}}
HERMES = '{% if tools %}<tool_call>{"name": …, "arguments": …}</tool_call>{{ tool_calls }}'
ASKED = (Message("user", "?"),)


def question(template: str = "", **options: Any) -> Question:
    return question_of(ASKED, options, template, {JSON_SCHEMA})


def read(question: Question, pieces: Sequence[str]) -> tuple[str, Any, bool]:
    """The text, the extra fields, and whether there was a call, of an answer that comes in these pieces."""
    reader, collector = question.reader(), Collector()
    assert reader
    deltas = [delta for piece in pieces for delta in reader.push(piece)] + reader.flush()
    for delta in deltas:
        if isinstance(delta, str):
            assert delta
            collector.text(delta)
        else:
            collector.delta(TextDelta("", extra=delta))
    collector.finished(Finished("stop"))
    answer = collector.generation()
    return answer.text, answer.extra, reader.called


def called(extra: Any) -> list[tuple[str, Any]]:
    assert all(call["type"] == "function" and call["id"].startswith("call_") for call in extra["tool_calls"])
    assert len({call["id"] for call in extra["tool_calls"]}) == len(extra["tool_calls"])
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in extra["tool_calls"]]


@pytest.mark.parametrize(
    ("choice", "demanded", "names"),
    [
        ({}, False, {"weather", "grow"}),
        ({"tool_choice": "auto"}, False, {"weather", "grow"}),
        ({"tool_choice": "required"}, True, {"weather", "grow"}),
        ({"tool_choice": NAMED}, True, {"grow"}),
        ({"tool_choice": {"type": "function", "name": "grow"}}, True, {"grow"}),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}},
            *(True, {"grow"}),
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}},
            *(False, {"grow"}),
        ),
    ],
)
def test_a_choice_says_which_functions_may_be_called_and_whether_one_must(
    choice: dict[str, Any], demanded: bool, names: set[str]
) -> None:
    tools = tools_of({"tools": TOOLS, **choice})
    assert tools
    assert (tools.demanded, set(tools.names)) == (demanded, names)


@pytest.mark.parametrize("options", [{}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}])
def test_without_functions_or_with_none_to_call_there_are_no_tools(options: dict[str, Any]) -> None:
    assert tools_of(options) is None


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"tool_choice": "required"}, "tool_choice", "no function to call"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice", "none, auto, required"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "sing"}}}, "tool_choice", "name sing"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice", "must name a function"),
        ({"functions": [WEATHER], "function_call": {"name": "sing"}}, "function_call", "name sing"),
        (
            {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "string"}}}]},
            *("tools", "the parameters of x must be"),
        ),
    ],
)
def test_a_choice_that_cannot_be_followed_is_refused_by_name(options: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        question(**{"tool_choice": "required", **options} if "functions" not in options else options)
    assert caught.value.field == field


def test_a_demanded_call_of_several_functions_matches_one_of_them_with_its_references() -> None:
    constraint = question(tools=TOOLS, tool_choice="required").constraint
    assert constraint
    validator = jsonschema.Draft202012Validator(constraint.value)
    assert validator.is_valid({"name": "weather", "arguments": {"city": "Paris"}})
    assert validator.is_valid({"name": "grow", "arguments": {"node": {"n": 1, "next": {"n": 2}}}})
    assert not validator.is_valid({"name": "grow", "arguments": {"node": {"n": 1, "next": {"n": "x"}}}})
    assert not validator.is_valid({"name": "grow", "arguments": {"city": "Paris"}})
    assert not validator.is_valid({"name": "sing", "arguments": {}})


def test_a_demanded_call_of_one_function_is_its_arguments_alone() -> None:
    asked = question(tools=TOOLS, tool_choice=NAMED)
    assert asked.constraint
    assert asked.constraint.value == TREE
    text, extra, _ = read(asked, ['{"node"', ': {"n": 1}', "}"])
    assert (text, called(extra)) == ("", [("grow", {"node": {"n": 1}})])


CALL = '{\n "name" : "weather",\n "arguments" : {"city": "} \\" \\\\"}\n}\n'


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_call_in_pieces_has_its_name_first_and_then_its_arguments_alone(size: int) -> None:
    pieces = [CALL[at : at + size] for at in range(0, len(CALL), size)]
    text, extra, any_call = read(question(tools=TOOLS, tool_choice="required"), pieces)
    assert (text, any_call) == ("", True)
    assert called(extra) == [("weather", {"city": '} " \\'})]
    assert extra["tool_calls"][0]["function"]["arguments"] == '{"city": "} \\" \\\\"}'


def test_the_older_form_gets_its_call_in_the_older_form() -> None:
    asked = question(functions=[WEATHER], function_call={"name": "weather"})
    _, extra, _ = read(asked, ['{"city": ', '"Paris"}'])
    assert extra == {"function_call": {"name": "weather", "arguments": '{"city": "Paris"}'}}


MARKED = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "grow", "arguments": {"node": {}}}\n</tool_call>'
)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_model_calls_by_itself_in_the_format_of_its_chat_template(size: int) -> None:
    pieces = [MARKED[at : at + size] for at in range(0, len(MARKED), size)]
    text, extra, any_call = read(question(HERMES, tools=TOOLS), pieces)
    assert (text, any_call) == ("Let me see.\n", True)
    assert called(extra) == [("weather", {"city": "Paris"}), ("grow", {"node": {}})]
    _, extra, _ = read(question(HERMES, tools=TOOLS, parallel_tool_calls=False), pieces)
    assert called(extra) == [("weather", {"city": "Paris"})]


@pytest.mark.parametrize(
    "text",
    [
        *("1 < 2 <tool", "<tool_call>{no json}</tool_call>", '<tool_call>{"name": "sing"}</tool_call>'),
        *('<tool_call>{"name": 5}</tool_call> and', '<tool_call>{"name": "weather", "argum'),
    ],
)
def test_what_is_no_call_of_a_known_function_stays_text(text: str) -> None:
    assert read(question(HERMES, tools=TOOLS), list(text)) == (text, None, False)


def test_a_call_without_its_last_marker_is_one() -> None:
    _, extra, _ = read(question(HERMES, tools=TOOLS), [MARKED.split("\n</tool_call>")[0]])
    assert called(extra) == [("weather", {"city": "Paris"})]


def test_tools_that_the_model_cannot_call_by_itself_change_nothing() -> None:
    assert question("{{ messages }}", tools=TOOLS) == question("{{ messages }}")
    assert question(HERMES, tools=TOOLS).tools_for_template == TOOLS
    assert question(HERMES, tools=TOOLS, tool_choice="none").tools_for_template == []


@pytest.mark.parametrize(
    ("template", "recognised"),
    [
        *((HERMES, True), (HERMES.replace('"', '\\"'), True), ("", False), ("{{ tools }}[TOOL_CALLS]", False)),
        ("<tool_call><function=f>{{ arguments }}", False),
        ("<tool_call>f<arg_key>{{ arguments }}", False),
    ],
)
def test_only_calls_in_json_between_markers_are_recognised(template: str, recognised: bool) -> None:
    assert is_recognised(template) is recognised


def test_calls_by_itself_and_a_form_of_the_answer_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest, match="tool_choice says which") as caught:
        question(HERMES, tools=TOOLS, guided_json=CITY)
    assert caught.value.field == "guided_json"
    assert question(tools=TOOLS, guided_json=CITY).constraint  # The tools are told as ignored.


TOLD = (
    Message("user", "How is the weather?"),
    Message(
        "assistant",
        "Let me see.",
        {
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
                {"id": "2", "type": "function", "function": {"name": "grow", "arguments": "{"}},
            ]
        },
    ),
    Message("tool", "12 degrees", {"tool_call_id": "1"}),
    Message("tool", "It broke.", {"tool_call_id": "2"}),
    Message("user", "And now?"),
)


def test_calls_and_their_results_are_told_as_text_where_the_template_has_none() -> None:
    calls = '{"name": "weather", "arguments": {"city": "Paris"}}\n{"name": "grow", "arguments": "{"}'
    results = "The function weather returned:\n12 degrees\n\nThe function grow returned:\nIt broke."
    assert question_of(TOLD, {}, "", set()).prompt == [
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": f"Let me see.\n{calls}"},
        {"role": "user", "content": results},
        {"role": "user", "content": "And now?"},
    ]
    older = (
        Message("assistant", "", {"function_call": {"name": "f", "arguments": ""}}),
        Message("function", "1", {"name": "f"}),
    )
    assert [turn["content"] for turn in question_of(older, {}, "", set()).prompt] == [
        '{"name": "f", "arguments": {}}',
        "The function f returned:\n1",
    ]


def test_a_template_with_functions_gets_calls_with_arguments_as_objects() -> None:
    told = question_of(TOLD, {}, HERMES, set()).prompt
    assert [call["function"]["arguments"] for call in told[1]["tool_calls"]] == [{"city": "Paris"}, "{"]
    assert told[2] == {"role": "tool", "content": "12 degrees", "tool_call_id": "1"}


def test_a_model_is_told_of_the_functions_behind_the_last_question() -> None:
    asked = question_of(TOLD, {"tools": TOOLS, "tool_choice": "required"}, "", {JSON_SCHEMA})
    assert asked.prompt[-1]["content"].startswith("And now?\n\nCall one of these functions.")
    assert all(json.dumps(function) in asked.prompt[-1]["content"] for function in (WEATHER, GROW))
    assert question_of(TOLD, {"tools": TOOLS, "tool_choice": "required"}, HERMES, {JSON_SCHEMA}).prompt[-1] == {
        "role": "user",
        "content": "And now?",
    }
