"""Text for embedded engines: control tokens in messages are broken up, tokens are decoded into whole characters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import accumulate

from comps.core.types import JSON

_WINDOW = 48
"""The most tokens that are decoded again for each new one; when there are more, the older half is dropped."""


class IncrementalDecoder:
    """Incremental detokenization: decodes a growing sequence of tokens piece by piece.

    A character may be spread over several tokens, and a token's text may depend on the tokens before it. So each step
    decodes a window of the last tokens and returns by how much its text has grown.

    Args:
        decode: The tokenizer's own function, from token ids to text. Bytes of an incomplete character may become U+FFFD
            or nothing.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._returned = ""
        """The text of the window that was returned already."""

    def push(self, ids: Sequence[int]) -> str:
        """The text that `ids` add; an incomplete character is held back."""
        self._window.extend(ids)
        added = self._added(self._decode(self._window).rstrip("\ufffd"))
        if len(self._window) > _WINDOW:
            self._shorten()
        return added

    def preview(self, token: int) -> str:
        """The text that `push` would return for this token, which is not added."""
        return self._decode([*self._window, token]).rstrip("\ufffd")[len(self._returned) :]

    @property
    def incomplete(self) -> bool:
        """Whether an incomplete character is held back of which `flush` would make U+FFFD."""
        return len(self._decode(self._window)) > len(self._returned)

    def flush(self) -> str:
        """What is left at the end; an incomplete character becomes U+FFFD or nothing, as the tokenizer decodes it."""
        return self._added(self._decode(self._window))

    def _added(self, text: str) -> str:
        """What the window's new text has more than was returned."""
        if len(text) <= len(self._returned):
            return ""
        added, self._returned = text[len(self._returned) :], text
        return added

    def _shorten(self) -> None:
        """Drop the older half of the window, if all of its text was returned; else a later step does."""
        if self._returned == self._decode(self._window):
            self._window = self._window[_WINDOW // 2 :]
            # A character that is cut in two here was returned whole, and its rest makes no other character.
            self._returned = self._decode(self._window)


class TokenEnds:
    """Finds where each token of a text ends: a few tokens at a time, since each of them is decoded.

    Args:
        ids: The tokens, special ones included.
        decode: As for `IncrementalDecoder`; special tokens have no text.
        name_of: Returns the name of a special token, which may stand in the text.
        text: What they came from.
    """

    def __init__(
        self, ids: Sequence[int], decode: Callable[[Sequence[int]], str], name_of: Callable[[int], str], text: str
    ) -> None:
        self._ids = ids
        self._decoder = IncrementalDecoder(decode)
        self._name_of = name_of
        self._text = text
        self._pieces: list[str] = []

    def advance(self, most: int) -> bool:
        """Decode at most so many further tokens; returns whether none is left."""
        begin = len(self._pieces)
        self._pieces += [self._decoder.push([id]) for id in self._ids[begin : begin + most]]
        return len(self._pieces) == len(self._ids)

    def found(self) -> list[int] | None:
        """Where each token ends, in characters; None if the tokens do not decode to the text. No token may be left."""
        pieces = self._pieces
        if pieces:
            pieces[-1] += self._decoder.flush()
        if sum(map(len, pieces)) < len(self._text):
            self._name_special()
        added = len("".join(pieces)) - len(self._text)
        # SentencePiece may put a space before a text.
        if added not in (0, 1) or "".join(pieces) != " " * added + self._text:
            return None
        return [max(end - added, 0) for end in accumulate(map(len, pieces))]

    def _name_special(self) -> None:
        """Put the names of special tokens where they stand in the text, as where a chat template wrote it."""
        place, name_of = 0, cache(self._name_of)
        for number, piece in enumerate(self._pieces):
            if not piece and (name := name_of(self._ids[number])) and self._text.startswith(name, place):
                self._pieces[number] = piece = name
            place += len(piece)


class ControlTokens:
    """Escapes a model's control tokens with a space, so that they are tokenized as ordinary text.

    Args:
        texts: The control tokens as text.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        found = sorted((text for text in texts if text), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, found))) if found else None

    def escaped(self, value: JSON) -> JSON:
        """Messages, or functions, with each text in them escaped: safe for the model's chat template."""
        if isinstance(value, str):
            return self._escape(value)
        if isinstance(value, Mapping):
            return {self._escape(name): self.escaped(one) for name, one in value.items()}
        return [self.escaped(one) for one in value] if isinstance(value, list | tuple) else value

    def _escape(self, text: str) -> str:
        return self._pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text) if self._pattern else text
