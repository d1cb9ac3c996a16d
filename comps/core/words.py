"""The words of a text, in any language."""

from __future__ import annotations

import re
import unicodedata
from itertools import chain

from comps.core.pieces import pieces

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
    found = (_WORD.findall(unicodedata.normalize("NFKC", piece).casefold()) for piece in pieces(text, _LONGEST, " "))
    return list(chain.from_iterable(map(_parts, chain.from_iterable(found))))


def distinct_words(text: str) -> set[str]:
    """Returns the different words of a text; see `words`."""
    found = set[str]()
    for piece in pieces(text, _LONGEST, " "):
        found.update(words(piece))
    return found


def _parts(run: str) -> list[str]:
    if not _IS_UNSPACED.match(run):
        return [run]
    return [*run, *(run[place : place + 2] for place in range(len(run) - 1))]
