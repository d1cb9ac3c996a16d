"""The one HTTP handler: a body becomes a call, a call's events become a response, an error becomes a status.

It is plain ASGI, so that nothing stands between an event and its HTTP chunk. Errors are caught here and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import replace
from time import time
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, quote
from uuid import uuid4

from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from comps.admission import Admission, RequestSlots
from comps.core.errors import BodyTooLarge, InvalidRequest, LLMError, ModelServerError, PromptTooLong, Unreachable
from comps.core.generator import Models, Preview, TextGenerator, collect, together
from comps.core.planning import settled
from comps.core.tasks import at_once
from comps.core.types import JSON, Event, Finished, GenerationRequest, ModelInfo, Report, Usage, total
from comps.dialects.shared.base import Call, EmbeddingCall, GenerationCall, Style, TokenCountCall
from comps.dialects.shared.endpoint import Endpoint, PreviewEndpoint, RequestError
from comps.dialects.shared.framing import ResponseMetadata, preview_document
from comps.telemetry import Exchange, Telemetry, log

_JSON_TYPE = (b"content-type", b"application/json")
_LONGEST_HEADER = 1000


class ClientGone(Exception):
    """The client closed the connection; nobody is left to answer."""


class Handler:
    """Answers all bodies on one path.

    Args:
        endpoint: What is read there.
        models: Where answers come from.
        admission: Who may generate when.
        telemetry: Where exchanges are counted.
        max_body: The most bytes of a body that are read.
        strict: Refuse a body with a field that would be ignored, instead of naming it in `x-ignored-params`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        models: Models,
        admission: Admission,
        telemetry: Telemetry,
        *,
        max_body: int,
        strict: bool,
    ) -> None:
        self.endpoint = endpoint
        self._models = models
        self._admission = admission
        self._telemetry = telemetry
        self._max_body = max_body
        self._strict = strict

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = _Reply(send)
        style = self.endpoint.style
        call: Call | None = None
        with self._telemetry.exchange(self.endpoint.path) as exchange:
            try:
                endpoint, variables = self._endpoint_for(scope)
                style = endpoint.style
                call = endpoint.read(await _body(scope, receive, self._max_body), variables)
                style = call.style
                await _unless_gone(receive, self._answer(call, endpoint, reply, exchange))
                exchange.outcome = "200"
            except ClientGone:
                exchange.outcome = "gone"
            except asyncio.CancelledError:  # The service ends before the answer does.
                await self._fail(Unreachable("the service is shutting down"), style, call, reply, exchange)
            except RequestError as request_error:
                await self._fail(request_error.error, request_error.style, None, reply, exchange)
            except LLMError as error:
                await self._fail(error, style, call, reply, exchange)
            except Exception:  # A fault of ours: the log gets the details, the caller none.
                log.exception("while answering %s", self.endpoint.path)
                await self._fail(LLMError("internal error; the service's log has it"), style, call, reply, exchange)

    async def _fail(self, error: LLMError, style: Style, call: Call | None, reply: _Reply, exchange: Exchange) -> None:
        if style.status(error) >= 500:
            exchange.failure = str(error)
        if isinstance(call, GenerationCall) and reply.started:
            exchange.outcome = "broken"
            await reply.item(call.error_item(error))
            if not call.cuts_off:
                await reply.end()
            return
        if isinstance(error, PromptTooLong) and call:
            error.field = call.marker
        exchange.outcome = str(style.status(error))
        headers = [] if error.retry_after is None else [(b"retry-after", str(error.retry_after).encode())]
        await reply.whole(style.status(error), style.encode(style.error(error)), headers)

    def _endpoint_for(self, scope: Scope) -> tuple[Endpoint, Mapping[str, str]]:
        """Where the body of a request is read, and what its path says."""
        return self.endpoint, scope.get("path_params", {})

    async def _answer(self, call: Call, endpoint: Endpoint, reply: _Reply, exchange: Exchange) -> None:
        slots = RequestSlots(self._admission)
        if isinstance(call, GenerationCall):
            await self._generate(call, slots, reply, exchange)
            return
        assert isinstance(call, EmbeddingCall | TokenCountCall)
        model = self._models.named(call.wanted_model, call.any_model)
        info = await model.info()
        headers = self._ignored(call, info)
        async with slots.slot():
            if isinstance(call, EmbeddingCall):
                embeddings = await model.embed(call.texts())
                if embeddings.prompt_tokens is not None:
                    exchange.usage = Usage(embeddings.prompt_tokens, 0)
                document = call.reply(embeddings, _stamp(info))
            else:
                document = call.reply(await model.count_tokens(call.text()))
        await reply.whole(200, call.style.encode(document), headers)

    async def _generate(self, call: GenerationCall, slots: RequestSlots, reply: _Reply, exchange: Exchange) -> None:
        requests = call.requests()
        model = self._models.named(call.wanted_model, call.any_model)
        info = await model.info()
        headers = self._ignored(call, info)
        reports: dict[int, Report] = {}
        answers = [
            _in_place(slots, model, _honoured(request, info), number, reports)
            for number, request in enumerate(requests)
        ]
        if call.streamed:
            choices = requests[0].options.get("n", 1) if "n" in info.capabilities else 1
            events = answers[0] if len(answers) == 1 else together(answers, choices)
            await _stream(call, events, _stamp(info, reports), len(answers), reply, headers, exchange)
            return
        generations = await at_once([collect(answer) for answer in answers])
        exchange.usage = total(generation.usage for generation in generations)
        reasons = call.ends(generations)
        exchange.reason = reasons[0]
        headers.append((b"x-finish-reason", ",".join(reasons).encode()))
        document = call.reply(generations, _stamp(info, reports))
        await reply.whole(200, call.style.encode(document), headers + _reported(reports, len(answers)))

    def _ignored(self, call: Call, info: ModelInfo) -> list[tuple[bytes, bytes]]:
        """The header that names what the caller set and nothing comes of, if there is any."""
        names = _ignored_names(call, info)
        if not names:
            return []
        if self._strict:
            raise InvalidRequest("not honoured here, and this service is set to refuse what it would ignore", names[0])
        listed = ", ".join(quote(name, safe="[]:.") for name in names)
        return [(b"x-ignored-params", _shortened(listed))]


