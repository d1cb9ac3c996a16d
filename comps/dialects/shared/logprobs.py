"""The tokens of an answer with their log probabilities, of OpenAI's two forms: of chats, and of completions.

What is not understood of them is left out, since the text does not need it.

https://platform.openai.com/docs/api-reference/chat/object, https://platform.openai.com/docs/api-reference/completions/object
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from comps.core.types import JSON


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token with its log probability. What the model server does not tell is None."""

    text: str
    logprob: float | None
    id: int | None = None
    """Its number in the vocabulary; only embedded models tell it."""
    bytes: list[int] | None = None
    """Its bytes in UTF-8, each from 0 to 255."""
    top: Sequence[ScoredToken] = ()
    """The likeliest tokens at its place, the likeliest first."""


def tokens_in(extra: Mapping[str, JSON] | None) -> list[ScoredToken]:
    """The tokens in the `logprobs` that came with an answer (`TextDelta.extra`); none if there are none."""
    logprobs = (extra or {}).get("logprobs")
    if not isinstance(logprobs, dict):
        return []
    if isinstance(content := logprobs.get("content"), list):
        return [_of_chat(entry) for entry in content if isinstance(entry, dict)]
    return list(_of_text(logprobs))


def _of_chat(entry: Mapping[str, Any]) -> ScoredToken:
    top = [_of_chat({**one, "top_logprobs": None}) for one in _list(entry.get("top_logprobs")) if isinstance(one, dict)]
    return ScoredToken(
        _text(entry.get("token")),
        _number(entry.get("logprob")),
        _whole(entry.get("id")),
        _bytes(entry.get("bytes")),
        top,
    )


def _of_text(logprobs: Mapping[str, Any]) -> Iterator[ScoredToken]:
    texts = _list(logprobs.get("tokens"))
    names = ("token_logprobs", "token_ids", "top_logprobs", "top_token_ids")
    columns = ([*_list(logprobs.get(name)), *[None] * len(texts)][: len(texts)] for name in names)
    for text, score, id, top, top_ids in zip(texts, *columns, strict=True):
        ids = _dict(top_ids)
        others = [ScoredToken(other, _number(one), _whole(ids.get(other))) for other, one in _dict(top).items()]
        likeliest = sorted(others, key=lambda other: -inf if other.logprob is None else other.logprob, reverse=True)
        yield ScoredToken(_text(text), _number(score), _whole(id), None, likeliest)


def _text(value: JSON) -> str:
    return "" if value is None else str(value)


def _number(value: JSON) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: JSON) -> int | None:
    return value if type(value) is int else None


def _bytes(value: JSON) -> list[int] | None:
    return value if isinstance(value, list) and all(type(one) is int for one in value) else None


def _list(value: JSON) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _dict(value: JSON) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
