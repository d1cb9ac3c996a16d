"""The way of a request through the core: request to prompt to events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from comps.core.answers import collect
from comps.core.budget import DEFAULT_SHARING, Sharing
from comps.core.citations import Cited, by_number, with_citations
from comps.core.counting import NO_SUCH_ROUTE
from comps.core.errors import InvalidRequest, ModelServerError, Refused, UnknownModel, no_room
from comps.core.planning import Plan, Planner
from comps.core.ports import (
    Answer,
    Completes,
    CountsPrompts,
    CountsTokens,
    Embeds,
    Loads,
    ModelServer,
    Renders,
    Translates,
)
from comps.core.prompts import DEFAULT_TEMPLATES, Templates, text_of
from comps.core.types import (
    JSON,
    Document,
    Embeddings,
    Finished,
    Generation,
    GenerationRequest,
    ModelInfo,
    Prompt,
    Sampling,
    Usage,
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
        self._complete = server.complete if isinstance(server, Completes) else None
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

    async def generate(self, request: GenerationRequest, answer: Answer) -> None:
        """Write the answer to a request; cancelling it stops the model."""
        await self.answer(await self.plan(request), answer)

    async def plan(self, request: GenerationRequest, *, to_the_token: bool = False) -> Plan:
        """What the model server is asked for a request, and what became of the request on the way; see `Planner`."""
        self._usable(request.model)
        window = (await self.info()).context_window
        return await self._planner.plan(request, window, to_the_token=to_the_token)

    async def answer(self, plan: Plan, answer: Answer) -> None:
        """Write the answer to what was planned, with what it cites; cancelling it stops the model."""
        if (text := self._known(plan)) is not None:
            answer.text(text)
            answer.finished(Finished("stop", Usage(0, 0)))
            return
        if given := _citable(plan):
            answer = Cited(answer, given, _echoed(plan))
        generate, to = self.server.generate, answer
        await self._ask(plan, lambda prompt, sampling, options: generate(prompt, sampling, options, to))

    async def complete(self, plan: Plan) -> Generation:
        """The whole answer to what was planned; see `answer`.

        Raises:
            ModelServerError: The answer has no end; half an answer is never passed off as a whole one.
        """
        if (text := self._known(plan)) is not None:
            return Generation(text, "stop", Usage(0, 0))
        generation = await self._ask(plan, self._complete or partial(collect, self.server.generate))
        given = _citable(plan)
        return with_citations(generation, given, _echoed(plan)) if given else generation

    async def _ask(self, plan: Plan, ask: Callable[[Prompt, Sampling, Mapping[str, JSON]], Awaitable[T]]) -> T:
        """Ask the model server for what was planned, kept within the most tokens of prompt and answer together."""
        most = plan.request.max_total_tokens
        if most is None:
            return await ask(plan.prompt, plan.sampling, plan.options)
        request = plan.request
        try:
            return await ask(plan.prompt, await self._limited(most, plan.prompt, request.sampling), plan.options)
        except InvalidRequest as error:
            one = _one_token(error, request)
        return await ask(plan.prompt, one, plan.options)

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


def _citable(plan: Plan) -> Mapping[int, Document]:
    """The documents that an answer may cite, by number."""
    return by_number(plan.sources if plan.numbered else (), plan.request.quoted)


def _echoed(plan: Plan) -> str:
    """What the answer may begin with, in which nothing is a citation."""
    return plan.prompt if plan.options.get("echo") and isinstance(plan.prompt, str) else ""


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


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(text_of(message.content) for message in prompt)
