"""The way of a request through the core: request to prompt to events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeVar

from comps.core.budget import DEFAULT_SHARING, Sharing
from comps.core.citations import by_number, with_citations
from comps.core.counting import NO_SUCH_ROUTE
from comps.core.deltas import join_extra
from comps.core.errors import InvalidRequest, ModelServerError, Refused, UnknownModel, no_room
from comps.core.planning import Plan, Planner
from comps.core.ports import CountsPrompts, CountsTokens, Embeds, Loads, ModelServer, Renders, Translates
from comps.core.prompts import DEFAULT_TEMPLATES, Templates, text_of
from comps.core.tasks import at_once
from comps.core.types import (
    JSON,
    Embeddings,
    Event,
    Finished,
    Generation,
    GenerationRequest,
    ModelInfo,
    Prompt,
    Sampling,
    TextDelta,
    Usage,
    total,
)

T = TypeVar("T")

_TOTAL = "max_total_tokens"


@dataclass(frozen=True, slots=True)
class Preview:
    """What the model server would be asked for a request."""

    plan: Plan
    prompt: Prompt
    """A conversation, unless that is text in the plan."""
    rendered: str | None
    """The text that the model would read; None if nobody knows its chat template."""
    sampling: Sampling
    options: Mapping[str, JSON]
    answer: str | None
    """What would be answered without asking it; None: it would be asked."""


class TextGenerator:
    """Answers requests with one model.

    Args:
        server: Where the tokens come from.
        model: The name callers know the model by; a request for any other is refused.
        sharing: How its context window is shared.
        nothing_found: The answer where documents were looked for and there are none; empty: the model answers.
        templates: How questions and documents become prompts.
        escape: Makes a text of somebody's one that neither opens nor closes a turn.
        native: Leave it to the model's own chat template to write documents down, if it does.
    """

    def __init__(
        self,
        server: ModelServer,
        model: str,
        sharing: Sharing = DEFAULT_SHARING,
        nothing_found: str = "",
        templates: Templates = DEFAULT_TEMPLATES,
        escape: Callable[[str], str] = str,
        native: bool = False,
    ) -> None:
        self.server = server
        self.model = model
        self._broken = ""
        self._info: ModelInfo | None = None
        self._keeps_total = False
        """Whether the model server itself keeps prompt and answer within a limit."""
        self._planner = Planner(server, sharing, templates, escape, native)
        self._nothing_found = nothing_found

    async def load(self) -> None:
        """Load the model, if there is something to load; where that fails, nobody waits for it any longer.

        Raises:
            SettingsError: There is no such model.
            ModelServerError: The model cannot be loaded.
        """
        try:
            if isinstance(self.server, Loads):
                await self.server.load()
        except Exception:
            self._broken = f"the model {self.model} could not be loaded; the service's log has the reason"
            raise

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """The events of the answer; closing them stops the model."""
        self._usable(request.model)
        return self._generate(request)

    async def _generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        async with aclosing(self.answer(await self.plan(request))) as events:
            async for event in events:
                yield event

    async def plan(self, request: GenerationRequest, *, to_the_token: bool = False) -> Plan:
        """What the model server is asked for a request, and what became of the request on the way; see `Planner`."""
        self._usable(request.model)
        window = (await self.info()).context_window
        return await self._planner.plan(request, window, to_the_token=to_the_token)

    def answer(self, plan: Plan) -> AsyncGenerator[Event]:
        """The events of the answer to what was planned, with what it cites; closing them stops the model."""
        if (text := self._known(plan)) is not None:
            return _said(text)
        events = self._answer(plan)
        if given := by_number(plan.sources if plan.numbered else (), plan.request.quoted):
            echoed = plan.prompt if plan.options.get("echo") and isinstance(plan.prompt, str) else ""
            return with_citations(events, given, echoed)
        return events

    def _answer(self, plan: Plan) -> AsyncGenerator[Event]:
        if plan.request.max_total_tokens is None:
            return self.server.generate(plan.prompt, plan.sampling, plan.options)
        return self._within(plan.request.max_total_tokens, plan.prompt, plan.request)

    def _known(self, plan: Plan) -> str | None:
        """The answer that is known without a model, if there is one."""
        return (self._nothing_found or None) if plan.report.nothing_found else None

    async def preview(self, request: GenerationRequest) -> Preview:
        """What the model server would be asked for a request, counted to the token; nothing is generated.

        Raises:
            InvalidRequest: As an answer would.
            ModelServerError: The model server cannot say how the prompt is rendered.
        """
        plan = await self.plan(request, to_the_token=True)
        sampling = await self._sampling(plan)
        prompt, options = plan.prompt, plan.options
        if isinstance(self.server, Translates):
            told, sampling, options = await self.server.translated(prompt, sampling, options)
            prompt = prompt if isinstance(told, str) else told
        return Preview(plan, prompt, await self._rendered(plan), sampling, options, self._known(plan))

    async def _rendered(self, plan: Plan) -> str | None:
        if isinstance(plan.prompt, str):
            return plan.prompt
        try:
            return await self.server.render(plan.prompt, plan.options) if isinstance(self.server, Renders) else None
        except Refused as refused:
            if refused.status not in NO_SUCH_ROUTE:
                raise
            return None

    async def _sampling(self, plan: Plan) -> Sampling:
        """The sampling that `answer` asks for in the end."""
        most = plan.request.max_total_tokens
        if most is None:
            return plan.sampling
        try:
            limited = await self._limited(most, plan.prompt, plan.sampling)
            if self._keeps_total and isinstance(self.server, CountsPrompts):
                tokens = await self.server.count_prompt(plan.prompt, plan.options)
                if tokens >= most:
                    raise no_room(tokens, most)
            return limited
        except InvalidRequest as error:
            return _one_token(error, plan.request)

    async def _within(self, most: int, prompt: Prompt, request: GenerationRequest) -> AsyncGenerator[Event]:
        """An answer that has, together with the prompt, so many tokens at most."""
        try:
            limited = await self._limited(most, prompt, request.sampling)
            async with aclosing(self.server.generate(prompt, limited, request.options)) as events:
                async for event in events:
                    yield event
            return
        except InvalidRequest as error:
            one = _one_token(error, request)
        async with aclosing(self.server.generate(prompt, one, request.options)) as events:
            async for event in events:
                yield event

    async def _limited(self, most: int, prompt: Prompt, sampling: Sampling) -> Sampling:
        """The sampling of an answer that has so many tokens at most together with the prompt.

        Raises:
            InvalidRequest: The prompt leaves none, as far as that is known here.
        """
        await self.info()
        if self._keeps_total:
            return replace(sampling, max_total_tokens=most)
        tokens = await self.server.count_tokens(_text(prompt)) if isinstance(self.server, CountsTokens) else 0
        if tokens >= most:
            raise no_room(tokens, most)
        return replace(sampling, max_tokens=min(most - tokens, sampling.max_tokens or most))

    async def embed(self, texts: Sequence[str], model: str | None = None) -> Embeddings:
        """A vector for each text; see `Embeds.embed`."""
        self._usable(model)
        if not isinstance(self.server, Embeds):
            raise InvalidRequest(f"{self.model} makes no embeddings", "model")
        return await self.server.embed(texts)

    async def count_tokens(self, text: str, model: str | None = None) -> int:
        """The tokens of a text, without special tokens."""
        self._usable(model)
        if not isinstance(self.server, CountsTokens):
            raise InvalidRequest(f"the model server of {self.model} counts no tokens", "model")
        return await self.server.count_tokens(text)

    def _usable(self, model: str | None) -> None:
        if model and model != self.model:
            raise UnknownModel(model, self.model)
        if self._broken:
            raise ModelServerError(self._broken)

    async def describe(self) -> ModelInfo:
        """What answers, under the name that callers know it by, and what it honours; see `ModelServer.describe`."""
        if self._broken:
            raise ModelServerError(self._broken)
        info = await self.server.describe()
        self._keeps_total = _TOTAL in info.capabilities
        counts = {_TOTAL} if isinstance(self.server, CountsTokens) else set()
        self._info = replace(info, name=self.model, capabilities=info.capabilities | counts)
        return self._info

    async def info(self) -> ModelInfo:
        """What it said of itself when it was last described: no request waits for that and then for its answer."""
        return self._info if self._info and not self._broken else await self.describe()


def _one_token(error: InvalidRequest, request: GenerationRequest) -> Sampling:
    """The sampling for a prompt that fills what it may have together with the answer; raises if that is no reason to
    answer it all the same."""
    if error.field != _TOTAL:
        raise error
    if not request.total_is_default:
        raise InvalidRequest(error.args[0], request.total_field) from None
    return replace(request.sampling, max_tokens=1)


async def _said(text: str) -> AsyncGenerator[Event]:
    """An answer that no model makes."""
    yield TextDelta(text)
    yield Finished("stop", Usage(0, 0))


class Models:
    """The models that are served, by the names that callers know them by.

    Args:
        generators: One for each model; the first answers where a request names none.
    """

    def __init__(self, generators: Sequence[TextGenerator]) -> None:
        self._by_name = {generator.model: generator for generator in generators}

    def __iter__(self) -> Iterator[TextGenerator]:
        return iter(self._by_name.values())

    def named(self, name: str | None, any_name: bool = False) -> TextGenerator:
        """What answers for that model; for None or an empty name, the first.

        Args:
            name: As callers say it.
            any_name: Where one model is served, whatever it is called means that one.

        Raises:
            UnknownModel: There is none of that name.
        """
        if not name or (any_name and len(self._by_name) == 1):
            return next(iter(self))
        if name not in self._by_name:
            raise UnknownModel(name, ", ".join(self._by_name))
        return self._by_name[name]


async def collect(events: AsyncGenerator[Event]) -> Generation:
    """Gather an answer with all its choices.

    Raises:
        ModelServerError: The events ended without a `Finished` for each choice; half an answer is never passed off as a
            whole one.
    """
    pieces: dict[int, list[str]] = {}
    extras: dict[int, dict[str, JSON]] = {}
    finished: dict[int, Finished] = {}
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Finished):
                finished[event.choice] = event
                continue
            pieces.setdefault(event.choice, []).append(event.text)
            if event.extra:
                extras[event.choice] = join_extra(extras.get(event.choice, {}), event.extra)
    if not finished or pieces.keys() - finished.keys():
        raise _broken_off()
    usage = next((end.usage for end in finished.values() if end.usage), None)
    first, *further = (
        Generation("".join(pieces.get(choice, ())), end.reason, usage, extras.get(choice))
        for choice, end in sorted(finished.items())
    )
    return replace(first, further=tuple(further))


async def together(answers: Sequence[AsyncGenerator[Event]], choices: int = 1) -> AsyncGenerator[Event]:
    """The events of several answers, made at once, as they come; closing it closes them all. Where the last of them
    ends, the usage of all is told.

    Args:
        answers: What to read.
        choices: Of each answer; those of the second are numbered after those of the first, and so on.

    Raises:
        ModelServerError: One of them ended without a `Finished`.
    """
    inbox: asyncio.Queue[Event | Exception | None] = asyncio.Queue(1)
    used: dict[int, Usage | None] = {}

    async def read(number: int, events: AsyncGenerator[Event]) -> None:
        event: Event | None = None
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Finished):
                    last = number not in used and len(used) == len(answers) - 1
                    used.setdefault(number, event.usage)
                    event = replace(event, usage=total(used.values()) if last else None)
                await inbox.put(replace(event, choice=number * choices + event.choice))
        if not isinstance(event, Finished):
            raise _broken_off()

    async def read_all() -> None:
        failure: Exception | None = None
        try:
            await at_once([read(number, events) for number, events in enumerate(answers)])
        except Exception as error:  # Raised where the events are read.
            failure = error
        await inbox.put(failure)

    reading = asyncio.ensure_future(read_all())
    try:
        while (event := await inbox.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _broken_off() -> ModelServerError:
    return ModelServerError("the model server broke off in the middle of the answer")


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(text_of(message.content) for message in prompt)
