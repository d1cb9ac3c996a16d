"""`parse_json`: JSON as model servers send it, which may contain what JSON does not allow."""

from __future__ import annotations

import json

import orjson

from comps.core.types import JSON


def parse_json(data: bytes) -> JSON:
    """Returns the value of a JSON text.

    Bytes that are no UTF-8, and halves of surrogate pairs, become U+FFFD (replacement character). `NaN` and `Infinity`
    are read as such.

    Raises:
        ValueError: The text is no JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        return _replaced(json.loads(data.decode("utf-8-sig", "replace")))
    except RecursionError as error:
        raise ValueError("too many levels") from error


def _replaced(value: JSON) -> JSON:
    """Returns the value with U+FFFD for each half of a surrogate pair."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_replaced(one) for one in value]
    if isinstance(value, dict):
        return {_replaced(name): _replaced(one) for name, one in value.items()}
    return value
