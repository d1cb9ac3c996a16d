"""Which documents of a request are used, and in which order."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from comps.core.prompts import numbered, question_of
from comps.core.types import JSON, Document, DocumentUse, GenerationRequest
from comps.core.whitespace import tidied

T = TypeVar("T")

_RERANKERS = ("relevance_score", "reranker_score", "rerank_score")
"""The fields of metadata with a reranker's score, the best being the greatest."""
_RETRIEVERS = {**dict.fromkeys(("score", "_score", "similarity"), 1.0), "distance": -1.0, "vector_distance": -1.0}
"""The fields of metadata with a retriever's score, and the sign with which the best is the greatest."""
_EMPTY = "it is empty"
_TIDIED = 1_000_000
"""The characters of documents whose whitespace is looked at: more would hold up others, and hardly fits a window."""
_READ = 20_000
"""The characters of a document by which its relevance is found: to read all of a long one would hold up others."""


@dataclass(frozen=True, slots=True)
class Ordering:
    """How documents are ordered.

    Attributes:
        order: `given`: as the caller sent them. `relevance`: by the words that they share with the question. `ends`:
            the best at the beginning and at the end, the others between, since models read the middle least. `auto`: by
            their scores, if they have such; as given, if they were reranked; else by relevance. See `scores_of`.
        top: How many of the best are used; 0: all.
        by_relevance: Returns the places of texts, the most relevant to a question first. It may block. None: texts stay
            as they are.
    """

    order: str = "auto"
    top: int = 0
    by_relevance: Callable[[str, Sequence[str]], Sequence[int]] | None = None


DEFAULT_ORDERING = Ordering()


@dataclass(frozen=True, slots=True)
class Chosen:
    """The documents of a request that are used."""

    given: tuple[Document, ...]
    """All documents as the caller sent them, without needless whitespace, with their numbers; those that are not used
    have the reason."""
    places: Sequence[int]
    """The places in `given` of those that are used, the best first."""
    order: str = "given"
    """See `Report.order`."""
    texts: Sequence[str] = ()
    """The texts of all documents, with all their whitespace."""

    @property
    def documents(self) -> tuple[Document, ...]:
        """The documents that are used, the best first."""
        return tuple([self.given[place] for place in self.places])

    def uses(self, uses: Sequence[DocumentUse], arranged: Sequence[Document]) -> tuple[DocumentUse, ...]:
        """Returns how each document was used, in the caller's order.

        Args:
            uses: Of those that are used, the best first.
            arranged: The documents of the prompt.
        """
        positions = {document.number: position for position, document in enumerate(arranged, 1)}
        by_place = dict(zip(self.places, uses, strict=True))
        return tuple(
            [
                replace(by_place[place], number=place + 1, position=positions.get(document.number))
                if place in by_place
                else _dropped(place + 1, document)
                for place, document in enumerate(self.given)
            ]
        )

    def sources(self, kept: Sequence[Document]) -> tuple[Document, ...]:
        """Returns those of the caller's documents that the prompt has, with the texts as they were sent."""
        numbers = {document.number for document in kept}
        return tuple(
            [
                document if document.text == text else replace(document, text=text)
                for document, text in zip(self.given, self.texts, strict=True)
                if document.number in numbers
            ]
        )


async def choose(request: GenerationRequest, ordering: Ordering) -> Chosen:
    """Returns which documents of a request are used, the best first.

    Empty ones and repetitions are not used, nor what is beyond the best `ordering.top`.
    """
    found = numbered(_all_tidied(request.documents or ()))
    given = tuple([replace(one, left_out=_EMPTY) if not one.left_out and _is_empty(one) else one for one in found])
    places = [place for place, one in enumerate(given) if not one.left_out]
    order = request.order or ordering.order
    documents = [given[place] for place in places]
    basis = basis_of(documents, order, request.ranked)
    if basis == "relevance" and not ordering.by_relevance:
        basis = "given"
    if basis != "given":
        places = [places[place] for place in await _best_first(documents, request, ordering, basis)]
    if ordering.top and len(places) > ordering.top:
        why = f"it is not among the best {ordering.top} (top_documents)"
        beyond = set(places[ordering.top :])
        given = tuple([replace(one, left_out=why) if place in beyond else one for place, one in enumerate(given)])
        places = places[: ordering.top]
    texts = [document.text for document in request.documents or ()]
    return Chosen(given, places, "ends" if order == "ends" else basis, texts)


def _all_tidied(documents: Sequence[Document]) -> list[Document]:
    """Returns the documents without needless whitespace, as far as there are `_TIDIED` characters of them."""
    result = []
    read = 0
    for document in documents:
        read += len(document.text) + len(document.title)
        result.append(tidied(document) if read <= _TIDIED else document)
    return result


async def _best_first(
    documents: Sequence[Document], request: GenerationRequest, ordering: Ordering, basis: str
) -> Sequence[int]:
    """Returns the places of the documents, the best first."""
    if basis == "relevance" and ordering.by_relevance:
        texts = [f"{document.title}\n{document.text[:_READ]}" for document in documents]
        return await asyncio.to_thread(ordering.by_relevance, question_of(request.prompt), texts)
    scores = scores_of(documents, request.ranked) or [0.0] * len(documents)
    return sorted(range(len(documents)), key=lambda place: -scores[place])


def _is_empty(document: Document) -> bool:
    return not any(text and not text.isspace() for text in (document.text, document.title))


def _dropped(place: int, document: Document) -> DocumentUse:
    """Returns what became of a document that is not used; only an empty one is sure to have no tokens."""
    return DocumentUse(place, "dropped", document.left_out, 0 if document.left_out == _EMPTY else None, 0)


def basis_of(documents: Sequence[Document], order: str, ranked: bool) -> str:
    """Returns by what the best documents are found: `given`, `scores` or `relevance`.

    Args:
        documents: The documents.
        order: See `Ordering`.
        ranked: Whether they were reranked, the best first.
    """
    if order in ("given", "relevance"):
        return order
    if len(documents) > 1 and scores_of(documents, ranked):
        return "scores"
    return "given" if ranked or len(documents) < 2 else "relevance"


def scores_of(documents: Sequence[Document], ranked: bool) -> list[float] | None:
    """Returns the scores of all documents, the best being the greatest; None if they have none, or all have the same.

    Args:
        documents: The documents.
        ranked: Whether they were reranked. Then scores of a retriever are out of date.
    """
    own = [document.score for document in documents]
    if (scores := _complete(own)) or any(score is not None for score in own):
        return scores
    if not documents[0].metadata:
        return None
    fields = {**dict.fromkeys(_RERANKERS, 1.0), **({} if ranked else _RETRIEVERS)}
    for field, sign in fields.items():
        if field in documents[0].metadata:
            found = [number_of(document.metadata.get(field)) for document in documents]
            return _complete([None if score is None else sign * score for score in found])
    return None


def _complete(scores: Sequence[float | None]) -> list[float] | None:
    known = [score for score in scores if score is not None]
    return known if len(known) == len(scores) and len(set(known)) > 1 else None


def number_of(value: JSON) -> float | None:
    """Returns a finite number, which may be written as text; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def at_the_ends(items: Sequence[T]) -> tuple[T, ...]:
    """Returns the items with the first one first, the second one last, the third one second, and so on."""
    return (*items[::2], *reversed(items[1::2]))
