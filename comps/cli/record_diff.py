"""What differs between two records of the same request."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import unified_diff
from itertools import pairwise
from typing import Any

from comps.core.types import JSON

Record = Mapping[str, Any]

_OF_NO_ANSWER = ("[Logging]", "[OPEA_Microservice]")
"""Sections that no answer depends on."""
_ASPECTS: dict[str, Callable[[Record], JSON]] = {
    "outcome": lambda record: f"{record['outcome']}{': ' if record['error'] else ''}{record['error']}",
    "model": lambda record: record["model"],
    "model_server": lambda record: record["model_server"],
    "settings": lambda record: {
        name: value for name, value in record["settings"].items() if not name.startswith(_OF_NO_ANSWER)
    },
    "prompt": lambda record: _identity(record["prompt"]),
    "sampling": lambda record: record["sampling"],
    "decisions": lambda record: record["decisions"],
    "report": lambda record: record["report"],
    "tokens": lambda record: _tokens(record),
    "finish_reason": lambda record: record["finish_reason"],
    "answer": lambda record: _identity(record["answer"]),
}
"""What is compared."""
_PLURAL = ("settings", "decisions", "tokens")
"""Aspects whose names are plurals."""
_OF_MODEL = ("name", "base", "context_window")
_CHANGED_BY: dict[str, tuple[str, ...]] = {
    "model_name": _OF_MODEL,
    "framework": ("framework",),
    "model_server": ("kind", "endpoint", *_OF_MODEL),
    "model_server_endpoint": ("endpoint", *_OF_MODEL),
}
"""What differs in who answered if a flag changes a setting: another server may give another model."""
_LONGEST = 300
"""The most lines of a difference between texts."""


def differences(one: Record, two: Record) -> dict[str, tuple[JSON, JSON]]:
    """Returns what differs, by aspect, with both values. Times are no difference, since they always differ."""
    compared = {name: (of(one), of(two)) for name, of in _ASPECTS.items()}
    return {name: (first, second) for name, (first, second) in compared.items() if first != second}


def not_asked_for(found: Mapping[str, tuple[JSON, JSON]], flags: Collection[str]) -> list[str]:
    """Returns the aspects that differ in more than what flags changed.

    Args:
        found: What `differences` found.
        flags: The keys of the settings that flags changed.
    """
    asked = {
        "model": {"model"} if "model_name" in flags else set(),
        "model_server": {field for key in flags for field in _CHANGED_BY.get(key, ())},
        "settings": {f"[Model] {key}" for key in flags},
    }
    return [name for name, values in found.items() if not _fields(name, *values) <= asked.get(name, set())]


def _fields(aspect: str, first: JSON, second: JSON) -> set[str]:
    """Returns the fields in which two values differ; of values that are no objects, the aspect."""
    if isinstance(first, dict) and isinstance(second, dict):
        return {name for name in {*first, *second} if first.get(name) != second.get(name)}
    return {aspect}


def shown(
    found: Mapping[str, tuple[JSON, JSON]], one: Record, two: Record | None, counted: Collection[str] = ()
) -> str:
    """Returns text for a terminal: the record, what differs from it, and the times of both.

    Args:
        found: What `differences` found.
        one: The record.
        two: The same request, run again; None: it was not.
        counted: The aspects that differ in more than what flags changed.
    """
    lines = [f"{one['id'] or 'request'} of {one['time']}, version {one['version']}: {_summary(one)}"]
    if two is None:
        return "\n".join(lines)
    lines.append(f"again: {_summary(two)}")
    lines += _times(one, two)
    for name, (first, second) in found.items():
        verb = "differ" if name in _PLURAL else "differs"
        lines += ["", f"{name} {verb}{'' if name in counted else ', as the flags say'}"]
        lines += _TEXTS[name](one, two) if name in _TEXTS else _values(first, second)
    nothing = "nothing differs but times" + (" and what the flags changed" if found else "")
    lines += ["", f"differs: {', '.join(counted)}" if counted else nothing]
    if one["redacted"]:
        lines.append("keys were taken out of the record: the model read *** in their places")
    return "\n".join(line.encode("utf-8", "replace").decode() for line in lines)


def _identity(kept: JSON) -> JSON:
    """Returns what is compared of a text: itself, as its hash is that of the text before keys were taken out."""
    return kept and kept.get("value", kept["sha256"])


def _summary(record: Record) -> str:
    server = record["model_server"]
    where = f" at {server['endpoint']}" if server["endpoint"] else ""
    ended = f", {record['finish_reason']}" if record["finish_reason"] else ""
    return f"{record['outcome']}{ended}, by {record['model']} ({server['kind']}, {server['framework']}){where}"


def _tokens(record: Record) -> JSON:
    usage = record["usage"]
    return usage and {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}


def _times(one: Record, two: Record) -> Iterator[str]:
    """Yields the times of both, in seconds; the rate is that of the chunks after the first."""
    yield f"  {'seconds':18} {'recorded':>10} {'now':>10}"
    for name, of in (
        ("prompt ready", lambda record: record["times"]["planned"]),
        ("first chunk", lambda record: record["times"]["first_chunk"]),
        ("end", lambda record: record["times"]["total"]),
        ("chunks per second", _rate),
        ("longest pause", _pause),
    ):
        values = [of(record) for record in (one, two)]
        if any(value is not None for value in values):
            first, second = ("-" if value is None else f"{value:.3f}" for value in values)
            yield f"  {name:18} {first:>10} {second:>10}"


def _rate(record: Record) -> float | None:
    chunks = record["times"]["chunks"]
    lasted = chunks[-1] - chunks[0] if len(chunks) > 1 else 0
    return (len(chunks) - 1) / lasted if lasted else None


def _pause(record: Record) -> float | None:
    chunks = record["times"]["chunks"]
    return max((two - one for one, two in pairwise(chunks)), default=None)


def _values(first: JSON, second: JSON) -> Iterator[str]:
    """Yields what differs between two values; of objects, the fields that do."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in dict.fromkeys([*first, *second]):
            if first.get(name) != second.get(name):
                yield f"  {name}: {_said(first.get(name))} → {_said(second.get(name))}"
    else:
        yield f"  {_said(first)} → {_said(second)}"


def _said(value: JSON) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _texts(name: str) -> Callable[[Record, Record], Iterator[str]]:
    def compared(one: Record, two: Record) -> Iterator[str]:
        texts = [(record[name] or {}).get("value") for record in (one, two)]
        if texts[0] is None:
            yield "  the record has its hash alone"
            return
        before, after = map(_lines, texts)
        for number, line in enumerate(unified_diff(before, after, "record", "again", lineterm="", n=1)):
            if number == _LONGEST:
                yield "  …"
                return
            yield f"  {line}"

    return compared


def _lines(value: JSON) -> list[str]:
    """Returns a text, the messages of a prompt, or the choices of an answer, as lines."""
    if isinstance(value, list):
        return [line for one in value for line in _lines_of_item(one)]
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).splitlines()


def _lines_of_item(item: JSON) -> list[str]:
    rest = {name: value for name, value in item.items() if name not in ("role", "content", "text") and value}
    text = item.get("content", item.get("text"))
    return [
        *([f"{item['role']}:"] if "role" in item else []),
        *_lines(text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)),
        *([json.dumps(rest, ensure_ascii=False)] if rest else []),
    ]


_TEXTS = {"prompt": _texts("prompt"), "answer": _texts("answer")}
