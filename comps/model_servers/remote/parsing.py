"""JSON as model servers send it, which may contain what JSON does not allow, and may be long."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import orjson

from comps.core.beside import LONG, beside
from comps.core.types import JSON

_DIVIDED = re.compile(rb"\s*(?:(\{)|\[\s*[\[{\"])")
"""The opening of an object, or of a list whose first value is no number."""
_LEVELS = 8
"""The levels of a long text that are divided, each of which takes a look at all of it."""


async def parse_answer(data: bytes) -> JSON:
    """Returns what `parse_json` does; a long text is parsed beside the event loop."""
    return parse_json(data) if len(data) <= LONG else await beside(parse_json, data, parsed_in_pieces)


def parse_json(data: bytes, loads: Callable[[bytes], JSON] = orjson.loads) -> JSON:
    """Returns the value of a JSON text.

    Bytes that are no UTF-8, and halves of surrogate pairs, become U+FFFD (replacement character). `NaN` and `Infinity`
    are read as such.

    Args:
        data: The text.
        loads: Parses what is JSON as it has to be.

    Raises:
        ValueError: The text is no JSON.
    """
    try:
        return loads(data)
    except (ValueError, RecursionError):
        pass
    try:
        return _replaced(json.loads(data.decode("utf-8-sig", "replace")))
    except RecursionError as error:
        raise ValueError("too many levels") from error


def parsed_in_pieces(data: bytes | memoryview, levels: int = _LEVELS) -> JSON:
    """Returns what orjson does, which holds the interpreter's lock until it has parsed all of its argument. So a long
    object or list is first divided into the texts of its values, by msgspec, which makes no objects of them.

    Raises:
        ValueError: It is not JSON, or msgspec is stricter than orjson.
    """
    opening = _DIVIDED.match(data) if levels and len(data) > LONG else None
    if not opening:
        return orjson.loads(data)
    from msgspec import Raw
    from msgspec.json import decode  # A service without long answers does without its memory.

    def parsed(value: Raw) -> JSON:
        return parsed_in_pieces(memoryview(value), levels - 1)

    if opening[1]:
        return {name: parsed(value) for name, value in decode(data, type=dict[str, Raw]).items()}
    return list(map(parsed, decode(data, type=list[Raw])))


def _replaced(value: JSON) -> JSON:
    """Returns the value with U+FFFD for each half of a surrogate pair."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_replaced(one) for one in value]
    if isinstance(value, dict):
        return {_replaced(name): _replaced(one) for name, one in value.items()}
    return value
