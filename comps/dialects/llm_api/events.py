"""llm-api's streamed answers: raw text in server-sent events, and comments for all else."""

from __future__ import annotations

from collections.abc import Callable

from comps.core.types import Finished, TextDelta


class TextEvents:
    """Writes each piece of text as an event, and a finish reason other than `stop` as a comment at the end.

    Args:
        write: Sends one event.
        before: The text before the first piece, written with that as an event of its own; empty: none.
        behind: The text behind the last piece; empty: none.
    """

    __slots__ = ("_before", "_behind", "_reason", "_within_line_break", "_write")

    def __init__(self, write: Callable[[bytes], None], before: str, behind: str) -> None:
        self._write = write
        self._before = before
        self._behind = behind
        self._reason = "stop"
        self._within_line_break = False
        """Whether the last piece ended with CR, so that an LF at the beginning of the next one belongs to it."""

    def text(self, text: str, choice: int = 0) -> None:
        if self._before:
            self._begin()
        self._write(text_event(text.removeprefix("\n") if self._within_line_break else text))
        self._within_line_break = text.endswith("\r")

    def delta(self, delta: TextDelta) -> None:
        if delta.text:
            self.text(delta.text)

    def finished(self, end: Finished) -> None:
        self._reason = end.reason

    def close(self) -> None:
        """Write the text behind the answer, and the finish reason."""
        if self._before:
            self._begin()
        if self._behind:
            self._write(text_event(self._behind))
        if self._reason != "stop":
            self._write(text_comment(f"finish_reason={self._reason}"))

    def _begin(self) -> None:
        self._write(text_event(self._before))
        self._before = ""


class OneEvent(TextEvents):
    """Writes the whole answer as one event, when it has ended."""

    __slots__ = ("_pieces",)

    def __init__(self, write: Callable[[bytes], None], before: str, behind: str) -> None:
        super().__init__(write, before, behind)
        self._pieces: list[str] = []

    def text(self, text: str, choice: int = 0) -> None:
        if self._before:
            self._begin()
        self._pieces.append(text)

    def close(self) -> None:
        if self._pieces:
            super().text("".join(self._pieces))
        super().close()


def text_event(text: str) -> bytes:
    """A piece of text as an event, with a `data:` for each line; CR, LF and CRLF are the same to clients."""
    lines = text.encode().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return b"data: " + lines.replace(b"\n", b"\r\ndata: ") + b"\r\n\r\n"


def text_comment(text: str) -> bytes:
    """A comment, on one line."""
    return f": {' '.join(text.split())}\r\n\r\n".encode()
