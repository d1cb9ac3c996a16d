"""From a request to the prompt that fits: what is counted, what gives way, and the report of it."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from comps.core.budget import DEFAULT_SHARING, LEAST_PIECE, Sharing, cut, share
from comps.core.counting import AROUND, Count, Counter, at_least, at_most, longest_text, may_fit, text_read
from comps.core.errors import PromptTooLong
from comps.core.layout import Beside, InText, Layout, find_beside
from comps.core.ports import ModelServer
from comps.core.prompts import DEFAULT_TEMPLATES, Templates, chosen_template, escape_control_tokens, numbered
from comps.core.types import JSON, Document, DocumentUse, GenerationRequest, Prompt, Report, Sampling, Usage

log = logging.getLogger("opea_llm")

_CLOSE = 0.97
"""Of the characters that a piece of a document may have by its share of tokens: some of them are dearer than others."""
_SURE = 3
"""Quarters of what is estimated that a prompt has for sure."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the model server will be asked, and what became of the request on the way."""

    request: GenerationRequest
    prompt: Prompt
    sampling: Sampling
    options: Mapping[str, JSON]
    report: Report
    documents: tuple[Document, ...] = ()
    """Those that the model is given, as it is given them."""
    numbered: bool = False
    """Whether the model can tell them by their numbers."""
    sources: tuple[Document, ...] = ()
    """The same documents as the caller sent them, to be cited."""


