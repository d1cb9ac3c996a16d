"""Text generation: turns a request into a prompt, and has the model server write the answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from comps.core.answers import collect
from comps.core.beside import FromBeside, beside, run_beside
from comps.core.budget import DEFAULT_SHARING, Sharing
from comps.core.citations import with_citations
from comps.core.citing import citing, echoed, finder, found_at_once
from comps.core.counting import NO_SUCH_ROUTE, estimate
from comps.core.decisions import decided
from comps.core.errors import InvalidRequest, LLMError, ModelServerError, NotSupported, Refused, UnknownModel, no_room
from comps.core.fallbacks import TOTAL, one_token, without_default
from comps.core.instructions import in_user_message, refuses_system
from comps.core.model_names import has_chat_template
from comps.core.ordering import DEFAULT_ORDERING, Ordering
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
    Tokenizes,
    Translates,
)
from comps.core.previews import Preview
from comps.core.prompts import DEFAULT_TEMPLATES, Templates, text_of
from comps.core.types import (
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

log = logging.getLogger("opea_llm")
T = TypeVar("T")


class TextGenerator:
    """Generates answers with one model.

    Args:
        server: The model server.
        model: The model's public name; requests for another model are refused.
        sharing: How the context window is divided among answer, documents and history.
        nothing_found: The answer if a search found no documents; empty: the model answers.
        templates: The prompt templates for questions and documents.
        escape: Escapes control tokens, so that a caller's text neither opens nor closes a turn.
        native: Whether the model's own chat template renders the documents, if it can.
        ordering: How documents are ordered.
        citations: How answers cite their documents; see `CITATION_MODES`.
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
        ordering: Ordering = DEFAULT_ORDERING,
        citations: str = "auto",
    ) -> None:
        self.server = server
        self.model = model
        self._complete = server.complete if isinstance(server, Completes) else None
        self._broken = ""
        self._info: ModelInfo | None = None
        self._keeps_total = False
        """Whether the model server supports `max_total_tokens`."""
        settings = (sharing, templates, escape, native, ordering, citations)
        self._planner = Planner(server, *settings)
        self._beside: tuple[asyncio.AbstractEventLoop, Planner] | None = None
        """The planner of large requests, and the event loop from which it was made."""
        self._make_planner: Callable[[Any], Planner] = lambda server: Planner(server, *settings)
        self._nothing_found = nothing_found

    async def load(self) -> None:
        """Load the model, if the server loads one. After a failure, all requests are refused.

        Raises:
            SettingsError: The model does not exist.
            ModelServerError: The model cannot be loaded.
        """
        try:
            if isinstance(self.server, Loads):
                await self.server.load()
        except Exception:
            self._broken = f"the model {self.model} could not be loaded; the service's log has the reason"
            raise

    async def generate(self, request: GenerationRequest, answer: Answer) -> None:
        """Plan a request and write its answer; see `plan` and `answer`."""
        await self.answer(await self.plan(request), answer)

    async def plan(self, request: GenerationRequest, *, to_the_token: bool = False) -> Plan:
        """Returns the prompt and the parameters for the model server, with a report; see `Planner`.

        Args:
            request: The request.
            to_the_token: Whether to count exactly, even if the prompt fits for certain.

        Raises:
            InvalidRequest: The request cannot be served (`PromptTooLong`, `UnknownModel` …).
            ModelServerError: The model could not be loaded, or the model server failed.
        """
        self._usable(request.model)
        if request.total_without_template:
            request = await self._with_answer_limit(request)
        window = (await self.info()).context_window
        if request.is_large:
            plan = await self._plan_beside(request, window, to_the_token)
        else:
            plan = await self._planner.plan(request, window, to_the_token=to_the_token)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s", decided(plan))
        if request.max_total_tokens is None or self._keeps_total:
            return plan
        tokens, exact = await self._tokens_of(plan.prompt)
        return plan if exact else replace(plan, report=replace(plan.report, counted="estimate", prompt_tokens=tokens))

    async def _plan_beside(self, request: GenerationRequest, window: int | None, to_the_token: bool) -> Plan:
        """Returns the plan of a large request; the model server is still called in its own event loop."""
        loop, ours = asyncio.get_running_loop(), self._planner
        if self._beside is None or self._beside[0] is not loop:
            self._beside = loop, self._make_planner(FromBeside(self.server, loop))
        planner = self._beside[1]
        if ours.takes_system is not None:
            planner.takes_system = ours.takes_system
        plan = await run_beside(planner.plan(request, window, to_the_token=to_the_token))
        ours.takes_system = planner.takes_system
        return plan

    async def answer(self, plan: Plan, answer: Answer) -> None:
        """Write the answer to a plan, with citations. Cancelling the task stops the model.

        Raises:
            InvalidRequest, Overloaded, ModelServerError: See `ModelServer.generate`.
        """
        if (text := self._known(plan)) is not None:
            answer.text(text)
            answer.finished(Finished("stop", Usage(0, 0)))
            return
        cited = None
        if find := finder(plan):
            answer = cited = citing(answer, plan, find)
        generate, to = self.server.generate, answer
        await self._ask(plan, lambda prompt, sampling, options: generate(prompt, sampling, options, to))
        if cited and cited.late:
            await cited.finish()

    async def complete(self, plan: Plan) -> Generation:
        """Returns the complete answer to a plan; see `answer`.

        Raises:
            ModelServerError: Also if the answer is incomplete.
        """
        if (text := self._known(plan)) is not None:
            return Generation(text, "stop", Usage(0, 0))
        generation = await self._ask(plan, self._complete or partial(collect, self.server.generate))
        find = finder(plan)
        if find is None:
            return generation
        if len(generation.text) > found_at_once(plan):
            return await beside(with_citations, generation, find, echoed(plan))
        return with_citations(generation, find, echoed(plan))

    async def _ask(self, plan: Plan, ask: Callable[[Prompt, Sampling, Mapping[str, JSON]], Awaitable[T]]) -> T:
        """Call `ask` with the plan, without those defaults that the model server refuses."""
        try:
            return await self._within_total(plan, ask)
        except (InvalidRequest, Refused) as error:
            without = without_default(plan, error) if isinstance(error, InvalidRequest) else None
            moved = self._without_system(plan, error)
            if not (without or moved):
                raise
        if without:
            log.debug("asked again without a default that the model server refuses")
            return await self._ask(without, ask)
        assert moved
        log.debug("asked again with the instruction in the question, since the model may take no system message")
        answer = await self._ask(moved, ask)
        self._planner.refused_system()
        return answer

    def _without_system(self, plan: Plan, error: LLMError) -> Plan | None:
        """Returns the plan with the instruction in the user message, for a model that may refuse system messages; None
        if the error is another one."""
        if not plan.has_system_instruction or self._planner.takes_system or not refuses_system(error):
            return None
        assert not isinstance(plan.prompt, str)
        return replace(plan, prompt=in_user_message(plan.prompt), has_system_instruction=False)

    async def _within_total(self, plan: Plan, ask: Callable[[Prompt, Sampling, Mapping[str, JSON]], Awaitable[T]]) -> T:
        """Call `ask` with the plan, limited to `max_total_tokens` if the request has it."""
        most = plan.request.max_total_tokens
        if most is None:
            return await ask(plan.prompt, plan.sampling, plan.options)
        request = plan.request
        try:
            return await ask(plan.prompt, await self._limited(most, plan.prompt, request.sampling), plan.options)
        except InvalidRequest as error:
            one = one_token(error, request)
        return await ask(plan.prompt, one, plan.options)

    def _known(self, plan: Plan) -> str | None:
        """Returns the answer that is given without the model server; None if there is none."""
        return (self._nothing_found or None) if plan.report.nothing_found else None

    async def preview(self, request: GenerationRequest) -> Preview:
        """Returns what the model server would receive for a request, with exact token counts. Nothing is generated.

        Raises:
            InvalidRequest: The request cannot be served.
            ModelServerError: The model server cannot render the prompt.
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
        """Returns the sampling that `answer` would send."""
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
            return one_token(error, plan.request)

    async def _limited(self, most: int, prompt: Prompt, sampling: Sampling) -> Sampling:
        """Returns the sampling that limits prompt and answer to `most` tokens together.

        Raises:
            InvalidRequest: The prompt alone is counted here, and has as many tokens.
        """
        await self.info()
        if self._keeps_total:
            return replace(sampling, max_total_tokens=most)
        return await self._counted(most, prompt, sampling)

    async def _counted(self, most: int, prompt: Prompt, sampling: Sampling) -> Sampling:
        """As `_limited`, where the prompt is counted here, without what a chat template adds."""
        tokens, exact = await self._tokens_of(prompt)
        if tokens >= most and exact:  # Nobody is refused by an estimate.
            raise no_room(tokens, most)
        return replace(sampling, max_tokens=min(max(most - tokens, 1), sampling.max_tokens or most))

    async def _tokens_of(self, prompt: Prompt) -> tuple[int, bool]:
        """Returns the tokens of a prompt's text, 0 if the model server counts none, and whether that is exact."""
        if not isinstance(self.server, CountsTokens):
            return 0, True
        count = self._planner.counter.count()
        return await count.text(_text(prompt)), count.exact

    async def _with_answer_limit(self, request: GenerationRequest) -> GenerationRequest:
        """Returns the request with a limit of the answer instead of one of prompt and answer together."""
        most, prompt = request.max_total_tokens, request.prompt
        if most is None:
            return request
        try:
            sampling = await self._counted(most, prompt, request.sampling)
        except InvalidRequest as error:
            sampling = one_token(error, request)
        return replace(request, sampling=sampling, max_total_tokens=None)

    async def embed(self, texts: Sequence[str], model: str | None = None) -> Embeddings:
        """Returns one vector for each text; see `Embeds.embed`.

        Args:
            texts: The texts.
            model: The model's public name; None or empty: any.

        Raises:
            NotSupported: The model computes no embeddings.
            InvalidRequest: A text cannot be served.
            ModelServerError: The model server failed.
        """
        self._usable(model)
        if not isinstance(self.server, Embeds):
            raise NotSupported(f"{self.model} makes no embeddings", "model")
        return await self.server.embed(texts) if texts else Embeddings((), 0)

    async def count_tokens(self, text: str, model: str | None = None) -> int:
        """Returns the number of tokens of a text, without special tokens; see `CountsTokens.count_tokens`.

        It is an estimate if the model server turns out to have no route that counts.

        Raises:
            NotSupported: The model server counts no tokens.
            InvalidRequest: The text is too long.
            ModelServerError: The model server failed.
        """
        self._usable(model)
        if not isinstance(self.server, CountsTokens):
            raise NotSupported(f"the model server of {self.model} counts no tokens", "model")
        try:
            return await self.server.count_tokens(text)
        except Refused as refused:
            if refused.status not in NO_SUCH_ROUTE:
                raise
            return estimate(text)

    async def tokenize(self, text: str, model: str | None = None) -> Sequence[Token]:
        """Returns the tokens of a text as the model reads it; see `Tokenizes.tokenize`.

        Raises:
            NotSupported: The model server tells no token ids.
            InvalidRequest: The text is too long.
            ModelServerError: The model server failed.
        """
        self._usable(model)
        unsupported = NotSupported(f"the model server of {self.model} tells no token ids", "model")
        if not isinstance(self.server, Tokenizes):
            raise unsupported
        try:
            return await self.server.tokenize(text)
        except Refused as refused:
            if refused.status not in NO_SUCH_ROUTE:
                raise
            raise unsupported from None

    async def count_prompt(self, request: GenerationRequest) -> int:
        """Returns the number of tokens of a prompt, as the model would read it; an estimate if nothing counts them.

        Raises:
            InvalidRequest: The request cannot be served.
            ModelServerError: The model server failed.
        """
        tokens = (await self.plan(request, to_the_token=True)).report.prompt_tokens
        assert tokens is not None  # The report of such a plan has them.
        return tokens

    async def tokenize_prompt(self, request: GenerationRequest) -> tuple[str, Sequence[Token]]:
        """Returns the text of a prompt, as the model's chat template renders it, and its tokens.

        Raises:
            NotSupported: The model server tells no token ids, or its chat template is not known.
            InvalidRequest: The request cannot be served.
            ModelServerError: The model server failed.
        """
        rendered = await self._rendered(await self.plan(request))
        if rendered is None:
            raise NotSupported(f"the chat template of {self.model} is not known here", "messages")
        return rendered, await self.tokenize(rendered)

    def _usable(self, model: str | None) -> None:
        if model and model != self.model:
            raise UnknownModel(model, self.model)
        if self._broken:
            raise ModelServerError(self._broken)

    async def describe(self) -> ModelInfo:
        """Returns the model server's description with the model's public name; see `ModelServer.describe`."""
        if self._broken:
            raise ModelServerError(self._broken)
        info = await self.server.describe()
        self._keeps_total = TOTAL in info.capabilities
        counts = {TOTAL} if isinstance(self.server, CountsTokens) else set()
        base = next((name for name in (info.base, info.name) if has_chat_template(name) is not None), self.model)
        template = has_chat_template(base) if info.has_chat_template is None else info.has_chat_template
        self._info = replace(
            info,
            name=self.model,
            capabilities=info.capabilities | counts,
            base=base,
            has_chat_template=template,
        )
        return self._info

    @property
    def is_described(self) -> bool:
        """Whether `info` returns, or raises, without asking the model server."""
        return self._info is not None or bool(self._broken)

    async def info(self) -> ModelInfo:
        """Returns the last description, so that a request does not wait for a new one."""
        return self._info if self._info and not self._broken else await self.describe()


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(text_of(message.content) for message in prompt)
