"""Tool calls, whose deltas model servers number in several ways: found, joined, and written one by one."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from comps.core.types import JSON
from comps.core.unread import left_out

_MARKS = re.compile(r'\\.?|["{}]', re.DOTALL)
"""What tells where a JSON object ends: an escaped character (or the half of one, at the end), quotes and braces."""


class ToolCalls:
    """Numbers the tool calls of a choice. Some servers give every call the index 0, or none."""

    def __init__(self) -> None:
        self._calls = KnownCalls()
        self._numbers = set[int]()
        self._next = 0

    def numbered(self, pieces: JSON) -> list[JSON]:
        """Returns the tool call deltas with unique indexes: deltas of one call share an index, other calls never do.

        They are in OpenAI's form, with the arguments as JSON text, whatever the server sends.
        """
        return [{**piece, "index": self._number(piece)} for piece in pieces_of(pieces)]

    def _number(self, piece: dict[str, JSON]) -> int:
        call = self._calls.of(piece)
        if call.number is None:
            index = piece.get("index")
            call.number = self._next if index is None or index in self._numbers else index
            self._numbers.add(call.number)
            self._next = max(self._next, call.number + 1)
        return call.number


def calls_in(extra: Mapping[str, JSON]) -> list[dict[str, Any]]:
    """Returns the tool calls in extra fields, or pieces of them. One in the older form, a `function_call`, is a call
    with the index 0."""
    calls = extra.get("tool_calls")
    if isinstance(calls, list) and calls:
        return [call for call in calls if isinstance(call, dict)]
    call = extra.get("function_call")
    return [{"index": 0, "function": call}] if isinstance(call, dict) else []


class NamedCalls:
    """Holds back the pieces of tool calls until their names come, for streams that begin a call with its name."""

    def __init__(self) -> None:
        self._named: set[int] = set()
        self._held: dict[int, Call] = {}
        """What came of the calls without a name, by index."""

    def pieces(self, extra: Mapping[str, JSON]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the indexes and the pieces of calls in the extra fields of a delta. The first one of a call has its
        name, and all that came before it."""
        for piece in calls_in(extra):
            number = piece.get("index")
            if type(number) is not int:
                number = len(self._named) + len(self._held)
            if number not in self._named:
                call = self._held.setdefault(number, Call())
                call.add(piece)
                if not (piece.get("function") or {}).get("name"):
                    continue
                self._named.add(number)
                piece = self._held.pop(number).whole()
            yield number, piece

    def rest(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the indexes of the calls that got no name, and what came of them."""
        for number, call in self._held.items():
            yield number, call.whole()


class CallsInTurn:
    """Orders the pieces of tool calls, for streams in which one call ends before the next begins.

    Pieces of another call are held back until the arguments of the one before it are a whole JSON object, or the stream
    ends.
    """

    def __init__(self) -> None:
        self._calls = NamedCalls()
        self._current: int | None = None
        self._arguments = _Arguments()
        """Those of the current call."""
        self._held: OrderedDict[int, Call] = OrderedDict()
        """What came of the calls whose turn it is not yet, by index."""
        self._ended: set[int] = set()

    def pieces(self, extra: Mapping[str, JSON]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the indexes and the pieces of calls in the extra fields of a delta, as `NamedCalls` does. What comes
        behind the arguments of a call that has ended is left out."""
        for number, piece in self._calls.pieces(extra):
            yield from self._next(number, piece)

    def rest(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the indexes and the pieces that were held back."""
        for number, piece in self._calls.rest():
            yield from self._next(number, piece)
        while self._held:
            yield self._begin(next(iter(self._held)))

    def _next(self, number: int, piece: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        if number in self._ended:
            if ((piece.get("function") or {}).get("arguments") or "").strip():
                left_out("tool_calls")
            return
        self._held.setdefault(number, Call()).add(piece)
        if self._current in (None, number):
            yield self._begin(number)
        while self._held and self._arguments.are_whole():
            yield self._begin(next(iter(self._held)))

    def _begin(self, number: int) -> tuple[int, dict[str, Any]]:
        """Returns what was held back of a call, whose turn it is from now on."""
        if self._current not in (None, number):
            self._ended.add(self._current)
            self._arguments = _Arguments()
        self._current = number
        piece = self._held.pop(number).whole()
        if arguments := ((piece.get("function") or {}).get("arguments") or "").rstrip():
            self._arguments.add(arguments)
        return number, piece


class _Arguments:
    """The arguments of a call, read up to the end of a JSON object."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._depth = 0
        self._in_string = self._is_escaped = False
        self._has_ended = False
        self._whole: bool | None = False
        """Whether they are a whole JSON object; None: they end as one, and are to be parsed."""

    def add(self, text: str) -> None:
        """Read a further piece, which does not end with whitespace."""
        self._pieces.append(text)
        if self._has_ended:
            self._whole = False
            return
        begin, self._is_escaped = int(self._is_escaped), False
        for mark in _MARKS.finditer(text, begin):
            if mark[0] == '"':
                self._in_string = not self._in_string
            elif mark[0] == "\\":
                self._is_escaped = True
            elif mark[0] in ("{", "}") and not self._in_string:
                self._depth += 1 if mark[0] == "{" else -1
                if self._depth <= 0:
                    self._has_ended, self._whole = True, None if mark.end() == len(text) else False
                    return

    def are_whole(self) -> bool:
        """Whether they are a whole JSON object. They are parsed once at most."""
        if self._whole is None:
            try:
                self._whole = isinstance(json.loads("".join(self._pieces)), dict)
            except (ValueError, RecursionError):
                self._whole = False
        return self._whole


def function_of(call: dict[str, JSON]) -> dict[str, JSON]:
    """Returns the function of a call in the older form, `function_call`, with texts as its `name` and `arguments`."""
    function: dict[str, JSON] = _piece({"function": call})["function"]
    return function


class Call:
    """A tool call, whose deltas are joined. Each costs no more time than its own length."""

    __slots__ = ("_arguments", "_fields", "id", "number")

    def __init__(self) -> None:
        self.id: str | None = None
        self.number: int | None = None
        self._fields: dict[str, JSON] = {}
        self._arguments: list[str] = []

    def add(self, piece: dict[str, JSON]) -> None:
        """Join a further delta."""
        function = piece.get("function") or {}
        if function.get("arguments"):
            self._arguments.append(function["arguments"])
        fields = {name: value for name, value in piece.items() if value not in (None, "")}
        if "function" in fields:
            named = {name: value for name, value in function.items() if value}
            so_far = self._fields.get("function") or {}
            fields["function"] = {**so_far, **named, "arguments": ""} if function else so_far
        self._fields.update(fields)

    def whole(self) -> dict[str, JSON]:
        """Returns the joined deltas."""
        if not self._arguments:
            return dict(self._fields)
        return {**self._fields, "function": {**self._fields["function"], "arguments": "".join(self._arguments)}}


class KnownCalls:
    """The tool calls of a choice so far. The one to which a delta belongs is found without looking at the others."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._latest: dict[int, Call] = {}
        """The last call of each index."""
        self._identified: dict[tuple[int | None, str], Call] = {}
        """The last call of each index and id, and of each id alone, with None for its index."""

    def of(self, piece: dict[str, JSON]) -> Call:
        """Returns the call to which a delta belongs, which may be a new one."""
        index, identity = piece.get("index"), piece.get("id")
        call = self._continued_by(piece)
        if call is None:
            call = Call()
            self.calls.append(call)
            if index is not None:
                self._latest[index] = call
        if identity and not call.id:
            call.id = identity
            self._identified[index, identity] = self._identified[None, identity] = call
        return call

    def _continued_by(self, piece: dict[str, JSON]) -> Call | None:
        """Returns the call that a delta continues; None if it begins a new one."""
        index, identity = piece.get("index"), piece.get("id")
        if index is not None:
            latest = self._latest.get(index)
            if latest is None or not identity or not latest.id:
                return latest
        if identity:
            return self._identified.get((index, identity))
        if (piece.get("function") or {}).get("name") or not self.calls:
            return None
        return self.calls[-1]


def pieces_of(value: JSON) -> list[dict[str, JSON]]:
    """Returns the tool call deltas in OpenAI's form; what makes no sense is left out."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    pieces = value if isinstance(value, list) else [value]
    read = [_piece(piece) for piece in pieces if isinstance(piece, dict)]
    if len(read) < len(pieces):
        left_out("tool_calls")
    return read


def _piece(piece: dict[str, JSON]) -> dict[str, JSON]:
    """Returns a tool call delta with an integer `index`, and texts as `id`, `name` and `arguments`."""
    piece = {**piece, "index": _index(piece.get("index"))}
    if piece.get("id") is not None:
        piece["id"] = str(piece["id"])
    function = _function(piece)
    if function is None:
        return piece
    if not isinstance(function, dict):
        left_out("tool_calls")
        return {**piece, "function": {}}
    piece["function"] = function = dict(function)
    if "name" in function and not isinstance(function["name"], str | None):
        left_out("tool_calls")
        del function["name"]
    if not isinstance(function.get("arguments"), str | None):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False, separators=(",", ":"))
    return piece


def _function(piece: dict[str, JSON]) -> JSON:
    """Returns the function of a delta, which some servers write beside the id, or under other names."""
    function = piece.get("function")
    if function is None or isinstance(function, str):
        flat = {name: piece.pop(name) for name in ("name", "arguments", "parameters") if name in piece}
        if isinstance(function, str):
            flat = {"name": function, **flat}
        function = flat or None
    if isinstance(function, dict) and "parameters" in function and "arguments" not in function:
        function = {("arguments" if name == "parameters" else name): one for name, one in function.items()}
    return function


def _index(said: JSON) -> int | None:
    if isinstance(said, str) and said.isdecimal():
        return int(said)
    return said if type(said) is int else None
