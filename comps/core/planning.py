"""From a request to the prompt that fits: what is counted, what gives way, and the report of it."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from comps.core.budget import USUAL, Share, Sharing, cut, share
from comps.core.counting import AROUND, Count, Counter, at_most, may_fit
from comps.core.layout import Beside, InText, Layout, find_beside
from comps.core.ports import ModelServer
from comps.core.prompts import HOUSE, Templates, chosen_template, made_harmless, numbered, text_of
from comps.core.types import JSON, Document, DocumentUse, GenerationRequest, Message, Prompt, Report, Sampling, Usage

log = logging.getLogger("opea_llm")

_CLOSE = 0.97
"""Of the characters that a piece of a document may have by its share of tokens: some of them are dearer than others."""


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
        harmless: Makes a text of somebody's one that neither opens nor closes a turn.
        native: Leave it to the model's own chat template to write documents down, if it does.
    """

    def __init__(
        self,
        server: ModelServer,
        sharing: Sharing = USUAL,
        templates: Templates = HOUSE,
        harmless: Callable[[str], str] = str,
        native: bool = False,
    ) -> None:
        self._counter = Counter(server)
        self._sharing = sharing
        self._as_written = InText(templates)
        self._in_text = InText(replace(templates, harmless=harmless))
        self._harmless = harmless
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
        if request.documents:
            request = replace(request, documents=numbered(request.documents))
        sources = request.documents or ()
        layout = await self._layout(request)
        # Before any text is looked at: that of a whole library would hold up everybody else.
        as_written = self._as_written if layout is self._in_text else layout
        if self._is_sure_to_fit(as_written.lay(request), request, window):
            harmless = made_harmless(request, self._harmless)
            laid = layout.lay(harmless)
            if self._is_sure_to_fit(laid, request, window):
                plan = _as_it_is(harmless, laid, layout, sources, window)
                return await self._counted(plan, request, layout) if to_the_token and _is_text(laid[0]) else plan
        assert window is not None
        plan = await self._fitted(request, layout, window, to_the_token)
        return replace(plan, sources=sources[: len(plan.documents)])

    def _is_sure_to_fit(
        self, laid: tuple[Prompt, Mapping[str, JSON]], request: GenerationRequest, window: int | None
    ) -> bool:
        """Whether nothing need be counted; who limits prompt and answer together has the model server keep to it."""
        prompt, options = laid
        if window is None or request.max_total_tokens is not None or not _is_text(prompt):
            return True
        return at_most(prompt, options) + (request.sampling.max_tokens or self._sharing.least_answer) <= window

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
        given = request.documents or ()
        template = chosen_template(request, self._in_text.templates)
        question, exchanges = _divided(request.prompt)
        # What cannot fit in any case is not looked at: a whole library would hold up everybody else.
        said = ["\n".join(text_of(message.content) for message in exchange) for exchange in exchanges]
        earlier = sum(map(len, exchanges))
        exchanges = exchanges[len(said) - may_fit(reversed(said), window) :]
        near = given[: may_fit((document.text for document in given), window)]
        turns = [message for exchange in exchanges for message in exchange]
        request = replace(request, prompt=_with(question, turns), documents=near if given else request.documents)
        request = made_harmless(request, self._harmless)
        if request.template is None:
            request = replace(request, template=template)
        question, exchanges = _divided(request.prompt)
        documents = request.documents or ()

        none = None if request.documents is None else ()
        bare, _ = layout.lay(replace(request, prompt=question, documents=none))
        said = ["\n".join(text_of(message.content) for message in exchange) for exchange in exchanges]
        read = [layout.read(document) for document in documents]
        count = self._counter.count()
        tokens, sizes = await count.prompt_and_texts(bare, request.options, [*said, *read])
        history = [size + AROUND * len(one) for size, one in zip(sizes, exchanges, strict=False)]
        texts = sizes[len(exchanges) :]
        asked = request.sampling.max_tokens
        if not count.exact:  # Nobody is refused by an estimate.
            tokens = min(tokens, window - 1)
        sizes = [size + layout.around for size in texts]
        shared = share(window, tokens, history, sizes, self._sharing, asked)
        kept = list(documents[: shared.whole])
        piece, piece_tokens = None, 0
        if shared.piece:
            room = shared.piece - layout.around
            piece, piece_tokens = await _piece(documents[shared.whole], layout, texts[shared.whole], room, count)
            kept += [piece] if piece else []
        latest = [message for exchange in exchanges[len(exchanges) - shared.exchanges :] for message in exchange]
        request = replace(request, prompt=_with(question, latest), documents=tuple(kept) if documents else none)
        prompt, options = layout.lay(request)
        around = len(kept) * layout.around
        documents_tokens = sum(texts[: shared.whole]) + piece_tokens
        history_tokens = sum(history[len(history) - shared.exchanges :])
        report = Report(
            context_window=window,
            counted="model" if count.exact else "estimate",
            documents=tuple(_uses(texts, len(given), shared, piece_tokens)),
            nothing_found=request.documents == () and not given,
            turns_dropped=earlier - len(latest),
            native=isinstance(layout, Beside),
            prompt_tokens=tokens + around + documents_tokens + history_tokens,
            documents_tokens=documents_tokens,
            history_tokens=history_tokens,
            question_tokens=tokens + around,
        )
        if asked is not None:
            least = 1 if count.exact else self._sharing.least_answer
            most = min(asked, max(window - (report.prompt_tokens or 0), least))
            report = replace(report, max_tokens=most)
        if to_the_token:
            report = settled(report, Usage(await count.prompt(prompt, options), 0))
        sampling = replace(request.sampling, max_tokens=report.max_tokens)
        return Plan(request, prompt, sampling, options, report, tuple(kept), layout.numbered)


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


