"""Traces: OpenTelemetry's spans of a request, its time in the queue, its prompts, and what the model server is asked.

They are configured by OpenTelemetry's own environment variables:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/

Without them, nothing of OpenTelemetry's SDK is imported, and a request pays one comparison. Names of spans and
attributes are those of its conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic_ns, time_ns
from typing import Any
from urllib.parse import urlsplit

from starlette.types import Scope

from comps.access import client_address
from comps.admission import RequestSlots
from comps.core.answers import Forwarding
from comps.core.errors import LLMError
from comps.core.generator import TextGenerator
from comps.core.planning import Plan
from comps.core.ports import Answer
from comps.core.redaction import shown_urls, without_keys
from comps.core.request_id import TRACE_HEADERS
from comps.core.tallies import class_of
from comps.core.types import (
    Embeddings,
    Finished,
    Generation,
    GenerationRequest,
    ModelInfo,
    Prompt,
    TextDelta,
    Token,
    Usage,
)
from comps.exchange import Exchange
from comps.logs import log
from comps.settings import Model
from comps.trace_exporters import is_wanted, problem, provider_for

_CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_QUOTING = ("opentelemetry.baggage", "opentelemetry.trace", "opentelemetry.propagators")
"""The loggers of OpenTelemetry that warn of callers' headers with all that is in them."""
_LAST_SECONDS = 5.0
"""How long the last spans may take to be exported at the end."""
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")
"""The fields of `Sampling` that are attributes, as `gen_ai.request.<name>`."""


