"""OpenAI's answers, read: the chunks of a stream, and whole completions.

https://platform.openai.com/docs/api-reference/chat/streaming
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from comps.core.answers import Collector, broken_off
from comps.core.deltas import ToolCalls, join_extra
from comps.core.errors import ModelServerError
from comps.core.ports import Answer
from comps.core.types import JSON, Finished, Generation, TextDelta, Usage
from comps.model_servers.remote.exchange import Exchange
from comps.model_servers.remote.failures import error_message
from comps.model_servers.remote.sse import EventStream

_REASON = re.compile("[a-z_]{1,40}")
_PLAIN = frozenset(("role", "content"))
"""The fields of a delta or a message that are no extras."""


class ChunkReader:
    """Reads the chunks of a stream, and writes what they say to an answer.

    Args:
        answer: Where it is written to.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._seen: set[int] = set()
        """The choices that have begun."""
        self.calls: dict[int, ToolCalls] = {}
        """The tool calls of choices that have some."""
        self.reasons: dict[int, str] = {}
        """Why choices ended, of those that have."""
        self.usage: Usage | None = None
        """Of all choices together, once it has arrived."""

    @property
    def full(self) -> bool:
        return self._answer.full

    async def drain(self) -> None:
        await self._answer.drain()

    def event(self, data: bytes) -> bool:
        """Read a chunk; there is never enough, since the usage comes last.

        Raises:
            ModelServerError: It is none, or tells of a failure.
        """
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise ModelServerError("the model server sent something that is no JSON in its stream") from None
        if type(chunk) is not dict:
            raise ModelServerError("the model server sent something that is no chunk in its stream")
        if chunk.get("error"):
            raise ModelServerError(f"the model server failed: {error_message(chunk['error'])}")
        if chunk.get("usage"):
            self.usage = usage_of(chunk["usage"]) or self.usage
        for choice in chunk.get("choices") or ():
            number = choice.get("index") or 0
            self._seen.add(number)
            delta = choice.get("delta")
            text = delta.get("content") if delta is not None and len(delta) == 1 else None
            if text and type(text) is str and not choice.get("logprobs"):  # As nearly all are.
                self._answer.text(text, number)
            else:
                self._write(choice, number)
            if reason := choice.get("finish_reason"):
                self.reasons[number] = reason_of(reason)
        return False

    def _write(self, choice: dict[str, Any], number: int) -> None:
        """Write the text of a choice, whether it is of a chat (`delta`) or not (`text`), and what comes with it."""
        text, extra = _said(choice.get("delta") or {"content": choice.get("text")}, choice)
        if "tool_calls" in extra:
            extra["tool_calls"] = self.calls.setdefault(number, ToolCalls()).numbered(extra["tool_calls"])
        if extra:
            self._answer.delta(TextDelta(text, number, extra))
        elif text:
            self._answer.text(text, number)

    def close(self) -> None:
        """Write the ends of all choices, with the usage, which arrives behind them.

        Raises:
            ModelServerError: There is a choice that has none.
        """
        if not self.reasons or self._seen - self.reasons.keys():
            raise broken_off()
        for place, (number, reason) in enumerate(sorted(self.reasons.items())):
            self._answer.finished(Finished(reason, None if place else self.usage, number))


def _said(delta: dict[str, Any], choice: dict[str, Any]) -> tuple[str, dict[str, JSON]]:
    """The text of a delta or a message, and what else there is of it and its choice."""
    text = delta.get("content") or ""
    if not isinstance(text, str):
        raise ModelServerError("the model server sent something that is no text in its stream")
    extra = {name: value for name, value in delta.items() if name not in _PLAIN and value is not None}
    if choice.get("logprobs"):
        extra["logprobs"] = choice["logprobs"]
    return text, extra


def reason_of(said: str) -> str:
    """Why an answer ended, as the server says it; `unknown` for what is no such word."""
    return said if _REASON.fullmatch(said) else "unknown"


def usage_of(counted: dict[str, Any]) -> Usage | None:
    """OpenAI's `usage`; None if it says too little."""
    prompt, completion = counted["prompt_tokens"], counted["completion_tokens"]
    if prompt is None or completion is None:
        return None
    return Usage(int(prompt), int(completion), {name: _counts(said) for name, said in counted.items() if _counts(said)})


def _counts(said: JSON) -> dict[str, int]:
    """The numbers of an object."""
    return {name: value for name, value in said.items() if type(value) is int} if isinstance(said, dict) else {}


def whole_answer(response: Exchange) -> Generation:
    """A whole answer, also of a server that streams it though it was asked for it whole.

    Raises:
        ModelServerError: It tells of a failure, or a choice has no end.
        AttributeError, KeyError, TypeError, ValueError: It is not built as it should be.
    """
    if not response.headers.get(b"content-type", b"").lower().startswith(b"text/event-stream"):
        return generation_of(orjson.loads(response.body))
    collector = Collector()
    reader = ChunkReader(collector)

    def read(data: bytes) -> None:
        if data != b"[DONE]":
            reader.event(data)

    stream = EventStream(read)
    stream.feed(response.body)
    stream.close()
    reader.close()
    return collector.generation()


def generation_of(completion: Any) -> Generation:
    """A whole answer: a `chat.completion` or a `text_completion`.

    Raises:
        ModelServerError: It tells of a failure, or a choice has no end.
        AttributeError, KeyError, TypeError, ValueError: It is not built as it should be.
    """
    if error := completion.get("error"):
        raise ModelServerError(f"the model server failed: {error_message(error)}")
    usage = usage_of(completion["usage"]) if completion.get("usage") else None
    choices = sorted(completion["choices"], key=lambda choice: int(choice.get("index") or 0))
    first, *further = (_whole_choice(choice, usage) for choice in choices)
    if not further:
        return first
    return Generation(first.text, first.reason, usage, first.extra, tuple(further))


def _whole_choice(choice: dict[str, Any], usage: Usage | None) -> Generation:
    text, said = _said(choice.get("message") or {"content": choice.get("text")}, choice)
    extra = {name: value for name, value in said.items() if value not in ([], {})}
    if "tool_calls" in extra:
        extra = join_extra({}, {**extra, "tool_calls": ToolCalls().numbered(extra["tool_calls"])})
    if not choice.get("finish_reason"):
        raise broken_off()
    return Generation(text, reason_of(choice["finish_reason"]), usage, extra or None)
