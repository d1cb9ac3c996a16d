"""What a dialect is: kinds of request bodies, each with its meaning and the encoding of its answer.

A `Call` is pure: it turns a body into requests and events into bytes, and never sees a socket or a model server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import orjson
from pydantic import BaseModel, ConfigDict, Field

from comps.core.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidHTTP,
    InvalidRequest,
    LLMError,
    ModelServerError,
    NotKept,
    Overloaded,
    Timeout,
    Unauthorized,
    UnknownModel,
    Unreachable,
    UnsupportedEncoding,
)
from comps.core.types import (
    CALLS_ON_DEMAND,
    GPU,
    JSON,
    Embeddings,
    Finished,
    Generation,
    GenerationRequest,
    ModelInfo,
    TextDelta,
    Token,
)
from comps.dialects.shared.framing import SSE, ResponseMetadata
from comps.dialects.shared.long_json import encoded_in_pieces

STATUS: Mapping[type[LLMError], int] = {
    InvalidRequest: 400,
    Unauthorized: 401,
    Forbidden: 403,
    UnknownModel: 404,
    NotKept: 404,
    BodyTooLarge: 413,
    UnsupportedEncoding: 415,
    Overloaded: 429,
    ModelServerError: 502,
    Unreachable: 503,
    Timeout: 504,
    LLMError: 500,
}
"""HTTP statuses by error class; a class that is not here has its parent's."""


@dataclass(frozen=True)
class Style:
    """How a dialect encodes what is not streamed.

    Attributes:
        error: The body of an error.
        statuses: HTTP statuses by error class, where they differ from `STATUS`.
        encode: A JSON document as bytes.
        media_type: The content type of these bytes.
        id_header: A further name of the response header `x-request-id`, by which clients read the request's id; empty:
            there is none.
    """

    error: Callable[[LLMError], JSON]
    statuses: Mapping[type[LLMError], int] = field(default_factory=dict)
    encode: Callable[[JSON], bytes] = orjson.dumps
    media_type: str = "application/json"
    id_header: bytes = b""

    def encode_long(self, document: JSON) -> list[bytes]:
        """What `encode` returns, in pieces, so that other threads go on while a long document is encoded."""
        return encoded_in_pieces(document) if self.encode is orjson.dumps else [self.encode(document)]

    def status(self, error: LLMError) -> int:
        """The HTTP status of an error."""
        if isinstance(error, InvalidHTTP):
            return error.status
        known = {**STATUS, **self.statuses}
        return next(known[kind] for kind in type(error).__mro__ if kind in known)


class Writer(Protocol):
    """Writes the events of a streamed answer in the form of a dialect, an item each; see `comps.core.ports.Answer`."""

    def text(self, text: str, choice: int = 0) -> None:
        """Write a piece of text, not empty."""
        ...

    def delta(self, delta: TextDelta) -> None:
        """Write a piece that has more than text, and may have no text."""
        ...

    def finished(self, end: Finished) -> None:
        """Write the end of a choice."""
        ...

    def close(self) -> None:
        """Write what follows the ends of all choices, such as the usage and the end mark of the stream."""
        ...


class Call(BaseModel):
    """One kind of request body: its fields, their meaning, and the encoding of the answer.

    Subclasses derive from `GenerationCall`, `EmbeddingCall`, `TokenCountCall`, `TokenizeCall`, `PromptCountCall`,
    `PromptTokenizeCall` or `DescriptionCall`, by the work that is asked for. A variable of the path (`{model}`) is a
    field as well, and overrides that of the body. Undeclared fields are accepted, and reported by `ignored`.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    marker: ClassVar[str | None]
    """The JSON key by which this kind of body is recognised on its path; None: every body is of this kind."""
    examples: ClassVar[Mapping[str, JSON]]
    """Valid bodies by their titles, for the documentation."""
    style: ClassVar[Style]
    any_model: ClassVar[bool] = False
    """Whether any model name is accepted where only one model is served; a name that does not exist is then ignored."""
    _switches: ClassVar[Any] = None
    """The class has the defaults; `model_post_init` gives an instance those of its `Dialect`.

    It is not a private attribute of pydantic's, since their defaults are copied for each body, and they are slow to
    read.
    """

    is_large: ClassVar[bool] = False
    """Whether the body is so large, or has so many items, that work on it is done beside the event loop."""

    model: str | None = Field(None, description="The served model's name, where several are served.")

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Returns the names of the fields alone, without prompts and documents; see pydantic's `Representation`."""
        return [("fields", sorted({*self.model_fields_set, *(self.model_extra or ())}))]

    def model_post_init(self, context: Any) -> None:
        if context is not None:
            self.__dict__["_switches"] = context

    def mark_large(self) -> None:
        """Say that the body is large."""
        self.__dict__["is_large"] = True

    @property
    def wanted_model(self) -> str | None:
        """The name of the model that is asked for; None or empty: the first one."""
        return self.model

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        """The names of the fields that were sent but have no effect.

        Args:
            capabilities: The names of the sampling fields and options that the model server honours.
        """
        return [name for name, value in self.model_extra.items() if value is not None] if self.model_extra else []

    def sent_fields(self, names: Mapping[str, None]) -> dict[str, JSON]:
        """Those of the fields that were sent and are not null, in the order of `names`, which are a dict's keys."""
        found = names.keys() & self.model_fields_set
        if not found:
            return {}
        return {name: value for name in names if name in found and (value := getattr(self, name)) is not None}


