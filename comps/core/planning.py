"""From a request to the prompt that fits the context window: what is counted, what is dropped, and the report of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf

from comps.core.budget import DEFAULT_SHARING, Share, Sharing, share
from comps.core.counting import (
    MESSAGE_OVERHEAD,
    Count,
    Counter,
    longest_text,
    lower_bound,
    may_fit,
    upper_bound,
)
from comps.core.errors import LLMError, PromptTooLong
from comps.core.escaping import escape_prompt, join_texts
from comps.core.exchanges import exchange_text, exchanges_of, without
from comps.core.instructions import asks_for_marks, has_instruction, instructed, takes_system_messages
from comps.core.layout import InOptions, InPrompt, Layout, find_native
from comps.core.ordering import DEFAULT_ORDERING, Chosen, Ordering, at_the_ends, choose
from comps.core.packing import Packed, pack, uses_of
from comps.core.ports import ModelServer, Renders
from comps.core.prompts import (
    DEFAULT_TEMPLATES,
    Templates,
)
from comps.core.reports import settled
from comps.core.types import JSON, Document, DocumentUse, GenerationRequest, Prompt, Report, Sampling, Usage
from comps.core.value_types import value_type

log = logging.getLogger("opea_llm")

_PAUSE = 30.0
"""Seconds after which it is tried again to find out what a model takes, if its server failed."""
_CERTAIN_QUARTERS = 3
"""How many quarters of an estimate a prompt has at least: see `counting.estimate`."""


_NONE = Chosen((), ())
"""Of a request without documents."""


@value_type(frozen=True, slots=True)
class Plan:
    """What the model server will be asked, and what became of the request on the way."""

    request: GenerationRequest
    """Without the documents that are left out, and with the template and the instruction that it gets."""
    prompt: Prompt
    sampling: Sampling
    options: Mapping[str, JSON]
    report: Report
    documents: tuple[Document, ...] = ()
    """Those that the model gets, as it gets them: cut, and with turn markers broken up."""
    numbered: bool = False
    """Whether the model sees their numbers."""
    citations: str = "auto"
    """How the answer cites documents; see `CITATION_MODES`."""
    sources: tuple[Document, ...] = ()
    """The same documents as the caller sent them, to be cited."""
    has_system_instruction: bool = False
    """Whether the first message of the prompt is our own, the instruction."""


class Planner:
    """Plans requests for one model server.

    Args:
        server: Whose model answers.
        sharing: How to share its context window.
        templates: How questions and documents become prompts.
        escape: Breaks up turn markers in a text; to escape twice must be the same as to escape once.
        native: Leave it to the model's own chat template to write the documents, if it does.
        ordering: How documents are ordered.
        citations: How answers cite their documents; see `CITATION_MODES`.
    """

    def __init__(
        self,
        server: ModelServer,
        sharing: Sharing = DEFAULT_SHARING,
        templates: Templates = DEFAULT_TEMPLATES,
        escape: Callable[[str], str] = str,
        native: bool = False,
        ordering: Ordering = DEFAULT_ORDERING,
        citations: str = "auto",
    ) -> None:
        self._server = server
        self.counter = Counter(server)
        self.takes_system: bool | None = None
        """Whether the model takes system messages; None: not known yet."""
        self._ask_again = 0.0
        """When it may be tried to find that out, on the monotonic clock."""
        self._finding: asyncio.Future[None] | None = None
        self._sharing = sharing
        self._in_prompt = InPrompt(templates, escape)
        self._with_numbers = InPrompt(templates.with_numbers(), escape)
        self._ordering = ordering
        self._citations = citations
        self._escape = escape
        self._native = native
        self._in_options: InOptions | None = None

    async def plan(self, request: GenerationRequest, window: int | None, *, to_the_token: bool = False) -> Plan:
        """What to ask the model server for a request.

        Args:
            request: It.
            window: The model's context window, in tokens; None if it is not known: then nothing is dropped.
            to_the_token: Count everything, for the report; what is asked is the same. Otherwise nothing is counted if
                the request surely fits, and if it may not, its parts are counted in one round trip and added up, which
                may be a few tokens more than the prompt has.

        Raises:
            InvalidRequest: There are documents and no question (`PromptTooLong` if that alone fills the window).
        """
        chosen = await choose(request, self._ordering) if request.documents else _NONE
        if chosen.given:
            request = replace(request, documents=chosen.documents or (None if request.quoted else ()))
        if not isinstance(request.prompt, str):
            messages = join_texts(request.prompt)
            request = request if messages is request.prompt else replace(request, prompt=messages)
        layout = await self._layout(request)
        asked = request
        if isinstance(layout, InPrompt):
            request = await self._instructed(request, layout)
        plan = self._uncounted(request, layout, window, chosen)
        if plan is None:
            assert window is not None
            plan = await self._fitted(request, layout, window, chosen, to_the_token)
        elif to_the_token:
            plan = await self._counted(plan, layout, chosen)
        if chosen.places and not plan.documents:
            plan = await self._without_documents(plan, asked, window, to_the_token)
        if has_instruction(asked.prompt, plan.prompt):
            plan = replace(plan, has_system_instruction=True)
        if not (chosen.given or request.quoted):
            return plan
        report = replace(plan.report, documents=chosen.uses(plan.report.documents, plan.documents), order=chosen.order)
        return replace(plan, report=report, sources=chosen.sources(plan.documents), citations=self._mode(request))

    async def _without_documents(
        self, plan: Plan, asked: GenerationRequest, window: int | None, to_the_token: bool
    ) -> Plan:
        """The plan where no document has room: without a context, nothing says to answer from it alone."""
        bare = replace(asked, documents=None)
        is_ours = plan.request.template is not None and asked.template is None
        if isinstance(asked.prompt, str) or not is_ours or window is None:
            return plan
        other = await self._fitted(bare, self._in_prompt, window, _NONE, to_the_token)
        return replace(other, report=replace(other.report, documents=plan.report.documents))

    async def _layout(self, request: GenerationRequest) -> Layout:
        if request.documents and self._wants_marks(request):
            return self._with_numbers
        if self._native and InOptions.suits(request):
            if self._in_options is None:
                self._in_options = await self._find_native()
            if self._in_options:
                return self._in_options
        return self._in_prompt

    async def _find_native(self) -> InOptions | None:
        count = self.counter.count()
        found = await find_native(count, self._escape)
        if found is None and count.exact:
            self._native = False
            log.warning("native_documents: the model's chat template takes none, so they are in the prompt's text")
        return found

    def _mode(self, request: GenerationRequest) -> str:
        return request.citations or self._citations

    def _wants_marks(self, request: GenerationRequest) -> bool:
        """Whether the model is to write citation marks, for which it needs the documents' numbers."""
        mode = self._mode(request)
        return asks_for_marks(request) if mode == "auto" else mode == "on"

    async def _instructed(self, request: GenerationRequest, layout: InPrompt) -> GenerationRequest:
        """The request with its template and its instruction; see `instructed`."""
        asks_to_cite = layout is self._with_numbers and not asks_for_marks(request)
        wrapped = instructed(request, layout.templates, takes_system=True, asks_to_cite=asks_to_cite)
        if has_instruction(request.prompt, wrapped.prompt) and not await self._takes_system_messages():
            wrapped = instructed(request, layout.templates, takes_system=False, asks_to_cite=asks_to_cite)
        return wrapped

    async def _takes_system_messages(self) -> bool:
        """Whether the model takes system messages, as far as is known. It is found out once."""
        if self.takes_system is None and time.monotonic() >= self._ask_again:
            if self._finding is None:
                self._finding = asyncio.ensure_future(self._find_system())
            await asyncio.shield(self._finding)
        return self.takes_system is not False

    async def _find_system(self) -> None:
        count = self.counter.count_prompt if self.counter.can_count else None
        render = self._server.render if isinstance(self._server, Renders) else None
        try:
            self.takes_system = await takes_system_messages(count, render)
            self._ask_again = inf
        except LLMError:
            self._ask_again = time.monotonic() + _PAUSE
        finally:
            self._finding = None

    def refused_system(self) -> None:
        """Note that the model server has refused a system message, and not the same request without one."""
        self.takes_system = False

    def _uncounted(self, request: GenerationRequest, layout: Layout, window: int | None, chosen: Chosen) -> Plan | None:
        """The plan of a request that surely fits as it is; None if tokens have to be counted.

        Texts are escaped only if what is laid out may fit: to search a very long text would hold up other requests.
        """
        limit = self._limit(request, window)
        documents = request.documents or ()
        if limit is not None and sum([len(document.text) for document in documents]) > limit:
            return None
        arranged = _arranged(request, chosen)
        laid = layout.lay(arranged)
        if limit is not None and upper_bound(*laid) > limit:
            return None
        prompt, options, given = layout.escaped(arranged, laid)
        if limit is not None and prompt is not laid[0] and upper_bound(prompt, options) > limit:
            return None
        report = Report(
            window,
            documents=tuple([DocumentUse(place, "kept") for place in range(1, len(documents) + 1)]),
            nothing_found=request.documents == (),
            native=isinstance(layout, InOptions),
            max_tokens=request.sampling.max_tokens,
        )
        return Plan(request, prompt, request.sampling, options, report, given, layout.numbered)

    def _limit(self, request: GenerationRequest, window: int | None) -> int | None:
        """How many tokens the prompt may have; None: it need not be known. Where prompt and answer together are
        limited, the model server holds them to it."""
        if window is None or request.max_total_tokens is not None:
            return None
        return window - (request.sampling.max_tokens or self._sharing.least_answer)

    async def _counted(self, plan: Plan, layout: Layout, chosen: Chosen) -> Plan:
        """The plan of a request that surely fits, with everything in its report counted."""
        report = plan.report
        if report.context_window is not None and plan.request.max_total_tokens is None:
            fitted = await self._fitted(plan.request, layout, report.context_window, chosen, to_the_token=True)
            if (fitted.prompt, fitted.sampling, fitted.options) == (plan.prompt, plan.sampling, plan.options):
                return replace(plan, report=fitted.report)
        count = self.counter.count()
        tokens = await count.prompt(plan.prompt, plan.options)
        return replace(plan, report=replace(report, counted=_counted_by(count), prompt_tokens=tokens))

    async def _fitted(
        self, request: GenerationRequest, layout: Layout, window: int, chosen: Chosen, to_the_token: bool
    ) -> Plan:
        """The plan of a request whose parts are counted; what does not fit is dropped or cut."""
        candidate = self._shortened(request, window)
        exchanges = _droppable(candidate)
        count = self.counter.count()
        sizes = await self._sizes(candidate, exchanges, layout, count)
        if not count.exact:  # Nobody is refused by an estimate.
            sizes = replace(sizes, question=min(sizes.question, window - 1))
        occurrences = layout.occurrences(candidate)
        shared = self._shared(candidate, sizes, layout, window)
        documents = candidate.documents or ()
        packed = await pack(documents, sizes.documents, shared.room, layout, occurrences, count)
        kept = replace(
            candidate,
            prompt=without(candidate.prompt, exchanges[: len(exchanges) - shared.exchanges]),
            documents=None if candidate.documents is None else packed.documents,
        )
        kept = _arranged(kept, chosen)
        prompt, options, given = layout.escaped(kept, layout.lay(kept))
        overhead = len(packed.kept) * layout.overhead * occurrences
        report = replace(
            _parts(sizes, shared, packed, overhead),
            context_window=window,
            counted=_counted_by(count),
            documents=tuple(uses_of(request.documents or (), documents, sizes.documents, packed)),
            nothing_found=request.documents == (),
            turns_dropped=len(request.prompt) - len(kept.prompt),
            native=isinstance(layout, InOptions),
        )
        report = replace(report, max_tokens=self._answer_limit(request.sampling.max_tokens, report, count))
        if to_the_token:
            report = settled(report, Usage(await count.prompt(prompt, options), 0))
        sampling = replace(request.sampling, max_tokens=report.max_tokens)
        return Plan(request, prompt, sampling, options, report, given, layout.numbered)

    def _shortened(self, request: GenerationRequest, window: int) -> GenerationRequest:
        """The request without what cannot fit in any case: to count a whole library would hold up other requests.

        Raises:
            PromptTooLong: The question cannot fit.
        """
        exchanges = _droppable(request)
        least = lower_bound(without(request.prompt, exchanges))
        if least >= window:
            raise PromptTooLong(least, window, at_least=True)
        texts = [exchange_text(request.prompt, exchange) for exchange in exchanges]
        prompt = without(request.prompt, exchanges[: len(exchanges) - may_fit(reversed(texts), window)])
        if request.documents is None:
            return replace(request, prompt=prompt)
        longest = longest_text(window)
        documents = [
            one if len(one.text) <= longest else replace(one, text=one.text[:longest]) for one in request.documents
        ]
        # Twice the window: a document that has no beginning to keep leaves its room to those after it.
        most = may_fit((one.text for one in documents), 2 * window)
        return replace(request, prompt=prompt, documents=tuple(documents[:most]))

    async def _sizes(
        self, request: GenerationRequest, exchanges: Sequence[Sequence[int]], layout: Layout, count: Count
    ) -> _Sizes:
        bare = replace(
            request,
            prompt=without(request.prompt, exchanges),
            documents=None if request.documents is None else (),
        )
        question, _, _ = layout.escaped(bare, layout.lay(bare))
        history = escape_prompt(request.prompt, self._escape)
        texts = [exchange_text(history, exchange) for exchange in exchanges]
        texts += [layout.text(document) for document in request.documents or ()]
        tokens, sizes = await count.prompt_and_texts(question, request.options, texts)
        said = [size + MESSAGE_OVERHEAD * len(one) for size, one in zip(sizes, exchanges, strict=False)]
        return _Sizes(tokens, said, sizes[len(exchanges) :])

    def _shared(self, request: GenerationRequest, sizes: _Sizes, layout: Layout, window: int) -> Share:
        """How the window is shared between the question, the history, the documents and the answer.

        Raises:
            PromptTooLong: The question fills the window.
        """
        occurrences = layout.occurrences(request)
        documents = [(size + layout.overhead) * occurrences for size in sizes.documents]
        return share(window, sizes.question, sizes.history, documents, self._sharing, request.sampling.max_tokens)

    def _answer_limit(self, asked: int | None, report: Report, count: Count) -> int | None:
        """The most tokens that the answer may have, at least 1; None: the model server decides."""
        if asked is None:
            return None
        window, prompt = report.context_window or 0, report.prompt_tokens or 0
        room = window - prompt
        if not count.exact:  # An estimate is too high rather than too low: it is to leave nobody without an answer.
            room = max(room, min(self._sharing.least_answer, window - prompt * _CERTAIN_QUARTERS // 4))
        return min(asked, max(room, 1))


@value_type(frozen=True, slots=True)
class _Sizes:
    """How many tokens the parts of a request have."""

    question: int
    """With all that is always there: the templates, the system messages, and options that the model reads."""
    history: list[int]
    """Of each exchange, with what a chat template may write around its messages."""
    documents: list[int]


def _droppable(request: GenerationRequest) -> list[list[int]]:
    """The exchanges that may be dropped, as the places of their messages; where none may, all is the question."""
    return exchanges_of(request.prompt) if request.drops_turns else []


def _parts(sizes: _Sizes, shared: Share, packed: Packed, overhead: int) -> Report:
    """A report of what the parts of a prompt have."""
    question = sizes.question + overhead
    history = sum(sizes.history[len(sizes.history) - shared.exchanges :])
    return Report(
        prompt_tokens=question + packed.tokens + history,
        documents_tokens=packed.tokens,
        history_tokens=history,
        question_tokens=question,
    )


def _counted_by(count: Count) -> str:
    """See `Report.counted`."""
    return "model" if count.exact else "estimate"


def _arranged(request: GenerationRequest, chosen: Chosen) -> GenerationRequest:
    """The request with its documents, the best first, in the order in which the prompt has them."""
    if chosen.order != "ends" or not request.documents:
        return request
    return replace(request, documents=at_the_ends(request.documents))
