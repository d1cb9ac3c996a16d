"""From a request to the prompt that fits: what is counted, what gives way, and the report of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from comps.core.budget import Share, Sharing, cut, share
from comps.core.counting import AROUND, Count, Counter, at_most, may_fit
from comps.core.ports import ModelServer
from comps.core.prompts import as_context, build_prompt, chosen_template, text_of
from comps.core.types import Document, DocumentUse, GenerationRequest, Message, Prompt, Report, Sampling

_JOINT = "\n\n"
"""Behind a document; where two texts meet, a token may come apart, which is counted as one more."""
_CLOSE = 0.97
"""Of the characters that a piece of a document may have by its share of tokens: some of them are dearer than others."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the model server will be asked, and what became of the request on the way."""

    request: GenerationRequest
    prompt: Prompt
    sampling: Sampling
    report: Report


class Planner:
    """Plans requests for one model server.

    Args:
        server: Whose model answers.
        sharing: How to share its context window.
    """

    def __init__(self, server: ModelServer, sharing: Sharing) -> None:
        self._counter = Counter(server)
        self._sharing = sharing

    async def plan(self, request: GenerationRequest, window: int | None) -> Plan:
        """What to ask the model server for a request.

        Args:
            request: It.
            window: The model's context window, in tokens; None if nobody knows it: then nothing gives way.

        Raises:
            InvalidRequest: There are documents, but no question (`PromptTooLong` if that alone fills the window).
        """
        prompt = build_prompt(request)
        asked = request.sampling.max_tokens
        # Who limits prompt and answer together has the model server keep to it.
        if window is None or request.max_total_tokens is not None or not _is_text(prompt):
            return _as_it_is(request, prompt, window)
        if at_most(prompt) + (asked or self._sharing.least_answer) <= window:
            return _as_it_is(request, prompt, window)
        return await self._fitted(request, window)

    async def _fitted(self, request: GenerationRequest, window: int) -> Plan:
        documents = request.documents or ()
        request = replace(request, template=chosen_template(request))
        question, exchanges = _divided(request.prompt)
        bare = build_prompt(replace(request, prompt=question, documents=None if request.documents is None else ()))
        earlier = len(exchanges)
        said = ["\n".join(text_of(message.content) for message in exchange) for exchange in exchanges]
        read = [as_context(document) + _JOINT for document in documents]
        # What cannot fit in any case is not counted: that of a whole library would hold up everybody else.
        said, read = said[earlier - may_fit(reversed(said), window) :], read[: may_fit(read, window)]
        turns, exchanges = sum(map(len, exchanges)), exchanges[earlier - len(said) :]
        count = self._counter.count()
        tokens, sizes = await count.prompt_and_texts(bare, [*said, *read])
        history = [size + AROUND * len(one) for size, one in zip(sizes, exchanges, strict=False)]
        texts = [size + 1 for size in sizes[len(exchanges) :]]
        asked = request.sampling.max_tokens
        if not count.exact:  # Nobody is refused by an estimate.
            tokens = min(tokens, window - 1)
        shared = share(window, tokens, history, texts, self._sharing, asked)
        kept = list(documents[: shared.whole])
        piece, piece_tokens = None, 0
        if shared.piece:
            piece, piece_tokens = await _piece(documents[shared.whole], texts[shared.whole], shared.piece, count)
            kept += [piece] if piece else []
        latest = [message for exchange in exchanges[len(exchanges) - shared.exchanges :] for message in exchange]
        prompt = build_prompt(
            replace(
                request,
                prompt=_with(question, latest),
                documents=None if request.documents is None else tuple(kept),
            )
        )
        # Together they may have a few tokens fewer than each by itself.
        total = await count.prompt(prompt)
        documents_tokens = sum(texts[: shared.whole]) + piece_tokens
        history_tokens = sum(history[len(history) - shared.exchanges :])
        least = 1 if count.exact else self._sharing.least_answer
        most = asked if asked is None else min(asked, max(window - total, least))
        report = Report(
            context_window=window,
            counted="model" if count.exact else "estimate",
            documents=tuple(_uses(texts, len(documents), shared, piece_tokens)),
            nothing_found=request.documents == (),
            turns_dropped=turns - len(latest),
            prompt_tokens=total,
            documents_tokens=documents_tokens,
            history_tokens=history_tokens,
            question_tokens=total - documents_tokens - history_tokens,
            max_tokens=most,
        )
        return Plan(request, prompt, replace(request.sampling, max_tokens=most), report)


async def _piece(document: Document, tokens: int, most: int, count: Count) -> tuple[Document | None, int]:
    """The beginning of a document with at most so many tokens, and how many those are; None if there is none."""
    length = int(len(document.text) * most / tokens * _CLOSE)
    while text := cut(document.text, length):
        piece = replace(document, text=text)
        used = await count.text(as_context(piece) + _JOINT) + 1
        if used <= most:
            return piece, used
        length = min(int(len(text) * most / used * _CLOSE), len(text) - 1)
    return None, 0


def _as_it_is(request: GenerationRequest, prompt: Prompt, window: int | None) -> Plan:
    documents = tuple(DocumentUse(number, "kept") for number, _ in enumerate(request.documents or (), 1))
    report = Report(
        window,
        documents=documents,
        nothing_found=request.documents == (),
        max_tokens=request.sampling.max_tokens,
    )
    return Plan(request, prompt, request.sampling, report)


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