class Tracing:
    """The traces of a service.

    Args:
        provider: OpenTelemetry's provider of tracers.
        models: The settings of each model, by its name.
        version: The service's version.
        captures: Whether prompts and answers are attributes of the spans.
    """

    def __init__(self, provider: Any, models: Mapping[str, Model], version: str, captures: bool = False) -> None:
        from opentelemetry import propagate

        for name in _QUOTING:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._provider = provider
        self._propagate = propagate
        self.tracer = provider.get_tracer("opea_llm", version)
        self.captures = captures
        self._models = {name: _attributes_of(name, model) for name, model in models.items()}

    @classmethod
    def from_environment(cls, name: str, models: Mapping[str, Model], version: str) -> Tracing | None:
        """Returns the traces that the environment asks for; None if it asks for none, or they cannot be had.

        Args:
            name: The service's name, unless the environment has one.
            models: The settings of each model, by its name.
            version: The service's version.
        """
        if not is_wanted():
            return None
        if why := problem():
            log.warning("%s", why)
            return None
        captures = os.environ.get(_CONTENT, "").strip().lower() in ("true", "span_only", "span_and_event")
        if captures:
            log.warning("%s: the spans have every prompt and answer", _CONTENT)
        try:
            return cls(provider_for(name, version), models, version, captures)
        except Exception as error:  # Wrong variables of OpenTelemetry's; they stop no request.
            log.warning("no traces are exported: %s", error)
            return None

    async def aclose(self) -> None:
        """Export the last spans, for a few seconds at most."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        await asyncio.to_thread(last.join, _LAST_SECONDS)

    def begin(self, scope: Scope, exchange: Exchange) -> Trace:
        """Begin the span of a request, within that of its client if it sends one."""
        sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        return Trace(self, self._propagate.extract(sent), scope, exchange)

    def attributes(self, model: str) -> Mapping[str, Any]:
        """Returns what is known of a model."""
        return self._models.get(model, {})

    def headers_within(self, context: Any) -> bytes:
        """Returns the lines of the headers that tell the model server of a span."""
        carrier: dict[str, str] = {}
        self._propagate.inject(carrier, context)
        return "".join(f"{name}: {value}\r\n" for name, value in carrier.items()).encode("latin-1", "replace")


def _attributes_of(name: str, model: Model) -> dict[str, Any]:
    attributes: dict[str, Any] = {"gen_ai.provider.name": model.model_server, "gen_ai.request.model": name}
    if urls := shown_urls(model.model_server_endpoint):
        url = urlsplit(urls[0])
        attributes |= {"server.address": url.hostname or "", "server.port": url.port or _PORTS.get(url.scheme, 0)}
    return attributes


_PORTS = {"http": 80, "https": 443}


class Trace:
    """The spans of one request."""

    def __init__(self, tracing: Tracing, parent: Any, scope: Scope, exchange: Exchange) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        self._tracing = tracing
        self._kinds, self._in_context = SpanKind, set_span_in_context
        self._failed = Status(StatusCode.ERROR)
        self._clock = time_ns() - monotonic_ns()
        attributes = {
            "http.request.method": scope["method"],
            "http.route": exchange.path,
            "url.path": scope["path"],
            "url.scheme": scope.get("scheme", "http"),
            "http.request.header.x-request-id": [exchange.id],
            **({"client.address": client_address(exchange.client)} if exchange.client else {}),
        }
        self._span = tracing.tracer.start_span(
            f"{scope['method']} {exchange.path}",
            parent,
            SpanKind.SERVER,
            attributes,
            start_time=self._clock + int(exchange.started * 1e9),
        )
        self._context = set_span_in_context(self._span, parent)
        TRACE_HEADERS.set(tracing.headers_within(self._context))

    def around(self, model: TextGenerator, slots: RequestSlots) -> tuple[TextGenerator, RequestSlots]:
        """Returns a model and slots that begin and end spans."""
        traced: Any = _TracedGenerator(model, self), _TracedSlots(slots, self)
        generator, queued = traced
        return generator, queued

    def end(self, exchange: Exchange) -> None:
        """End the span of the request."""
        outcome, status = exchange.outcome, exchange.outcome
        attributes: dict[str, Any] = {"opea_llm.dialect": exchange.dialect, "opea_llm.outcome": outcome}
        if exchange.model:
            attributes |= {"gen_ai.request.model": exchange.model, "gen_ai.operation.name": exchange.operation}
        if exchange.caller:
            attributes["opea_llm.key.name"] = exchange.caller.name
        if not status.isdigit():
            status = "200" if outcome == "broken" else ""
        if status:
            attributes["http.response.status_code"] = int(status)
        if outcome != "200":
            attributes["error.type"] = outcome
        self._span.set_attributes(attributes)
        if exchange.is_failure or outcome == "broken":
            self._span.set_status(self._failed)
        self._span.end(self._clock + int(exchange.ended_at * 1e9))

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Any], *, asks: bool = False) -> Iterator[Any]:
        """Begin a span within that of the request, and end it. What is sent meanwhile to a model server is within it.

        Args:
            name: Its name.
            attributes: What is known of it.
            asks: Whether it is about what a model server is asked.
        """
        kind = self._kinds.CLIENT if asks else self._kinds.INTERNAL
        span = self._tracing.tracer.start_span(name, self._context, kind, attributes)
        before = TRACE_HEADERS.set(self._tracing.headers_within(self._in_context(span, self._context)))
        try:
            yield span
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            span.set_attribute("error.type", _error_type(error))
            if not cancelled:
                span.set_status(self._failed)
            raise
        finally:
            TRACE_HEADERS.reset(before)
            span.end()

    def asked(self, operation: str, model: str, further: Mapping[str, Any]) -> Any:
        """Begin the span of what a model server is asked; see `span`."""
        attributes = {"gen_ai.operation.name": operation, **self._tracing.attributes(model), **further}
        return self.span(f"{operation} {model}", attributes, asks=True)

    def of_plan(self, plan: Plan, info: ModelInfo, streams: bool) -> tuple[str, dict[str, Any]]:
        """Returns the operation of a plan, and what is known of it, with its prompt if that is asked for.

        Args:
            plan: The plan.
            info: The model, whose server takes the sampling fields that are told.
            streams: Whether the answer is streamed.
        """
        sampling, prompt = plan.sampling, plan.prompt
        taken = [name for name in _SAMPLING if name in info.capabilities]
        told = {name: value for name in taken if (value := getattr(sampling, name)) is not None}
        attributes: dict[str, Any] = {f"gen_ai.request.{name}": value for name, value in told.items()}
        attributes["gen_ai.request.stream"] = streams
        if isinstance(choices := plan.options.get("n"), int) and choices > 1:
            attributes["gen_ai.request.choice.count"] = choices
        if self._tracing.captures:
            attributes["gen_ai.input.messages"] = _messages(prompt)
        return "text_completion" if isinstance(prompt, str) else "chat", attributes

    def answered(self, span: Any, reasons: Sequence[str], usage: Usage | None, texts: Sequence[str]) -> None:
        """Tell a span how its answers ended, with their texts if that is asked for."""
        span.set_attribute("gen_ai.response.finish_reasons", list(reasons))
        if usage:
            span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
        if self._tracing.captures:
            said = [_message("assistant", text, reason) for text, reason in zip(texts, reasons, strict=True)]
            span.set_attribute("gen_ai.output.messages", without_keys(json.dumps(said, ensure_ascii=False)))

    @property
    def captures(self) -> bool:
        """Whether prompts and answers are wanted."""
        return self._tracing.captures


@dataclass
class _TracedSlots:
    """Slots whose queue is a span."""

    slots: RequestSlots
    trace: Trace
    has_entered: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.slots, name)

    async def enter(self) -> None:
        if self.has_entered:
            return
        with self.trace.span("queue", {}):
            await self.slots.enter()
        self.has_entered = True


@dataclass
class _TracedGenerator:
    """A `TextGenerator` whose prompts and answers are spans."""

    generator: TextGenerator
    trace: Trace

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)

    async def plan(self, request: GenerationRequest, *, to_the_token: bool = False) -> Plan:
        with self.trace.span("prompt", {}) as span:
            plan = await self.generator.plan(request, to_the_token=to_the_token)
            fates = [use.fate for use in plan.report.documents]
            told = {f"opea_llm.documents.{fate}": fates.count(fate) for fate in ("kept", "cut", "dropped")}
            span.set_attributes({**told, "opea_llm.turns_dropped": plan.report.turns_dropped})
            return plan

    async def answer(self, plan: Plan, answer: Answer) -> None:
        operation, attributes = self.trace.of_plan(plan, await self.generator.info(), streams=True)
        with self.trace.asked(operation, self.generator.model, attributes) as span:
            watched = _Watched(answer, span, self.trace.captures)
            await self.generator.answer(plan, watched)
            ends = sorted(watched.ends, key=lambda end: end.choice)
            usage = next((end.usage for end in ends if end.usage), None)
            texts = ["".join(watched.texts.get(end.choice, ())) for end in ends]
            self.trace.answered(span, [end.reason for end in ends], usage, texts)

    async def complete(self, plan: Plan) -> Generation:
        operation, attributes = self.trace.of_plan(plan, await self.generator.info(), streams=False)
        with self.trace.asked(operation, self.generator.model, attributes) as span:
            generation = await self.generator.complete(plan)
            choices = generation.choices
            reasons, texts = [one.reason for one in choices], [one.text for one in choices]
            self.trace.answered(span, reasons, generation.usage, texts)
            return generation

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        with self.trace.asked("embeddings", self.generator.model, {}) as span:
            embeddings = await self.generator.embed(texts)
            if embeddings.prompt_tokens is not None:
                span.set_attribute("gen_ai.usage.input_tokens", embeddings.prompt_tokens)
            return embeddings

    async def count_tokens(self, text: str) -> int:
        with self.trace.asked("count_tokens", self.generator.model, {}):
            return await self.generator.count_tokens(text)

    async def count_prompt(self, request: GenerationRequest) -> int:
        with self.trace.asked("count_tokens", self.generator.model, {}):
            return await self.generator.count_prompt(request)

    async def tokenize(self, text: str) -> Sequence[Token]:
        with self.trace.asked("tokenize", self.generator.model, {}):
            return await self.generator.tokenize(text)

    async def tokenize_prompt(self, request: GenerationRequest) -> tuple[str, Sequence[Token]]:
        with self.trace.asked("tokenize", self.generator.model, {}):
            return await self.generator.tokenize_prompt(request)


class _Watched(Forwarding):
    """Answer that tells a span when it begins, and how it ends.

    Args:
        answer: The answer to write to.
        span: The span.
        keeps: Whether the texts are kept.
    """

    def __init__(self, answer: Answer, span: Any, keeps: bool) -> None:
        super().__init__(answer)
        self._span = span
        self._keeps = keeps
        self._begun = monotonic_ns()
        self.ends: list[Finished] = []
        self.texts: dict[int, list[str]] = {}

    def text(self, text: str, choice: int = 0) -> None:
        self._note(text, choice)
        self._answer.text(text, choice)

    def delta(self, delta: TextDelta) -> None:
        self._note(delta.text, delta.choice)
        self._answer.delta(delta)

    def finished(self, end: Finished) -> None:
        self.ends.append(end)
        self._answer.finished(end)

    def _note(self, text: str, choice: int) -> None:
        if self._begun:
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", (monotonic_ns() - self._begun) / 1e9)
            self._begun = 0
        if self._keeps:
            self.texts.setdefault(choice, []).append(text)


def _error_type(error: BaseException) -> str:
    if isinstance(error, LLMError):
        return class_of(error)
    return "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__qualname__


def _messages(prompt: Prompt) -> str:
    """Returns a prompt as JSON, in the convention's form, with what looks like a key redacted."""
    said = [("user", prompt)] if isinstance(prompt, str) else [(one.role, one.content) for one in prompt]
    return without_keys(json.dumps([_message(role, content) for role, content in said], ensure_ascii=False))


def _message(role: str, content: Any, reason: str = "") -> dict[str, Any]:
    parts = [{"type": "text", "content": content}] if isinstance(content, str) else content or []
    return {"role": role, "parts": parts, **({"finish_reason": reason} if reason else {})}
