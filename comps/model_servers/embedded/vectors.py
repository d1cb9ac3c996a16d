"""Embeddings, for engines that read texts in chunks.

A text's embedding is the mean of the model's last hidden states over all of its tokens, normalized to length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from comps.core.errors import InvalidRequest, TextTooLong
from comps.model_servers.embedded.engine_program import Part


def check_texts(texts: Sequence[Sequence[int]], most: int | None) -> None:
    """Refuse texts of which one cannot be embedded.

    Args:
        texts: The tokens of each.
        most: How many tokens a text may have; None: any number.

    Raises:
        InvalidRequest: A text has no tokens (`TextTooLong`: too many).
    """
    lengths = [len(text) for text in texts]
    if most is not None and max(lengths, default=0) > most:
        raise TextTooLong(max(lengths), most)
    if 0 in lengths:
        raise InvalidRequest("a text is empty", "input")


@dataclass
class Texts:
    """The texts of one request to embed, which are read one after another.

    Args:
        number: The request's id.
        texts: The tokens of each.
    """

    number: int
    texts: Sequence[Sequence[int]]
    _vectors: list[list[float]] = field(default_factory=list)
    _read: int = 0
    """How many tokens of the current text have been read."""
    _total: Any = 0.0
    """The sum of their hidden states: an array of shape (hidden size,)."""

    @property
    def done(self) -> bool:
        return len(self._vectors) == len(self.texts)

    @property
    def text(self) -> Sequence[int]:
        """The tokens of the current text."""
        return self.texts[len(self._vectors)]

    @property
    def read(self) -> int:
        """How many tokens of the current text have been read."""
        return self._read

    def chunk(self, most: int) -> tuple[Sequence[int], int]:
        """The tokens to read next, at most so many, and how many of the same text were read before them."""
        return self.text[self._read : self._read + most], self._read

    def add(self, tokens: int, total: Any) -> None:
        """Add what was read.

        Args:
            tokens: How many tokens of the current text.
            total: The sum of their hidden states: an array of shape (hidden size,).
        """
        self._read += tokens
        self._total = self._total + total
        if self._read == len(self.text):
            length = float(self._total @ self._total) ** 0.5 or 1.0
            self._vectors.append((self._total / length).tolist())
            self._read, self._total = 0, 0.0

    @property
    def part(self) -> Part:
        """The part with all vectors (see `engine_program`), once all texts are read."""
        count = sum(map(len, self.texts))
        return {"id": self.number, "vectors": self._vectors, "prompt_tokens": count, "last": True}
