"""The words of a text, in any language."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import chain

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"  # Japanese, Chinese, Korean
)
_WORD = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")


def words(text: str) -> list[str]:
    """Returns the words and numbers of a text, in lower case.

    Where a script has no spaces between words, as Chinese, two neighbouring characters each are taken as a word: the
    usual way to search such texts without a dictionary.
    """
    return list(chain.from_iterable(map(_parts, _WORD.findall(unicodedata.normalize("NFKC", text).casefold()))))


def _parts(run: str) -> Sequence[str]:
    if len(run) < 2 or not _IS_UNSPACED.match(run):
        return (run,)
    return [run[place : place + 2] for place in range(len(run) - 1)]
