"""Decoding, for engines that choose each token: checks of settings and sampling, chunk sizes, and an answer's end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite

from comps.core.errors import InvalidRequest, PromptTooLong, SettingsError, no_room
from comps.core.stop_strings import StopStrings
from comps.core.types import Sampling
from comps.model_servers.embedded.engine_program import Part
from comps.model_servers.embedded.logprobs import LOGPROBS, Named, PromptRecords, Records, Scores, Wanted
from comps.model_servers.embedded.text import IncrementalDecoder

STEP_SECONDS = 0.25
"""How long a step may take. For so long a long prompt delays all answers, and a cancelled request goes on."""
_READ_SECONDS = 0.12
"""How much of it reading a chunk of a prompt may take, by the rule of `Chunks`. The rest is for the tokens of other
answers, and for what a step takes longer than by the rule."""
LEAST_CHUNK = 32
"""The fewest tokens of a prompt to read in a step, where fewer take hardly less time."""
_WIDTHS = 2
"""Behind so many tokens times the hidden size, attention takes as long as all the rest of a token, in small chunks of
the bundled model. Counted in multiplications they are 5.3, but attention makes fewer of them in a second."""
_CONTEXT = 8
"""Tokens of a text to continue that are decoded together with its continuation: the space between two words may belong
to either."""

_ALMOST_GREEDY = 1e-5
"""Below this temperature decoding is greedy: logits divided by less overflow."""

_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (-1, 2**31 - 1),
    "typical_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}


def check_settings(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Refuse an unknown setting.

    Args:
        given: The names of the settings.
        known: The names of those that there are.
        owner: The kind of model server, for the error.

    Raises:
        SettingsError: A key of `given` is not among `known`; it names the nearest.
    """
    known = sorted(known)
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise SettingsError(f"{key}: {owner} has no such setting; {hint}")


def check_sampling(sampling: Sampling) -> None:
    """Refuse values that are out of range, which libraries may take.

    Raises:
        InvalidRequest: One is out of its range.
    """
    for name, (least, most) in _RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not (isfinite(value) and least <= value <= most):
            raise InvalidRequest(f"{value} is not between {least} and {most}", name)


def is_greedy(sampling: Sampling) -> bool:
    """Whether only the likeliest token can be chosen."""
    cold = sampling.temperature is not None and sampling.temperature < _ALMOST_GREEDY
    return cold or sampling.top_p == 0


def max_new_tokens(prompt_tokens: int, sampling: Sampling, window: int) -> int:
    """How many tokens an answer may have, at least 1.

    Args:
        prompt_tokens: The prompt's length.
        sampling: Its `max_tokens` and `max_total_tokens` count.
        window: The context window in tokens.

    Raises:
        PromptTooLong: The prompt fills the window.
        InvalidRequest: It has `max_total_tokens` already.
    """
    if prompt_tokens >= window:
        raise PromptTooLong(prompt_tokens, window)
    total = min(sampling.max_total_tokens or window, window)
    if prompt_tokens >= total:
        raise no_room(prompt_tokens, total)
    return min(sampling.max_tokens or window, total - prompt_tokens)


@dataclass(frozen=True)
class Chunks:
    """How many tokens of a prompt to read in a step: fewer, the more stand before them, as attention goes over those.

    Args:
        seconds_per_token: At the beginning of a prompt, measured.
        most: The most tokens that there may be.
        width: The model's hidden size.
        least: The fewest that there may be, if `most` is not less.
    """

    seconds_per_token: float
    most: int
    width: int
    least: int = LEAST_CHUNK

    def after(self, tokens: int) -> int:
        """The size of the chunk that comes after so many tokens.

        It is a power of two: measured times vary, and sums over other chunks round differently, so that a seed would
        not repeat an answer.
        """
        seconds = self.seconds_per_token * (1 + tokens / (_WIDTHS * self.width))
        if self.most * seconds <= _READ_SECONDS:
            return self.most
        chunk = self.least
        while chunk * 2 <= self.most and chunk * 2 * seconds <= _READ_SECONDS:
            chunk *= 2
        return min(chunk, self.most)


class Completion:
    """One answer while it is generated: tokens in, parts out (see `engine_program`).

    Args:
        number: The request's id.
        prompt: The prompt's tokens. The last of a text to continue tell whether its continuation begins with a space.
        max_tokens: The most tokens that it may have, at least 1.
        stops: Stop strings.
        decode: From tokens to text; see `IncrementalDecoder`.
        ends: The end-of-sequence tokens.
        continues: Whether the prompt is a text to continue, and no conversation.
    """

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        max_tokens: int,
        stops: Sequence[str],
        decode: Callable[[Sequence[int]], str],
        ends: Collection[int],
        continues: bool,
    ) -> None:
        self.number = number
        self.tokens = 0
        """How many there are by now, an end-of-sequence token included."""
        self.alternatives: int | None = None
        """How many are in the logprobs of a token; None: there are no logprobs."""
        self.prompt_records: PromptRecords | None = None
        """What makes the logprobs of the prompt, until `prompt_part` has them."""
        self._records: Records | None = None
        self._prompt_tokens = len(prompt)
        self._max_tokens = max_tokens
        self._ends = ends
        self._stops = StopStrings(stops)
        self._decoder = IncrementalDecoder(decode)
        if continues:
            self._decoder.push(prompt[-_CONTEXT:])

    def add_logprobs(self, wanted: Wanted, named: Named, of_prompt: PromptRecords | None) -> None:
        """Have the parts carry logprobs; every token is then pushed with its scores.

        Args:
            wanted: Which.
            named: See `Named`.
            of_prompt: What makes those of the prompt; None: they are not wanted.
        """
        self.alternatives, self.prompt_records = wanted.alternatives, of_prompt
        self._records = Records(self._decoder, named)

    def prompt_part(self) -> Part | None:
        """The part with the prompt's logprobs, if they are wanted, once they are complete."""
        records = self.prompt_records
        if records is None or records.unread:
            return None
        self.prompt_records = None
        return {"id": self.number, "text": "", LOGPROBS: records.finish()}

    def push(self, token: int, scores: Scores | None = None) -> Part | None:
        """Add a token; returns the part that it makes, if any. After a part with `last` no token may follow.

        Args:
            token: The token.
            scores: Where logprobs are wanted, those of the token.
        """
        self.tokens += 1
        ended = token in self._ends
        text = ""
        if self._records and scores and not ended:
            text = self._stops.push(self._records.push(token, scores))
        elif not ended:
            text = self._stops.push(self._decoder.push([token]))
        full = self.tokens >= self._max_tokens
        if (ended or full) and not self._stops.hit:
            text += self._stops.push((self._records or self._decoder).flush())
            text += self._stops.flush()
        part: Part = {"id": self.number, "text": text}
        if ended or full or self._stops.hit:
            reason = "stop" if ended or self._stops.hit else "length"
            part.update(reason=reason, usage=[self._prompt_tokens, self.tokens], last=True)
            if self._stops.found:
                part.update(stop_string=self._stops.found)
        elif not text:
            return None
        return self._records.whole(part, self._stops.hit) if self._records else part
