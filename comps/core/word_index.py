"""Texts by their words, to find the one that has the words of a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from math import log

from comps.core.words import distinct_words

_UNKNOWN = log(2)
"""The weight of a word that no text has: that of one that all have, since most such words are `is` and the like."""


class WordIndex:
    """Texts by their words.

    Args:
        texts: The texts, by number.
        most: The most texts in which a word is looked up. One that more texts have has little weight, and counts only
            where a sentence has no other one, and then in the first texts.
    """

    def __init__(self, texts: Mapping[int, str], most: int | None = None) -> None:
        self._count = len(texts)
        self._most = most
        self._having: dict[str, list[int]] = {}
        for number, text in texts.items():
            for word in distinct_words(text):
                self._having.setdefault(word, []).append(number)

    def weight(self, word: str) -> float:
        """Returns the weight of a word: rare words weigh more (inverse document frequency)."""
        numbers = self._having.get(word)
        return log(1 + self._count / len(numbers)) if numbers else _UNKNOWN

    def scores(self, sentence: AbstractSet[str]) -> tuple[dict[int, float], float]:
        """Returns the weight of those words of a sentence that each text has, by number, and the weight of all."""
        scores: dict[int, float] = {}
        whole = 0.0
        for word in sentence:
            weight = self.weight(word)
            whole += weight
            numbers = self._having.get(word, ())
            if self._most is None or len(numbers) <= self._most:
                for number in numbers:
                    scores[number] = scores.get(number, 0.0) + weight
        for word in () if scores else sentence:
            for number in self._having.get(word, ())[: self._most]:
                scores[number] = scores.get(number, 0.0) + self.weight(word)
        return scores, whole
