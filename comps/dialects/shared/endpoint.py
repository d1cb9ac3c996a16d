"""The endpoint of a path: finds the kind of a request body, validates it, and explains what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import orjson
from pydantic import ValidationError

from comps.core.errors import InvalidRequest, LLMError, Malformed
from comps.core.types import JSON
from comps.dialects.shared.base import Call, Dialect, GenerationCall, Style
from comps.dialects.shared.bodies import MOST


@dataclass(frozen=True)
class Endpoint:
    """Reads the bodies on one path.

    Attributes:
        path: The path, with variables in braces.
        dialects: The enabled ones. Of two kinds of bodies with the same marker, that of the first dialect is read.
    """

    path: str
    dialects: Sequence[Dialect]

    @cached_property
    def calls(self) -> list[tuple[type[Call], Dialect]]:
        """The kinds of bodies that are read here, each with its dialect."""
        by_marker: dict[str | None, tuple[type[Call], Dialect]] = {}
        for dialect in self.dialects:
            for call in dialect.calls.get(self.path, ()):
                by_marker.setdefault(call.marker, (call, dialect))
        return list(by_marker.values())

    @property
    def style(self) -> Style:
        """The style of errors for bodies that are of no kind read here."""
        return self.calls[0][0].style

    def kind_of(self, body: bytes) -> tuple[type[Call], Dialect]:
        """The kind of a body that is not validated, by its marker, and its dialect; the first if it has none."""
        if len(self.calls) > 1:
            with suppress(orjson.JSONDecodeError):
                document = orjson.loads(body)
                if isinstance(document, dict) and (kind := self._kind_of(document)):
                    return kind
        return self.calls[0]

    def read(self, body: bytes, path: Mapping[str, str]) -> Call:
        """The body as a `Call`.

        Args:
            body: The bytes of the request body.
            path: The variables of the path, which override fields of the body.

        Raises:
            RequestError: It is not valid.
        """
        if too_much := _certain_excess(body):
            raise RequestError(too_much, self.style)
        try:
            return self._from_document(orjson.loads(body), body, path)
        except orjson.JSONDecodeError as error:
            if (in_utf_8 := _in_utf_8(body)) != body:
                return self.read(in_utf_8, path)
            self._explain_invalid_value(body, path)
            raise RequestError(_not_json(body, error), self.style) from None

    def _explain_invalid_value(self, body: bytes, path: Mapping[str, str]) -> None:
        """Raise the error of a field with a value that only Python's JSON parser accepts, such as NaN or half of a
        surrogate pair; return if there is no such field."""
        if not json.detect_encoding(body).startswith("utf-8"):
            return  # Of UTF-16, only what could not be converted comes here.
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return
        if isinstance(document, dict) and (half := _lone_surrogate(document)):  # Validation may raise something else.
            call, dialect = self._kind_of(document) or self.calls[0]
            raise RequestError(half, call.style, dialect.name)
        self._from_document(document, body, path)

    def _from_document(self, document: JSON, body: bytes, path: Mapping[str, str]) -> Call:
        if not isinstance(document, dict):
            kind = type(document).__name__
            message = f"not a JSON object, but {_JSON_NAMES.get(kind, kind)}"
            problem = ("dict_type", "Input should be a valid dictionary")
            raise RequestError(_malformed(message, *(_MISSING if document is None else problem)), self.style)
        if not _is_small(body) and (too_much := _limit_exceeded(document)):
            raise RequestError(too_much, self.style)
        return self._as_call({**document, **path} if path else document)

    def _kind_of(self, document: dict[str, JSON]) -> tuple[type[Call], Dialect] | None:
        """Returns the kind of a body and its dialect; None if it has no marker of any."""
        for call, dialect in self.calls:
            if call.marker is None or len(self.calls) == 1 or document.get(call.marker) is not None:
                return call, dialect
        return None

    def _as_call(self, document: dict[str, JSON]) -> Call:
        if kind := self._kind_of(document):
            return _validated(document, *kind)
        wanted = [str(call.marker) for call, _ in self.calls]
        missing = [{"type": "missing", "loc": (marker,), "msg": "Field required", "input": {}} for marker in wanted]
        markers = " or ".join(f"'{marker}'" for marker in wanted)
        raise RequestError(Malformed(f"the question is missing: {markers} is required", "body", missing), self.style)


@dataclass(frozen=True)
class PreviewEndpoint(Endpoint):
    """An endpoint that reads the bodies of several other endpoints.

    Of the kinds for which a body is valid, it is read as that which declares the most of its fields, the first of equal
    ones; kinds without a marker are tried last. A marker with nothing in it, with which some kinds only load a model,
    counts for nothing.

    Attributes:
        endpoints: The other endpoints; the first one explains what is wrong with a body without any marker.
    """

    endpoints: Sequence[Endpoint] = ()

    @cached_property
    def calls(self) -> list[tuple[type[Call], Dialect]]:
        return [one for endpoint in self.endpoints for one in endpoint.calls]

    def owner(self, call: Call) -> Endpoint:
        """The endpoint whose kind of body this is."""
        return next(endpoint for endpoint in self.endpoints if any(kind is type(call) for kind, _ in endpoint.calls))

    def _as_call(self, document: dict[str, JSON]) -> Call:
        marked = [one for one in self.calls if one[0].marker is not None and document.get(one[0].marker) is not None]
        unmarked = [one for one in self.calls if one[0].marker is None]
        wrong: list[RequestError] = []
        for candidates in (marked, unmarked):
            read: list[Call] = []
            for call, dialect in candidates:
                try:
                    valid = _consistent(_validated(document, call, dialect))
                except RequestError as request_error:
                    wrong.append(request_error)
                else:
                    read += [valid] if call.marker is None or document[call.marker] else []
            if read:
                return min(read, key=lambda call: len(call.model_extra or ()))
        if marked and wrong:
            raise wrong[0]
        return self.endpoints[0]._as_call(document)


class RequestError(Exception):
    """A body that is not valid.

    Args:
        error: What is wrong with it.
        style: How its dialect encodes the error.
        dialect: The dialect's name; empty: that of the path's first kind of body.
    """

    def __init__(self, error: LLMError, style: Style, dialect: str = "") -> None:
        super().__init__(str(error))
        self.error = error
        self.style = style
        self.dialect = dialect


def _consistent(call: Call) -> Call:
    """The call; raises `RequestError` if its fields contradict each other."""
    try:
        if isinstance(call, GenerationCall):
            call.requests()
    except InvalidRequest as error:
        raise RequestError(error, call.style) from None
    return call


def _validated(document: dict[str, JSON], call: type[Call], dialect: Dialect) -> Call:
    try:
        return call.model_validate(document, context=dialect.switches)
    except ValidationError as error:
        raise RequestError(_explain(error), call.style, dialect.name) from None


_MOST_VALUES = 100_000
"""The most values of a body: to check more would block the event loop for too long."""
_DEEPEST = 100
"""The most levels of nested values: recursive functions, here and in JSON encoders, end at some hundreds."""


def _is_small(body: bytes) -> bool:
    """Whether a body is within all limits for sure: it cannot have more levels than brackets, nor more values than
    brackets and commas."""
    opened = body.count(b"[") + body.count(b"{")
    return opened <= _DEEPEST and opened + body.count(b",") <= MOST


_CERTAIN_EXCESS = 4 * _MOST_VALUES
"""The separators of a body that is not even parsed: for millions of values, the parser holds the interpreter's lock for
half a second."""
_PIECE = 65_536
_ESCAPED = re.compile(rb"\\.", re.DOTALL)


def _certain_excess(body: bytes) -> Malformed | None:
    """The error of a body with so many brackets and commas outside of strings that it is not parsed; None if it is."""
    if len(body) <= _CERTAIN_EXCESS or _separators(body) <= _CERTAIN_EXCESS:
        return None
    separators, is_text, start = 0, 0, 0
    while start < len(body) and separators <= _CERTAIN_EXCESS:
        end = start + _PIECE
        while body[end - 1 : end] == b"\\":  # No escape is taken apart.
            end += 1
        pieces = _ESCAPED.sub(b"", body[start:end]).split(b'"')
        separators += _separators(b"".join(pieces[is_text::2]))
        is_text ^= len(pieces) % 2 == 0
        start = end
    if separators <= _CERTAIN_EXCESS:
        return None
    problem = {"type": "too_long", "loc": (), "msg": f"Value should have at most {_MOST_VALUES} values in all"}
    return Malformed(f"it has too many values; at most {_MOST_VALUES} values in all are read", "body", [problem])


def _separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _limit_exceeded(document: JSON) -> Malformed | None:
    """The error of a body that exceeds a limit, in whatever field; None if it exceeds none."""
    values = 0
    inside: list[tuple[tuple[str | int, ...], JSON]] = [((), document)]
    while inside:
        place, value = inside.pop()
        if not isinstance(value, dict | list):
            continue
        values += len(value)
        if len(place) > _DEEPEST:
            problem = {"type": "too_deep", "loc": place[:1], "msg": f"Value should have at most {_DEEPEST} levels"}
            return Malformed(f"it has values within values; {_DEEPEST} levels are read", str(place[0]), [problem])
        if len(value) > MOST or values > _MOST_VALUES:
            most = f"at most {MOST} items" if len(value) > MOST else f"at most {_MOST_VALUES} values in all"
            field = ".".join(map(str, place)) or "body"
            problem = {"type": "too_long", "loc": place, "msg": f"Value should have {most}"}
            return Malformed(f"it has {len(value)} items; {most} are read", field, [problem])
        inside += [((*place, name), one) for name, one in _items(value) if isinstance(one, dict | list)]
    return None


def _lone_surrogate(document: JSON) -> Malformed | None:
    """The error of a body that has half of a surrogate pair without the other half; None if it has not."""
    inside: list[tuple[tuple[str | int, ...], JSON]] = [((), document)]
    while inside:
        place, value = inside.pop()
        texts = [value] if isinstance(value, str) else value if isinstance(value, dict) else ()
        if half := next((found for text in texts if (found := _SURROGATE.search(text))), None):
            message = f"\\u{ord(half[0]):x} (character {half.start()}) is half of a character"
            field = ".".join(map(str, place)) or "body"
            return Malformed(message, field, [{"type": "string_unicode", "loc": place, "msg": message}])
        if isinstance(value, dict | list):
            inside += [((*place, name), one) for name, one in _items(value)]
    return None


def _items(value: dict[str, JSON] | list[JSON]) -> Iterable[tuple[str | int, JSON]]:
    return value.items() if isinstance(value, dict) else enumerate(value)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _in_utf_8(body: bytes) -> bytes:
    """Returns JSON in UTF-8 without a byte order mark; some clients on Windows send a mark, or UTF-16."""
    try:
        return body.decode(json.detect_encoding(body)).removeprefix("\ufeff").encode()
    except ValueError:
        return body


def _not_json(body: bytes, error: orjson.JSONDecodeError) -> Malformed:
    if not body:
        return _malformed("empty", *_MISSING)
    message, position = f"not a JSON document: {error}", error.pos
    try:
        body.decode()
    except UnicodeDecodeError as undecodable:
        position = undecodable.start
        message = f"not UTF-8 text (byte {position})"
    problem = {"type": "json_invalid", "loc": (position,), "msg": "JSON decode error", "ctx": {"error": message}}
    return Malformed(message, "body", [problem])


def _malformed(message: str, kind: str, pydantic_message: str) -> Malformed:
    """The error of a body as a whole, with our message, and with pydantic's type and message."""
    return Malformed(message, "body", [{"type": kind, "loc": (), "msg": pydantic_message}])


