"""Shares of right, refused and wrong answers, with standard errors.

The unit is the question: what its draws brought is averaged first, since they are not independent of each other. The
standard error is that of the mean of these averages, their standard deviation / √questions; with one draw that is the
binomial one. Two prompts are compared by the differences of the same questions, which is finer than their own errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from tests.benchmarks.answers.asking import Asked
from tests.benchmarks.answers.outcomes import OUTCOMES
from tests.benchmarks.answers.questions import GROUPS, Question


@dataclass(frozen=True)
class Share:
    """A mean over questions, and its standard error; None where there is only one question."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, averages: Sequence[float]) -> Share | None:
        """Of the averages of each question; None if there is none."""
        if not averages:
            return None
        return cls(fmean(averages), stdev(averages) / sqrt(len(averages)) if len(averages) > 1 else None)


@dataclass(frozen=True)
class Row:
    """A prompt in one order of the documents."""

    prompt: str
    order: str
    right: Share | None
    refused: Share | None
    wrong: Share | None
    """Of the questions that a document answers, these three."""
    declined: Share | None
    """Of those that none answers: how many were refused, as is right."""
    overall: Share | None
    """Right, of all questions."""
    gain: Share | None
    """The same, less that of the first prompt in this order, question by question; None for the first prompt."""
    prompt_tokens: float
    answer_tokens: float


@dataclass(frozen=True)
class Group:
    """Some of the questions with one prompt, in all orders together."""

    prompt: str
    name: str
    questions: int
    right: Share | None
    refused: Share | None
    wrong: Share | None


@dataclass(frozen=True)
class Run:
    """All figures of a set of questions and a model."""

    name: str
    """Of the set."""
    notes: tuple[str, ...]
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    model: str = ""
    """Empty: the bundled one."""

    @property
    def key(self) -> str:
        """What tells it from other runs."""
        return f"{self.name}, {self.model}" if self.model else self.name


def averages(outcomes: Sequence[Sequence[str]], which: str) -> list[float]:
    """For each question, in how many of its draws that came out."""
    return [fmean(one == which for one in draws) for draws in outcomes]


def rows(questions: Sequence[Question], asked: Sequence[Asked]) -> Iterator[Row]:
    """The first table."""
    first: dict[str, list[float]] = {}
    for one in asked:
        pairs = list(zip(questions, one.outcomes, strict=True))
        said = [outcomes for question, outcomes in pairs if question.answerable]
        unsaid = [outcomes for question, outcomes in pairs if not question.answerable]
        right = averages(one.outcomes, "right")
        is_first = one.order not in first
        differences = [new - old for new, old in zip(right, first.setdefault(one.order, right), strict=True)]
        yield Row(
            one.prompt,
            one.order,
            right=Share.of(averages(said, "right")),
            refused=Share.of(averages(said, "refused")),
            wrong=Share.of(averages(said, "wrong")),
            declined=Share.of(averages(unsaid, "right")),
            overall=Share.of(right),
            gain=None if is_first else Share.of(differences),
            prompt_tokens=one.prompt_tokens,
            answer_tokens=one.answer_tokens,
        )


def groups(questions: Sequence[Question], asked: Sequence[Asked]) -> Iterator[Group]:
    """The second table, for each prompt."""
    for prompt in dict.fromkeys(one.prompt for one in asked):
        orders = [one.outcomes for one in asked if one.prompt == prompt]
        together = [sum(draws, ()) for draws in zip(*orders, strict=True)]
        for name in GROUPS:
            chosen = [draws for question, draws in zip(questions, together, strict=True) if name in question.groups]
            if chosen:
                yield Group(prompt, name, len(chosen), *(Share.of(averages(chosen, which)) for which in OUTCOMES))
