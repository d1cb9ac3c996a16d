"""The sentences of a text, in any language, and their ends in a text that is still being written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

_ENDS = ".!?…。！？\n"
_CLOSING = "\"'”’)]」』"
_WITHIN = r"(?:[^.!?…。！？\n]|[.!?…](?!\s|$|[\"'”’)\]]))"
_CLOSED = r"[.!?…。！？]*[\"'”’)\]」』]*"
_SENTENCE = re.compile(f"{_WITHIN}+{_CLOSED}")
_BOUNDED = re.compile(f"{_WITHIN}{{1,20000}}{_CLOSED}")
"""The same with a limit: the interpreter's lock is held until one is found."""
_END = re.compile(f"[{re.escape(_ENDS)}]")
_LAST = frozenset(_ENDS + _CLOSING)
"""The characters with which a sentence may end, if the next one is known."""
_TAIL = 32
"""The characters of the text before a piece that are looked at again."""


def sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields the spans of the sentences between two offsets, without spaces before them. A line break ends one, and
    so do 20,000 characters."""
    for found in _BOUNDED.finditer(text, start, end):
        begin = found.start() + len(found[0]) - len(found[0].lstrip())
        if begin < found.end():
            yield begin, found.end()


class SentenceEnds:
    """Finds the ends of sentences in a text that comes piece by piece. An end is known with the character after it."""

    def __init__(self) -> None:
        self._tail = ""
        """The text before the next piece, as far as a sentence may have ended in it."""

    def split(self, piece: str) -> list[str]:
        """Returns the next piece of the text, in parts: a sentence has ended between each part and the next one.

        The first part is empty if the end is before the piece, and the last one if it is the end of the piece.
        """
        tail = self._tail
        text = tail + piece
        if tail[-1:] not in _LAST and not _END.search(piece):  # As most pieces are.
            self._tail = text[-_TAIL:]
            return [piece]
        ends = [found.end() for found in _SENTENCE.finditer(text) if found.end() < len(text)]
        self._tail = text[ends[-1] if ends else 0 :][-_TAIL:]
        places = [0, *(max(end - len(tail), 0) for end in ends), len(piece)]
        return [piece[first:last] for first, last in pairwise(places)]
