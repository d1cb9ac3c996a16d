"""The one HTTP handler: a body becomes a call, an answer is written in the call's form, an error becomes a status.

It is plain ASGI, so that nothing stands between an event and its HTTP chunk. Errors are caught here and nowhere else.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from random import getrandbits
from time import time
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, quote

from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from comps.admission import Admission, RequestSlots
from comps.core.answers import Forwarding, Parts
from comps.core.errors import BodyTooLarge, InvalidRequest, LLMError, ModelServerError, PromptTooLong, Unreachable
from comps.core.generator import Models, Preview, TextGenerator
from comps.core.ports import Answer
from comps.core.reports import settled
from comps.core.tasks import at_once
from comps.core.types import JSON, Finished, Generation, GenerationRequest, ModelInfo, Report, TextDelta, Usage, total
from comps.dialects.shared.base import Call, EmbeddingCall, GenerationCall, Style, TokenCountCall, Writer
from comps.dialects.shared.endpoint import Endpoint, PreviewEndpoint, RequestError
from comps.dialects.shared.framing import ResponseMetadata, preview_document, was_counted
from comps.responses import Response, response_to
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
        response = response_to(scope, receive, send)
        reply = _Reply(response)
        style = self.endpoint.style
        call: Call | None = None
        with self._telemetry.exchange(self.endpoint.path) as exchange:
            try:
                endpoint, variables = self._endpoint_for(scope)
                style = endpoint.style
                call = endpoint.read(await _body(response, scope, receive, self._max_body), variables)
                style = call.style
                await _unless_gone(response, self._answer(call, endpoint, reply, exchange))
                exchange.outcome = "200"
            except ClientGone:
                exchange.outcome = "gone"
            except asyncio.CancelledError:  # The service ends before the answer does.
                self._fail(Unreachable("the service is shutting down"), style, call, reply, exchange)
            except RequestError as request_error:
                self._fail(request_error.error, request_error.style, None, reply, exchange)
            except LLMError as error:
                self._fail(error, style, call, reply, exchange)
            except Exception:  # A fault of ours: the log gets the details, the caller none.
                log.exception("while answering %s", self.endpoint.path)
                self._fail(LLMError("internal error; the service's log has it"), style, call, reply, exchange)
        await response.aclose()

    def _fail(self, error: LLMError, style: Style, call: Call | None, reply: _Reply, exchange: Exchange) -> None:
        status = style.status(error)
        if status >= 500:
            exchange.failure = str(error)
        if isinstance(call, GenerationCall) and reply.started:
            exchange.outcome = "broken"
            reply.write(call.error_item(error))
            if not call.cuts_off:
                reply.end()
            return
        if isinstance(error, PromptTooLong) and call:
            error.field = call.marker
        exchange.outcome = str(status)
        headers = [] if error.retry_after is None else [(b"retry-after", str(error.retry_after).encode())]
        reply.whole(status, style.encode(style.error(error)), headers)

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
                document = call.reply(embeddings, _metadata(info))
            else:
                document = call.reply(await model.count_tokens(call.text()))
        reply.whole(200, call.style.encode(document), headers)

    async def _generate(self, call: GenerationCall, slots: RequestSlots, reply: _Reply, exchange: Exchange) -> None:
        requests = call.requests()
        model = self._models.named(call.wanted_model, call.any_model)
        info = await model.info()
        headers = self._ignored(call, info)
        requests = [_honoured(request, info) for request in requests]
        response = _Responding(call, info, len(requests), reply, headers, exchange)
        if call.streamed:
            choices = requests[0].options.get("n", 1) if "n" in info.capabilities else 1
            await response.stream(slots, model, requests, choices)
        else:
            await response.whole(slots, model, requests)

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
        reply.whole(200, preview_document(of_all, previews), [])


def _ignored_names(call: Call, info: ModelInfo) -> list[str]:
    """What the caller set and nothing comes of."""
    misnamed = ["model"] if call.wanted_model not in (None, "", info.name) else []
    return misnamed + call.ignored(info.capabilities)


class _Responding:
    """Answers one body that asks for text.

    Args:
        call: The body.
        info: What answers.
        prompts: How many requests the body makes.
        reply: Where the answer goes to.
        headers: Those that are known by now.
        exchange: What telemetry is told.
    """

    def __init__(
        self,
        call: GenerationCall,
        info: ModelInfo,
        prompts: int,
        reply: _Reply,
        headers: list[tuple[bytes, bytes]],
        exchange: Exchange,
    ) -> None:
        self._call = call
        self._reports: dict[int, Report] = {}
        self._metadata = _metadata(info, self._reports)
        self._prompts = prompts
        self._reply = reply
        self._headers = headers
        self._exchange = exchange

    async def whole(self, slots: RequestSlots, model: TextGenerator, requests: list[GenerationRequest]) -> None:
        """Answer whole, once all answers are there."""
        asked = [self._complete(slots, model, request, number) for number, request in enumerate(requests)]
        generations = await at_once(asked)
        self._exchange.usage = total(generation.usage for generation in generations)
        reasons = self._call.ends(generations)
        self._exchange.reason = reasons[0]
        self._headers.append((b"x-finish-reason", ",".join(reasons).encode()))
        document = self._call.reply(generations, self._metadata)
        self._reply.whole(200, self._call.style.encode(document), self._all_headers())

    async def _complete(
        self, slots: RequestSlots, model: TextGenerator, request: GenerationRequest, number: int
    ) -> Generation:
        async with slots.slot():
            plan = await model.plan(request)
            self._reports[number] = plan.report
            generation = await model.complete(plan)
        if self._settles(plan.report):
            self._reports[number] = settled(plan.report, generation.usage)
        return generation

    def _settles(self, report: Report) -> bool:
        """Whether anybody is told what the model server has counted."""
        return self._call.wants_report or was_counted(report)

    async def stream(
        self, slots: RequestSlots, model: TextGenerator, requests: list[GenerationRequest], choices: int
    ) -> None:
        """Answer piece by piece.

        Args:
            slots: Of this body.
            model: What answers.
            requests: What the body asks for.
            choices: How many answers each request asks for.
        """
        answer = _StreamedAnswer(self._begin, self._reply)
        if len(requests) == 1:
            await self._write(slots, model, requests[0], 0, answer)
        else:
            parts = Parts(answer, len(requests), choices)
            asked = enumerate(requests)
            await at_once([self._write(slots, model, one, number, parts.part(number)) for number, one in asked])
        answer.close()
        self._exchange.usage = answer.usage
        self._exchange.reason = answer.reason
        self._reply.end()

    async def _write(
        self, slots: RequestSlots, model: TextGenerator, request: GenerationRequest, number: int, answer: Answer
    ) -> None:
        async with slots.slot():
            plan = await model.plan(request)
            self._reports[number] = plan.report
            ending = _Ending(answer)
            await model.answer(plan, ending)
        if ending.usage and self._settles(plan.report):
            self._reports[number] = settled(plan.report, ending.usage)
        if not ending.ended:
            raise ModelServerError("the model server broke off in the middle of the answer")

    def _begin(self) -> Writer:
        """Start the response, with the first piece: a model server that fails at once still gets an honest status."""
        self._exchange.first_token()
        self._reply.start_stream(self._call.media_type, self._all_headers())
        return self._call.writer(self._metadata, self._reply.write)

    def _all_headers(self) -> list[tuple[bytes, bytes]]:
        return self._headers + _reported(self._reports, self._prompts)


class _StreamedAnswer:
    """Writes an answer in the form of a dialect, as it comes.

    Args:
        begin: Starts the response with the first piece, and makes the writer.
        reply: Tells whether the client keeps up.
    """

    def __init__(self, begin: Callable[[], Writer], reply: _Reply) -> None:
        self._begin = begin
        self._reply = reply
        self._writer: Writer | None = None
        self.usage: Usage | None = None
        self.reason: str | None = None

    def text(self, text: str, choice: int = 0) -> None:
        (self._writer or self._begun()).text(text, choice)

    def delta(self, delta: TextDelta) -> None:
        (self._writer or self._begun()).delta(delta)

    def finished(self, end: Finished) -> None:
        if end.usage:
            self.usage = self.usage + end.usage if self.usage else end.usage
        self.reason = end.reason
        self._reply.cork()  # Usually all the rest comes at once.
        (self._writer or self._begun()).finished(end)

    def close(self) -> None:
        """Write what comes when all choices have ended."""
        assert self._writer
        self._writer.close()

    @property
    def full(self) -> bool:
        return self._reply.full

    async def drain(self) -> None:
        await self._reply.drain()

    def _begun(self) -> Writer:
        self._writer = self._begin()
        return self._writer


class _Ending(Forwarding):
    """Writes an answer on, and notes its end.

    Args:
        answer: Where it is written to.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.text = answer.text  # type: ignore[method-assign]  # One call less for each token.
        self.ended = False
        self.usage: Usage | None = None

    def finished(self, end: Finished) -> None:
        self.ended = True
        self.usage = self.usage or end.usage
        self._answer.finished(end)


