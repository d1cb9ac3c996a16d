"""Citations: where in a document or a search result a passage is, as the Messages API says it.

https://platform.claude.com/docs/en/build-with-claude/citations
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from comps.core.citations import ANNOTATIONS
from comps.core.passages import located
from comps.core.types import JSON
from comps.dialects.anthropic.conversation import Source
from comps.dialects.shared.framing import citations_in


@dataclass(frozen=True, slots=True)
class Cited:
    """A span of an answer, in characters, and what it cites."""

    start: int
    end: int
    citation: JSON


def cited_in(extra: Mapping[str, JSON] | None, sources: Sequence[Source]) -> Iterator[Cited]:
    """Yields the spans of an answer that cite a passage of a source, in their order.

    Args:
        extra: The fields that came with the answer, in which the annotations are.
        sources: The documents and search results by their numbers, from 1.
    """
    for annotation in citations_in(extra).get(ANNOTATIONS, ()):
        told = annotation.get(str(annotation.get("type")))
        if not isinstance(told, dict) or not isinstance(told.get("passage"), str):
            continue  # A model server's own, or a sentence with the words of a title alone.
        if citation := _citation(sources[told["number"] - 1], told["passage"]):
            yield Cited(told["start_index"], told["end_index"], citation)


def _citation(source: Source, passage: str) -> JSON:
    """Returns a citation of a passage; None if the source does not have it."""
    block = source.block
    span = located(passage, "\n".join(source.texts))
    if span is None:
        return None
    if block["type"] == "document" and block["source"]["type"] == "text":
        start, end = span
        place = {"start_char_index": start, "end_char_index": end}
        text = source.texts[0][start:end]
        return {"type": "char_location", "cited_text": text, **_document(source), **place}
    first, last = _blocks(source.texts, *span)
    place = {"start_block_index": first, "end_block_index": last}
    text = "".join(source.texts[first:last])
    if block["type"] == "document":
        return {"type": "content_block_location", "cited_text": text, **_document(source), **place}
    told = {"search_result_index": source.place, "source": block["source"], "title": block["title"]}
    return {"type": "search_result_location", "cited_text": text, **told, **place}


def _document(source: Source) -> dict[str, JSON]:
    return {"document_index": source.place, "document_title": source.block.get("title")}


def _blocks(texts: Sequence[str], start: int, end: int) -> tuple[int, int]:
    """Returns the first of the blocks in which a span of their texts is, joined by line breaks, and the one after the
    last."""
    ends = [*accumulate(len(text) + 1 for text in texts)]
    first = next(place for place, last in enumerate(ends) if start < last)
    last = next(place for place, last in enumerate(ends) if end <= last)
    return first, last + 1
