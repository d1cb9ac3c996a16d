"""Citations found without the model's help: each sentence of an answer is matched to the document with its words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import log

from comps.core.citations import ANNOTATIONS, annotation, skipped
from comps.core.types import JSON, Document
from comps.core.words import words

LEAST_SCORE = 0.6
"""The least share of a sentence's words, by weight, that its document has. Measured: see docs/answers.md."""
_LEAST_LEAD = 0.05
"""How much greater the best document's score is than the next one's, so that the sentence tells them apart."""
_UNKNOWN = log(2)
"""The weight of a word that no document has: that of one that all have, since most such words are `is` and the like."""
_SENTENCE = re.compile(r"(?:[^.!?…。！？\n]|[.!?…](?!\s|$|[\"'”’)\]]))+[.!?…。！？]*[\"'”’)\]」』]*")


def matches(text: str, given: Mapping[int, Document], start: int = 0) -> dict[str, JSON]:
    """Returns an annotation for each sentence that one document has the words of, as extra fields; empty if there is
    none.

    It says `"matched_by": "words"`, and the `score`: the share of the sentence's words that are in the document, from 0
    to 1, where rare words weigh more (inverse document frequency). Code, JSON and reasoning are skipped.

    Args:
        text: The answer.
        given: The documents by citation number.
        start: The offset, in characters, at which to begin.
    """
    numbers = list(given)
    of_documents = [set(words(f"{document.title}\n{document.text}")) for document in given.values()]
    weights = _weights(of_documents)
    found: list[JSON] = []
    for begin, end in _sentences(text, start):
        if best := _best(set(words(text[begin:end])), of_documents, weights):
            place, score = best
            number = numbers[place]
            told = {"matched_by": "words", "score": round(score, 3)}
            found.append(annotation(begin, end, number, given[number], told))
    return {ANNOTATIONS: found} if found else {}


def _sentences(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Yields the spans of sentences, without those that are no prose."""
    for first, last in (*skipped(text), (len(text), len(text))):
        for found in _SENTENCE.finditer(text, start, max(start, first)):
            begin = found.start() + len(found[0]) - len(found[0].lstrip())
            if begin < found.end():
                yield begin, found.end()
        start = max(start, last)


def _weights(documents: Sequence[set[str]]) -> dict[str, float]:
    """Returns the weight of each word: the fewer documents have it, the greater."""
    counts = Counter(word for document in documents for word in document)
    return {word: log(1 + len(documents) / count) for word, count in counts.items()}


def _best(sentence: set[str], documents: Sequence[set[str]], weights: Mapping[str, float]) -> tuple[int, float] | None:
    """Returns the place of the document that a sentence comes from, and its score; None if that is not clear."""
    whole = sum(weights.get(word, _UNKNOWN) for word in sentence)
    if not whole:
        return None
    scores = [sum(weights[word] for word in sentence & document) / whole for document in documents]
    (best, place), *others = sorted(((score, -place) for place, score in enumerate(scores)), reverse=True)
    is_clear = not others or best - others[0][0] >= _LEAST_LEAD
    return (-place, best) if best >= LEAST_SCORE and is_clear else None