class GenerationCall(Call):
    """A body that asks for text."""

    media_type: ClassVar[str] = SSE
    """The content type of a streamed answer."""
    cuts_off: ClassVar[bool] = False
    """Whether the connection is closed when a stream fails, since its clients understand no error item."""
    _served: ClassVar[ModelInfo] = ModelInfo("")
    """The model that answers; see `_switches`."""

    def answered_by(self, served: ModelInfo) -> None:
        """Take into account which model answers; called before `requests`, unless that only looks for mistakes."""
        self.__dict__["_served"] = served

    @property
    def streamed(self) -> bool:
        """Whether the answer is streamed."""
        return False

    @property
    def takes_comments(self) -> bool:
        """Whether the clients of the streamed answer skip comments of server-sent events."""
        return self.media_type == SSE

    @property
    def wants_report(self) -> bool:
        """Whether the answer has a report of what became of the request, whatever that says."""
        return False

    def requests(self) -> Sequence[GenerationRequest]:
        """What is asked of the model, one request for each prompt; none if no model is needed for the answer.

        Raises:
            InvalidRequest: The fields contradict each other.
        """
        raise NotImplementedError(f"{type(self).__name__} asks for nothing")

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        """The whole answer, one generation for each request."""
        raise NotImplementedError(f"{type(self).__name__} has no whole answer")

    def ends(self, generations: Sequence[Generation]) -> Sequence[str]:
        """The finish reason of each answer in `reply`, in their order there."""
        return [choice.reason for generation in generations for choice in generation.choices]

    def writer(self, metadata: ResponseMetadata, write: Callable[[bytes], None]) -> Writer:
        """The writer of the streamed answer. The choices of several requests are numbered consecutively.

        Args:
            metadata: Of this response; its reports are complete when the first event is written.
            write: Sends one item, as one HTTP chunk.
        """
        raise NotImplementedError(f"{type(self).__name__} has no streamed answer")

    def error_item(self, error: LLMError) -> bytes:
        """The last item of a stream that failed; no end mark follows it."""
        raise NotImplementedError(f"{type(self).__name__} has no streamed answer")


class EmbeddingCall(Call):
    """A body that asks for embeddings."""

    def texts(self) -> Sequence[str]:
        """The texts to embed."""
        raise NotImplementedError(f"{type(self).__name__} has no texts")

    def reply(self, embeddings: Embeddings, metadata: ResponseMetadata) -> JSON:
        """The answer."""
        raise NotImplementedError(f"{type(self).__name__} has no answer")


class TokenCountCall(Call):
    """A body that asks for the number of tokens of a text."""

    def text(self) -> str:
        """The text whose tokens are counted."""
        raise NotImplementedError(f"{type(self).__name__} has no text")

    def reply(self, tokens: int) -> JSON:
        """The answer."""
        raise NotImplementedError(f"{type(self).__name__} has no answer")


class TokenizeCall(Call):
    """A body that asks for the tokens of a text."""

    def text(self) -> str:
        """The text."""
        raise NotImplementedError(f"{type(self).__name__} has no text")

    def reply(self, tokens: Sequence[Token]) -> JSON:
        """The answer."""
        raise NotImplementedError(f"{type(self).__name__} has no answer")


class PromptOnlyCall(Call):
    """A body that asks about a whole prompt, as the model would read it, and for no answer to it."""

    def request(self) -> GenerationRequest:
        """The prompt: what a body that asks for text would ask of the model.

        Raises:
            InvalidRequest: The fields contradict each other.
        """
        raise NotImplementedError(f"{type(self).__name__} has no prompt")

    @staticmethod
    def read_in_prompts(capabilities: AbstractSet[str]) -> AbstractSet[str]:
        """Those of the capabilities that change the prompt; what only changes an answer has no effect."""
        return {name for name in capabilities if name in _IN_PROMPTS or name.startswith("messages.")}


