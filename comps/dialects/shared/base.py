"""What a dialect is: kinds of bodies, each of which knows what it means and how its answer is spelled.

A `Call` is pure: it turns a body into requests and events into bytes, and never sees a socket or a model server.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson
from pydantic import BaseModel, ConfigDict, Field

from comps.core.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidRequest,
    LLMError,
    ModelServerError,
    Overloaded,
    Timeout,
    UnknownModel,
    Unreachable,
)
from comps.core.types import GPU, JSON, Embeddings, Event, Generation, GenerationRequest, ModelInfo
from comps.dialects.shared.framing import SSE, ResponseMetadata

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

    model: str | None = Field(None, description="The served model's name, where several are served.")

    @property
    def wanted_model(self) -> str | None:
        """The name of the model that is to answer; None or empty: the first."""
        return self.model

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

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        """The whole answer, one generation for each request."""
        raise NotImplementedError(f"{type(self).__name__} has no whole answer")

    def ends(self, generations: Sequence[Generation]) -> Sequence[str]:
        """Why each answer in the whole reply ended, in their order there."""
        return [choice.reason for generation in generations for choice in generation.choices]

    def reply_stream(self, events: AsyncGenerator[Event], metadata: ResponseMetadata) -> AsyncGenerator[bytes]:
        """The streamed answer, one item to be sent at once a step, up to and with the mark of its end.

        The choices of several requests are numbered one after the other.
        """
        raise NotImplementedError(f"{type(self).__name__} has no streamed answer")

    def error_item(self, error: LLMError) -> bytes:
        """The last item of a stream that broke off; no mark of the end follows it."""
        raise NotImplementedError(f"{type(self).__name__} has no streamed answer")


class EmbeddingCall(Call):
    """A body that asks for vectors."""

    def texts(self) -> Sequence[str]:
        """What to embed."""
        raise NotImplementedError(f"{type(self).__name__} has no texts")

    def reply(self, embeddings: Embeddings, metadata: ResponseMetadata) -> JSON:
        """The answer."""
        raise NotImplementedError(f"{type(self).__name__} has no answer")


class TokenCountCall(Call):
    """A body that asks how many tokens a text has."""

    def text(self) -> str:
        """What to count."""
        raise NotImplementedError(f"{type(self).__name__} has no text")

    def reply(self, tokens: int) -> JSON:
        """The answer."""
        raise NotImplementedError(f"{type(self).__name__} has no answer")


@dataclass(frozen=True, slots=True)
class ServiceStatus:
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
class Route:
    """A route without a body.

    Attributes:
        tell: The answer; raises why there is none now. Its docstring says what the route is for.
        asks_models: Whether the model servers are asked who they are first; liveness must not depend on them.
        style: How it is spelled; None: as all that its dialect tells.
    """

    tell: Callable[[ServiceStatus], JSON | Text | Awaitable[JSON | Text]]
    asks_models: bool = True
    style: Style | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way of asking and answering.

    Attributes:
        calls: The bodies that it reads, by path, in the order in which their markers are looked for.
        style: How errors are spelled that come before it is clear which `Call` a body is, and what `routes` tell.
        routes: Routes without a body, by method and path (`GET /v1/models`).
        switches: Passed to every `Call` as pydantic's validation context.
    """

    name: str
    calls: Mapping[str, Sequence[type[Call]]]
    style: Style
    routes: Mapping[str, Route] = field(default_factory=dict)
    switches: Any = None
