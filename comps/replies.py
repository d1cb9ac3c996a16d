"""The reply to one body: whole, or a stream of items in the form of its dialect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from random import getrandbits
from time import monotonic, time
from types import MappingProxyType

from comps.admission import RequestSlots
from comps.core.answers import Part, Parts, broken_off
from comps.core.beside import LONG, beside
from comps.core.counting import estimate
from comps.core.generator import TextGenerator
from comps.core.planning import Plan
from comps.core.reports import settled
from comps.core.tasks import at_once
from comps.core.types import JSON, Finished, Generation, GenerationRequest, ModelInfo, Report, TextDelta, Usage, total
from comps.dialects.shared.base import GenerationCall, Writer
from comps.dialects.shared.framing import ResponseMetadata, was_counted
from comps.exchange import Exchange
from comps.keep_alive import COMMENT, KeepAlive
from comps.requests import REQUEST_ID_HEADER
from comps.responses import Response

_SSE_HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
_MEDIA_TYPE = "application/json"
LONGEST_HEADER = 1000
_OF_LOGPROBS = 100
"""How many times as long as its text the logprobs of an answer may be."""
_TOKENS = frozenset(("reasoning", "reasoning_content", "tool_calls", "function_call", "refusal", "audio"))
"""The fields of a delta without text that are part of an answer."""


class Reply:
    """A response, sent whole or as a stream of items.

    Args:
        response: The response.
        exchange: Knows the times, for the header `server-timing`.
    """

    def __init__(self, response: Response, exchange: Exchange) -> None:
        self._response = response
        self._exchange = exchange
        self.write = response.write
        """Sends an item, as one HTTP chunk."""
        self.cork = response.cork
        self.cut_off = response.cut_off
        self.started = False

    def whole(
        self, status: int, body: bytes, headers: list[tuple[bytes, bytes]], media_type: str = _MEDIA_TYPE
    ) -> None:
        """Send a whole body."""
        self._start(status, len(body), headers, media_type)
        if body:
            self._response.write(body)
        self._response.end()

    async def in_pieces(
        self, pieces: Sequence[bytes], headers: list[tuple[bytes, bytes]], media_type: str = _MEDIA_TYPE
    ) -> None:
        """Send a whole body with the status 200. Between its pieces, others are served."""
        self._start(200, sum(map(len, pieces)), headers, media_type)
        for place, piece in enumerate(pieces):
            if place:
                await asyncio.sleep(0)
            self._response.write(piece)
        self._response.end()

    def _start(self, status: int, size: int, headers: list[tuple[bytes, bytes]], media_type: str) -> None:
        self.started = True
        exchange = self._exchange
        timing = (b"server-timing", exchange.server_timing())
        length = (b"content-length", str(size).encode())
        kind = (b"content-type", media_type.encode())
        # A server without `DirectRoutes`, such as Ray's proxy, gives requests ids of its own.
        ids = [(REQUEST_ID_HEADER, exchange.id.encode())] if exchange.id else []
        self._response.start(status, [kind, length, *ids, timing, *headers])

    def start_stream(self, media_type: str, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the status line and the headers of a stream."""
        self.started = True
        exchange = self._exchange
        timing = (b"server-timing", exchange.server_timing())
        content = (b"content-type", media_type.encode())
        ids = [(REQUEST_ID_HEADER, exchange.id.encode())] if exchange.id else []
        self._response.start(200, [content, *_SSE_HEADERS, *ids, timing, *headers])

    def end(self) -> None:
        """End the stream."""
        self._response.end()

    @property
    def items(self) -> int:
        """How many items of a stream have been sent."""
        return self._response.items

    @property
    def full(self) -> bool:
        return self._response.full

    async def drain(self) -> None:
        await self._response.drain()


