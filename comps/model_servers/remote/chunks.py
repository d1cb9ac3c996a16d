"""Parser of OpenAI's responses: chunks of a stream, and whole completions.

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
"""The fields of a delta or message that do not go into the extra fields."""


class ChunkReader:
    """Parses the chunks of a stream and writes them to an answer.

    Args:
        answer: The answer to write to.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self._seen: set[int] = set()
        """The indexes of all choices so far."""
        self.calls: dict[int, ToolCalls] = {}
        """The tool calls by choice."""
        self.reasons: dict[int, str] = {}
        """The finish reasons by choice."""
        self.usage: Usage | None = None
        """The usage of all choices together; None until it arrives."""

    def event(self, data: bytes) -> bool:
        """Parse one chunk. It always returns False (go on), since the usage is in the last chunk.

        Raises:
            ModelServerError: The data is no chunk, or it contains an error.
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
            number = choice.get("index")
            if type(number) is not int:
                number = 0
            self._seen.add(number)
            delta = choice.get("delta")
            text = delta.get("content") if delta is not None and len(delta) == 1 else None
            if text and type(text) is str and not choice.get("logprobs"):  # As nearly all are.
                self.answer.text(text, number)
            else:
                self._write(choice, number)
            if reason := choice.get("finish_reason"):
                self.reasons[number] = reason_of(reason)
        return False

    def _write(self, choice: dict[str, Any], number: int) -> None:
        """Write a choice's text, from `delta` (chat) or `text` (completion), and its extra fields."""
        text, extra = _said(choice.get("delta") or {"content": choice.get("text")}, choice)
        if "tool_calls" in extra:
            extra["tool_calls"] = self.calls.setdefault(number, ToolCalls()).numbered(extra["tool_calls"])
        if extra:
            self.answer.delta(TextDelta(text, number, extra))
        elif text:
            self.answer.text(text, number)

    def close(self) -> None:
        """Write the `Finished` of all choices. They are written at the end of the stream, because the usage comes last.

        Raises:
            ModelServerError: A choice has no finish reason.
        """
        if not self.reasons or self._seen - self.reasons.keys():
            raise broken_off()
        for place, (number, reason) in enumerate(sorted(self.reasons.items())):
            self.answer.finished(Finished(reason, None if place else self.usage, number))


def _said(delta: dict[str, Any], choice: dict[str, Any]) -> tuple[str, dict[str, JSON]]:
    """Returns the text of a delta or message, and its extra fields with the logprobs of its choice."""
    text = delta.get("content") or ""
    if not isinstance(text, str):
        raise ModelServerError("the model server sent something that is no text in its stream")
    extra = {name: value for name, value in delta.items() if name not in _PLAIN and value is not None}
    if choice.get("logprobs"):
        extra["logprobs"] = choice["logprobs"]
    return text, extra


def reason_of(said: str) -> str:
    """Returns the server's finish reason, or `unknown` if it is not a word in lower case."""
    return said if _REASON.fullmatch(said) else "unknown"


def usage_of(counted: dict[str, Any]) -> Usage | None:
    """Parses OpenAI's `usage`; None if a count is missing."""
    prompt, completion = counted["prompt_tokens"], counted["completion_tokens"]
    if prompt is None or completion is None:
        return None
    return Usage(int(prompt), int(completion), {name: _counts(said) for name, said in counted.items() if _counts(said)})


def _counts(said: JSON) -> dict[str, int]:
    """Returns the integer fields of an object; none for any other value."""
    return {name: value for name, value in said.items() if type(value) is int} if isinstance(said, dict) else {}


def whole_answer(response: Exchange) -> Generation:
    """Parses the response to a request without `stream`; some servers stream it all the same.

    Raises:
        ModelServerError: The response contains an error, or a choice has no finish reason.
        AttributeError, KeyError, TypeError, ValueError: The structure is wrong; see `checked_answer`.
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
    """Parses a `chat.completion` or a `text_completion`; errors are those of `whole_answer`."""
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