class PromptHandler(Handler):
    """Tells of every body that asks for text what would be asked of the model, and has nothing generated.

    Args:
        endpoint: Reads them all; the query `route` of a request names the path whose endpoint reads its body alone.
        model_servers: Who answers for each model, as it is told.
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

    async def _answer(self, call: Call, endpoint: Endpoint, reply: _Reply, exchange: Exchange) -> None:
        assert isinstance(call, GenerationCall)
        requests = call.requests()
        model = self._models.named(call.wanted_model, call.any_model)
        info = await model.info()
        slots = RequestSlots(self._admission)

        async def previewed(request: GenerationRequest) -> Preview:
            async with slots.slot():
                return await model.preview(_honoured(request, info))

        previews = await at_once([previewed(request) for request in requests])
        owner = endpoint.owner(call) if isinstance(endpoint, PreviewEndpoint) else endpoint
        of_all = {
            "model": info.name,
            "model_server": self._model_servers[info.name],
            "dialect": next(dialect.name for kind, dialect in owner.calls if kind is type(call)),
            "route": next(shown for endpoint, _, shown, _ in self._routes if endpoint is owner),
            "stream": call.streamed,
            "ignored": _ignored_names(call, info),
        }
        await reply.whole(200, preview_document(of_all, previews), [])


def _ignored_names(call: Call, info: ModelInfo) -> list[str]:
    """What the caller set and nothing comes of."""
    misnamed = ["model"] if call.wanted_model not in (None, "", info.name) else []
    return misnamed + call.ignored(info.capabilities)


async def _in_place(
    slots: RequestSlots, model: TextGenerator, request: GenerationRequest, number: int, reports: dict[int, Report]
) -> AsyncGenerator[Event]:
    """The events of an answer that is made once there is a place for it; its report is there before the first."""
    async with slots.slot():
        plan = await model.plan(request)
        reports[number] = plan.report
        async with aclosing(model.answer(plan)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    reports[number] = settled(reports[number], event.usage)
                yield event


def _honoured(request: GenerationRequest, info: ModelInfo) -> GenerationRequest:
    """The request as its model server gets it: options that it does not know are left out."""
    return replace(request, options={name: one for name, one in request.options.items() if name in info.capabilities})


def _stamp(info: ModelInfo, reports: Mapping[int, Report] = MappingProxyType({})) -> ResponseMetadata:
    return ResponseMetadata(uuid4().hex, int(time()), info.name, reports)


def _reported(reports: Mapping[int, Report], prompts: int) -> list[tuple[bytes, bytes]]:
    """The headers that name the documents in each prompt by their places in the request, once if that is all the same,
    if any were looked for, and how many of the earlier messages each prompt has lost, if one has; none as long as not
    all of the prompts are planned."""
    if len(reports) < prompts:
        return []
    headers = []
    told = [report for _, report in sorted(reports.items())]
    if any(report.documents or report.nothing_found for report in told):
        used = [_used(report) for report in told]
        headers.append((b"x-documents-used", _shortened(";".join(used if len(set(used)) > 1 else used[:1]))))
    dropped = [report.turns_dropped for report in told]
    if any(dropped):
        headers.append((b"x-turns-dropped", ",".join(map(str, dropped)).encode()))
    return headers


def _shortened(listed: str) -> bytes:
    """A header that clients and proxies take."""
    return (listed if len(listed) <= _LONGEST_HEADER else listed[:_LONGEST_HEADER] + "...").encode()


def _used(report: Report) -> str:
    return ",".join(str(use.number) for use in report.documents if use.fate != "dropped") or "none"


async def _stream(
    call: GenerationCall,
    events: AsyncGenerator[Event],
    metadata: ResponseMetadata,
    prompts: int,
    reply: _Reply,
    headers: list[tuple[bytes, bytes]],
    exchange: Exchange,
) -> None:
    async with aclosing(events):
        # A model server that fails at once still gets an honest status line.
        first = await anext(events, None)
        if first is None:
            raise ModelServerError("the model server gave an empty answer")
        exchange.first_token()
        await reply.start_stream(call.media_type, headers + _reported(metadata.reports, prompts))
        async with aclosing(call.reply_stream(_watched(first, events, exchange), metadata)) as items:
            async for item in items:
                await reply.item(item)
        await reply.end()


async def _watched(first: Event, events: AsyncGenerator[Event], exchange: Exchange) -> AsyncGenerator[Event]:
    """The events, the first one put back; raises if they end without an end."""
    event = first
    exchange.usage = first.usage if isinstance(first, Finished) else None
    yield first
    async for event in events:
        if isinstance(event, Finished) and event.usage:
            exchange.usage = exchange.usage + event.usage if exchange.usage else event.usage
        yield event
    if not isinstance(event, Finished):
        raise ModelServerError("the model server broke off in the middle of the answer")
    exchange.reason = event.reason


async def _body(scope: Scope, receive: Receive, most: int) -> bytes:
    """The request's body.

    Raises:
        BodyTooLarge: It has more than `most` bytes; what is beyond is not waited for.
        ClientGone: It did not arrive whole.
    """
    too_large = BodyTooLarge(f"larger than the {most} bytes that are read", "body")
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > most:
        raise too_large
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > most:
            raise too_large
        more = message.get("more_body", False)
    return bytes(body)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, unless the client goes away first: then it is cancelled, and with it the model.

    Raises:
        ClientGone: The client went away.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        await working
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Reply:
    """The response, as ASGI sends it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def whole(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [_JSON_TYPE, length, *headers])
        await self._send({"type": "http.response.body", "body": body})

    async def start_stream(self, media_type: str, headers: list[tuple[bytes, bytes]]) -> None:
        content = [
            (b"content-type", media_type.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._start(200, content + headers)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        self.started = True

    async def item(self, item: bytes) -> None:
        await self._send({"type": "http.response.body", "body": item, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})