def _honoured(request: GenerationRequest, info: ModelInfo) -> GenerationRequest:
    """The request as its model server gets it: options that it does not know are left out."""
    if request.options.keys() <= info.capabilities:
        return request
    return replace(request, options={name: one for name, one in request.options.items() if name in info.capabilities})


def _metadata(info: ModelInfo, reports: Mapping[int, Report] = MappingProxyType({})) -> ResponseMetadata:
    return ResponseMetadata(f"{getrandbits(128):032x}", int(time()), info.name, reports)


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


async def _body(response: Response, scope: Scope, receive: Receive, most: int) -> bytes:
    """The request's body.

    Raises:
        BodyTooLarge: It has more than `most` bytes; what is beyond is not waited for.
        ClientGone: It did not arrive whole.
    """
    too_large = BodyTooLarge(f"larger than the {most} bytes that are read", "body")
    whole = response.request_body
    if whole is not None:
        if len(whole) > most:
            raise too_large
        return whole
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


async def _unless_gone(response: Response, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, unless the client goes away first: then it is cancelled, and with it the model.

    Raises:
        ClientGone: The client went away.
    """
    task = asyncio.current_task()
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


class _Reply:
    """What a response of this service is: whole, or a stream of items."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self.write = response.write
        """Sends an item, as one HTTP chunk."""
        self.cork = response.cork
        self.started = False

    def whole(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Send all of it."""
        self.started = True
        self._response.start(status, [_JSON_TYPE, (b"content-length", str(len(body)).encode()), *headers])
        if body:
            self._response.write(body)
        self._response.end()

    def start_stream(self, media_type: str, headers: list[tuple[bytes, bytes]]) -> None:
        """Send all that comes before the first item."""
        self.started = True
        content = [
            (b"content-type", media_type.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        self._response.start(200, content + headers)

    def end(self) -> None:
        """Send the end of a stream."""
        self._response.end()

    @property
    def full(self) -> bool:
        return self._response.full

    async def drain(self) -> None:
        await self._response.drain()
