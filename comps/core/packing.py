"""Documents packed into the tokens that they may have: whole ones, then the beginning of one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from comps.core.budget import LEAST_PIECE, cut
from comps.core.counting import Count
from comps.core.layout import Layout
from comps.core.types import Document, DocumentUse

_MARGIN = 0.97
"""The share of characters that a piece may have of those that its share of tokens suggests, since some characters cost
more tokens than others."""


@dataclass(slots=True)
class Packed:
    """The documents that fit."""

    kept: dict[int, tuple[Document, int]] = field(default_factory=dict)
    """By place: the document as the model gets it, and its tokens."""
    uncut: set[int] = field(default_factory=set)
    """The places of those that do not fit and have no beginning to keep, such as a sentence."""

    @property
    def documents(self) -> tuple[Document, ...]:
        return tuple(document for document, _ in self.kept.values())

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens in self.kept.values())


async def pack(
    documents: Sequence[Document], sizes: Sequence[int], room: int, layout: Layout, occurrences: int, count: Count
) -> Packed:
    """Pack documents, the best first: whole ones as long as they fit, then the beginning of the next one.

    Args:
        documents: The best first.
        sizes: The tokens of each.
        room: The tokens that they may have together.
        layout: Where they are put.
        occurrences: How many times each document occurs in the prompt.
        count: Of the request.
    """
    packed = Packed()
    for place, (document, size) in enumerate(zip(documents, sizes, strict=True)):
        most = room // occurrences - layout.overhead
        if size <= most:
            packed.kept[place] = document, size * occurrences
            room -= (size + layout.overhead) * occurrences
            continue
        if most < LEAST_PIECE:
            break
        piece, tokens = await _piece(document, size, most, layout, count)
        if piece:
            packed.kept[place] = piece, tokens * occurrences
            break
        packed.uncut.add(place)
    return packed


def uses_of(
    documents: Sequence[Document], candidates: Sequence[Document], sizes: Sequence[int], packed: Packed
) -> Iterator[DocumentUse]:
    """What became of each document.

    Args:
        documents: All, as they came.
        candidates: The first of them, as they were packed: a very long one is only its beginning.
        sizes: The tokens of each candidate.
        packed: Which of these fit.
    """
    for place, document in enumerate(documents):
        is_counted = place < len(candidates) and len(document.text) <= len(candidates[place].text)
        size = sizes[place] if is_counted else None
        kept, tokens = packed.kept.get(place, (None, 0))
        if kept is None:
            why = "not even a sentence of it fits" if place in packed.uncut else "it does not fit the context window"
            yield DocumentUse(place + 1, "dropped", why, size, 0)
        elif is_counted and kept is candidates[place]:
            yield DocumentUse(place + 1, "kept", "", size, tokens)
        else:
            yield DocumentUse(place + 1, "cut", "the rest does not fit the context window", size, tokens)


async def _piece(document: Document, size: int, most: int, layout: Layout, count: Count) -> tuple[Document | None, int]:
    """The beginning of a document that has at most `most` of its `size` tokens, and how many it has; None if there is
    none."""
    read = layout.text(document)
    start = read.rfind(document.text)
    # A text with turn markers, which are broken up in what is read, is not found there.
    if start >= 0 and (ends := await count.ends(read)):
        return _piece_by_ends(document, start, ends, most)
    length = int(len(document.text) * most / size * _MARGIN)
    while text := cut(document.text, length):
        piece = replace(document, text=text)
        used = await count.text(layout.text(piece))
        if used <= most:
            return piece, used
        length = min(int(len(text) * most / used * _MARGIN), len(text) - 1)
    return None, 0


def _piece_by_ends(document: Document, start: int, ends: Sequence[int], most: int) -> tuple[Document | None, int]:
    """See `_piece`, where it is known where each token ends of what the model reads of the document.

    What follows the document's text, which starts at `start`, also follows the piece, and costs at most one token more,
    where the two meet.
    """
    after = len(ends) - bisect_right(ends, start + len(document.text)) + 1
    if most <= after:
        return None, 0
    text = cut(document.text, max(ends[most - after - 1] - start, 0))
    used = bisect_right(ends, start + len(text)) + after
    return (replace(document, text=text), used) if text else (None, 0)
