"""Citations in a stream, sentence by sentence."""

from __future__ import annotations

from collections import defaultdict
from math import inf

from comps.core.citations import ANNOTATIONS, Cited, Find
from comps.core.ports import Answer
from comps.core.sentences import SentenceEnds
from comps.core.types import TextDelta

_EARLY = 5_000
"""The characters of a choice up to which its sentences are cited as they end. Each time, the text so far is searched
for code and JSON; what follows is cited at the end of the choice, so that all that together takes linear time."""
_CALLS = frozenset(("tool_calls", "function_call"))
"""The fields of a delta before which the text so far is cited, since a call ends a sentence."""


class CitedSentences(Cited):
    """Answer that adds the citations of each sentence behind it: a delta with the annotations of the sentence, an empty
    list if there are none, between the sentence and the text that follows. A piece of text is divided there.

    Args:
        answer: The answer to write to.
        find: Returns the fields for a text from an offset on, such as `Matcher.matches`.
        most: See `Cited`.
    """

    def __init__(self, answer: Answer, find: Find, most: float = inf) -> None:
        super().__init__(answer, find, most=most)
        self._ends: defaultdict[int, SentenceEnds] = defaultdict(SentenceEnds)
        self._told: defaultdict[int, int] = defaultdict(int)
        """The offset in each choice up to which citations have been written."""

    def text(self, text: str, choice: int = 0) -> None:
        first, *others = self._ends[choice].split(text)
        if first:
            super().text(first, choice)
        for part in others:
            self._tell(choice)
            if part:
                super().text(part, choice)

    def delta(self, delta: TextDelta) -> None:
        if delta.text and not delta.extra:
            self.text(delta.text, delta.choice)
            return
        if not _CALLS.isdisjoint(delta.extra or ()):
            self._tell(delta.choice)
        self._ends[delta.choice].split(delta.text)
        super().delta(delta)

    def _tell(self, choice: int) -> None:
        """Write the citations of the text since the last ones."""
        pieces = self._pieces[choice]
        if pieces and len(pieces[0]) > _EARLY:
            return
        text = "".join(pieces)
        self._pieces[choice] = [text]
        told = self._told[choice]
        if len(text) <= _EARLY and text[told:].strip():
            found = self._find(text, told)
            self._told[choice] = len(text)
            self._answer.delta(TextDelta("", choice, {ANNOTATIONS: found.get(ANNOTATIONS, [])}))

    def _start(self, text: str, choice: int) -> int:
        return self._told.pop(choice, 0)
