"""The endpoint of a path: which kind of body has come, what it says, and what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import orjson
from pydantic import ValidationError

from comps.core.errors import InvalidRequest, Malformed
from comps.core.types import JSON
from comps.dialects.shared.base import Call, Dialect, GenerationCall, Style
from comps.dialects.shared.bodies import MOST


@dataclass(frozen=True)
class Endpoint:
    """All that is read on one path: the calls of the enabled dialects, in their order; of those with the same marker,
    the first."""

    path: str
    dialects: Sequence[Dialect]

    @cached_property
    def calls(self) -> list[tuple[type[Call], Dialect]]:
        """Every kind of body read here, with the dialect it is of."""
        by_marker: dict[str | None, tuple[type[Call], Dialect]] = {}
        for dialect in self.dialects:
            for call in dialect.calls.get(self.path, ()):
                by_marker.setdefault(call.marker, (call, dialect))
        return list(by_marker.values())

    @property
    def style(self) -> Style:
        """Of what is said before it is clear which call a body is."""
        return self.calls[0][0].style

    def read(self, body: bytes, path: Mapping[str, str]) -> Call:
        """The body as a `Call`.

        Args:
            body: As it came.
            path: What the path says.

        Raises:
            RequestError: It is none that is read here; it carries the style of the error with it.
        """
        try:
            return self._interpret(orjson.loads(body), path)
        except orjson.JSONDecodeError as error:
            self._look_for_the_field(body, path)
            raise RequestError(_not_json(body, error), self.style) from None

    def _look_for_the_field(self, body: bytes, path: Mapping[str, str]) -> None:
        """Raise what is wrong with the field that makes the body no JSON, if it is one that Python's parser lets by:
        NaN, say, or half a character."""
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return
        call = self._interpret(document, path)
        if half := _half_a_character(document):
            raise RequestError(half, call.style)

    def _interpret(self, document: JSON, path: Mapping[str, str]) -> Call:
        if not isinstance(document, dict):
            kind = type(document).__name__
            said = f"not a JSON object, but {_JSON_NAMES.get(kind, kind)}"
            problem = ("dict_type", "Input should be a valid dictionary")
            raise RequestError(_malformed(said, *(_MISSING if document is None else problem)), self.style)
        if too_much := _too_much(document):
            raise RequestError(too_much, self.style)
        return self._understand({**document, **path})

    def _understand(self, document: dict[str, JSON]) -> Call:
        for call, dialect in self.calls:
            if call.marker is None or len(self.calls) == 1 or document.get(call.marker) is not None:
                return _validated(document, call, dialect)
        wanted = [str(call.marker) for call, _ in self.calls]
        missing = [{"type": "missing", "loc": (marker,), "msg": "Field required", "input": {}} for marker in wanted]
        markers = " or ".join(f"'{marker}'" for marker in wanted)
        raise RequestError(Malformed(f"the question is missing: {markers} is required", "body", missing), self.style)


@dataclass(frozen=True)
class PreviewEndpoint(Endpoint):
    """An endpoint that reads every body that other endpoints read.

    A body is read as the first kind that finds nothing wrong with it and knows the most of its fields; kinds without a
    marker are tried last.

    Attributes:
        endpoints: Those; the first of them says what is wrong with a body that has no marker of any.
    """

    endpoints: Sequence[Endpoint] = ()

    @cached_property
    def calls(self) -> list[tuple[type[Call], Dialect]]:
        return [one for endpoint in self.endpoints for one in endpoint.calls]

    def owner(self, call: Call) -> Endpoint:
        """The endpoint at which a body was read."""
        return next(endpoint for endpoint in self.endpoints if any(kind is type(call) for kind, _ in endpoint.calls))

    def _understand(self, document: dict[str, JSON]) -> Call:
        marked = [one for one in self.calls if one[0].marker is not None and document.get(one[0].marker) is not None]
        unmarked = [one for one in self.calls if one[0].marker is None]
        wrong: list[RequestError] = []
        for candidates in (marked, unmarked):
            read: list[Call] = []
            for call, dialect in candidates:
                try:
                    read.append(_sensible(_validated(document, call, dialect)))
                except RequestError as request_error:
                    wrong.append(request_error)
            if read:
                return min(read, key=lambda call: len(call.model_extra or ()))
        if marked:
            raise wrong[0]
        return self.endpoints[0]._understand(document)


class RequestError(Exception):
    """A body that is no call: what is wrong with it, and how its dialect says so."""

    def __init__(self, error: InvalidRequest, style: Style) -> None:
        super().__init__(str(error))
        self.error = error
        self.style = style


def _sensible(call: Call) -> Call:
    """The call, unless its fields make no sense together."""
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
        raise RequestError(_explain(error), call.style) from None


_MOST_VALUES = 100_000
"""Of a whole body. To check each of more, and to say what is wrong with it, would hold up everybody else."""
_DEEPEST = 100
"""Of values within values: what goes through them, here and in JSON's writers, goes no deeper than some hundreds."""