class Responder:
    """Generates and sends the reply to one body that asks for text.

    Args:
        call: The body.
        info: What answers.
        prompts: How many requests the body makes.
        reply: Where the answer goes to.
        headers: Those that are known by now.
        exchange: What telemetry is told.
        keepalive_seconds: How long a stream may be silent before a comment is written; 0: no limit.
    """

    def __init__(
        self,
        call: GenerationCall,
        info: ModelInfo,
        prompts: int,
        reply: Reply,
        headers: list[tuple[bytes, bytes]],
        exchange: Exchange,
        keepalive_seconds: float = 0.0,
    ) -> None:
        self._call = call
        self._keepalive_seconds = keepalive_seconds
        self._reports: dict[int, Report] = {}
        self._metadata = metadata_of(info, exchange, self._reports)
        self._prompts = prompts
        self._reply = reply
        self._headers = headers
        self._exchange = exchange
        exchange.reports = self._reports

    async def whole(self, slots: RequestSlots, model: TextGenerator, requests: list[GenerationRequest]) -> None:
        """Send the reply whole, when all answers are complete."""
        await slots.enter()
        asked = [self._complete(slots, model, request, number) for number, request in enumerate(requests)]
        generations = await at_once(asked)
        self._exchange.usage = total(generation.usage for generation in generations)
        if self._exchange.usage is None:
            self._exchange.sent = sum(estimate(one.text) for answered in generations for one in answered.choices)
        reasons = self._call.ends(generations)
        self._exchange.reason = reasons[0]
        self._headers.append((b"x-finish-reason", shortened(",".join(reasons))))
        style = self._call.style
        if self._call.is_large or _is_long(generations):
            pieces = await beside(lambda: style.encode_long(self._call.reply(generations, self._metadata)))
            await self._reply.in_pieces(pieces, self._all_headers(), style.media_type)
        else:
            body = style.encode(self._call.reply(generations, self._metadata))
            self._reply.whole(200, body, self._all_headers(), style.media_type)

    async def _complete(
        self, slots: RequestSlots, model: TextGenerator, request: GenerationRequest, number: int
    ) -> Generation:
        await slots.take()
        self._exchange.window = "whole"
        try:
            plan = await model.plan(request)
            self._reports[number] = plan.report
            self._asks(plan)
            generation = await model.complete(plan)
            self._exchange.answered_at = monotonic()
        finally:
            slots.give_back()
        if self._settles(plan.report):
            self._reports[number] = settled(plan.report, generation.usage)
        return generation

    def _asks(self, plan: Plan) -> None:
        """Record that the model server is asked now, if it is with the first prompt."""
        exchange = self._exchange
        if not exchange.asked_at:
            exchange.operation = "text_completion" if isinstance(plan.prompt, str) else "chat"
            exchange.asked_at = monotonic()

    def _settles(self, report: Report) -> bool:
        """Whether the report is sent, so that it needs the numbers of tokens that the model server counted."""
        return self._call.wants_report or was_counted(report)

    async def stream(
        self, slots: RequestSlots, model: TextGenerator, requests: list[GenerationRequest], choices: int
    ) -> None:
        """Stream the reply.

        Args:
            slots: Of this body.
            model: What answers.
            requests: What the body asks for.
            choices: How many answers each request asks for.
        """
        is_watched = bool(self._keepalive_seconds and self._call.takes_comments)
        answer = _StreamedAnswer(self._begin, self._reply, is_watched, self._exchange)
        self._exchange.streamed = True
        watched = KeepAlive(self._keepalive_seconds, answer.has_written, self._comment) if is_watched else None
        try:
            await slots.enter()
            if len(requests) == 1:
                await self._write(slots, model, requests[0], 0, answer)
            else:
                parts = Parts(answer, len(requests), choices)
                asked = enumerate(requests)
                await at_once([self._write(slots, model, one, number, parts.part(number)) for number, one in asked])
        finally:
            if watched:
                watched.stop()
        answer.close()
        self._exchange.usage = answer.usage
        if answer.usage is None:
            self._exchange.sent = self._reply.items
        self._exchange.reason = answer.reason
        self._reply.end()

    async def _write(
        self,
        slots: RequestSlots,
        model: TextGenerator,
        request: GenerationRequest,
        number: int,
        answer: _StreamedAnswer | Part,
    ) -> None:
        await slots.take()
        if self._exchange.window == "queued":  # No other answer of this stream has begun.
            self._exchange.window = "first_token"
        try:
            plan = await model.plan(request)
            self._reports[number] = plan.report
            self._asks(plan)
            await model.answer(plan, answer)
            self._exchange.answered_at = monotonic()
        finally:
            slots.give_back()
        if answer.usage and self._settles(plan.report):
            self._reports[number] = settled(plan.report, answer.usage)
        if not answer.ended:
            raise broken_off()

    def _begin(self) -> Writer:
        """Start the response. This is called with the first piece, so that an earlier failure has its own status."""
        self._exchange.window = "stream"
        self._start_stream()
        return self._call.writer(self._metadata, self._reply.write)

    def _comment(self) -> None:
        """Write a comment. If the response has not started, this starts it: what fails later has no status then."""
        self._start_stream()
        if not self._reply.full:
            self._reply.write(COMMENT)

    def _start_stream(self) -> None:
        if not self._reply.started:
            self._reply.start_stream(self._call.media_type, self._all_headers())

    def _all_headers(self) -> list[tuple[bytes, bytes]]:
        return self._headers + _reported(self._reports, self._prompts)


