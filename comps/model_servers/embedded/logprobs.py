"""Logprobs: log probabilities of tokens, as records in the parts of an engine, and in the two forms of OpenAI's API.

A record is of one token:
    {"token": text, "id": number | null, "logprob": number | null, "top_logprobs": [[text, number], …],
     "top_ids": [number, …]}
`token` is the text that the token adds; joined, those of all records are the text of the answer. A token that ends
within a character adds none, and the last one of the character adds all of it. An end-of-sequence token has no record.
`logprob` is null for a token with nothing before it. `top_logprobs` has the likeliest tokens, the likeliest first.

The values are those of the model itself: log-softmax of its logits, before temperature, penalties and constraints.
Sources:
    https://platform.openai.com/docs/api-reference/chat/object          chat_logprobs
    https://platform.openai.com/docs/api-reference/completions/object   TextLogprobs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from comps.core.errors import InvalidRequest
from comps.core.types import JSON, Prompt
from comps.model_servers.embedded.text import IncrementalDecoder

LOGPROBS, TOP_LOGPROBS = "logprobs", "top_logprobs"
"""The options, and the names of the capabilities: the tokens of the answer, and alternatives at each place."""
LOGPROB_IDS = "logprob_ids"
"""An option and a capability of ours: whether both forms have the ids of the tokens as well."""
SCORED_CHUNK = 64
"""The most tokens of a prompt to read at once for logprobs: the logits of all of them are in memory together."""
_LEAST = -9999.0
"""In place of minus infinity, which JSON does not have."""

Named: TypeAlias = Callable[[Sequence[int]], str]
"""From tokens to text, control tokens too."""
Record: TypeAlias = dict[str, JSON]
Scores: TypeAlias = tuple["float | None", Sequence[tuple[int, float]]]
"""The log probability of a token, and the ids of the likeliest tokens at its place with theirs."""


@dataclass(frozen=True)
class Wanted:
    """Which logprobs a request wants of an engine."""

    alternatives: int
    """How many of the likeliest tokens at each place."""
    prompt: bool
    """Whether the prompt's tokens have records too."""

    def of_prompt(self, prompt: JSON, tokens: Sequence[int], bos: Sequence[int], named: Named) -> PromptRecords | None:
        """What makes the records of the prompt; None: they are not wanted.

        Args:
            prompt: A text to continue.
            tokens: Its tokens.
            bos: The BOS token that they may begin with, as a sequence; empty: there is none.
            named: See `Named`.
        """
        if not self.prompt:
            return None
        text = str(prompt)
        has_start = bool(bos) and tokens[: len(bos)] == bos and not text.startswith(named(bos))
        return PromptRecords(text, tokens, self.alternatives, has_start, named)


def wanted(prompt: Prompt, options: Mapping[str, JSON], has_alternatives: bool) -> Wanted | None:
    """Which logprobs a request wants; None: none.

    Args:
        prompt: As for `ModelServer.generate`.
        options: As for `ModelServer.generate`. In a conversation `logprobs` is a bool, and `top_logprobs` the number of
            alternatives; for a text to continue `logprobs` is this number.
        has_alternatives: Whether the engine has logprobs of any token, and not of those alone that it generates.

    Raises:
        InvalidRequest: The prompt's are wanted of an engine that has none.
    """
    asked = options.get(LOGPROBS)
    if asked is None or asked is False:
        return None
    if not isinstance(prompt, str):
        return Wanted(int(options.get(TOP_LOGPROBS) or 0) if has_alternatives else 0, False)
    alternatives, echo = int(asked), bool(options.get("echo"))
    if not has_alternatives:
        if alternatives:  # The capabilities say so.
            return None
        if echo:
            raise InvalidRequest(
                "the model's engine has none of a prompt's tokens, so they cannot go with echo", LOGPROBS
            )
    return Wanted(alternatives, echo)


