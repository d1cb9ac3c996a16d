"""Ollama's answers: whole, and as streams with a JSON document a line.

https://docs.ollama.com/api/chat, https://docs.ollama.com/api/streaming, https://docs.ollama.com/api/usage
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import orjson

from comps.core.deltas import JoinedExtra
from comps.core.times import Times
from comps.core.types import JSON, Finished, Generation, Report, TextDelta, Usage
from comps.dialects.shared.framing import citations_in, object_in, report_object
from comps.dialects.shared.logprobs import ScoredToken, tokens_in

NDJSON = "application/x-ndjson"
_NANOSECONDS = 1_000_000_000
_DONE_REASONS = {"tool_calls": "stop", "function_call": "stop"}
"""Ollama's words for the ends of answers, where they are not OpenAI's."""


def timestamp(seconds: float) -> str:
    """A time in seconds since 1970 as RFC 3339 has it, with a fraction, since some clients need one."""
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S.%f}Z"


class Frame:
    """What each line of an answer, or the whole answer, has around the text.

    Args:
        model: The model's name, as the body has it.
        created: When the answer was begun, in seconds since 1970.
        is_chat: Whether the text is in a message.
    """

    def __init__(self, model: str, created: int, is_chat: bool) -> None:
        self._head = {"model": model, "created_at": timestamp(created)}
        self._is_chat = is_chat

    def line(self, text: str, extra: Mapping[str, JSON] | None = None, **end: JSON) -> dict[str, JSON]:
        """An object with a piece of the answer, or all of it.

        Args:
            text: The text.
            extra: The further fields, as the core has them; see `TextDelta.extra`.
            **end: What the last line has, and the whole answer.
        """
        known = extra or {}
        calls, unread = _calls_in(known.get("tool_calls") or ())
        text = "".join((text, _text(known.get("refusal")), *unread))
        thinking = _text(known.get("reasoning_content")) or _text(known.get("reasoning"))
        told = {
            **({"thinking": thinking} if thinking else {}),
            **({"tool_calls": calls} if calls else {}),
            **citations_in(known),
        }
        logprobs = _logprobs_in(known)
        of_answer = (
            {"message": {"role": "assistant", "content": text, **told}} if self._is_chat else {"response": text, **told}
        )
        return {**self._head, **of_answer, "done": bool(end), **end, **({"logprobs": logprobs} if logprobs else {})}

    def whole(self, generation: Generation, times: Times) -> dict[str, JSON]:
        """A whole answer."""
        end = _end(generation.reason, generation.usage, times)
        return self.line(generation.text, generation.extra, **end)


class Lines:
    """Writes the lines of a streamed answer. Calls, which come in pieces, are written when they are complete.

    Args:
        frame: What is around the texts.
        times: Of the exchange.
        write: Sends one line.
        report: The report, for the last line; None: it is not wanted.
    """

    __slots__ = ("_after", "_before", "_calls", "_end", "_frame", "_report", "_times", "_write")

    def __init__(
        self, frame: Frame, times: Times, write: Callable[[bytes], None], report: Callable[[], Report | None]
    ) -> None:
        self._frame = frame
        self._times = times
        self._write = write
        self._report = report
        self._calls = JoinedExtra()
        self._end = Finished("stop")
        before, after = orjson.dumps(frame.line("")).rsplit(b'""', 1)
        self._before, self._after = before, after + b"\n"

    def text(self, text: str, choice: int = 0) -> None:
        self._write(b"".join((self._before, orjson.dumps(text), self._after)))

    def delta(self, delta: TextDelta) -> None:
        if not delta.extra:
            self.text(delta.text)
            return
        extra = dict(delta.extra)
        if calls := extra.pop("tool_calls", None):
            self._calls.add({"tool_calls": calls})
        if delta.text or any(extra.values()):
            self._line(delta.text, extra)

    def finished(self, end: Finished) -> None:
        self._end = end

    def close(self) -> None:
        """Write the calls, and the last line."""
        if calls := self._calls.extra():
            self._line("", calls)
        end, report = _end(self._end.reason, self._end.usage, self._times), self._report()
        self._line("", None, **end, **({"report": report_object(report)} if report else {}))

    def _line(self, text: str, extra: Mapping[str, JSON] | None, **end: JSON) -> None:
        self._write(orjson.dumps(self._frame.line(text, extra, **end)) + b"\n")


def _end(reason: str, usage: Usage | None, times: Times) -> dict[str, JSON]:
    """What the last line says: why the answer ended, and where the time went, in nanoseconds.

    The model is loaded already: `load_duration` is the time until it was asked. Of whole answers, the time for the
    prompt is not known; it is a part of `eval_duration`.
    """
    first = times.first_token_at or times.asked_at
    durations = {
        **durations_of(times),
        **({"prompt_eval_duration": _span(times.asked_at, first)} if times.first_token_at else {}),
        "eval_duration": _span(first, times.answered_at),
    }
    counts = {"prompt_eval_count": usage.prompt_tokens, "eval_count": usage.completion_tokens} if usage else {}
    return {"done_reason": _DONE_REASONS.get(reason, reason), **durations, **counts}


def durations_of(times: Times) -> dict[str, int]:
    """How long it took in all, and until the model was asked, in nanoseconds."""
    return {
        "total_duration": _span(times.started, times.answered_at),
        "load_duration": _span(times.started, times.asked_at),
    }


def _span(start: float, end: float) -> int:
    return round((end - start) * _NANOSECONDS)


def _calls_in(calls: Sequence[Mapping[str, Any]]) -> tuple[list[JSON], list[str]]:
    """The calls with their arguments as objects, and the texts of those that are cut, so that theirs are none."""
    read: list[JSON] = []
    unread = []
    for index, call in enumerate(calls):
        function = call.get("function") or {}
        name, told = function.get("name") or "", function.get("arguments") or "{}"
        arguments = object_in(told)
        if arguments is not None:
            identity = {"id": call["id"]} if call.get("id") else {}
            read.append({**identity, "function": {"index": index, "name": name, "arguments": arguments}})
        else:
            unread.append(f'{{"name": {orjson.dumps(name).decode()}, "arguments": {told}')
    return read, unread


def _logprobs_in(extra: Mapping[str, JSON]) -> list[JSON]:
    """The log probabilities of tokens; clients take no token without one."""
    return [{**_token(token), **_top_of(token)} for token in tokens_in(extra) if token.logprob is not None]


def _top_of(token: ScoredToken) -> dict[str, JSON]:
    top = [_token(other) for other in token.top if other.logprob is not None]
    return {"top_logprobs": top} if top else {}


def _token(token: ScoredToken) -> dict[str, JSON]:
    known = {} if token.bytes is None else {"bytes": token.bytes}
    return {"token": token.text, "logprob": token.logprob, **known}


def _text(value: JSON) -> str:
    return value if isinstance(value, str) else ""
