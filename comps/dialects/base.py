"""What a dialect is: kinds of bodies, each of which knows what it means and how its answer is spelled.

A `Call` is pure: it turns a body into requests and events into bytes, and never sees a socket or a model server.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from comps.core.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidRequest,
    LLMError,
    Malformed,
    ModelServerError,
    Overloaded,
    Timeout,
    UnknownModel,
    Unreachable,
)
from comps.core.types import GPU, JSON, Embeddings, Event, Generation, GenerationRequest, ModelInfo
from comps.dialects.framing import SSE, Stamp

STATUS: Mapping[type[LLMError], int] = {
    InvalidRequest: 400,
    Forbidden: 403,
    UnknownModel: 404,
    BodyTooLarge: 413,
    Overloaded: 429,
    ModelServerError: 502,
    Unreachable: 503,
    Timeout: 504,
    LLMError: 500,
}
"""HTTP statuses by error class; a class that is not here has its parent's."""


@dataclass(frozen=True)
class Style:
    """How a dialect lays what is not a stream on the wire.

    Attributes:
        error: The body of an error.
        statuses: HTTP statuses by error class, where they are others than in `STATUS`.
        encode: A document as bytes.
    """

    error: Callable[[LLMError], JSON]
    statuses: Mapping[type[LLMError], int] = field(default_factory=dict)
    encode: Callable[[JSON], bytes] = orjson.dumps

    def status(self, error: LLMError) -> int:
        """The HTTP status of an error."""
        known = {**STATUS, **self.statuses}
        return next(known[kind] for kind in type(error).__mro__ if kind in known)


class Call(BaseModel):
    """One kind of body: the wire's fields, their meaning, and how the answer is spelled.

    Which kind of work it asks for, its parent says: `GenerationCall`, `EmbeddingCall` or `TokenCountCall`. What the
    path says (`{model}`) is a field like any other, and beats the body. Fields that it does not declare are accepted,
    and reported by `ignored`.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    marker: ClassVar[str | None]
    """The JSON key that tells this body from the others read on its path; None: any body is this one."""
    examples: ClassVar[Mapping[str, JSON]]
    """Bodies that work, each with what it shows, for the documentation."""
    style: ClassVar[Style]
    any_model: ClassVar[bool] = False
    """Whether, where one model is served, any name stands for that one; a name that does not exist is then ignored."""

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        """The fields the caller set and nothing will come of, given what the model server honours."""
        return [name for name, value in (self.model_extra or {}).items() if value is not None]


class GenerationCall(Call):
    """A body that asks for text."""

    media_type: ClassVar[str] = SSE
    """Of a streamed answer."""
    cuts_off: ClassVar[bool] = False
    """Whether a stream that fails loses its connection, since nothing in it could tell a client so."""

    @property
    def streamed(self) -> bool:
        """Whether the answer goes out piece by piece."""
        return False

    def requests(self) -> Sequence[GenerationRequest]:
        """What the body asks for; nothing if it can be answered, whole, without a model.

        Raises:
            InvalidRequest: The fields are well-formed, but make no sense together.
        """
        raise NotImplementedError(f"{type(self).__name__} asks for nothing")

    def reply(self, generations: Sequence[Generation], stamp: Stamp) -> JSON:
        """The whole answer, one generation for each request."""
        raise NotImplementedError(f"{type(self).__name__} has no whole answer")

    def reply_stream(self, events: AsyncGenerator[Event], stamp: Stamp) -> AsyncGenerator[bytes]:
        """The streamed answer, one item to be sent at once a step, up to and with the mark of its end.

        The choices of several requests are numbered one after the other.
        """
        raise NotImplementedError(f"{type(self).__name__} has no streamed answer")

    def error_item(self, error: LLMError) -> bytes:
        """The last item of a stream that broke off; no mark of the end follows it."""
        raise NotImplementedError(f"{type(self).__name__} has no streamed answer")


class EmbeddingCall(Call):
    """A body that asks for vectors."""

    model: str | None = None

    def texts(self) -> Sequence[str]:
        """What to embed."""
        raise NotImplementedError(f"{type(self).__name__} has no texts")

    def reply(self, embeddings: Embeddings, stamp: Stamp) -> JSON:
        """The answer."""
        raise NotImplementedError(f"{type(self).__name__} has no answer")


class TokenCountCall(Call):
    """A body that asks how many tokens a text has."""

    model: str | None = None

    def text(self) -> str:
        """What to count."""
        raise NotImplementedError(f"{type(self).__name__} has no text")

    def reply(self, tokens: int) -> JSON:
        """The answer."""
        raise NotImplementedError(f"{type(self).__name__} has no answer")


@dataclass(frozen=True, slots=True)
class House:
    """What the routes without a body may tell: the state of the service at this moment."""

    name: str
    version: str
    started: int
    """Seconds since 1970."""
    models: Sequence[ModelInfo]
    """What is served, the first where no name is given; without what model servers say, if they were not asked."""
    not_ready: LLMError | None
    """Why the service cannot answer now; None if it can, or if the model servers were not asked."""
    statistics: Mapping[str, float | None]
    queue_length: int
    """Answers that are being made or wait for it."""
    path: Mapping[str, str]
    """What the path says, by the names in its braces."""
    shut_down: Callable[[], None] | None
    """Ends the service when what runs is answered; None if the settings do not allow it."""
    gpus: Callable[[], Awaitable[Sequence[GPU]]]
    """Asks for the graphics cards of this machine; raises why they cannot be told."""


@dataclass(frozen=True, slots=True)
class Text:
    """An answer that is no JSON."""

    text: str
    media_type: str = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Fact:
    """A route without a body.

    Attributes:
        tell: The answer; raises why there is none now. Its docstring says what the route is for.
        asks_models: Whether the model servers are asked who they are first; liveness must not depend on them.
        style: How it is spelled; None: as all that its dialect tells.
    """

    tell: Callable[[House], JSON | Text | Awaitable[JSON | Text]]
    asks_models: bool = True
    style: Style | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way of asking and answering.

    Attributes:
        calls: The bodies that it reads, by path, in the order in which their markers are looked for.
        style: How errors are spelled that come before it is clear which `Call` a body is, and what `facts` tell.
        facts: Routes without a body, by method and path (`GET /v1/models`).
        switches: Passed to every `Call` as pydantic's validation context.
    """

    name: str
    calls: Mapping[str, Sequence[type[Call]]]
    style: Style
    facts: Mapping[str, Fact] = field(default_factory=dict)
    switches: Any = None


