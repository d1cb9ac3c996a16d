"""The HTTP handler: parses a body into a call, replies in the form of its dialect, and maps errors to statuses.

It is a plain ASGI application, without middleware between an event and its HTTP chunk. Errors are caught only here.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import replace
from time import monotonic
from typing import Any, TypeAlias
from urllib.parse import parse_qs, quote

from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from comps.admission import Admission, RequestSlots
from comps.body_memory import BodyMemory
from comps.computing import OPERATIONS, computed, encoded_reply, honoured
from comps.core.beside import LONG, MANY, beside
from comps.core.errors import InvalidRequest, LLMError, PromptTooLong, for_operator, shutting_down
from comps.core.generator import TextGenerator
from comps.core.model_names import other_spelling
from comps.core.models import Models
from comps.core.previews import Preview
from comps.core.tasks import at_once
from comps.core.types import JSON, GenerationRequest, ModelInfo
from comps.dialects.shared.base import (
    Call,
    GenerationCall,
    Style,
)
from comps.dialects.shared.endpoint import Endpoint, PreviewEndpoint, RequestError
from comps.dialects.shared.framing import preview_document
from comps.exchange import Exchange
from comps.logs import log
from comps.replies import LONGEST_HEADER, Reply, Responder, shortened
from comps.requests import ClientGone, read_body
from comps.responses import Response, response_to
from comps.telemetry import Telemetry

_Headers: TypeAlias = list[tuple[bytes, bytes]]


class Handler:
    """Answers all bodies on one path.

    Args:
        endpoint: Parses the bodies of the path.
        models: The models that answer.
        admissions: For each model, by its name: limits how many of its requests are answered at once.
        telemetry: Counts the exchanges.
        max_body: The maximum size of a body, in bytes.
        bodies: The room for large bodies.
        keepalive_seconds: How long a stream may be silent before a comment is written; 0: no limit.
        strict: Refuse a body with a field that would be ignored, instead of naming it in `x-ignored-params`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        models: Models,
        admissions: Mapping[str, Admission],
        telemetry: Telemetry,
        *,
        max_body: int,
        bodies: BodyMemory,
        keepalive_seconds: float,
        strict: bool,
    ) -> None:
        self.endpoint = endpoint
        self._models = models
        self._admissions = admissions
        listed = [admissions[generator.model] for generator in models]
        self._only_admission = listed[0] if len(listed) == 1 else None
        self._telemetry = telemetry
        self._max_body = max_body
        self._bodies = bodies
        self._keepalive_seconds = keepalive_seconds
        self._strict = strict
        # Of several dialects that read the same kind of body, the first one does.
        self._dialects = {kind: dialect.name for kind, dialect in reversed(endpoint.calls)}
        self._dialect = endpoint.calls[0][1].name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = response_to(scope, receive, send)
        exchange = Exchange(self.endpoint.path, scope, self._dialect)
        reply = Reply(response, exchange)
        style = self.endpoint.style
        call: Call | None = None
        telemetry = self._telemetry
        telemetry.in_flight += 1
        if telemetry.tracing:
            exchange.trace = telemetry.tracing.begin(scope, exchange)
        try:
            endpoint, variables = self._endpoint_for(scope)
            style = endpoint.style
            caller = exchange.caller.name if exchange.caller else ""
            body = await read_body(response, scope, receive, self._max_body, self._bodies, caller)
            exchange.received_at = monotonic()
            call = await self._read(body, endpoint, variables, exchange)
            del body
            style = call.style
            exchange.window = "queued"
            await _unless_gone(response, self._answer(call, endpoint, reply, exchange))
            exchange.outcome = "200"
        except ClientGone:
            exchange.outcome, exchange.sent = "gone", reply.items
        except asyncio.CancelledError:  # The service ends before the answer does.
            self._fail(shutting_down(), style, call, reply, exchange)
        except RequestError as request_error:
            exchange.dialect = request_error.dialect or exchange.dialect
            self._fail(request_error.error, request_error.style, None, reply, exchange)
        except LLMError as error:
            self._fail(error, style, call, reply, exchange)
        except Exception:  # A fault of ours: the log gets the details, the caller none.
            log.exception("while answering %s", self.endpoint.path)
            self._fail(LLMError("internal error; the service's log has it"), style, call, reply, exchange)
        finally:
            telemetry.end(exchange)
            if self._bodies.held:
                self._bodies.give_back(response)
        await response.aclose()

    async def _read(self, body: bytes, endpoint: Endpoint, variables: Mapping[str, str], exchange: Exchange) -> Call:
        """Returns the call that a body is.

        Raises:
            RequestError: It is not valid, or there is no place for it (`Overloaded`).
        """
        exchange.body_size = len(body)
        is_large = len(body) > LONG or body.count(b",") > MANY
        admission, caller = self._only_admission, exchange.caller.name if exchange.caller else ""
        if admission and admission.running == admission.max_running and not admission.has_place(caller):
            kind, dialect = await beside(endpoint.kind_of, body) if is_large else endpoint.kind_of(body)
            exchange.model = next(iter(self._admissions))
            raise RequestError(admission.refusal(caller), kind.style, dialect.name)
        if is_large:
            call = await beside(endpoint.read, body, variables)
            call.mark_large()
        else:
            call = endpoint.read(body, variables)
        exchange.dialect = self._dialects[type(call)]
        log.debug("read as %s of %s", type(call).__name__, exchange.dialect)
        return call

    def _fail(self, error: LLMError, style: Style, call: Call | None, reply: Reply, exchange: Exchange) -> None:
        status = style.status(error)
        exchange.fails(for_operator(error), is_failure=status >= 500)
        if isinstance(call, GenerationCall) and reply.started:
            exchange.outcome, exchange.sent = "broken", reply.items
            reply.write(call.error_item(error))
            (reply.cut_off if call.cuts_off else reply.end)()
            return
        if isinstance(error, PromptTooLong) and call:
            error.field = call.marker
        exchange.outcome = str(status)
        headers = [] if error.retry_after is None else [(b"retry-after", str(error.retry_after).encode())]
        if style.id_header and exchange.id:
            headers.append((style.id_header, exchange.id.encode()))
        reply.whole(status, style.encode(style.error(error)), headers, style.media_type)

    def _endpoint_for(self, scope: Scope) -> tuple[Endpoint, Mapping[str, str]]:
        """Returns the endpoint that parses the request's body, and the path's variables."""
        return self.endpoint, scope.get("path_params", {})

    async def _answer(self, call: Call, endpoint: Endpoint, reply: Reply, exchange: Exchange) -> None:
        caller = exchange.caller
        model = await self._model(call, caller.models if caller else ())
        exchange.model = model.model
        slots = RequestSlots(self._admissions[model.model], caller.name if caller else "", exchange.started)
        exchange.slots = slots
        if exchange.trace:
            model, slots = exchange.trace.around(model, slots)
        slots.check()
        try:
            await self._respond(call, endpoint, model, slots, reply, exchange)
        finally:
            slots.close()

    async def _model(self, call: Call, allowed: Collection[str]) -> TextGenerator:
        """Returns the model that is asked, of those that are allowed."""
        try:
            return self._models.named(call.wanted_model, call.any_model, allowed)
        except LLMError:
            await _tell_mistakes(call)
            raise

    async def _respond(
        self,
        call: Call,
        endpoint: Endpoint,
        model: TextGenerator,
        slots: RequestSlots,
        reply: Reply,
        exchange: Exchange,
    ) -> None:
        """Reply to a body, with slots of its model."""
        if isinstance(call, GenerationCall):
            await self._generate(call, model, slots, reply, exchange)
            return
        info = await _info(call, model, slots)
        headers = self._ignored(call, info)
        if headers:
            exchange.ignored = headers[0][1].decode()
        if call.style.id_header and exchange.id:
            headers.append((call.style.id_header, exchange.id.encode()))
        exchange.operation = next(name for kind, name in OPERATIONS.items() if isinstance(call, kind))
        await slots.enter()
        exchange.window = "whole"
        exchange.asked_at = monotonic()
        found = await computed(call, model, info, exchange)
        exchange.answered_at = monotonic()
        await reply.in_pieces(await encoded_reply(call, *found), headers)

    async def _generate(
        self, call: GenerationCall, model: TextGenerator, slots: RequestSlots, reply: Reply, exchange: Exchange
    ) -> None:
        info = await _info(call, model, slots)
        headers, requests = await beside(self._meant, call, info) if call.is_large else self._meant(call, info)
        exchange.asked = requests
        if headers:
            exchange.ignored = headers[0][1].decode()
        if call.style.id_header and exchange.id:
            headers.append((call.style.id_header, exchange.id.encode()))
        response = Responder(call, info, len(requests), reply, headers, exchange, self._keepalive_seconds)
        if call.streamed:
            choices = requests[0].options.get("n", 1) if "n" in info.capabilities else 1
            exchange.answers = len(requests) * choices
            await response.stream(slots, model, requests, choices)
        else:
            await response.whole(slots, model, requests)

    def _meant(self, call: GenerationCall, info: ModelInfo) -> tuple[_Headers, list[GenerationRequest]]:
        """Returns what is asked of a model, and the headers about what is ignored of that."""
        requests = _requests(call, info)
        return self._ignored(call, info), requests

    def _ignored(self, call: Call, info: ModelInfo) -> _Headers:
        """Returns the header `x-ignored-params` with the fields that have no effect, if there are any."""
        names = _ignored_names(call, info)
        if not names:
            return []
        if self._strict:
            raise InvalidRequest("not honoured here, and this service is set to refuse what it would ignore", names[0])
        listed = ", ".join(quote(name[:LONGEST_HEADER], safe="[]:.") for name in names)
        return [(b"x-ignored-params", shortened(listed))]


