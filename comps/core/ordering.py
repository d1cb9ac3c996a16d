"""Which documents of a request are used, and in which order."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from comps.core.prompts import numbered, text_of
from comps.core.types import Document, DocumentUse, GenerationRequest, Prompt
from comps.core.whitespace import tidied

T = TypeVar("T")

_SCORES = {
    **dict.fromkeys(("relevance_score", "reranker_score", "rerank_score", "score", "_score", "similarity"), 1.0),
    **dict.fromkeys(("distance", "vector_distance"), -1.0),
}
"""The fields of metadata that have a document's score, the first one first: Cohere's and Enterprise-RAG's rerankers,
LlamaIndex, Haystack and Qdrant, Elasticsearch; and the sign with which the best is the greatest."""
_EMPTY = "it is empty"


@dataclass(frozen=True, slots=True)
class Ordering:
    """How documents are ordered.

    Attributes:
        order: `given`: as the caller sent them. `relevance`: by the words that they share with the question. `ends`:
            the best at the beginning and at the end, the others between, since models read the middle least. `auto`: by
            their scores, if they have such; as given, if they were reranked; else by relevance.
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
    """All documents as the caller sent them, with their numbers; those that are not used have the reason."""
    places: Sequence[int]
    """The places in `given` of those that are used, the best first."""
    order: str = "given"
    """See `Report.order`."""

    @property
    def documents(self) -> tuple[Document, ...]:
        """The documents that are used, the best first, without needless whitespace."""
        return tuple([tidied(self.given[place]) for place in self.places])

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
        """Returns those of the caller's documents that the prompt has."""
        numbers = {document.number for document in kept}
        return tuple([document for document in self.given if document.number in numbers])


async def choose(request: GenerationRequest, ordering: Ordering) -> Chosen:
    """Returns which documents of a request are used, the best first.

    Empty ones and repetitions are not used, nor what is beyond the best `ordering.top`.
    """
    found = numbered(request.documents or ())
    given = tuple([replace(one, left_out=_EMPTY) if not one.left_out and _is_empty(one) else one for one in found])
    places = [place for place, one in enumerate(given) if not one.left_out]
    order = request.order or ordering.order
    documents = [given[place] for place in places]
    basis = basis_of(documents, order, request.ranked)
    if basis == "scores":
        places = [places[place] for place in _by_scores(documents)]
    elif basis == "relevance" and ordering.by_relevance:
        texts = [f"{document.title}\n{document.text}" for document in documents]
        best = await asyncio.to_thread(ordering.by_relevance, _question(request.prompt), texts)
        places = [places[place] for place in best]
    if ordering.top and len(places) > ordering.top:
        why = f"it is not among the best {ordering.top} (top_documents)"
        beyond = set(places[ordering.top :])
        given = tuple([replace(one, left_out=why) if place in beyond else one for place, one in enumerate(given)])
        places = places[: ordering.top]
    return Chosen(given, places, "ends" if order == "ends" else basis)


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
    if _score_field(documents):
        return "scores"
    return "given" if ranked or len(documents) < 2 else "relevance"


def _by_scores(documents: Sequence[Document]) -> list[int]:
    """Returns the places of the documents, the best first."""
    field = _score_field(documents)
    assert field
    return sorted(range(len(documents)), key=lambda place: -_SCORES[field] * documents[place].metadata[field])


def at_the_ends(items: Sequence[T]) -> tuple[T, ...]:
    """Returns the items with the first one first, the second one last, the third one second, and so on."""
    return (*items[::2], *reversed(items[1::2]))


def _score_field(documents: Sequence[Document]) -> str | None:
    """Returns the field with the scores of all documents; None if there is none, or it tells nothing."""
    if len(documents) < 2 or not documents[0].metadata:
        return None
    for field in _SCORES:
        if field in documents[0].metadata:
            scores = [document.metadata.get(field) for document in documents]
            if all(map(_is_number, scores)) and len(set(scores)) > 1:
                return field
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _question(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return next((text_of(message.content) for message in reversed(prompt) if message.role == "user"), "")
