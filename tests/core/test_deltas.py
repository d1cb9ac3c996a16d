"""What comes with the pieces of an answer, put together again."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest

from comps.core.answers import Collector
from comps.core.deltas import join_extra
from comps.core.tool_calls import CallsInTurn, NamedCalls, ToolCalls
from comps.core.types import Finished, TextDelta
from tests.hot_path import counted


def joined(*extras: dict[str, Any]) -> dict[str, Any]:
    start: dict[str, Any] = {}
    return reduce(join_extra, extras, start)


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        ([{"reasoning": "I "}, {"reasoning": "think"}], {"reasoning": "I think"}),
        ([{"logprobs": {"content": [1]}}, {"logprobs": {"content": [2]}}], {"logprobs": {"content": [1, 2]}}),
        ([{"logprobs": {"content": [1], "refusal": None}}], {"logprobs": {"content": [1], "refusal": None}}),
        ([{"a": 1}, {"a": 2}, {"b": None}, {"a": None}], {"a": 2, "b": None}),
    ],
    ids=["texts", "lists in objects", "null", "anything else"],
)
def test_pieces_become_a_whole(pieces: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    assert joined(*pieces) == whole


def test_tool_calls_are_put_together_by_their_index() -> None:
    pieces = [
        [{"index": 0, "id": "a", "type": "function", "function": {"name": "look", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"at":'}}],
        [{"index": 1, "id": "b", "type": "function", "function": {"name": "go", "arguments": "{}"}}],
        [{"index": 0, "id": None, "type": "function", "function": {"name": None, "arguments": " 1}"}}],
    ]
    assert joined(*({"tool_calls": piece} for piece in pieces))["tool_calls"] == [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "go", "arguments": "{}"}},
    ]


def test_what_is_joined_changes_no_piece() -> None:
    first = {"tool_calls": [{"index": 0, "function": {"name": "look", "arguments": "a"}}], "list": [1]}
    joined(first, {"tool_calls": [{"index": 0, "function": {"arguments": "b"}}], "list": [2]})
    assert first == {"tool_calls": [{"index": 0, "function": {"name": "look", "arguments": "a"}}], "list": [1]}


@pytest.mark.parametrize(
    "extra",
    [
        {"logprobs": {"content": [{"token": "a"}]}},
        {"reasoning": "a" * 40},
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "a" * 40}}]},
    ],
    ids=lambda extra: next(iter(extra)),
)
@pytest.mark.soak
def test_the_time_to_join_is_linear_in_the_number_of_deltas(extra: dict[str, Any]) -> None:
    def seconds(number: int) -> float:
        collector = Collector()
        began = time.thread_time()
        for _ in range(number):
            collector.delta(TextDelta("a", extra=extra))
        collector.finished(Finished("stop"))
        assert collector.generation().extra != extra
        return time.thread_time() - began

    assert seconds(32_000) < 20 * seconds(4_000) + 0.05


@pytest.mark.parametrize(
    "numbering",
    [
        lambda number: {"index": number, "id": f"c{number}"},
        lambda number: {"index": 0, "id": f"c{number}"},
        lambda number: {"id": f"c{number}"},
        lambda number: {},
    ],
    ids=["index and id", "the same index", "no index", "neither"],
)
def test_the_work_for_many_tool_calls_is_linear_in_their_number(numbering: Callable[[int], dict[str, Any]]) -> None:
    def work(number: int) -> int:
        calls, collector, done = ToolCalls(), Collector(), Counter[str]()
        with counted(done):
            for one in range(number):
                pieces = [call("f", "{", **numbering(one)), piece("}", **numbering(one))]
                collector.delta(TextDelta("", extra={"tool_calls": calls.numbered(pieces)}))
                collector.delta(TextDelta("", extra={"tool_calls": pieces}))
        return done.total()

    assert work(200) < 2.1 * work(100)


def turns_of(pieces: list[str]) -> list[list[int]]:
    """The calls that go on with each piece of the first one's arguments, and at the end, while a second one waits."""
    turns = CallsInTurn()
    for one in (call("f", "", index=0), call("g", "{}", index=1)):
        list(turns.pieces({"tool_calls": [one]}))
    given = [[number for number, _ in turns.pieces({"tool_calls": [piece(one, index=0)]})] for one in pieces]
    return [*given, [number for number, _ in turns.rest()]]


@pytest.mark.parametrize("value", [{}, {"a": "}", "b": {"c": [{}]}}, {'}\\", {"\\': '"}\\\\', "\u007d\\": ' "{ '}])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_the_next_call_begins_when_the_arguments_before_it_are_a_whole_object(value: dict[str, Any], size: int) -> None:
    text = json.dumps(value)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert turns_of(pieces) == [[0]] * (len(pieces) - 1) + [[0, 1], []]