class PromptHandler(Handler):
    """Previews every body that asks for text: returns what would be requested from the model, and generates nothing.

    Args:
        endpoint: Parses the bodies of all endpoints; the query parameter `route` selects the endpoint of one path.
        model_servers: A description of each model's server, by the model's name.
        common: What every `Handler` needs.
    """

    endpoint: PreviewEndpoint

    def __init__(self, endpoint: PreviewEndpoint, model_servers: Mapping[str, JSON], **common: Any) -> None:
        super().__init__(endpoint, **common)
        self._model_servers = model_servers
        self._routes = [(endpoint, *compile_path(endpoint.path)) for endpoint in endpoint.endpoints]

    def _endpoint_for(self, scope: Scope) -> tuple[Endpoint, Mapping[str, str]]:
        named = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get("route")
        if named is None:
            return self.endpoint, {}
        for endpoint, pattern, _, convertors in self._routes:
            if found := pattern.match(named[0]):
                return endpoint, {name: convertors[name].convert(value) for name, value in found.groupdict().items()}
        known = ", ".join(shown for _, _, shown, _ in self._routes)
        raise InvalidRequest(f"no text is generated at '{named[0]}'; known: {known}", "route")

    async def _respond(
        self,
        call: Call,
        endpoint: Endpoint,
        model: TextGenerator,
        slots: RequestSlots,
        reply: Reply,
        exchange: Exchange,
    ) -> None:
        assert isinstance(call, GenerationCall)
        info = await _info(call, model, slots)
        requests = await beside(_requests, call, info) if call.is_large else _requests(call, info)
        exchange.operation = "prompt"
        owner = endpoint.owner(call) if isinstance(endpoint, PreviewEndpoint) else endpoint
        exchange.dialect = next(dialect.name for kind, dialect in owner.calls if kind is type(call))

        async def previewed(request: GenerationRequest) -> Preview:
            await slots.take()
            exchange.window = "whole"
            try:
                return await model.preview(request)
            finally:
                slots.give_back()

        await slots.enter()
        previews = await at_once([previewed(request) for request in requests])
        of_all = {
            "model": info.name,
            "model_server": self._model_servers.get(info.name),
            "dialect": exchange.dialect,
            "route": next(shown for endpoint, _, shown, _ in self._routes if endpoint is owner),
            "stream": call.streamed,
        }

        def document() -> list[bytes]:
            return preview_document({**of_all, "ignored": _ignored_names(call, info)}, previews)

        await reply.in_pieces(await beside(document) if call.is_large else document(), [])