class _StreamedAnswer:
    """Answer that is written to the client in the form of a dialect.

    Args:
        begin: Starts the response and returns the writer; called with the first piece.
        reply: Tells whether the client keeps up.
        is_watched: Whether `has_written` is called.
        exchange: Is told when the first token comes.
    """

    def __init__(self, begin: Callable[[], Writer], reply: Reply, is_watched: bool, exchange: Exchange) -> None:
        self._begin = begin
        self._exchange: Exchange | None = exchange
        """None when the first token has come."""
        self._is_watched = is_watched
        self.ended = False
        """Whether a choice has ended."""
        self._reply = reply
        self._writer: Writer | None = None
        self._wrote = False
        self.usage: Usage | None = None
        self.reason: str | None = None

    def text(self, text: str, choice: int = 0) -> None:
        self._wrote = True
        writer = self._writer
        if writer is None:
            writer = self._writer = self._begin()
        if self._exchange:
            self._first_token(writer)
        writer.text(text, choice)

    def delta(self, delta: TextDelta) -> None:
        self._wrote = True
        writer = self._writer
        if writer is None:
            writer = self._writer = self._begin()
        if self._exchange and (delta.text or not _TOKENS.isdisjoint(delta.extra or ())):
            self._first_token(writer)
        writer.delta(delta)

    def finished(self, end: Finished) -> None:
        self.ended = True
        if end.usage:
            self.usage = self.usage + end.usage if self.usage else end.usage
        self.reason = end.reason
        self._reply.cork()  # Usually all the rest comes at once.
        if self._writer is None:
            self._writer = self._begin()
        self._writer.finished(end)

    def has_written(self) -> bool:
        """Returns whether something was written since the last call."""
        wrote, self._wrote = self._wrote, False
        return wrote

    def close(self) -> None:
        """Write what follows the ends of all choices."""
        assert self._writer
        self._writer.close()

    @property
    def full(self) -> bool:
        return self._reply.full

    async def drain(self) -> None:
        await self._reply.drain()

    def _first_token(self, writer: Writer) -> None:
        """Record that the first token has come."""
        assert self._exchange
        self._exchange.first_token_at = monotonic()
        self._exchange = None
        if not self._is_watched:  # One call less for each token.
            self.text = writer.text  # type: ignore[method-assign]
            self.delta = writer.delta  # type: ignore[method-assign]


def metadata_of(
    info: ModelInfo, exchange: Exchange, reports: Mapping[int, Report] = MappingProxyType({})
) -> ResponseMetadata:
    return ResponseMetadata(f"{getrandbits(128):032x}", int(time()), info.name, reports, exchange)


def _reported(reports: Mapping[int, Report], prompts: int) -> list[tuple[bytes, bytes]]:
    """Returns the headers about documents and messages; none until all prompts are planned.

    `x-documents-used` has the places of the documents in each prompt, once if they are the same for all.
    `x-turns-dropped` has the number of earlier messages that each prompt lost, if any did.
    """
    if len(reports) < prompts:
        return []
    headers = []
    told = [report for _, report in sorted(reports.items())]
    if any(report.documents or report.nothing_found for report in told):
        used = [_used(report) for report in told]
        headers.append((b"x-documents-used", shortened(";".join(used if len(set(used)) > 1 else used[:1]))))
    dropped = [report.turns_dropped for report in told]
    if any(dropped):
        headers.append((b"x-turns-dropped", shortened(",".join(map(str, dropped)))))
    return headers


def _is_long(generations: Sequence[Generation]) -> bool:
    """Whether answers have much text, also in calls and reasoning, or logprobs of many tokens."""
    length = 0
    for generation in generations:
        for choice in generation.choices:
            length += len(choice.text)
            for name, value in (choice.extra or {}).items():
                length += len(choice.text) * _OF_LOGPROBS if name == "logprobs" else _length(value)
    return length > LONG


def _length(value: JSON) -> int:
    """Returns the length of all texts in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_length, value)) if isinstance(value, list) else 0


def shortened(listed: str) -> bytes:
    """Returns a header value, cut to a length that clients and proxies accept."""
    return (listed if len(listed) <= LONGEST_HEADER else listed[:LONGEST_HEADER] + "...").encode()


def _used(report: Report) -> str:
    return ",".join(str(use.number) for use in report.documents if use.fate != "dropped") or "none"