def _record(
    token: str, logprob: float | None, likeliest: JSON, id: int | None = None, top_ids: Sequence[int] = ()
) -> Record:
    return {"token": token, "id": id, "logprob": logprob, "top_logprobs": likeliest, "top_ids": list(top_ids)}


class Records:
    """Makes the records of a text that grows by tokens, and holds back records and text until they go together.

    Args:
        decoder: What decodes the text.
        named: What alternatives are called that have no other text.
    """

    def __init__(self, decoder: IncrementalDecoder, named: Named) -> None:
        self._decoder = decoder
        self._named = named
        self._held: list[Record] = []
        self._ready = ""
        """The text of held records that may be shown."""

    def push(self, token: int, scores: Scores) -> str:
        """Add a token; returns the text that it adds."""
        logprob, likeliest = scores
        others = [[self._name(other), max(value, _LEAST)] for other, value in likeliest]
        added = self._decoder.push([token])
        for entry, (other, _) in zip(others, likeliest, strict=True):
            if other == token:
                entry[0] = added
        value = None if logprob is None else max(logprob, _LEAST)
        self._held.append(_record(added, value, others, token, [other for other, _ in likeliest]))
        return added

    def push_start(self) -> None:
        """Add a token that stands before the text and has none, such as BOS."""
        self._held.append(_record("", None, []))

    def _name(self, token: int) -> str:
        return self._decoder.preview(token) or self._named([token]).rstrip("\ufffd")

    def flush(self) -> str:
        """What the decoder has left at the end of the text, which is the last token's."""
        left = self._decoder.flush()
        if left and self._held:
            self._held[-1]["token"] += left
        return left

    def whole(self, part: dict[str, JSON], is_cut: bool) -> dict[str, JSON] | None:
        """A part of an answer with the text of whole records, and these; None if there is none. The last part has all
        that is left.

        A token without text waits for the next one with text, and a token at whose end a character has begun for the
        rest of that.

        Args:
            part: A part with the next text that may be shown.
            is_cut: Whether what may not be shown is cut off, as a stop string is. The record of a token that the cut
                goes through has the text before it.
        """
        self._ready += part["text"]
        if "last" not in part:
            taken = self._take(self._count_whole())
        elif is_cut:
            taken = self._before_cut()
        else:
            taken = self.all()
        text = "".join([record["token"] for record in taken])
        self._ready = self._ready[len(text) :]
        return {**part, "text": text, LOGPROBS: taken} if taken or "last" in part else None

    def _count_whole(self) -> int:
        """How many records are whole, up to the last one with text."""
        count, length = 0, 0
        last = len(self._held) - self._decoder.incomplete
        for number, record in enumerate(self._held[:last], 1):
            length += len(record["token"])
            if length > len(self._ready):
                break
            if record["token"]:
                count = number
        return count

    def _before_cut(self) -> list[Record]:
        """The records up to the end of what may be shown."""
        left, taken = len(self._ready), []
        for record in self._held:
            if left == 0:
                break
            record["token"] = record["token"][:left]
            left -= len(record["token"])
            taken.append(record)
        return taken

    def all(self) -> list[Record]:
        """All records that are held back."""
        return self._take(len(self._held))

    def _take(self, count: int) -> list[Record]:
        taken, self._held = self._held[:count], self._held[count:]
        return taken


