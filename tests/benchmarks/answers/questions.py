"""Two sets of questions about invented facts, and the documents that each is asked with.

A set is a file of topics. A topic has a language and questions; a question has the fields of `Question`. What it asks
for is said by its own documents and by no other that goes with it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.answers.words import contains, content_words

SETS = ("tuning", "held_out")
SHAPES = ("name", "number", "date", "two documents", "table", "long", "distractor", "unanswerable")
LANGUAGES = {"en": "English", "de": "German", "fr": "French", "zh": "Chinese"}
ORDERS = ("best", "shuffled", "last")
"""Of the documents: those with the answer first, as reranked; anywhere; last."""
DOCUMENTS = 8
"""That a question comes with."""
LONG_WORDS = 200
"""A document of more words goes only with questions of its own topic."""
OTHER_WORDS = 1 / 3
"""Up to this share of content words in its own documents, a question is put in other words."""


@dataclass(frozen=True)
class Document:
    """A document as it is posted."""

    title: str
    text: str

    def says(self, form: str) -> bool:
        """Whether title or text has a fact in this form."""
        return contains(f"{self.title}\n{self.text}", form)


@dataclass(frozen=True)
class Question:
    """A question, and what a right answer has.

    Attributes:
        topic: Others of it have the nearest documents.
        language: A key of `LANGUAGES`.
        shape: One of `SHAPES`.
        question: As it is asked.
        accepted: The facts that an answer must have, all of them, each with the forms that it may have. Empty where no
            document says it.
        documents: Those that say it, in the order in which they are needed.
        distractor: A document that nearly says it.
        rival: The forms of what the distractor says instead; an answer that has one of them is wrong.
        unsaid: Where no document says it, words that a document which said it would have.
    """

    topic: str
    language: str
    shape: str
    question: str
    accepted: tuple[tuple[str, ...], ...] = ()
    documents: tuple[Document, ...] = ()
    distractor: Document | None = None
    rival: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()

    @property
    def answerable(self) -> bool:
        return bool(self.accepted)

    @property
    def shared(self) -> float:
        """The share of its content words that its own documents have."""
        words = content_words(self.question)
        own = content_words("\n".join(f"{one.title}\n{one.text}" for one in self.documents))
        return len(words & own) / max(len(words), 1)

    @property
    def groups(self) -> tuple[str, ...]:
        """The rows of the second table in which it counts: its shape, its language, and whose words it has."""
        words = "in other words" if self.shared <= OTHER_WORDS else "in the documents' words"
        return self.shape, LANGUAGES[self.language], *([words] if self.answerable else [])


GROUPS = (*SHAPES, *LANGUAGES.values(), "in the documents' words", "in other words")
"""The rows of the second table."""


@lru_cache
def read(name: str) -> tuple[Question, ...]:
    """The questions of a set, topic by topic."""
    text = Path(__file__).with_name(f"{name}.yaml").read_text("utf-8")
    return tuple(
        _question(topic["topic"], topic["language"], **entry)
        for topic in yaml.load(text, getattr(yaml, "CBaseLoader", yaml.BaseLoader))
        for entry in topic["questions"]
    )


def _question(topic: str, language: str, **entry: Any) -> Question:
    distractor = entry.pop("distractor", None)
    return Question(
        topic,
        language,
        entry.pop("shape"),
        entry.pop("question"),
        tuple(map(tuple, entry.pop("accepted", ()))),
        tuple(Document(**one) for one in entry.pop("documents", ())),
        distractor and Document(**distractor),
        **{key: tuple(forms) for key, forms in entry.items()},
    )


def some(questions: Sequence[Question], number: int) -> list[Question]:
    """So many of the questions, from all topics alike."""
    number = min(number, len(questions))
    return [questions[index * len(questions) // number] for index in range(number)]


def documents_of(question: Question) -> Iterator[Document]:
    """What is in the file with it: its own documents, then its distractor."""
    yield from question.documents
    if question.distractor:
        yield question.distractor


def given_with(question: Question, questions: Sequence[Question]) -> list[Document]:
    """The documents that go with a question: its own, its distractor, then the nearest ones of other questions in its
    language, those of its topic first."""
    asked = content_words(question.question)
    topics = {
        one: other.topic for other in questions if other.language == question.language for one in documents_of(other)
    }

    def distance(document: Document) -> tuple[bool, int]:
        shared = len(asked & content_words(f"{document.title}\n{document.text}"))
        return topics[document] != question.topic, -shared

    first = list(documents_of(question))
    others = [
        one
        for one, topic in topics.items()
        if one not in first and (topic == question.topic or len(one.text.split()) <= LONG_WORDS)
    ]
    return [*first, *sorted(others, key=distance)][:DOCUMENTS]


def in_order(order: str, given: Sequence[Document], draw: int) -> list[Document]:
    """The documents of a question in one of `ORDERS`; each draw shuffles anew, and a draw always the same way."""
    if order == "shuffled":
        return random.Random(f"{draw} {given[0].title}").sample(given, len(given))
    return list(given) if order == "best" else list(reversed(given))
