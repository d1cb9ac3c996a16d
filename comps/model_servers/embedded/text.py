"""Text for engines in this house: no control tokens go in, whole characters and nothing of a stop string come out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

_WINDOW = 48
"""Tokens decoded again for each new one; half of them are let go when it is full."""


class IncrementalDecoder:
    """Decodes a growing sequence of tokens piece by piece.

    A tokenizer may spread one character over several tokens, and may decode a token differently for what stands before
    it; so each step decodes a window of tokens and gives out what the text gained.

    Args:
        decode: The tokenizer's own function, from token ids to text. Bytes that make no character yet may come out as
            U+FFFD or not at all.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._given = ""
        """What of the window's text has been given out."""

    def push(self, ids: Sequence[int]) -> str:
        """The text gained by `ids`; an incomplete character waits."""
        self._window.extend(ids)
        gained = self._gain(self._decode(self._window).rstrip("\ufffd"))
        if len(self._window) > _WINDOW:
            self._let_go()
        return gained

    def flush(self) -> str:
        """What is left at the end; half a character comes out as U+FFFD or not at all, as the tokenizer has it."""
        return self._gain(self._decode(self._window))

    def _gain(self, text: str) -> str:
        if len(text) <= len(self._given):
            return ""
        gained, self._given = text[len(self._given) :], text
        return gained

    def _let_go(self) -> None:
        """Forget the older half, if all of the window's text has been given out (else a later step tries again)."""
        if self._given == self._decode(self._window):
            self._window = self._window[_WINDOW // 2 :]
            # Half a character at the cut is no loss: it has been given out whole, and its rest makes no other one.
            self._given = self._decode(self._window)


class ControlTokens:
    """Breaks up a model's control tokens where they stand in a message, so that they are read as the text they are.

    Args:
        texts: The control tokens.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        found = sorted((text for text in texts if text), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, found))) if found else None

    def escaped(self, messages: Iterable[dict[str, str]]) -> list[dict[str, str]]:
        """The same messages, fit for the model's chat template."""
        return [{**message, "content": self._plain(message["content"])} for message in messages]

    def _plain(self, text: str) -> str:
        return self._pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text) if self._pattern else text
