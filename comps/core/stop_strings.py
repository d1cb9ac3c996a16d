"""Stop strings in streamed text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from comps.core.answers import Forwarding
from comps.core.ports import Answer
from comps.core.types import Finished, Generation, TextDelta


class StopStrings:
    """Cuts streamed text before the first stop string. It holds back text with which a stop string may begin.

    Args:
        stops: The stop strings; empty ones are ignored.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.hit = False
        """Whether a stop string was found; all text after it is dropped."""
        self.found: str | None = None
        """The stop string that was found."""

    def push(self, text: str) -> str:
        """Returns the text, of this piece and those before, that can be written now."""
        if not self._stops:
            return text
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            at, self.found = min(found)
            return self._take(at)
        return self._take(len(self._held) - self._longest_beginning())

    def flush(self) -> str:
        """Returns the text that is still held back, at the end of the stream."""
        return "" if self.hit else self._take(len(self._held))

    def _take(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _longest_beginning(self) -> int:
        """Returns the length of the longest suffix of the held text that is a prefix of a stop string."""
        longest = min(len(self._held), max(map(len, self._stops)) - 1)
        return next(
            (n for n in range(longest, 0, -1) if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0
        )


class Stopped(Forwarding):
    """Answer that ends before the first stop string, where the model server includes it, or a part of it, in its text.

    Args:
        answer: The answer to write to.
        stops: The stop strings.
    """

    def __init__(self, answer: Answer, stops: Sequence[str]) -> None:
        super().__init__(answer)
        self.stops = StopStrings(stops)

    def text(self, text: str, choice: int = 0) -> None:
        if shown := self.stops.push(text):
            self._answer.text(shown, choice)

    def delta(self, delta: TextDelta) -> None:
        text = self.stops.push(delta.text)
        if text or delta.extra:
            self._answer.delta(replace(delta, text=text))

    def finished(self, end: Finished) -> None:
        if rest := self.stops.flush():
            self._answer.text(rest, end.choice)
        self._answer.finished(replace(end, reason="stop", stop_string=self.stops.found) if self.stops.hit else end)


def cut(generation: Generation, stops: Sequence[str]) -> Generation:
    """Returns a whole answer up to the first stop string."""
    found = StopStrings(stops)
    text = found.push(generation.text) + found.flush()
    return replace(generation, text=text, reason="stop", stop_string=found.found) if found.hit else generation
