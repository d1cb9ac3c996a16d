"""Stop strings, found in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Cuts a stream of text before the first stop string, holding back what may turn out to begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.hit = False
        """Whether a stop string was met; nothing comes after it."""

    def push(self, text: str) -> str:
        """The part of what was pushed so far that is safe to show and has not been shown yet."""
        if not self._stops:
            return text
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            return self._take(min(found))
        return self._take(len(self._held) - self._longest_beginning())

    def flush(self) -> str:
        """What was held back, at an end that is not a stop string."""
        return "" if self.hit else self._take(len(self._held))

    def _take(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _longest_beginning(self) -> int:
        """The length of the longest end of the held text with which some stop string begins."""
        longest = min(len(self._held), max(map(len, self._stops)) - 1)
        return next(
            (n for n in range(longest, 0, -1) if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0
        )
