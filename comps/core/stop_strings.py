"""Stop strings in streamed text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from comps.core.answers import Forwarding
from comps.core.ports import Answer
from comps.core.types import Finished, Generation, TextDelta


class StopStrings:
    """Cuts streamed text before the first stop string. It holds back text with which a stop string may begin.

    Its time is linear in the text, however long the stop strings are.

    Args:
        stops: The stop strings; empty ones are ignored.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(_Search(stop) for stop in stops if stop)
        self._held = deque[str]()
        self._length = 0
        """Of what is held back, in characters."""
        self.hit = False
        """Whether a stop string was found; all text after it is dropped."""
        self.found: str | None = None
        """The stop string that was found."""

    def push(self, text: str) -> str:
        """Returns the text, of this piece and those before, that can be written now."""
        if not self._stops:
            return text
        if self.hit:
            return ""
        ends = [
            (self._length + end - len(stop.wanted), stop.wanted) for stop in self._stops if (end := stop.read(text))
        ]
        self._held.append(text)
        self._length += len(text)
        if ends:
            self.hit = True
            at, self.found = min(ends)
            return self._take(at)
        return self._take(self._length - max(stop.matched for stop in self._stops))

    def flush(self) -> str:
        """Returns the text that is still held back, at the end of the stream."""
        return "" if self.hit else self._take(self._length)

    def _take(self, count: int) -> str:
        self._length -= count
        taken = []
        while count > 0:
            piece = self._held.popleft()
            if len(piece) > count:
                self._held.appendleft(piece[count:])
                piece = piece[:count]
            taken.append(piece)
            count -= len(piece)
        return "".join(taken)


class _Search:
    """The search for one string in a text that comes in pieces, by Knuth, Morris and Pratt.

    Args:
        wanted: The string.
    """

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.matched = 0
        """How many characters of the string, from its beginning, the text ends with."""
        self._borders = [0]
        """Of its beginnings of 1, 2, … characters: with how many of its own first characters it ends, but not all."""

    def read(self, text: str) -> int:
        """Returns where in the next piece the string ends first; 0 if it does not."""
        wanted, matched, at = self.wanted, self.matched, 0
        while at < len(text):
            if not matched and (at := text.find(wanted[0], at)) < 0:
                break
            while matched and wanted[matched] != text[at]:
                matched = self._border(matched)
            matched += wanted[matched] == text[at]
            at += 1
            if matched == len(wanted):
                return at
        self.matched = matched
        return 0

    def _border(self, length: int) -> int:
        borders, wanted = self._borders, self.wanted
        while len(borders) < length:
            last, border = wanted[len(borders)], borders[-1]
            while border and wanted[border] != last:
                border = borders[border - 1]
            borders.append(border + (wanted[border] == last))
        return borders[length - 1]


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
    found = [(at, stop) for stop in stops if stop and (at := generation.text.find(stop)) >= 0]
    if not found:
        return generation
    at, stop = min(found)
    return replace(generation, text=generation.text[:at], reason="stop", stop_string=stop)
