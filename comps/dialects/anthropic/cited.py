"""Citations: where in a document or a search result a passage is, as the Messages API says it.

https://platform.claude.com/docs/en/build-with-claude/citations
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from comps.core.citations import own_citations_in
from comps.core.types import JSON
from comps.dialects.anthropic.conversation import Source

_LONGEST = 10_000
"""The most characters of blocks that are quoted whole: each citation of them has them again."""


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
    for told in own_citations_in(extra):
        span = told.get("passage")
        # A sentence with the words of a title alone has no passage, nor has what a model server says itself.
        if 0 < told["number"] <= len(sources) and isinstance(span, list) and [*map(type, span)] == [int, int]:
            yield Cited(told["start_index"], told["end_index"], _citation(sources[told["number"] - 1], *span))


def _citation(source: Source, start: int, end: int) -> JSON:
    """Returns a citation of a passage, which is there in the source's texts, joined by line breaks."""
    block = source.block
    if block["type"] == "document" and block["source"]["type"] == "text":
        place = {"start_char_index": start, "end_char_index": end}
        text = source.texts[0][start:end]
        return {"type": "char_location", "cited_text": text, **_document(source), **place}
    first, last = bisect_right(source.ends, start), bisect_left(source.ends, end) + 1
    begin = source.ends[first - 1] if first else 0
    place = {"start_block_index": first, "end_block_index": last}
    text = "".join(source.texts[first:last])
    if len(text) > _LONGEST:
        text = "\n".join(source.texts[first:last])[start - begin : end - begin]
    if block["type"] == "document":
        return {"type": "content_block_location", "cited_text": text, **_document(source), **place}
    told = {"search_result_index": source.place, "source": block["source"], "title": block["title"]}
    return {"type": "search_result_location", "cited_text": text, **told, **place}


def _document(source: Source) -> dict[str, JSON]:
    return {"document_index": source.place, "document_title": source.block.get("title")}