class PromptRecords:
    """Makes the records of a text to continue, whose tokens get their scores while it is read.

    Args:
        text: The text.
        tokens: The text's, at least one.
        alternatives: How many of the likeliest tokens at each place.
        has_start: Whether the first token is one that stands before the text, such as BOS.
        named: See `Named`.
    """

    def __init__(self, text: str, tokens: Sequence[int], alternatives: int, has_start: bool, named: Named) -> None:
        self._text = text
        self.alternatives = alternatives
        self.read = 0
        """How many tokens are read."""
        self._tokens = tuple(tokens)
        self._records = Records(IncrementalDecoder(named), named)
        if has_start:
            self._records.push_start()
        else:
            self._records.push(self._tokens[0], (None, ()))

    @property
    def unread(self) -> int:
        """How many tokens are to be read for scores: all but the last, behind which the answer begins."""
        return len(self._tokens) - 1 - self.read

    @property
    def next_chunk(self) -> int:
        """How many of them to read next."""
        return min(self.unread, SCORED_CHUNK)

    def push(self, score: Callable[[int, int], Scores], count: int) -> None:
        """Add the tokens that follow those of a chunk.

        Args:
            score: From the number of a token in the chunk, and the token that follows it, to the scores of that.
            count: How many tokens the chunk has.
        """
        for number in range(count):
            self.read += 1
            token = self._tokens[self.read]
            self._records.push(token, score(number, token))

    def finish(self) -> list[Record]:
        """All records, once nothing is unread."""
        self._records.flush()
        records = self._records.all()
        told = "".join([record["token"] for record in records])
        if told and self._text.endswith(told):  # Some tokenizers take no account of a space before the first word.
            first = next(record for record in records if record["token"])
            first["token"] = self._text.removesuffix(told) + first["token"]
        return records


Form: TypeAlias = Callable[[Sequence[Record]], JSON]
"""Brings successive records into the form of an API: the value of `logprobs` beside the text that they make. Pieces of
it are joined by `join_extra`."""


def form_for(prompt: Prompt, ids: bool = False) -> Form:
    """The form of the logprobs of an answer to this prompt; each answer has one of its own.

    Args:
        prompt: As for `ModelServer.generate`.
        ids: See `LOGPROB_IDS`.
    """
    return TextLogprobs(ids) if isinstance(prompt, str) else partial(chat_logprobs, ids=ids)


def chat_logprobs(records: Sequence[Record], ids: bool = False) -> JSON:
    """The logprobs of a choice of a `chat.completion`."""
    content = []
    for record in records:
        entry = _with_bytes(record["token"], record["logprob"])
        top = [_with_bytes(token, logprob) for token, logprob in record["top_logprobs"]]
        if ids:
            entry["id"] = record["id"]
            top = [{**one, "id": id} for one, id in zip(top, record["top_ids"], strict=True)]
        content.append({**entry, "top_logprobs": top})
    return {"content": content, "refusal": None}


def _with_bytes(token: str, logprob: float) -> dict[str, JSON]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


class TextLogprobs:
    """The logprobs of a choice of a `text_completion`. `text_offset` counts characters of the choice's own text.

    `top_logprobs` has the chosen token in any case, so it may have one more than was asked for; of tokens with the same
    text it has the likeliest.

    Args:
        ids: See `LOGPROB_IDS`; they are in `token_ids`, and by their texts in `top_token_ids`.
    """

    def __init__(self, ids: bool = False) -> None:
        self._offset = 0
        self._ids = ids

    def __call__(self, records: Sequence[Record]) -> JSON:
        offsets = []
        for record in records:
            offsets.append(self._offset)
            self._offset += len(record["token"])
        ids = {}
        if self._ids:
            ids = {
                "token_ids": [record["id"] for record in records],
                "top_token_ids": [_ids_by_text(record) for record in records],
            }
        return {
            "tokens": [record["token"] for record in records],
            "token_logprobs": [record["logprob"] for record in records],
            "top_logprobs": [_by_text(record) for record in records],
            "text_offset": offsets,
            **ids,
        }


def _ids_by_text(record: Record) -> dict[str, JSON]:
    by_text: dict[str, JSON] = {}
    for (token, _), id in zip(record["top_logprobs"], record["top_ids"], strict=True):
        by_text.setdefault(token, id)
    return {**by_text, record["token"]: record["id"]}


def _by_text(record: Record) -> dict[str, JSON] | None:
    if record["logprob"] is None:
        return None
    by_text: dict[str, JSON] = {}
    for token, logprob in record["top_logprobs"]:
        by_text.setdefault(token, logprob)
    by_text[record["token"]] = record["logprob"]
    return by_text
