"""The texts of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comps.core.types import Token


def token_texts(text: str, tokens: Sequence[Token]) -> Iterator[str]:
    """Yields the part of a text that each of its tokens stands for; empty for special ones, for a part of a character,
    and where the tokenizer does not tell the places."""
    begin = 0
    for token in tokens:
        end = token.end or 0
        yield text[begin:end]
        begin = end