def _requests(call: GenerationCall, info: ModelInfo) -> list[GenerationRequest]:
    """Returns what is asked of a model, without the options that it does not support."""
    call.answered_by(info)
    requests = [honoured(request, info) for request in call.requests()]
    return [replace(request, is_large=True) for request in requests] if call.is_large else requests


def _ignored_names(call: Call, info: ModelInfo) -> list[str]:
    """Returns the names of the fields that were sent and have no effect."""
    lost = call.ignored(info.capabilities)
    if not call.any_model or (wanted := call.wanted_model) in (None, "", info.name):
        return lost
    return lost if wanted == other_spelling(info.name) else ["model", *lost]


async def _info(call: Call, model: TextGenerator, slots: RequestSlots) -> ModelInfo:
    """Returns the model's description. If the model server has to be asked for it, the request takes its slot first."""
    if not model.is_described:
        await slots.enter()
    try:
        return await model.info()
    except LLMError:
        await _tell_mistakes(call)
        raise


async def _tell_mistakes(call: Call) -> None:
    """Raise `InvalidRequest` if something is wrong with the body: it is told before any other error."""
    if isinstance(call, GenerationCall):
        await beside(call.requests) if call.is_large else call.requests()


async def _unless_gone(response: Response, work: Coroutine[Any, Any, None]) -> None:
    """Await `work`; if the client leaves first, cancel it, which stops the model.

    Raises:
        ClientGone: The client left.
    """
    task = asyncio.current_task(response.loop)
    assert task
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    response.on_leave(leave)
    try:
        await work
    except asyncio.CancelledError:
        if not gone:
            raise
        if sys.version_info >= (3, 11):
            task.uncancel()
        raise ClientGone from None
    finally:
        response.on_leave(None)