class Planner:
    """Plans requests for one model server.

    Args:
        server: Whose model answers.
        sharing: How to share its context window.
        templates: How questions and documents become prompts.
        escape: Makes a text of somebody's one that neither opens nor closes a turn.
        native: Leave it to the model's own chat template to write documents down, if it does.
    """

    def __init__(
        self,
        server: ModelServer,
        sharing: Sharing = DEFAULT_SHARING,
        templates: Templates = DEFAULT_TEMPLATES,
        escape: Callable[[str], str] = str,
        native: bool = False,
    ) -> None:
        self._counter = Counter(server)
        self._sharing = sharing
        self._as_written = InText(templates)
        self._in_text = InText(replace(templates, escape=escape))
        self._escape = escape
        self._native = native
        self._beside: Beside | None = None

    async def plan(self, request: GenerationRequest, window: int | None, *, to_the_token: bool = False) -> Plan:
        """What to ask the model server for a request.

        Args:
            request: It.
            window: The model's context window, in tokens; None if nobody knows it: then nothing gives way.
            to_the_token: Count all there is to count, for the report; what is asked is the same. Otherwise nothing is
                counted that is sure to fit, and of the rest the sum of its parts is taken, which may be a few tokens
                more, so that counting costs a single round trip.

        Raises:
            InvalidRequest: There are documents, but no question (`PromptTooLong` if that alone fills the window).
        """
        given = numbered(request.documents or ())
        if request.documents is not None:
            request = replace(request, documents=tuple(one for one in given if not _is_empty(one)))
        layout = await self._layout(request)
        # Before any text is looked at: that of a whole library would hold up everybody else.
        as_written = self._as_written if layout is self._in_text else layout
        plan: Plan | None = None
        if self._is_sure_to_fit(as_written.lay(request), request, window):
            plan = _as_it_is(escape_control_tokens(request, self._escape), layout, window)
            if not self._is_sure_to_fit((plan.prompt, plan.options), request, window):
                plan = None
        if plan is None:
            assert window is not None
            plan = await self._fitted(request, layout, window, to_the_token)
        elif to_the_token:
            plan = await self._counted(plan, request, layout)
        kept = {document.number for document in plan.documents}
        uses = iter(plan.report.documents)
        told = tuple(
            DocumentUse(place, "dropped", "it is empty", 0, 0) if _is_empty(one) else replace(next(uses), number=place)
            for place, one in enumerate(given, 1)
        )
        sources = tuple(one for one in given if one.number in kept)
        return replace(plan, report=replace(plan.report, documents=told), sources=sources)

    def _is_sure_to_fit(
        self, laid: tuple[Prompt, Mapping[str, JSON]], request: GenerationRequest, window: int | None
    ) -> bool:
        """Whether nothing need be counted; who limits prompt and answer together has the model server keep to it."""
        if window is None or request.max_total_tokens is not None:
            return True
        return at_most(*laid) + (request.sampling.max_tokens or self._sharing.least_answer) <= window

    async def _counted(self, plan: Plan, request: GenerationRequest, layout: Layout) -> Plan:
        """The plan of a request that is sure to fit, with all in its report counted."""
        report = plan.report
        if report.context_window is not None and request.max_total_tokens is None:
            detailed = await self._fitted(request, layout, report.context_window, to_the_token=True)
            if (detailed.prompt, detailed.sampling, detailed.options) == (plan.prompt, plan.sampling, plan.options):
                return replace(plan, report=detailed.report)
        count = self._counter.count()
        tokens = await count.prompt(plan.prompt, plan.options)
        counted = "model" if count.exact else "estimate"
        return replace(plan, report=replace(report, counted=counted, prompt_tokens=tokens))

    async def _layout(self, request: GenerationRequest) -> Layout:
        if not (self._native and Beside.suits(request)):
            return self._in_text
        if self._beside is None:
            count = self._counter.count()
            self._beside = await find_beside(count)
            if self._beside is None and count.exact:
                self._native = False
                log.warning("native_documents: the model's chat template takes none, so they are in the prompt's text")
        return self._beside or self._in_text

    async def _fitted(self, request: GenerationRequest, layout: Layout, window: int, to_the_token: bool) -> Plan:
        documents = request.documents or ()
        near = escape_control_tokens(self._near(request, window), self._escape)
        if near.template is None:
            near = replace(near, template=chosen_template(request, self._in_text.templates))
        exchanges = _exchanges(near.prompt)
        count = self._counter.count()
        sizes = await _sizes(near, exchanges, layout, count)
        question, history = sizes.question, sizes.history
        if not count.exact:  # Nobody is refused by an estimate.
            question = min(question, window - 1)
        times = layout.times(near)
        weights = [(size + layout.around) * times for size in sizes.documents]
        asked = near.sampling.max_tokens
        shared = share(window, question, history, weights, self._sharing, asked)
        packed = await _packed(near.documents or (), sizes.documents, shared.room, layout, times, count)
        dropped = exchanges[: len(exchanges) - shared.exchanges]
        kept = replace(
            near,
            prompt=_without(near.prompt, {place for exchange in dropped for place in exchange}),
            documents=None if near.documents is None else packed.documents,
        )
        prompt, options = layout.lay(kept)
        around = len(packed.kept) * layout.around * times
        uses = tuple(_uses(documents, near.documents or (), sizes.documents, packed))
        history_tokens = sum(history[len(dropped) :])
        report = Report(
            context_window=window,
            counted="model" if count.exact else "estimate",
            documents=uses,
            nothing_found=request.documents == (),
            turns_dropped=len(request.prompt) - len(kept.prompt),
            native=isinstance(layout, Beside),
            prompt_tokens=question + around + packed.tokens + history_tokens,
            documents_tokens=packed.tokens,
            history_tokens=history_tokens,
            question_tokens=question + around,
        )
        if asked is not None:
            report = replace(report, max_tokens=min(asked, self._room(report, count)))
        if to_the_token:
            report = settled(report, Usage(await count.prompt(prompt, options), 0))
        sampling = replace(kept.sampling, max_tokens=report.max_tokens)
        return Plan(kept, prompt, sampling, options, report, kept.documents or (), layout.numbered)

    def _near(self, request: GenerationRequest, window: int) -> GenerationRequest:
        """The request without what cannot fit in any case: a whole library would hold up everybody else.

        Raises:
            PromptTooLong: The question cannot.
        """
        exchanges = _exchanges(request.prompt)
        earlier = [place for exchange in exchanges for place in exchange]
        least = at_least(_without(request.prompt, set(earlier)))
        if least >= window:
            raise PromptTooLong(least, window, at_least=True)
        said = [_said(request.prompt, exchange) for exchange in exchanges]
        far = exchanges[: len(exchanges) - may_fit(reversed(said), window)]
        prompt = _without(request.prompt, {place for exchange in far for place in exchange})
        if request.documents is None:
            return replace(request, prompt=prompt)
        documents = tuple(_beginning(one, window) for one in request.documents)
        # One of them may turn out to have no beginning that says something, and leave its room to those behind it.
        return replace(
            request, prompt=prompt, documents=documents[: may_fit((one.text for one in documents), 2 * window)]
        )

    def _room(self, report: Report, count: Count) -> int:
        """How many tokens there are for the answer, at least 1."""
        window, prompt = report.context_window or 0, report.prompt_tokens or 0
        if count.exact:
            return max(window - prompt, 1)
        # An estimate is too much rather than too little: it shall leave nobody without an answer.
        return max(window - prompt, min(self._sharing.least_answer, window - prompt * _SURE // 4), 1)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How many tokens the parts of a request have."""

    question: int
    """With all that is always there: the templates, the system's messages, what is beside the messages."""
    history: list[int]
    """Of each exchange, with what a chat template may lay around its messages."""
    documents: list[int]


async def _sizes(
    request: GenerationRequest, exchanges: Sequence[Sequence[int]], layout: Layout, count: Count
) -> _Sizes:
    earlier = {place for exchange in exchanges for place in exchange}
    none = None if request.documents is None else ()
    bare, _ = layout.lay(replace(request, prompt=_without(request.prompt, earlier), documents=none))
    said = [_said(request.prompt, exchange) for exchange in exchanges]
    read = [layout.read(document) for document in request.documents or ()]
    question, sizes = await count.prompt_and_texts(bare, request.options, [*said, *read])
    history = [size + AROUND * len(one) for size, one in zip(sizes, exchanges, strict=False)]
    return _Sizes(question, history, sizes[len(exchanges) :])


@dataclass(slots=True)
class _Packed:
    """The documents that fit."""

    kept: dict[int, tuple[Document, int]] = field(default_factory=dict)
    """As the model gets them, with their tokens, by place."""
    uncut: set[int] = field(default_factory=set)
    """The places of those that do not fit, and have no beginning that says something, such as a sentence."""

    @property
    def documents(self) -> tuple[Document, ...]:
        return tuple(document for document, _ in self.kept.values())

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens in self.kept.values())


async def _packed(
    documents: Sequence[Document], sizes: Sequence[int], room: int, layout: Layout, times: int, count: Count
) -> _Packed:
    """Pack the documents, the best first: whole ones as long as they fit, then the beginning of one."""
    packed = _Packed()
    for place, (document, size) in enumerate(zip(documents, sizes, strict=True)):
        most = room // times - layout.around
        if size <= most:
            packed.kept[place] = document, size * times
            room -= (size + layout.around) * times
            continue
        if most < LEAST_PIECE:
            break
        piece, tokens = await _piece(document, layout, size, most, count)
        if piece:
            packed.kept[place] = piece, tokens * times
            break
        packed.uncut.add(place)
    return packed


def _uses(
    documents: Sequence[Document], near: Sequence[Document], sizes: Sequence[int], packed: _Packed
) -> Iterator[DocumentUse]:
    """What became of the documents, of which those that are near were looked at."""
    for place, document in enumerate(documents):
        # Of one that is too long for any window, only the beginning was counted.
        size = sizes[place] if place < len(near) and len(document.text) <= len(near[place].text) else None
        kept, tokens = packed.kept.get(place, (None, 0))
        if kept is None:
            why = "not even a sentence of it fits" if place in packed.uncut else "it does not fit the context window"
            yield DocumentUse(place + 1, "dropped", why, size, 0)
        elif size is not None and kept is near[place]:
            yield DocumentUse(place + 1, "kept", "", size, tokens)
        else:
            yield DocumentUse(place + 1, "cut", "the rest does not fit the context window", size, tokens)


async def _piece(
    document: Document, layout: Layout, tokens: int, most: int, count: Count
) -> tuple[Document | None, int]:
    """The beginning of a document with at most so many tokens, and how many those are; None if there is none."""
    read = layout.read(document)
    if ends := count.ends(read):
        return _piece_found(document, read.rfind(document.text), ends, most)
    length = int(len(document.text) * most / tokens * _CLOSE)
    while text := cut(document.text, length):
        piece = replace(document, text=text)
        used = await count.text(layout.read(piece))
        if used <= most:
            return piece, used
        length = min(int(len(text) * most / used * _CLOSE), len(text) - 1)
    return None, 0


def _piece_found(document: Document, begin: int, ends: Sequence[int], most: int) -> tuple[Document | None, int]:
    """The same where it is known where the tokens end of what is read, in which the document's text begins at a place.

    What is behind the text comes behind its piece as well, and one token more than before where they meet.
    """
    behind = len(ends) - bisect_right(ends, begin + len(document.text)) + 1
    if most <= behind:
        return None, 0
    text = cut(document.text, max(ends[most - behind - 1] - begin, 0))
    used = bisect_right(ends, begin + len(text)) + behind
    return (replace(document, text=text), used) if text else (None, 0)


def _as_it_is(request: GenerationRequest, layout: Layout, window: int | None) -> Plan:
    prompt, options = layout.lay(request)
    documents = request.documents or ()
    report = Report(
        window,
        documents=tuple(DocumentUse(place, "kept") for place, _ in enumerate(documents, 1)),
        nothing_found=request.documents == (),
        native=isinstance(layout, Beside),
        max_tokens=request.sampling.max_tokens,
    )
    return Plan(request, prompt, request.sampling, options, report, documents, layout.numbered)


def settled(report: Report, usage: Usage | None) -> Report:
    """A report with what the model server has counted itself, which beats all sums.

    What is around the messages of the history was only estimated, so that these make up for the difference, else the
    question does; where all was estimated, every part does.
    """
    if usage is None or not usage.prompt_tokens:
        return report
    settled = replace(report, prompt_tokens=usage.prompt_tokens)
    if report.prompt_tokens is None or report.question_tokens is None:
        return settled
    if report.counted == "estimate":
        return _scaled(report, usage.prompt_tokens)
    over = report.prompt_tokens - usage.prompt_tokens
    if report.history_tokens and over <= report.history_tokens:
        return replace(settled, history_tokens=report.history_tokens - over)
    return replace(settled, question_tokens=report.question_tokens - over)


def _scaled(report: Report, prompt_tokens: int) -> Report:
    """An estimate, made to fit what the prompt has in the end."""
    estimated = report.prompt_tokens or 1

    def scaled(tokens: int | None) -> int | None:
        return tokens and tokens * prompt_tokens // estimated

    uses = tuple(
        replace(use, tokens=scaled(use.tokens), tokens_used=scaled(use.tokens_used)) for use in report.documents
    )
    documents, history = sum(use.tokens_used or 0 for use in uses), scaled(report.history_tokens) or 0
    return replace(
        report,
        documents=uses,
        prompt_tokens=prompt_tokens,
        documents_tokens=documents,
        history_tokens=history,
        question_tokens=prompt_tokens - documents - history,
    )


def _is_empty(document: Document) -> bool:
    return not (document.text.strip() or document.title.strip())


def _beginning(document: Document, window: int) -> Document:
    """As much of a document as may fit a context window."""
    return replace(document, text=document.text[: longest_text(window)])


def _exchanges(prompt: Prompt) -> list[list[int]]:
    """The places of what was said before the question: an exchange is a turn of the user and all that came of it, but
    for what the system says, which is always there."""
    if isinstance(prompt, str):
        return []
    last = max((place for place, message in enumerate(prompt) if message.role == "user"), default=0)
    exchanges: list[list[int]] = []
    for place, message in enumerate(prompt[:last]):
        if message.role == "user":
            exchanges.append([place])
        elif message.role not in ("system", "developer"):
            exchanges = exchanges or [[]]
            exchanges[-1].append(place)
    return exchanges


def _said(prompt: Prompt, exchange: Sequence[int]) -> str:
    assert not isinstance(prompt, str)
    return "\n".join(text_read(prompt[place]) for place in exchange)


def _without(prompt: Prompt, places: Collection[int]) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    return tuple(message for place, message in enumerate(prompt) if place not in places)
