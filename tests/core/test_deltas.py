"""What comes with the pieces of an answer, put together again."""

from __future__ import annotations

import time
from functools import reduce
from typing import Any

import pytest

from comps.core.answers import Collector
from comps.core.deltas import ToolCalls, join_extra
from comps.core.types import Finished, TextDelta


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


@pytest.mark.soak
def test_the_time_for_many_tool_calls_is_linear_in_their_number() -> None:
    def seconds(number: int) -> float:
        calls, collector = ToolCalls(), Collector()
        began = time.thread_time()
        for index in range(number):
            whole = {"index": index, "id": f"c{index}", "function": {"name": "f", "arguments": "{}"}}
            collector.delta(TextDelta("", extra={"tool_calls": calls.numbered([whole])}))
        return time.thread_time() - began

    assert seconds(3_200) < 20 * seconds(400) + 0.05


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
