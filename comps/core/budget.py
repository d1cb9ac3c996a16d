"""How the model's context window is shared, and where a text is cut.

The question is always kept, or the request is refused. Documents, the best first, and the history, the latest first,
share what the question and the answer leave.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from comps.core.errors import PromptTooLong

LEAST_PIECE = 16
"""In tokens: a shorter piece of a document is of no use."""

_SENTENCE = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』）]*|\n")
_ZERO_WIDTH_JOINER = "\u200d"
_SKIN_TONES = "🏻🏼🏽🏾🏿"
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]")
_LEAST_SHARE = 0.5
"""A piece ends at the end of a sentence, unless less than this share of it is left."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """How to share a context window.

    Attributes:
        least_answer: Tokens that are kept free for the answer, if it may have so many, by dropping documents.
        documents_first: Whether history is dropped for the sake of all documents, and not of the best one alone.
    """

    least_answer: int = 256
    documents_first: bool = False


DEFAULT_SHARING = Sharing()


@dataclass(frozen=True, slots=True)
class Share:
    """What fits."""

    exchanges: int
    """How many of the latest exchanges of the history."""
    room: int
    """The tokens that the documents may have."""


def share(
    window: int, question: int, history: Sequence[int], documents: Sequence[int], sharing: Sharing, asked: int | None
) -> Share:
    """Share a context window.

    Args:
        window: Its size, in tokens, as all sizes here.
        question: What is always kept: the question, the templates around it, the system messages.
        history: The exchanges of the history, the earliest first.
        documents: The documents, the best first.
        sharing: What is dropped for the sake of what.
        asked: The most that the answer may have; None if the request does not say.

    Raises:
        PromptTooLong: The question alone fills the window.
    """
    if question >= window:
        raise PromptTooLong(question, window)
    answer = min(sharing.least_answer, asked or sharing.least_answer, window - question)
    room = window - question - answer
    reserved = sum(documents if sharing.documents_first else documents[:1])
    exchanges, tokens = _fitting(list(reversed(history)), max(room - reserved, 0))
    return Share(exchanges, room - tokens)


def _fitting(sizes: Sequence[int], room: int) -> tuple[int, int]:
    """How many of them fit, from the first on, and their sum."""
    taken = 0
    for number, size in enumerate(sizes):
        if taken + size > room:
            return number, taken
        taken += size
    return len(sizes), taken


def cut(text: str, most: int) -> str:
    """The beginning of a text, with at most `most` characters.

    It ends with a sentence or a paragraph, else with a word, and never inside a grapheme cluster: several code points
    that are displayed as one character.
    """
    if len(text) <= most:
        return text
    ends = [found.end() for found in _SENTENCE.finditer(text, 0, most + 1) if found.end() <= most]
    if ends and ends[-1] >= most * _LEAST_SHARE:
        return text[: ends[-1]].rstrip()
    return next((text[:place].rstrip() for place in range(most, 0, -1) if _is_between_words(text, place)), "")


def _is_between_words(text: str, place: int) -> bool:
    before, after = text[place - 1], text[place]
    is_break = _is_no_word_part(before) or _is_no_word_part(after)
    return is_break and before != _ZERO_WIDTH_JOINER and not _extends(after)


@lru_cache(1024)
def _is_no_word_part(character: str) -> bool:
    """Whether a word ends before and after it: a space, a pictograph, or a character of a script without spaces, as
    Chinese is and Korean is not."""
    wide = unicodedata.east_asian_width(character) in "WF" and not _HANGUL.match(character)
    return wide or character.isspace()


def _extends(character: str) -> bool:
    """Whether it belongs to the character before it: a combining mark, variation selector, joiner, tag or skin tone."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf") or character in _SKIN_TONES
