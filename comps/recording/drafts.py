"""`RecordedGenerator`: a `TextGenerator` that keeps a draft of each request, with the times of its answer."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter, time
from typing import Any, TypeVar

from comps.core.answers import Forwarding
from comps.core.deltas import JoinedExtra
from comps.core.errors import LLMError, for_operator
from comps.core.generator import TextGenerator
from comps.core.planning import Plan
from comps.core.ports import Answer
from comps.core.request_id import REQUEST_ID
from comps.core.types import JSON, Finished, Generation, GenerationRequest, ModelInfo, TextDelta

T = TypeVar("T")

_MOST_CHUNKS = 100_000
"""The times of chunks that are kept of an answer."""


@dataclass(eq=False)
class Draft:
    """What is known of a request so far."""

    model: str
    request: GenerationRequest
    id: str = field(default_factory=REQUEST_ID.get)
    began: float = field(default_factory=time)
    """In seconds since 1970."""
    started: float = field(default_factory=perf_counter)
    info: ModelInfo | None = None
    plan: Plan | None = None
    planned: float | None = None
    """When the prompt was ready, in seconds after the start, as all times from here on."""
    chunks: list[float] = field(default_factory=list)
    """When the pieces of a streamed answer came; empty if it was not streamed."""
    texts: dict[int, list[str]] = field(default_factory=dict)
    """The pieces of each choice's text."""
    extras: dict[int, JoinedExtra] = field(default_factory=dict)
    """What each choice has beside text, such as tool calls."""
    end: Finished | None = None
    total: float | None = None
    outcome: str = "answered"
    """`answered`, `failed` or `cancelled`."""
    error: str = ""

    def now(self) -> float:
        """Returns the seconds since the start."""
        return perf_counter() - self.started

    def take(self, choice: int, text: str, extra: Mapping[str, JSON] | None) -> None:
        """Take down a piece of the answer."""
        self.texts.setdefault(choice, []).append(text)
        if extra:
            self.extras.setdefault(choice, JoinedExtra()).add(extra)

    def answer(self) -> JSON:
        """Returns the answer: its text, or a list of its choices if it has several or more than text."""
        texts = {choice: "".join(pieces) for choice, pieces in sorted(self.texts.items())}
        if not self.extras and len(texts) <= 1:
            return "".join(texts.values())
        extras = {choice: joined.extra() for choice, joined in self.extras.items()}
        return [{**extras.get(choice, {}), "text": text} for choice, text in texts.items()]


_DRAFT: ContextVar[Draft | None] = ContextVar("draft", default=None)
"""The draft of the request whose prompt was planned last in this task."""


class RecordedGenerator(TextGenerator):
    """A text generator that keeps a draft of each request.

    Args:
        *arguments: Those of `TextGenerator`.
        keep: Called with each draft that is complete.
        **options: Those of `TextGenerator`.
    """

    def __init__(self, *arguments: Any, keep: Callable[[Draft], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._keep = keep

    async def plan(self, request: GenerationRequest, *, to_the_token: bool = False) -> Plan:
        if to_the_token:  # A preview.
            return await super().plan(request, to_the_token=True)
        draft = Draft(self.model, request)
        try:
            plan = await super().plan(request)
        except BaseException as error:
            self._end(draft, error)
            raise
        draft.plan, draft.planned = plan, draft.now()
        _DRAFT.set(draft)
        return plan

    async def answer(self, plan: Plan, answer: Answer) -> None:
        draft = self._draft_of(plan)
        await self._recorded(draft, super().answer(plan, _Timed(answer, draft)))

    async def complete(self, plan: Plan) -> Generation:
        draft = self._draft_of(plan)
        return await self._recorded(draft, super().complete(plan))

    def _draft_of(self, plan: Plan) -> Draft:
        draft = _DRAFT.get()
        _DRAFT.set(None)
        return draft if draft and draft.plan is plan else Draft(self.model, plan.request, plan=plan)

    async def _recorded(self, draft: Draft, work: Coroutine[Any, Any, T]) -> T:
        try:
            result = await work
        except BaseException as error:
            self._end(draft, error)
            raise
        if isinstance(result, Generation):
            draft.end = Finished(result.reason, result.usage)
            for number, choice in enumerate(result.choices):
                draft.take(number, choice.text, choice.extra)
        self._end(draft)
        return result

    def _end(self, draft: Draft, error: BaseException | None = None) -> None:
        draft.total, draft.info = draft.now(), self._info
        if error:
            draft.outcome = "failed" if isinstance(error, Exception) else "cancelled"
            draft.error = for_operator(error) if isinstance(error, LLMError) else type(error).__name__
        self._keep(draft)


class _Timed(Forwarding):
    """Answer that notes when each piece is written."""

    def __init__(self, answer: Answer, draft: Draft) -> None:
        super().__init__(answer)
        self._draft = draft

    def text(self, text: str, choice: int = 0) -> None:
        self._note(choice, text)
        self._answer.text(text, choice)

    def delta(self, delta: TextDelta) -> None:
        self._note(delta.choice, delta.text, delta.extra)
        self._answer.delta(delta)

    def _note(self, choice: int, text: str, extra: Mapping[str, JSON] | None = None) -> None:
        draft = self._draft
        if len(draft.chunks) < _MOST_CHUNKS:
            draft.chunks.append(draft.now())
        draft.take(choice, text, extra)

    def finished(self, end: Finished) -> None:
        if not self._draft.end or end.usage:
            self._draft.end = end
        self._answer.finished(end)
