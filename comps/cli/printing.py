"""An answer on the terminal, as it is written."""

from __future__ import annotations

from comps.core.types import Finished, TextDelta
from comps.messages import message


class PrintedAnswer:
    """Answer that is printed as it is written; after it, the reason if it was cut short.

    Args:
        most: The maximum number of tokens of the answer.
    """

    full = False

    def __init__(self, most: int | None) -> None:
        self._most = most
        self.written: list[str] = []
        """The pieces of text so far."""

    def text(self, text: str, choice: int = 0) -> None:
        self.written.append(text)
        print(text, end="", flush=True)

    def delta(self, delta: TextDelta) -> None:
        if delta.text:
            self.text(delta.text)

    def finished(self, end: Finished) -> None:
        print(flush=True)
        if end.reason != "stop":
            reached = end.usage and end.usage.completion_tokens == self._most
            message(f"[cut short: {end.reason}{'; --max-tokens allows more' if reached else ''}]")

    async def drain(self) -> None:
        """Returns at once."""