@dataclass(frozen=True)
class Desk:
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
        return self.calls[0][1].style

    def read(self, body: bytes, path: Mapping[str, str]) -> Call:
        """The body as a `Call`.

        Args:
            body: As it came.
            path: What the path says.

        Raises:
            Misread: It is none that is read here; it carries the style of the error with it.
        """
        try:
            return self._interpret(orjson.loads(body), path)
        except orjson.JSONDecodeError as error:
            self._look_for_the_field(body, path)
            raise Misread(_not_json(body, error), self.style) from None

    def _look_for_the_field(self, body: bytes, path: Mapping[str, str]) -> None:
        """Raise what is wrong with the field that makes the body no JSON, if it is one that Python's parser lets by:
        NaN, say."""
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return
        self._interpret(document, path)

    def _interpret(self, document: JSON, path: Mapping[str, str]) -> Call:
        if not isinstance(document, dict):
            kind = type(document).__name__
            said = f"not a JSON object, but {_JSON_NAMES.get(kind, kind)}"
            problem = ("dict_type", "Input should be a valid dictionary")
            raise Misread(_malformed(said, *(_MISSING if document is None else problem)), self.style)
        document = {**document, **path}
        for call, dialect in self.calls:
            if call.marker is None or len(self.calls) == 1 or document.get(call.marker) is not None:
                try:
                    return call.model_validate(document, context=dialect.switches)
                except ValidationError as error:
                    raise Misread(_explain(error), call.style) from None
        wanted = [str(call.marker) for call, _ in self.calls]
        missing = [{"type": "missing", "loc": (marker,), "msg": "Field required", "input": {}} for marker in wanted]
        markers = " or ".join(f"'{marker}'" for marker in wanted)
        raise Misread(Malformed(f"the question is missing: {markers} is required", "body", missing), self.style)


class Misread(Exception):
    """A body that is no call: what is wrong with it, and how its dialect says so."""

    def __init__(self, error: Malformed, style: Style) -> None:
        super().__init__(str(error))
        self.error = error
        self.style = style


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
_MOST_ERRORS = 5
_PYTHONS_OBJECT = re.compile(r"a valid dictionary( or instance of \w+)?")


def _explain(error: ValidationError) -> Malformed:
    """All that is wrong with a body, in one error named after the first field."""
    found = error.errors(include_url=False, include_context=False)
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
