"""What the fake model server says to a question: known on both sides, so that an answer can be checked to the byte."""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from zlib import crc32

PIECES = (
    "Deep", " learning", " is", " a", ' "quoted"', " word", ",", " and", " the", " path", " C:\\new\\table", " has",
    " \t", "two", " ends", ".\n\n", "data: [DONE]\n\n", " An", " emoji", " 🌊", " of", " 𝕎", " is", " not",
    ' {"a": 1}', " nor", "\r\n0\r\n\r\n", " 深度", " in", " it", "\u2028event: error\n: ping\u0085", " ends",
    " here", " </s>", ";", " go", " on", " é", " with", " more",
)  # fmt: skip
"""Tokens: words for the most part, quotes, escapes, characters outside the basic plane, and what a reader of
server-sent events or of HTTP chunks may take for its own."""


def question(number: int) -> str:
    """A question that no other number has."""
    return f'How does "deep learning" number {number} differ from 深度学习 🌊 in C:\\models?'


@lru_cache(4096)
def answer(asked: str, tokens: int) -> tuple[str, ...]:
    """The tokens of the answer; each question begins elsewhere, so that an answer given to another is noticed."""
    first = crc32(asked.encode("utf-8", "surrogatepass")) % len(PIECES)
    return tuple(PIECES[(first + number) % len(PIECES)] for number in range(tokens))


def prompt_tokens(asked: str) -> int:
    """How many tokens of the prompt the fake counts."""
    return len(asked.split())


def seed(pause_ms: int, offset_ms: int = 0) -> int:
    """What asks for a token every `pause_ms` milliseconds, that long after the fake's clock is a multiple of them; with
    0, for all as fast as can be."""
    return offset_ms * 1000 + pause_ms


def moments(seed: int, now: float) -> tuple[float, float]:
    """When the first token is due, and the pause between two, in seconds."""
    pause, offset = seed % 1000 / 1000, seed // 1000 / 1000
    return ceil((now - offset) / pause) * pause + offset if pause else now, pause
