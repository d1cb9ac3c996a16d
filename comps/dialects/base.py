"""What a dialect is: kinds of bodies, each of which knows what it means and how its answer is spelled.

A `Call` is pure: it turns a body into requests and events into bytes, and never sees a socket or a model server.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from comps.core.errors import InvalidRequest, LLMError
from comps.core.types import JSON, Event, Generation, GenerationRequest, ModelInfo
from comps.dialects.framing import SSE, Stamp


class Call(BaseModel):
    """One kind of body: the wire's fields, their meaning, and how the answer is spelled.

    Fields that it does not declare are accepted, and reported by `ignored`.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    marker: ClassVar[str]
    """The JSON key that tells this body from the others read on its path."""
    examples: ClassVar[Mapping[str, JSON]]
    """Bodies that work, each with what it shows, for the documentation."""
    media_type: ClassVar[str] = SSE
    """Of a streamed answer."""

    @property
    def streamed(self) -> bool:
        """Whether the answer goes out piece by piece."""
        return False

    def requests(self) -> Sequence[GenerationRequest]:
        """What the body asks for; a streamed answer takes exactly one.

        Raises:
            InvalidRequest: The fields are well-formed, but make no sense together.
        """
        raise NotImplementedError(f"{type(self).__name__} asks for nothing")

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        """The fields the caller set and nothing will come of, given what the model server honours."""
        return [name for name, value in (self.model_extra or {}).items() if value is not None]

    def reply(self, generations: Sequence[Generation], stamp: Stamp) -> JSON:
        """The whole answer, one generation for each request."""
        raise NotImplementedError(f"{type(self).__name__} has no whole answer")

    def reply_stream(self, events: AsyncGenerator[Event], stamp: Stamp) -> AsyncGenerator[bytes]:
        """The streamed answer, one item to be sent at once a step, up to and with the mark of its end."""
        raise NotImplementedError(f"{type(self).__name__} has no streamed answer")

    @classmethod
    def error(cls, error: LLMError) -> JSON:
        """The body of an error that comes instead of an answer."""
        raise NotImplementedError(f"{cls.__name__} has no error")

    def error_item(self, error: LLMError) -> bytes:
        """The last item of a stream that broke off; no mark of the end follows it."""
        raise NotImplementedError(f"{type(self).__name__} has no streamed answer")


@dataclass(frozen=True, slots=True)
class House:
    """What the routes without a body may tell: the state of the service at this moment."""

    name: str
    version: str
    started: int
    """Seconds since 1970."""
    models: Sequence[ModelInfo]
    not_ready: LLMError | None
    """Why the service cannot answer now; None if it can."""
    statistics: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way of asking and answering.

    Attributes:
        calls: The bodies that it reads, by path, in the order in which their markers are looked for.
        facts: Routes without a body, by path; one that cannot be answered now raises why.
        error: The body of an error that comes before it is clear which `Call` a body is.
        switches: Passed to every `Call` as pydantic's validation context.
    """

    name: str
    calls: Mapping[str, Sequence[type[Call]]]
    error: Callable[[LLMError], JSON]
    facts: Mapping[str, Callable[[House], JSON]] = field(default_factory=dict)
    switches: Any = None


@dataclass(frozen=True)
class Desk:
    """All that is read on one path: the calls of the enabled dialects, in their order."""

    path: str
    dialects: Sequence[Dialect]

    @cached_property
    def calls(self) -> list[tuple[type[Call], Any]]:
        """Every kind of body read here, with the switches of its dialect."""
        return [(call, dialect.switches) for dialect in self.dialects for call in dialect.calls.get(self.path, ())]

    def read(self, body: bytes) -> Call:
        """The body as a `Call`.

        Raises:
            Misread: It is none that is read here; it carries the spelling of the error with it.
        """
        try:
            return self._interpret(orjson.loads(body))
        except orjson.JSONDecodeError as error:
            self._look_for_the_field(body)
            raise Misread(_not_json(body, error), self.dialects[0].error) from None

    def _look_for_the_field(self, body: bytes) -> None:
        """Raise what is wrong with the field that makes the body no JSON, if it is one that Python's parser lets by:
        NaN, say."""
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return
        self._interpret(document)

    def _interpret(self, document: JSON) -> Call:
        spell = self.dialects[0].error
        if not isinstance(document, dict):
            kind = type(document).__name__
            raise Misread(InvalidRequest(f"not a JSON object, but {_JSON_NAMES.get(kind, kind)}", "body"), spell)
        for call, switches in self.calls:
            if document.get(call.marker) is not None:
                try:
                    return call.model_validate(document, context=switches)
                except ValidationError as error:
                    raise Misread(_explain(error), call.error) from None
        markers = " or ".join(f"'{call.marker}'" for call, _ in self.calls)
        raise Misread(InvalidRequest(f"the question is missing: {markers} is required", "body"), spell)


class Misread(Exception):
    """A body that is no call: what is wrong with it, and how its dialect says so."""

    def __init__(self, error: InvalidRequest, spell: Callable[[LLMError], JSON]) -> None:
        super().__init__(str(error))
        self.error = error
        self.spell = spell


def _not_json(body: bytes, error: Exception) -> InvalidRequest:
    if not body:
        return InvalidRequest("empty", "body")
    try:
        body.decode()
    except UnicodeDecodeError as where:
        return InvalidRequest(f"not UTF-8 text (byte {where.start})", "body")
    return InvalidRequest(f"not a JSON document: {error}", "body")


_JSON_NAMES = {
    "NoneType": "null",
    "list": "an array",
    "str": "a string",
    "int": "a number",
    "float": "a number",
    "bool": "a boolean",
}
_MOST_ERRORS = 5
_PYTHONS_OBJECT = re.compile(r"a valid dictionary( or instance of \w+)?")


def _explain(error: ValidationError) -> InvalidRequest:
    """All that is wrong with a body, in one error named after the first field."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    said: dict[str, list[str]] = {}
    for one in found:
        # Where a value may be of several types, pydantic names each of them behind the field.
        place = [str(step) for step in one["loc"] if isinstance(step, int) or _is_key(step)]
        said.setdefault(".".join(place), []).append(
            _PYTHONS_OBJECT.sub("an object", one["msg"].removeprefix("Value error, "))
        )
    (first, messages), *rest = list(said.items())[:_MOST_ERRORS]
    further = [f"{name}: {' or '.join(texts)}" for name, texts in rest]
    return InvalidRequest("; ".join([" or ".join(messages), *further]), first or "body")


def _is_key(step: str) -> bool:
    return step.isidentifier() and step not in ("str", "int", "float", "bool", "list", "dict")
