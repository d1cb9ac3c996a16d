"""Long texts in pieces."""

from __future__ import annotations

from collections.abc import Iterator


def pieces(text: str, longest: int, separator: str) -> Iterator[str]:
    """Yields a text in pieces: a regular expression holds the interpreter's lock until it has read its text.

    Args:
        text: The text.
        longest: The most characters of a piece.
        separator: One character, behind which it is cut where it can be.
    """
    start = 0
    while len(text) - start > longest:
        end = text.rfind(separator, start, start + longest) + 1 or start + longest
        yield text[start:end]
        start = end
    yield text[start:]
