"""Asks a running service all questions with one prompt and its fields, in one order of the documents."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

from comps.core.types import JSON
from tests.benchmarks.answers.outcomes import outcome
from tests.benchmarks.answers.prompts import Variant, body
from tests.benchmarks.answers.questions import Document, Question, given_with, in_order
from tests.service import PATH

AT_ONCE = 8
"""Questions that are asked at the same time."""
MARKS = {"right": "+", "refused": "0", "wrong": "-"}


@dataclass(frozen=True)
class Asked:
    """The answers to all questions with one variant in one order."""

    prompt: str
    """The name of the variant."""
    order: str
    outcomes: tuple[tuple[str, ...], ...]
    """Of each question, one for each draw."""
    prompt_tokens: float
    """Of one prompt, as the model server counted them: the mean."""
    answer_tokens: float


class Asker:
    """Asks a service.

    Args:
        url: Of the service.
        client: With which it is asked.
        questions: Which are asked.
        everything: The whole set, which has the other documents.
        fields: Added to every body; the fields of a variant go before them.
        draws: How often the documents are shuffled anew.
        show: Print every answer.
    """

    def __init__(
        self,
        url: str,
        client: httpx.AsyncClient,
        questions: Sequence[Question],
        everything: Sequence[Question],
        *,
        fields: Mapping[str, JSON],
        draws: int,
        show: bool,
    ) -> None:
        self._url, self._client, self._fields = url + PATH, client, fields
        self._draws, self._show = draws, show
        self.ignored: set[str] = set()
        """The fields that the service said it ignored."""
        self._asked = [(question, given_with(question, everything)) for question in questions]
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def ask(self, variant: Variant, order: str) -> Asked:
        """Ask all questions; where the documents are shuffled, in every draw.

        Raises:
            AssertionError: The service refuses a body, or ignores what the variant differs by.
        """
        draws = range(1, self._draws + 1) if order == "shuffled" else (1,)
        answers = await asyncio.gather(
            *(
                self._answer(variant, question, in_order(order, given, draw), draw)
                for question, given in self._asked
                for draw in draws
            )
        )
        outcomes = [found for found, _ in answers]
        usages = [usage for _, usage in answers]
        return Asked(
            variant.name,
            order,
            tuple(tuple(outcomes[start : start + len(draws)]) for start in range(0, len(outcomes), len(draws))),
            sum(usage["prompt_tokens"] for usage in usages) / len(usages),
            sum(usage["completion_tokens"] for usage in usages) / len(usages),
        )

    async def _answer(
        self, variant: Variant, question: Question, documents: Sequence[Document], draw: int
    ) -> tuple[str, Mapping[str, int]]:
        posted = body(variant.prompt, documents, question.question, {"seed": draw, **self._fields, **variant.fields})
        async with self._slots:
            response = await self._client.post(self._url, json=posted)
        assert response.status_code == 200, response.text
        self.ignored.update(filter(None, response.headers.get("x-ignored-params", "").split(", ")))
        nothing = self.ignored & variant.fields.keys()
        assert not nothing, f"the service ignores {', '.join(nothing)}, so nothing would be compared"
        reply = response.json()
        text = str(reply["text"] if "text" in reply else reply["choices"][0]["message"]["content"])
        found = outcome(text, question)
        if self._show:
            wanted = ", ".join(forms[0] for forms in question.accepted) or "not found"
            print(f"  {MARKS[found]} {question.question} [{wanted}] {text!r}", flush=True)
        return found, reply["usage"]