@pytest.mark.parametrize(
    "pieces", [["{}{}"], ["{} x", "}"], ['{"a": }'], ["[{}]"], ["}{", "}"], ['{"a', '": "}'], ['{"a": "\\', '"}']]
)
def test_the_next_call_waits_for_the_end_behind_arguments_that_are_no_object(pieces: list[str]) -> None:
    assert turns_of(pieces) == [[0]] * len(pieces) + [[1]]


HALF = '{"a":{},'


@pytest.mark.soak
@pytest.mark.parametrize("kind", [NamedCalls, CallsInTurn])
@pytest.mark.parametrize("held", [{"arguments": HALF}, {"name": "f", "arguments": HALF}, {"arguments": '"}'}])
def test_the_time_to_hold_back_pieces_is_linear_in_their_number(
    kind: type[NamedCalls | CallsInTurn], held: dict[str, str]
) -> None:
    def seconds(number: int) -> float:
        calls = kind()
        first = [call("f", "{", index=0), call("g", "{", index=1)]
        began = time.thread_time()
        for pieces in ([one] for one in (*first, *({"index": at % 3, "function": held} for at in range(number)))):
            list(calls.pieces({"tool_calls": pieces}))
        list(calls.rest())
        return time.thread_time() - began

    assert min(seconds(64_000) for _ in range(2)) < 12 * min(seconds(8_000) for _ in range(2)) + 0.05


def call(name: str, arguments: str, **more: Any) -> dict[str, Any]:
    return {**more, "function": {"name": name, "arguments": arguments}}


def piece(arguments: str, **more: Any) -> dict[str, Any]:
    return {**more, "function": {"arguments": arguments}}


BADLY_NUMBERED = {
    "whole, without an index": [[call("f", "{}", id="a"), call("g", "[1]", id="b")]],
    "whole, with the same index": [[call("f", "{}", id="a", index=0), call("g", "[1]", id="b", index=0)]],
    "neither index nor id": [[call("f", "{}"), call("g", "[1]")]],
    "in pieces, without an index": [
        [call("f", "", id="a")],
        [piece("{}")],
        [call("g", "", id="b")],
        [piece("[1")],
        [piece("]", id="b")],
    ],
    "in pieces, with the same index": [
        [call("f", "", id="a", index=0)],
        [piece("{}", id="", index=0)],
        [call("g", "", id="b", index=0)],
        [piece("[1]", index=0)],
    ],
    "one by one, at once": [
        [call("f", "", id="a", index=0), call("g", "[", id="b", index=0)],
        [piece("{}", id="a", index=0), piece("1]", id="b", index=0)],
    ],
    "the id later": [[call("f", "{", index=3)], [piece("}", id="a", index=3)], [call("g", "[1]", id="b", index=1)]],
    "the same id": [[call("f", "{}", id="0", index=0), call("g", "[1]", id="0", index=1)]],
}


@pytest.mark.parametrize("pieces", BADLY_NUMBERED.values(), ids=BADLY_NUMBERED)
@pytest.mark.parametrize("streamed", [False, True])
def test_badly_numbered_tool_calls_are_kept_apart(pieces: list[list[dict[str, Any]]], streamed: bool) -> None:
    calls = ToolCalls()
    given = [calls.numbered(some) for some in pieces] if streamed else pieces
    whole = joined(*({"tool_calls": some} for some in given))["tool_calls"]
    assert [one["function"] for one in whole] == [
        {"name": "f", "arguments": "{}"},
        {"name": "g", "arguments": "[1]"},
    ]
    if streamed:
        assert len({one["index"] for one in whole}) == 2


def test_good_indexes_stay_as_they_are() -> None:
    pieces = [call("g", "[", id="b", index=1), call("f", "{", id="a", index=0), piece("1]", index=1)]
    assert ToolCalls().numbered(pieces) == pieces


@pytest.mark.parametrize(
    ("calls", "read"),
    [
        ("f()", []),
        (["f()"], []),
        ({"f": 1}, [{"f": 1, "index": 0}]),
        (5, []),
        ([{"index": "1"}], [{"index": 1}]),
        ([{"function": "f"}], [{"function": {"name": "f"}, "index": 0}]),
        ([{"function": 5}], [{"function": {}, "index": 0}]),
        ([{"function": {"name": 5}}], [{"function": {}, "index": 0}]),
        ([{"id": 7, "function": {"arguments": "{}"}}], [{"id": "7", "function": {"arguments": "{}"}, "index": 0}]),
        ([{"function": {"arguments": {"a": "é"}}}], [{"function": {"arguments": '{"a":"é"}'}, "index": 0}]),
    ],
    ids=str,
)
def test_tool_calls_are_read_as_far_as_they_can_be(calls: Any, read: Any) -> None:
    assert ToolCalls().numbered(calls) == read
    assert isinstance(joined({"tool_calls": calls})["tool_calls"], list)
