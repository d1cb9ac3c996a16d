"""Citations found without the model's help: each sentence of an answer is matched to the document with its words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

from comps.core.citations import ANNOTATIONS, annotation, skipped
from comps.core.passages import Passages
from comps.core.sentences import sentences
from comps.core.types import JSON, Document
from comps.core.word_index import WordIndex
from comps.core.words import distinct_words

LEAST_SCORE = 0.6
"""The least share of a sentence's words, by weight, that its document has; see `tests.benchmarks.answers.citing`."""
_LEAST_LEAD = 0.05
"""How much greater the best document's score is than the next one's, so that the sentence tells them apart."""


class Matcher:
    """Finds the documents that the sentences of answers come from.

    Args:
        given: The documents by citation number.
        passages: Whether to find the passage of the document as well.
    """

    def __init__(self, given: Mapping[int, Document], passages: bool = False) -> None:
        self._given = given
        self._index: WordIndex | None = None
        self._passages: dict[int, Passages] | None = {} if passages else None
        """Those of the documents that were cited, by number."""

    def matches(self, text: str, start: int = 0) -> dict[str, JSON]:
        """Returns an annotation for each sentence that one document has the words of, as extra fields; empty if there
        is none.

        It says `"matched_by": "words"`, the `score`: the share of the sentence's words that are in the document, from
        0 to 1, where rare words weigh more (inverse document frequency), and, if wanted, the `passage`: where it begins
        and ends in the document's text, in characters, or null where its title alone has the words. Code, JSON and
        reasoning are skipped.

        Args:
            text: The answer.
            start: The offset, in characters, at which to begin.
        """
        if self._index is None:
            self._index = WordIndex({number: f"{one.title}\n{one.text}" for number, one in self._given.items()})
        found: list[JSON] = []
        for begin, end in _prose(text, start):
            sentence = distinct_words(text[begin:end])
            if best := self._best(sentence, self._index):
                number, score = best
                told: dict[str, JSON] = {"matched_by": "words", "score": round(score, 3)}
                if self._passages is not None:
                    told["passage"] = self._passage(number, sentence, self._passages)
                found.append(annotation(begin, end, number, self._given[number], told))
        return {ANNOTATIONS: found} if found else {}

    def _best(self, sentence: AbstractSet[str], index: WordIndex) -> tuple[int, float] | None:
        """Returns the document that a sentence comes from, and its score; None if that is not clear."""
        scores, whole = index.scores(sentence)
        if not scores:
            return None
        best = max(scores, key=lambda number: scores[number])
        second = max((score for number, score in scores.items() if number != best), default=0.0)
        is_clear = len(self._given) == 1 or scores[best] - second >= _LEAST_LEAD * whole
        return (best, scores[best] / whole) if whole and is_clear and scores[best] >= LEAST_SCORE * whole else None

    def _passage(self, number: int, sentence: AbstractSet[str], known: dict[int, Passages]) -> JSON:
        if number not in known:
            known[number] = Passages(self._given[number].text)
        span = known[number].find(sentence)
        return span and list(span)


def _prose(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Yields the spans of sentences, without those that are no prose."""
    for first, last in (*skipped(text), (len(text), len(text))):
        yield from sentences(text, start, max(start, first))
        start = max(start, last)
