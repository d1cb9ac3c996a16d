"""The tokens of an answer, its details, and its stream, in TGI's form: router/src/lib.rs (`Token`, `Details`,
`StreamResponse`).

Model servers tell the text of a token and its log probability, as OpenAI's API has them. Only embedded models tell ids
as well; where they are unknown, `id` is 0. Special tokens are told by none, so only the end of a stream has `special`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import orjson

from comps.core.citations import ANNOTATIONS, annotations_in
from comps.core.deltas import JoinedExtra
from comps.core.types import JSON, Finished, Generation, Report, TextDelta, Usage
from comps.dialects.shared.framing import citations_in, comment, report_object
from comps.dialects.shared.logprobs import ScoredToken, tokens_in

_UNKNOWN_ID = 0
_TOLD = ("stop", "length")
"""The finish reasons for which TGI has words."""
_AFTER_TEXT = b',"logprob":null,"special":false},"generated_text":null,"details":null}\n\n'


def _reason(end: Finished | Generation) -> str:
    """TGI's finish reason. It is `eos_token` for a stop string, too, where the model server does not tell that one."""
    if end.reason == "length":
        return "length"
    return "eos_token" if end.stop_string is None else "stop_sequence"


def _token(text: str, logprob: float | None = None, id: int | None = None) -> dict[str, JSON]:
    return {"id": _UNKNOWN_ID if id is None else id, "text": text, "logprob": logprob, "special": False}


def _said(text: str, extra: Mapping[str, JSON] | None) -> str:
    """A piece of an answer, or all of it: its text, and that of a refusal, which OpenAI's API has beside the text."""
    refusal = (extra or {}).get("refusal")
    return text + refusal if isinstance(refusal, str) else text


def mean_logprob(generation: Generation) -> float:
    """The mean log probability of an answer's tokens, by which the best of several is chosen; that of an answer without
    any is the least."""
    scores = [token.logprob for token in tokens_in(generation.extra) if token.logprob is not None]
    return sum(scores) / len(scores) if scores else -inf


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of an answer.

    Attributes:
        before: The text that it begins with.
        details: Whether it has details.
        seed: The seed of the body.
        top: How many of the likeliest tokens each place has.
        citations: Whether a stream tells what the answer cites.
        report: Whether a stream tells what became of the documents.
    """

    before: str = ""
    details: bool = False
    seed: int | None = None
    top: int = 0
    citations: bool = False
    report: bool = False

    def text_of(self, generation: Generation) -> str:
        """The text of a whole answer."""
        return self.before + _said(generation.text, generation.extra)

    def top_tokens(self, token: ScoredToken) -> list[JSON]:
        """The likeliest tokens at a token's place."""
        return [_token(one.text, one.logprob, one.id) for one in token.top[: self.top]]

    def details_of(self, generation: Generation) -> dict[str, JSON]:
        """The details of a whole answer."""
        scored = tokens_in(generation.extra)
        tops = {"top_tokens": [self.top_tokens(token) for token in scored]} if self.top and scored else {}
        return {
            "finish_reason": _reason(generation),
            "generated_tokens": generation.usage.completion_tokens if generation.usage else len(scored),
            "seed": self.seed,
            "prefill": [],
            "tokens": [_token(token.text, token.logprob, token.id) for token in scored],
            **tops,
        }

    def citations_of(self, extra: Mapping[str, JSON] | None) -> dict[str, JSON]:
        """What an answer cites, with places in the text that is shown."""
        cited = citations_in(extra)
        if self.before and cited.get(ANNOTATIONS):
            cited[ANNOTATIONS] = [_moved(one, len(self.before)) for one in annotations_in(extra)]
        return cited


def _moved(annotation: JSON, by: int) -> JSON:
    """An annotation of a text that has so many more characters in front."""
    kind = str(annotation.get("type"))
    said = annotation.get(kind)
    if not isinstance(said, dict):  # A model server's own.
        return annotation
    places = {name: said[name] + by for name in ("start_index", "end_index") if type(said.get(name)) is int}
    return {**annotation, kind: {**said, **places}}


class TokenEvents:
    """Writes a stream of TGI's: an event for each token, and a last one with the whole text and its details.

    The last event's token is the end of the sequence, a special token without text. A finish reason other than `stop`
    is written as a comment behind it, unless the details tell it.

    Args:
        write: Sends one item.
        shown: What is shown of the answer.
        reports: Of the request.
    """

    __slots__ = ("_cited", "_end", "_index", "_reports", "_shown", "_texts", "_write")

    def __init__(self, write: Callable[[bytes], None], shown: Shown, reports: Mapping[int, Report]) -> None:
        self._write = write
        self._shown = shown
        self._reports = reports
        self._texts: list[str] = []
        self._cited = JoinedExtra()
        self._index = 0
        self._end = Finished("stop")

    def text(self, text: str, choice: int = 0) -> None:
        self._texts.append(text)
        self._index += 1
        opening = b'data:{"index":%d,"token":{"id":0,"text":' % self._index
        self._write(b"".join((opening, orjson.dumps(text), _AFTER_TEXT)))

    def delta(self, delta: TextDelta) -> None:
        if self._shown.citations:
            self._cited.add(self._shown.citations_of(delta.extra))
        scored, text = tokens_in(delta.extra), _said(delta.text, delta.extra)
        if not scored:
            if text:
                self.text(text)
            return
        self._texts.append(text)
        texts = [token.text for token in scored]
        if "".join(texts) != text:  # Of tokens that end within a character.
            texts = [text, *[""] * (len(scored) - 1)]
        for piece, token in zip(texts, scored, strict=True):
            self._write_token(_token(piece, token.logprob, token.id), self._shown.top_tokens(token))

    def _write_token(self, token: JSON, top: Sequence[JSON], **last: JSON) -> None:
        self._index += 1
        tops = {"top_tokens": top} if top else {}
        event = {"index": self._index, "token": token, **tops, "generated_text": None, "details": None, **last}
        self._write(b"data:" + orjson.dumps(event) + b"\n\n")

    def finished(self, end: Finished) -> None:
        self._end = end

    def close(self) -> None:
        """Write the last event."""
        details = self._details(self._end.usage) if self._shown.details else None
        report = self._reports.get(0) if self._shown.report else None
        reported = {} if report is None else {"report": report_object(report)}
        text = "".join(self._texts)
        shown = self._shown.before + text
        self._write_token(
            self._last_token(text), (), generated_text=shown, details=details, **self._cited.extra(), **reported
        )
        if self._end.reason not in (_TOLD if details else ("stop",)):
            self._write(comment(f"finish_reason={self._end.reason}"))

    def _last_token(self, text: str) -> JSON:
        return {**_token(""), "special": True}

    def _details(self, usage: Usage | None) -> JSON:
        counted = {} if usage is None else {"input_length": usage.prompt_tokens}
        return {
            "finish_reason": _reason(self._end),
            "generated_tokens": usage.completion_tokens if usage else self._index,
            "seed": self._shown.seed,
            **counted,
        }


class LastEvent(TokenEvents):
    """Writes the last event alone, whose token has the whole text."""

    __slots__ = ()

    def text(self, text: str, choice: int = 0) -> None:
        self._texts.append(text)

    def delta(self, delta: TextDelta) -> None:
        super().delta(TextDelta(delta.text, delta.choice, {**(delta.extra or {}), "logprobs": None}))

    def _last_token(self, text: str) -> JSON:
        return _token(text)
