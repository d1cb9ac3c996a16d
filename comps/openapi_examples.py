"""Examples of answers for the OpenAPI document, made by the dialects themselves, so that they are never out of date."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import replace
from inspect import iscoroutine

from comps.core.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidRequest,
    LLMError,
    ModelServerError,
    Overloaded,
    Timeout,
    Unauthorized,
    UnknownModel,
    Unreachable,
    UnsupportedEncoding,
)
from comps.core.planning import Plan, Planner
from comps.core.ports import Answer
from comps.core.previews import Preview
from comps.core.times import Times
from comps.core.types import (
    GPU,
    JSON,
    Embeddings,
    Finished,
    Generation,
    GenerationRequest,
    ModelInfo,
    Prompt,
    Sampling,
    Token,
    Usage,
)
from comps.dialects.shared.base import (
    Call,
    DescriptionCall,
    Dialect,
    EmbeddingCall,
    GenerationCall,
    PromptCountCall,
    PromptTokenizeCall,
    Route,
    ServiceStatus,
    Style,
    Text,
    TokenCountCall,
    TokenizeCall,
)
from comps.dialects.shared.endpoint import PreviewEndpoint
from comps.dialects.shared.framing import ResponseMetadata, preview_document

_MODEL = "SmolLM2-135M-Instruct"
_INFO = ModelInfo(_MODEL, 2048, frozenset({"max_tokens", "temperature"}))
_CREATED = 1_700_000_000


class _Times(Times):
    """When what happened in the exchanges of the examples with a whole answer."""

    started, asked_at, answered_at = 100.0, 100.25, 101.25


class _StreamTimes(_Times):
    """The same, of those with a stream."""

    first_token_at = 100.5


_METADATA = ResponseMetadata("77a8ef08bd2a4bf0b4d1d1f2a0b3a7c5", _CREATED, _MODEL, times=_Times())
PIECES = ("Deep", " learning")
"""The answer in the examples, token by token."""
_USAGE = Usage(12, len(PIECES))
_TOKENS = (Token(50, 4), Token(1290, 13))
"""Those of the answer."""
_ERRORS = (
    InvalidRequest("Input should be greater than or equal to 0", "temperature"),
    Unauthorized("a key is needed"),
    Forbidden("the key may not use this model"),
    UnknownModel("another", _MODEL),
    BodyTooLarge("the body has more than 16 MB"),
    UnsupportedEncoding("zstd", "gzip, deflate"),
    Overloaded("too many requests"),
    ModelServerError("the model server failed"),
    Unreachable("the model server cannot be reached: connection refused"),
    Timeout("the model server did not begin in time"),
    LLMError("internal error; the service's log has it"),
)


def whole_answer(kind: type[Call], dialect: Dialect, body: JSON) -> JSON:
    """Returns the whole answer to a body; None if that is always streamed."""
    call = _call(kind, dialect, body, streams=False)
    if isinstance(call, EmbeddingCall):
        return _plain(kind.style, call.reply(Embeddings(([0.25, -0.5],) * len(call.texts()), 12), _METADATA))
    if isinstance(call, TokenCountCall | PromptCountCall):
        return _plain(kind.style, call.reply(len(PIECES)))
    if isinstance(call, TokenizeCall):
        return _plain(kind.style, call.reply(_TOKENS))
    if isinstance(call, PromptTokenizeCall):
        return _plain(kind.style, call.reply("".join(PIECES), _TOKENS))
    if isinstance(call, DescriptionCall):
        return _plain(kind.style, call.reply(_INFO))
    assert isinstance(call, GenerationCall)
    if call.streamed or type(call).reply is GenerationCall.reply:
        return None
    answers = [Generation("".join(PIECES), "stop", _USAGE)] * len(call.requests())
    return _plain(kind.style, call.reply(answers, _METADATA))


def stream(kind: type[Call], dialect: Dialect, body: JSON) -> str | None:
    """Returns the items of the streamed answer to a body; None if it has no stream."""
    call, items = _call(kind, dialect, body, streams=True), list[bytes]()
    if not isinstance(call, GenerationCall) or not call.streamed:
        return None
    writer = call.writer(replace(_METADATA, times=_StreamTimes()), items.append)
    for number, _ in enumerate(call.requests()):
        for piece in PIECES:
            writer.text(piece, number)
        writer.finished(Finished("stop", _USAGE, number))
    writer.close()
    return b"".join(items).decode()


def preview_answer(endpoint: PreviewEndpoint, kind: type[Call], dialect: Dialect) -> JSON:
    """Returns the preview of the last example of a kind of body."""
    call = kind.model_validate(list(kind.examples.values())[-1], context=dialect.switches)
    assert isinstance(call, GenerationCall)
    call.answered_by(_INFO)
    previews = [_previewed(request) for request in call.requests()]
    of_all = {
        "model": _MODEL,
        "model_server": {"kind": "openvino", "framework": "native"},
        "dialect": dialect.name,
        "route": endpoint.owner(call).path,
        "stream": call.streamed,
        "ignored": [],
    }
    return json.loads(b"".join(preview_document(of_all, previews)))


def _previewed(request: GenerationRequest) -> Preview:
    """Returns the preview of a request."""
    planner = Planner(_NoServer())
    planner.takes_system = True
    planning = planner.plan(request, _INFO.context_window, to_the_token=True)
    try:
        planning.send(None)  # It ends at once, since no model server is asked.
    except StopIteration as done:
        plan: Plan = done.value
        return Preview(plan, plan.prompt, None, plan.sampling, plan.options, None)
    raise AssertionError("the plan of an example waits")


class _NoServer:
    """A model server that is described, and asked for nothing."""

    async def describe(self) -> ModelInfo:
        return _INFO

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        raise NotImplementedError("examples are planned, and nothing is generated")

    async def aclose(self) -> None:
        """Does nothing."""


def _call(kind: type[Call], dialect: Dialect, body: JSON, *, streams: bool) -> Call:
    """Returns a body as a call, changed to ask for a stream or for a whole answer."""
    names = [name for name in ("stream", "streaming") if name in body] or ["stream"]
    call = kind.model_validate({**body, **dict.fromkeys(names, streams)}, context=dialect.switches)
    if isinstance(call, GenerationCall):
        call.answered_by(_INFO)
    return call


def _plain(style: Style, answer: JSON) -> JSON:
    """Returns an answer as its client reads it."""
    return json.loads(style.encode(answer))


def error_answers(style: Style) -> Mapping[int, JSON]:
    """Returns an error of a dialect's for each status."""
    return {style.status(error): style.error(error) for error in _ERRORS}


