"""Long JSON documents."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from comps.core.types import JSON

_ITEMS, _VALUES = 10, 10_000
"""How many objects or lists, and how many other values of a list, are encoded at once."""
_PIECE = 500_000
"""The least bytes of a piece, but for the last one."""


def encoded_in_pieces(document: JSON) -> list[bytes]:
    """Returns what `orjson.dumps` does, in pieces. That holds the interpreter's lock until it has encoded its argument:
    for millions of values it takes seconds. So the items of lists are encoded a few at once.

    Args:
        document: An object, or a list; what is within the items of its lists is encoded with them.
    """
    found, held, size = [], list[bytes](), 0
    for piece in _pieces(document):
        held.append(piece)
        size += len(piece)
        if size > _PIECE:
            found.append(b"".join(held))
            held, size = [], 0
    return [*found, b"".join(held)]


def _pieces(document: JSON) -> Iterator[bytes]:
    if isinstance(document, dict):
        separator = b"{"
        for name, value in document.items():
            yield separator + orjson.dumps(name) + b":"
            yield from _pieces(value)
            separator = b","
        yield b"}" if document else b"{}"
    elif isinstance(document, list) and document:
        separator = b"["
        if len(document) <= _ITEMS:
            for item in document:
                yield separator
                yield from _pieces(item)
                separator = b","
        else:
            at_once = _ITEMS if isinstance(document[0], dict | list) else _VALUES
            for start in range(0, len(document), at_once):
                yield separator + orjson.dumps(document[start : start + at_once])[1:-1]
                separator = b","
        yield b"]"
    else:
        yield orjson.dumps(document)
