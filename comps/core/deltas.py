"""The pieces of an answer, put together again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comps.core.types import JSON


def join_extra(so_far: Mapping[str, JSON], extra: Mapping[str, JSON]) -> dict[str, JSON]:
    """What came with the text up to now, and what comes with the next piece of it.

    Texts (reasoning) and lists (of logprobs) are continued, objects field by field, tool calls by their index; of
    anything else the last word counts.
    """
    joined = dict(so_far)
    for name, value in extra.items():
        joined[name] = _joined(name, joined.get(name), value)
    return joined


def _joined(name: str, before: Any, value: JSON) -> JSON:
    if name == "tool_calls" and isinstance(value, list):
        return _join_calls(before or [], value)
    if isinstance(before, str) and isinstance(value, str):
        return before + value
    if isinstance(before, list) and isinstance(value, list):
        return [*before, *value]
    if isinstance(before, dict) and isinstance(value, dict):
        return join_extra(before, value)
    return before if value is None else value


def _join_calls(calls: list[JSON], pieces: list[JSON]) -> list[JSON]:
    """Tool calls whose arguments come in pieces; what names a call is said once, or repeated."""
    by_index: dict[Any, dict[str, JSON]] = {call.get("index"): call for call in calls}
    for piece in pieces:
        call = by_index.setdefault(piece.get("index"), {})
        function, further = call.get("function") or {}, piece.get("function") or {}
        call.update({name: value for name, value in piece.items() if value is not None})
        if function or further:
            arguments = (function.get("arguments") or "") + (further.get("arguments") or "")
            named = {name: value for name, value in further.items() if value}
            call["function"] = {**function, **named, "arguments": arguments}
    return list(by_index.values())
