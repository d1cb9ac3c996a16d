"""What of a request fits the model's context window, and the report of it.

The question always does, or the request is refused. Then come the documents, best first, and what was said before, the
latest first; what is left is the answer's. No prompt is made here: `prompts` does that of what is kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from comps.core.errors import PromptTooLong

LEAST_PIECE = 16
"""A piece of a document with fewer tokens says nothing."""

_SENTENCE = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』）]*|\n")
_JOINER = "\u200d"
_SHADES = "🏻🏼🏽🏾🏿"
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]")
_LEAST_SHARE = 0.5
"""A piece ends at a sentence's end, unless that costs more than this share of it."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """How to share a context window.

    Attributes:
        least_answer: Tokens that stay free for an answer, if it may have so many, before a document gives way.
        documents_first: Whether what was said before gives way to all documents, and not to the best one alone.
    """

    least_answer: int = 256
    documents_first: bool = False


DEFAULT_SHARING = Sharing()


@dataclass(frozen=True, slots=True)
class Share:
    """What fits."""

    exchanges: int
    """Of the history, so many of the latest."""
    room: int
    """Tokens that documents may have."""


def share(
    window: int, question: int, history: Sequence[int], documents: Sequence[int], sharing: Sharing, asked: int | None
) -> Share:
    """Share a context window.

    Args:
        window: All that it holds, in tokens, as everything here.
        question: What must be there: the question, the templates around it, the system's messages.
        history: What was said before, an exchange each, the earliest first.
        documents: The documents, the best first.
        sharing: What gives way to what.
        asked: The most that the answer may have; None if nobody says.

    Raises:
        PromptTooLong: The question alone fills the window.
    """
    if question >= window:
        raise PromptTooLong(question, window)
    kept_free = min(sharing.least_answer, asked or sharing.least_answer, window - question)
    room = window - question - kept_free
    before = sum(documents if sharing.documents_first else documents[:1])
    exchanges, said = _as_many(list(reversed(history)), max(room - before, 0))
    return Share(exchanges, room - said)


def _as_many(sizes: Sequence[int], room: int) -> tuple[int, int]:
    """How many of them, one after the other, fit, and what they have together."""
    taken = 0
    for number, size in enumerate(sizes):
        if taken + size > room:
            return number, taken
        taken += size
    return len(sizes), taken


def cut(text: str, most: int) -> str:
    """The beginning of a text, with at most so many characters.

    It ends with a sentence or a paragraph, else with a word, and never within what is read as one character.
    """
    if len(text) <= most:
        return text
    ends = [found.end() for found in _SENTENCE.finditer(text, 0, most + 1) if found.end() <= most]
    if ends and ends[-1] >= most * _LEAST_SHARE:
        return text[: ends[-1]].rstrip()
    return next((text[:place].rstrip() for place in range(most, 0, -1) if _is_between_words(text, place)), "")


def _is_between_words(text: str, place: int) -> bool:
    before, after = text[place - 1], text[place]
    return (_stands_alone(before) or _stands_alone(after)) and before != _JOINER and not _goes_on(after)


@lru_cache(1024)
def _stands_alone(character: str) -> bool:
    """Whether it is no part of a longer word: a space, a picture, or of a script without spaces, as Chinese is and
    Korean is not."""
    wide = unicodedata.east_asian_width(character) in "WF" and not _HANGUL.match(character)
    return wide or character.isspace()


def _goes_on(character: str) -> bool:
    """Whether it is read as one with the character before it: marks, variants, joiners, tags, shades of skin."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf") or character in _SHADES