def _as_it_is(
    request: GenerationRequest,
    laid: tuple[Prompt, Mapping[str, JSON]],
    layout: Layout,
    sources: tuple[Document, ...],
    window: int | None,
) -> Plan:
    prompt, options = laid
    documents = request.documents or ()
    report = Report(
        window,
        documents=tuple(DocumentUse(place, "kept") for place, _ in enumerate(documents, 1)),
        nothing_found=request.documents == (),
        native=isinstance(layout, Beside),
        max_tokens=request.sampling.max_tokens,
    )
    return Plan(request, prompt, request.sampling, options, report, documents, layout.numbered, sources)


def settled(report: Report, usage: Usage | None) -> Report:
    """A report with what the model server has counted itself, which beats all sums. What is around the messages of the
    history was only estimated, so that these make up for the difference, else the question does."""
    if usage is None or not usage.prompt_tokens:
        return report
    settled = replace(report, prompt_tokens=usage.prompt_tokens)
    if report.prompt_tokens is None or report.question_tokens is None:
        return settled
    over = report.prompt_tokens - usage.prompt_tokens
    if report.history_tokens and over <= report.history_tokens:
        return replace(settled, history_tokens=report.history_tokens - over)
    return replace(settled, question_tokens=report.question_tokens - over)


def _uses(sizes: Sequence[int], documents: int, shared: Share, piece: int) -> list[DocumentUse]:
    uses = []
    for place in range(documents):
        size = sizes[place] if place < len(sizes) else None
        if place < shared.whole:
            uses.append(DocumentUse(place + 1, "kept", "", size, size))
        elif place == shared.whole and piece:
            uses.append(DocumentUse(place + 1, "cut", "the rest does not fit the context window", size, piece))
        else:
            uses.append(DocumentUse(place + 1, "dropped", "it does not fit the context window", size, 0))
    return uses


def _is_text(prompt: Prompt) -> bool:
    return isinstance(prompt, str) or all(isinstance(message.content, str) for message in prompt)


def _divided(prompt: Prompt) -> tuple[Prompt, list[list[Message]]]:
    """A prompt without what was said before the question, and that: an exchange is a turn of the user and all that
    came of it."""
    if isinstance(prompt, str):
        return prompt, []
    last = max((place for place, message in enumerate(prompt) if message.role == "user"), default=0)
    always: list[Message] = []
    exchanges: list[list[Message]] = []
    for place, message in enumerate(prompt):
        if place >= last or message.role in ("system", "developer"):
            always.append(message)
        elif message.role == "user" or not exchanges:
            exchanges.append([message])
        else:
            exchanges[-1].append(message)
    return tuple(always), exchanges


def _with(question: Prompt, history: Sequence[Message]) -> Prompt:
    """The history again before the question, behind the system's messages in front of it."""
    if isinstance(question, str) or not history:
        return question
    last = max((place for place, message in enumerate(question) if message.role == "user"), default=0)
    return (*question[:last], *history, *question[last:])