_IN_PROMPTS = ("tools", "tool_choice", CALLS_ON_DEMAND, "chat_template", "chat_template_kwargs")


class PromptCountCall(PromptOnlyCall):
    """A body that asks for the number of tokens of a whole prompt, as the model would read it."""

    def reply(self, tokens: int) -> JSON:
        """The answer."""
        raise NotImplementedError(f"{type(self).__name__} has no answer")


class PromptTokenizeCall(PromptOnlyCall):
    """A body that asks for the text of a whole prompt and its tokens, as the model would read it."""

    def reply(self, text: str, tokens: Sequence[Token]) -> JSON:
        """The answer."""
        raise NotImplementedError(f"{type(self).__name__} has no answer")


class DescriptionCall(Call):
    """A body that asks what is known of a model."""

    def reply(self, info: ModelInfo) -> JSON:
        """The answer."""
        raise NotImplementedError(f"{type(self).__name__} has no answer")


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The state of the service at this moment, from which routes without a body answer."""

    name: str
    version: str
    started: int
    """Seconds since 1970."""
    models: Sequence[ModelInfo]
    """The served models, the default one first; names only if the model servers were not asked."""
    ready: Sequence[ModelInfo]
    """Those of the models that can answer now; all if the model servers were not asked."""
    not_ready: LLMError | None
    """Why the service cannot answer now; None if it can, or if the model servers were not asked."""
    statistics: Mapping[str, float | None]
    queue_length: int
    """The number of answers that run or wait."""
    path: Mapping[str, str]
    """The variables of the path, by the names in its braces."""
    query: Mapping[str, str]
    """The parameters behind the path (`?limit=1`)."""
    shut_down: Callable[[], None] | None
    """Ends the service once running answers have ended; None if the settings do not allow it."""
    gpus: Callable[[], Awaitable[Sequence[GPU]]]
    """The graphics cards of this machine; raises `LLMError` if they cannot be read."""

    def named_model(self) -> ModelInfo:
        """The model that the variable `model` of the path names.

        Raises:
            UnknownModel: There is none.
        """
        name = self.path["model"]
        for model in self.models:
            if model.name == name:
                return model
        raise UnknownModel(name, ", ".join(model.name for model in self.models))


@dataclass(frozen=True, slots=True)
class Text:
    """An answer in plain text instead of JSON."""

    text: str
    media_type: str = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Route:
    """A route without a body.

    Attributes:
        respond: Makes the answer, or raises an `LLMError`. Its docstring is the route's summary in OpenAPI.
        asks_models: Whether the model servers are asked for their state first; liveness must not depend on them.
        style: How the answer is encoded; None: in the dialect's own style.
        header: The name of a header, in small letters, by which the dialect's clients are recognised where others have
            the same route; empty: there is none.
    """

    respond: Callable[[ServiceStatus], JSON | Text | Awaitable[JSON | Text]]
    asks_models: bool = True
    style: Style | None = None
    header: bytes = b""


@dataclass(frozen=True, slots=True)
class Switches:
    """The settings of a dialect that has none of its own.

    Attributes:
        disable_streaming: Never stream, even if asked to.
    """

    disable_streaming: bool = False


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API: the bodies that it reads and the routes that it has.

    Attributes:
        calls: Kinds of bodies by path, in the order in which their markers are looked for.
        style: Encodes the answers of `routes`, and the errors of bodies that are of no kind of `calls`.
        routes: Routes without a body, by method and path (`GET /v1/models`).
        switches: The dialect's settings, which every `Call` gets as pydantic's validation context.
        about: Whose clients speak it, for the documentation.
    """

    name: str
    calls: Mapping[str, Sequence[type[Call]]]
    style: Style
    routes: Mapping[str, Route] = field(default_factory=dict)
    switches: Any = None
    about: str = ""


def owner_of(route: str, dialects: Sequence[Dialect], headers: Iterable[tuple[bytes, bytes]] = ()) -> Dialect:
    """The dialect that answers a route without a body: the first one whose header was sent, or else the first.

    Args:
        route: The route, as in `Dialect.routes`.
        dialects: The dialects, by precedence; at least one has the route.
        headers: The headers of the request.
    """
    having = [dialect for dialect in dialects if route in dialect.routes]
    sent = {name for name, _ in headers}
    recognised = (one for one in having if one.routes[route].header in sent)
    plain = (one for one in having if not one.routes[route].header)
    return next(recognised, None) or next(plain, having[0])