async def _no_gpus() -> tuple[GPU, ...]:
    return ()


def route_answer(route: Route, names: Sequence[str]) -> JSON | Text | None:
    """Returns the answer of a route without a body; None if it has to wait, or has none here.

    Args:
        route: The route.
        names: The variables in its path.
    """
    status = ServiceStatus(
        name="opea_service@llm",
        version="0.1.0",
        started=_CREATED,
        models=[_INFO],
        ready=[_INFO],
        not_ready=None,
        statistics={"p50_latency": 0.5, "p99_latency": 1.5, "average_latency": 0.75},
        queue_length=0,
        path=dict.fromkeys(names, _MODEL),
        query={},
        shut_down=lambda: None,
        gpus=_no_gpus,
    )
    try:
        answer = route.respond(status)
    except LLMError:  # It has no answer here.
        return None
    if isinstance(answer, Awaitable):
        if iscoroutine(answer):
            answer.close()
        return None
    return answer


def schema_of(examples: Iterable[JSON]) -> JSON:
    """Returns a JSON schema for values like one of these, in which any field may be missing or null."""
    distinct = []
    for example in examples:
        if (schema := _schema_of(example)) not in distinct:
            distinct.append(schema)
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def _schema_of(value: JSON) -> JSON:
    match value:
        case bool():
            return {"type": "boolean"}
        case int() | float():
            return {"type": "number"}
        case str():
            return {"type": "string"}
        case list():
            return {"type": "array", "items": _schema_of(value[0]) if value else {}}
        case dict():
            return {"type": "object", "properties": {name: _or_null(_schema_of(one)) for name, one in value.items()}}
    return {}


def _or_null(schema: JSON) -> JSON:
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else schema
