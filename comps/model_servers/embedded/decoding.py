"""What engines that choose every token themselves have in common: checks, a steady pace, and the answer's end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import isfinite

from comps.core.errors import InvalidRequest, PromptTooLong, SettingsError, no_room
from comps.core.stop_strings import StopStrings
from comps.core.types import JSON, Sampling
from comps.model_servers.embedded.engine_program import Part
from comps.model_servers.embedded.text import IncrementalDecoder

STEP_SECONDS = 0.25
"""How long a step may take: so long does a long prompt hold up every other answer, and a cancelled request go on."""
_LEAST_CHUNK = 32
_CONTEXT = 8
"""Tokens of a text that are decoded with what continues it: the space between two words may belong to either."""

_ALMOST_GREEDY = 1e-5
"""Below this temperature the likeliest token is always taken: divided by less, scores overflow."""

_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (-1, 2**31 - 1),
    "typical_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}


def check_settings(given: Mapping[str, JSON], known: Iterable[str], owner: str) -> None:
    """Refuse a setting that would be lost.

    Raises:
        SettingsError: A key of `given` is not among `known`; it names the nearest.
    """
    known = sorted(known)
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, 1)
            said = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise SettingsError(f"{key}: {owner} has no such setting; {said}")


def check_sampling(sampling: Sampling) -> None:
    """Refuse values that mean nothing, before a library makes something of them.

    Raises:
        InvalidRequest: One is out of its range.
    """
    for name, (least, most) in _RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not (isfinite(value) and least <= value <= most):
            raise InvalidRequest(f"{value} is not between {least} and {most}", name)


def greedy(sampling: Sampling) -> bool:
    """Whether it leaves the likeliest token alone."""
    cold = sampling.temperature is not None and sampling.temperature < _ALMOST_GREEDY
    return cold or sampling.top_p == 0


def room_for(prompt_tokens: int, sampling: Sampling, window: int) -> int:
    """How many tokens an answer may have.

    Raises:
        PromptTooLong: None, for the window.
        InvalidRequest: None, for `max_total_tokens`.
    """
    if prompt_tokens >= window:
        raise PromptTooLong(prompt_tokens, window)
    total = min(sampling.max_total_tokens or window, window)
    if prompt_tokens >= total:
        raise no_room(prompt_tokens, total)
    return min(sampling.max_tokens or window, total - prompt_tokens)


def chunk_for(seconds_per_token: float, most: int) -> int:
    """How many tokens of a prompt to take in at once, in powers of two: a measured time is never the same twice, and
    other chunks round differently, so that no seed would repeat an answer."""
    chunk = _LEAST_CHUNK
    while chunk * 2 <= most and chunk * 2 * seconds_per_token <= STEP_SECONDS:
        chunk *= 2
    return min(chunk, most)


class Answer:
    """One answer while it grows.

    Args:
        number: The request's.
        prompt: Its tokens; those of a text to continue also tell how its continuation is spaced.
        room: The most tokens that it may have, at least 1.
        stops: Texts that end it.
        decode: From tokens to text; see `IncrementalDecoder`.
        ends: The tokens that end it.
        continues: Whether the prompt is a text to continue.
    """

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        room: int,
        stops: Sequence[str],
        decode: Callable[[Sequence[int]], str],
        ends: Collection[int],
        continues: bool,
    ) -> None:
        self.number = number
        self.tokens = 0
        """How many there are by now, a token that ends it included."""
        self._prompt_tokens = len(prompt)
        self._room = room
        self._ends = ends
        self._stops = StopStrings(stops)
        self._decoder = IncrementalDecoder(decode)
        if continues:
            self._decoder.push(prompt[-_CONTEXT:])

    def push(self, token: int) -> Part | None:
        """What there is to say for one more token; after a part with `last` nothing more may come."""
        self.tokens += 1
        ended = token in self._ends
        text = "" if ended else self._stops.push(self._decoder.push([token]))
        full = self.tokens >= self._room
        if (ended or full) and not self._stops.hit:
            text += self._stops.push(self._decoder.flush())
            text += self._stops.flush()
        if ended or full or self._stops.hit:
            reason = "stop" if ended or self._stops.hit else "length"
            usage = [self._prompt_tokens, self.tokens]
            return {"id": self.number, "text": text, "reason": reason, "usage": usage, "last": True}
        return {"id": self.number, "text": text} if text else None
