"""The words of a text, in any language."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import chain

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"  # East Asia
)
_MARKS = (
    "\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed"
    "\u0900-\u0963\u0966-\u0dff\u200c\u200d"  # Accents; points of Hebrew and Arabic; the scripts of India; joiners
)
"""Characters within words that are no letters."""
_LETTER = rf"[^\W_{_UNSPACED}]"
_WORD = re.compile(rf"[{_UNSPACED}]+|{_LETTER}(?:{_LETTER}|[{_MARKS}])*")
_LONGEST = 20_000
"""The most characters that are searched at once."""
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")


def words(text: str) -> list[str]:
    """Returns the words and numbers of a text, in lower case.

    Where a script has no spaces between words, as Chinese, each character is taken as a word, and so are two
    neighbouring ones: the usual way to search such texts without a dictionary.
    """
    found = (_WORD.findall(unicodedata.normalize("NFKC", piece).casefold()) for piece in _pieces(text))
    return list(chain.from_iterable(map(_parts, chain.from_iterable(found))))


def _pieces(text: str) -> Iterator[str]:
    """Yields a text in pieces, divided at spaces: a search holds the interpreter's lock until it has read its text."""
    start = 0
    while len(text) - start > _LONGEST:
        end = text.rfind(" ", start, start + _LONGEST) + 1 or start + _LONGEST
        yield text[start:end]
        start = end
    yield text[start:]


def _parts(run: str) -> list[str]:
    if not _IS_UNSPACED.match(run):
        return [run]
    return [*run, *(run[place : place + 2] for place in range(len(run) - 1))]