_MISSING = ("missing", "Field required")
_JSON_NAMES = {
    "NoneType": "null",
    "list": "an array",
    "str": "a string",
    "int": "a number",
    "float": "a number",
    "bool": "a boolean",
}
_MOST_PROBLEMS = 20
_MOST_ERRORS = 5
"""The most problems in the message of an error."""
_PYTHONS_OBJECT = re.compile(r"a valid dictionary( or instance of \w+)?")


def _explain(error: ValidationError) -> Malformed:
    """The problems of a body as one error, with the name of the first field."""
    found = error.errors(include_url=False, include_context=False)[:_MOST_PROBLEMS]
    by_field: dict[str, list[str]] = {}
    for one in found:
        # Where a value may be of several types, pydantic appends each of them to the field.
        place = [str(step) for step in one["loc"] if isinstance(step, int) or _is_key(step)]
        message = _PYTHONS_OBJECT.sub("an object", one["msg"].removeprefix("Value error, "))
        by_field.setdefault(".".join(place), []).append(message)
    (first, messages), *rest = list(by_field.items())[:_MOST_ERRORS]
    further = [f"{name}: {' or '.join(texts)}" for name, texts in rest]
    return Malformed("; ".join([" or ".join(messages), *further]), first or "body", [dict(one) for one in found])


def _is_key(step: str) -> bool:
    return step.isidentifier() and step not in ("str", "int", "float", "bool", "list", "dict")