def _too_much(document: JSON) -> Malformed | None:
    """What is wrong with a body that has too much in it, however little of it is understood."""
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


def _half_a_character(document: JSON) -> Malformed | None:
    """What is wrong with a body in which there is half of a surrogate pair without the other half."""
    inside: list[tuple[tuple[str | int, ...], JSON]] = [((), document)]
    while inside:
        place, value = inside.pop()
        texts = [value] if isinstance(value, str) else value if isinstance(value, dict) else ()
        if half := next((found for text in texts if (found := _SURROGATE.search(text))), None):
            said = f"\\u{ord(half[0]):x} (character {half.start()}) is half of a character"
            field = ".".join(map(str, place)) or "body"
            return Malformed(said, field, [{"type": "string_unicode", "loc": place, "msg": said}])
        if isinstance(value, dict | list):
            inside += [((*place, name), one) for name, one in _items(value)]
    return None


def _items(value: dict[str, JSON] | list[JSON]) -> Iterable[tuple[str | int, JSON]]:
    return value.items() if isinstance(value, dict) else enumerate(value)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _not_json(body: bytes, error: orjson.JSONDecodeError) -> Malformed:
    if not body:
        return _malformed("empty", *_MISSING)
    said, position = f"not a JSON document: {error}", error.pos
    try:
        body.decode()
    except UnicodeDecodeError as undecodable:
        position = undecodable.start
        said = f"not UTF-8 text (byte {position})"
    problem = {"type": "json_invalid", "loc": (position,), "msg": "JSON decode error", "ctx": {"error": said}}
    return Malformed(said, "body", [problem])


def _malformed(said: str, kind: str, message: str) -> Malformed:
    """What is wrong with a body as a whole, in our words and in pydantic's."""
    return Malformed(said, "body", [{"type": kind, "loc": (), "msg": message}])


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
"""Of the problems, in the sentence that says what is wrong."""
_PYTHONS_OBJECT = re.compile(r"a valid dictionary( or instance of \w+)?")


def _explain(error: ValidationError) -> Malformed:
    """All that is wrong with a body, in one error named after the first field."""
    found = error.errors(include_url=False, include_context=False)[:_MOST_PROBLEMS]
    said: dict[str, list[str]] = {}
    for one in found:
        # Where a value may be of several types, pydantic names each of them behind the field.
        place = [str(step) for step in one["loc"] if isinstance(step, int) or _is_key(step)]
        said.setdefault(".".join(place), []).append(
            _PYTHONS_OBJECT.sub("an object", one["msg"].removeprefix("Value error, "))
        )
    (first, messages), *rest = list(said.items())[:_MOST_ERRORS]
    further = [f"{name}: {' or '.join(texts)}" for name, texts in rest]
    return Malformed("; ".join([" or ".join(messages), *further]), first or "body", [dict(one) for one in found])


def _is_key(step: str) -> bool:
    return step.isidentifier() and step not in ("str", "int", "float", "bool", "list", "dict")
