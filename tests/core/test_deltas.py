"""What comes with the pieces of an answer, put together again."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest

from comps.core.deltas import join_extra


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
