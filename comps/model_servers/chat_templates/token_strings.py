"""Token strings, as vocabularies spell them: where in a text each token ends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, chain

_SHOWN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_HIDDEN = [byte for byte in range(0x100) if byte not in _SHOWN]
_BYTES = {0x100 + place: byte for place, byte in enumerate(_HIDDEN)}
"""How byte-level vocabularies spell the bytes that are no printable characters: https://github.com/openai/gpt-2/blob/master/src/encoder.py."""
_WITHIN = bytes(range(0x80, 0xC0))
"""Bytes of UTF-8 that begin no character."""
_FALLBACK = re.compile("<0x([0-9A-F]{2})>")
"""How SentencePiece spells a byte."""


def ends_of(strings: Sequence[str], text: str) -> list[int] | None:
    """Where each token ends, in characters; None if they are not spelled in a way that is known here.

    Args:
        strings: The tokens of `text` as the vocabulary has them, such as `\u0120rain` or `\u2581rain`.
        text: What they came from.
    """
    wanted = text.encode("utf-8", "replace")
    for spelling in (_byte_level, _sentencepiece):
        pieces = [spelling(string) for string in strings]
        added = len(b"".join(pieces)) - len(wanted)
        # SentencePiece may put a space before a text.
        if added in (0, 1) and b"".join(pieces) == b" " * added + wanted:
            return in_characters([max(end - added, 0) for end in accumulate(map(len, pieces))], text)
    return None


def in_characters(ends: Sequence[int], text: str) -> list[int]:
    """Ends in bytes as ends in characters; one within a character is where that ends."""
    if text.isascii():
        return list(ends)
    encoded, begins = text.encode("utf-8", "replace"), chain((0,), ends)
    return list(
        accumulate(len(encoded[begin:end].translate(None, _WITHIN)) for begin, end in zip(begins, ends, strict=False))
    )


def _byte_level(string: str) -> bytes:
    return string.translate(_BYTES).encode("latin-1", "replace")


def _sentencepiece(string: str) -> bytes:
    found = _FALLBACK.fullmatch(string)
    return bytes([int(found[1], 16)]) if found else string.replace("\u2581", " ").encode()
