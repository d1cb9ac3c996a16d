"""Passages: from which sentences of a document a sentence of an answer comes."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from comps.core.sentences import sentences
from comps.core.word_index import WordIndex
from comps.core.words import distinct_words

_LONGEST = 600
"""The most characters of a sentence; a longer one, such as a table in one line, is divided at a space."""
_MOST_SENTENCES = 3
_LEAST_GAIN = 0.2
_LEAST_WORDS = 2
"""The least share of the words, by weight, and the least words, that a neighbouring sentence adds to a passage."""
_COMMON = 500
"""The most sentences of a document that may have a word by which one of them is found."""
_DIGITS = 6
"""How exactly scores are compared: their last digits depend on the order of the words in a set."""


class Passages:
    """The sentences of a document by their words. To make it takes time in proportion to the text.

    Args:
        text: The document's text.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._spans = [*_divided(text)]
        texts = {place: text[begin:end] for place, (begin, end) in enumerate(self._spans)}
        self._index = WordIndex(texts, most=_COMMON)

    def find(self, wanted: AbstractSet[str]) -> tuple[int, int] | None:
        """Returns the span of the passage that has most of these words: the best sentence, and neighbours of it that
        add to it, at most three in all; None if no sentence has any of the words."""
        scores, whole = self._index.scores(wanted)
        if not scores:
            return None
        best = max(scores, key=lambda place: (round(scores[place], _DIGITS), -place))
        first, last = best, best
        left = wanted - self._words(best)
        while last - first + 1 < _MOST_SENTENCES:
            near = [place for place in (first - 1, last + 1) if 0 <= place < len(self._spans)]
            added = {place: left & self._words(place) for place in near}
            gains = {place: sum(map(self._index.weight, found)) for place, found in added.items()}
            place = max(gains, key=lambda one: round(gains[one], _DIGITS), default=best)
            if len(added.get(place, ())) < _LEAST_WORDS or gains[place] < _LEAST_GAIN * whole:
                break
            first, last = min(first, place), max(last, place)
            left = left - added[place]
        return self._spans[first][0], self._spans[last][1]

    def _words(self, place: int) -> set[str]:
        begin, end = self._spans[place]
        return distinct_words(self._text[begin:end])


def _divided(text: str) -> Iterator[tuple[int, int]]:
    """Yields the spans of the sentences of a text, long ones in several."""
    for begin, end in sentences(text, 0, len(text)):
        while end - begin > _LONGEST:
            middle = text.rfind(" ", begin, begin + _LONGEST) + 1 or begin + _LONGEST
            yield begin, middle
            begin = middle
        yield begin, end
