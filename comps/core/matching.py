"""Citations found without the model's help: each sentence of an answer is matched to the document with its words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import log

from comps.core.citations import ANNOTATIONS, annotation, skipped
from comps.core.types import JSON, Document
from comps.core.words import words

LEAST_SCORE = 0.6
"""The least share of a sentence's words, by weight, that its document has; see `tests.benchmarks.answers.citing`."""
_LEAST_LEAD = 0.05
"""How much greater the best document's score is than the next one's, so that the sentence tells them apart."""
_UNKNOWN = log(2)
"""The weight of a word that no document has: that of one that all have, since most such words are `is` and the like."""
_SENTENCE = re.compile(r"(?:[^.!?…。！？\n]|[.!?…](?!\s|$|[\"'”’)\]]))+[.!?…。！？]*[\"'”’)\]」』]*")


class Matcher:
    """Finds the documents that the sentences of answers come from.

    Args:
        given: The documents by citation number.
    """

    def __init__(self, given: Mapping[int, Document]) -> None:
        self._given = given
        self._having: dict[str, list[int]] | None = None
        """The numbers of the documents that have a word, by word."""

    def matches(self, text: str, start: int = 0) -> dict[str, JSON]:
        """Returns an annotation for each sentence that one document has the words of, as extra fields; empty if there
        is none.

        It says `"matched_by": "words"`, and the `score`: the share of the sentence's words that are in the document,
        from 0 to 1, where rare words weigh more (inverse document frequency). Code, JSON and reasoning are skipped.

        Args:
            text: The answer.
            start: The offset, in characters, at which to begin.
        """
        if self._having is None:
            self._having = _having(self._given)
        found: list[JSON] = []
        for begin, end in _sentences(text, start):
            if best := self._best(set(words(text[begin:end])), self._having):
                number, score = best
                told = {"matched_by": "words", "score": round(score, 3)}
                found.append(annotation(begin, end, number, self._given[number], told))
        return {ANNOTATIONS: found} if found else {}

    def _best(self, sentence: set[str], having: Mapping[str, list[int]]) -> tuple[int, float] | None:
        """Returns the document that a sentence comes from, and its score; None if that is not clear."""
        scores: dict[int, float] = {}
        whole = 0.0
        for word in sentence:
            numbers = having.get(word, ())
            weight = log(1 + len(self._given) / len(numbers)) if numbers else _UNKNOWN
            whole += weight
            for number in numbers:
                scores[number] = scores.get(number, 0.0) + weight
        if not scores:
            return None
        best = max(scores, key=lambda number: scores[number])
        second = max((score for number, score in scores.items() if number != best), default=0.0)
        is_clear = len(self._given) == 1 or scores[best] - second >= _LEAST_LEAD * whole
        return (best, scores[best] / whole) if whole and is_clear and scores[best] >= LEAST_SCORE * whole else None


def _having(given: Mapping[int, Document]) -> dict[str, list[int]]:
    having: dict[str, list[int]] = {}
    for number, document in given.items():
        for word in set(words(f"{document.title}\n{document.text}")):
            having.setdefault(word, []).append(number)
    return having


def _sentences(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Yields the spans of sentences, without those that are no prose."""
    for first, last in (*skipped(text), (len(text), len(text))):
        for found in _SENTENCE.finditer(text, start, max(start, first)):
            begin = found.start() + len(found[0]) - len(found[0].lstrip())
            if begin < found.end():
                yield begin, found.end()
        start = max(start, last)
