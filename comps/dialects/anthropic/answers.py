"""Answers of the Messages API, whole and as a stream of events.

https://platform.claude.com/docs/en/api/messages
https://platform.claude.com/docs/en/build-with-claude/streaming
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from comps.core.citations import ANNOTATIONS
from comps.core.tool_calls import CallsInTurn, calls_in
from comps.core.types import JSON, Finished, Generation, TextDelta, Usage
from comps.dialects.anthropic.cited import cited_in
from comps.dialects.anthropic.conversation import Source
from comps.dialects.shared.framing import ResponseMetadata, object_in, report_object

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""The stop reasons, by finish reasons of OpenAI's. Others stay as they are."""
_THOUGHTS = ("reasoning_content", "reasoning")
"""The fields of a delta with reasoning: some servers write both."""
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer has, as the request says it.

    Attributes:
        sources: The documents and search results by their numbers, from 1.
        stop_sequences: The stop sequences.
        shows_thinking: Whether reasoning is written.
    """

    sources: Sequence[Source]
    stop_sequences: Collection[str]
    shows_thinking: bool


def message(metadata: ResponseMetadata, content: JSON, ending: Mapping[str, JSON], usage: JSON) -> dict[str, JSON]:
    """A `Message`; `ending` has its stop reason and stop sequence."""
    return {
        "id": f"msg_{metadata.id}",
        "type": "message",
        "role": "assistant",
        "model": metadata.model,
        "content": content,
        **ending,
        "usage": usage,
    }


def whole_message(generation: Generation, metadata: ResponseMetadata, form: Form) -> dict[str, JSON]:
    """A whole answer as a `Message`."""
    extra = generation.extra or {}
    calls = calls_in(extra)
    content = [*_texts(generation, form.sources), *(_whole_call(call, metadata, n) for n, call in enumerate(calls))]
    if form.shows_thinking and (thoughts := _thoughts_in(extra)):
        content.insert(0, {"type": "thinking", "thinking": thoughts, "signature": ""})
    refused, ended = bool(_refusal_in(extra)), generation.stop_string
    ending = _ending(generation.reason, ended, form, called=bool(calls), refused=refused)
    return message(metadata, content or [{"type": "text", "text": ""}], ending, _usage(generation.usage))


def _ending(reason: str, stop_string: str | None, form: Form, *, called: bool, refused: bool) -> dict[str, JSON]:
    """Why an answer ended. After a call that was demanded, some servers say `stop`."""
    if reason == "stop":
        if called or refused:
            return {"stop_reason": "tool_use" if called else "refusal", "stop_sequence": None}
        if stop_string in form.stop_sequences:
            return {"stop_reason": "stop_sequence", "stop_sequence": stop_string}
    return {"stop_reason": _REASONS.get(reason, reason), "stop_sequence": None}


def _usage(usage: Usage | None, prompt_tokens: int | None = None) -> JSON:
    """Anthropic's usage, in which cached tokens of the prompt are counted apart; 0 where the model server counts none.

    Args:
        usage: The usage; None if it is not known.
        prompt_tokens: The tokens of the prompt as they were counted here, for where it is not.
    """
    if usage is None:
        return {"input_tokens": prompt_tokens or 0, "output_tokens": 0}
    cached = min(usage.details.get("prompt_tokens_details", {}).get("cached_tokens", 0), usage.prompt_tokens)
    counts: dict[str, JSON] = {
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    }
    thoughts = usage.details.get("completion_tokens_details", {}).get("reasoning_tokens")
    return counts if thoughts is None else {**counts, "output_tokens_details": {"thinking_tokens": thoughts}}


def _texts(generation: Generation, sources: Sequence[Source]) -> Iterator[JSON]:
    """Yields the text blocks of a whole answer: one for each sentence that cites, and for the text between them.

    Space between two sentences belongs to the second one, as it does in a stream.
    """
    text = generation.text + _refusal_in(generation.extra or {})
    start = 0
    for cited in cited_in(generation.extra, sources):
        if before := text[start : cited.start].rstrip():
            yield {"type": "text", "text": before}
            start += len(before)
        yield {"type": "text", "text": text[start : cited.end], "citations": [cited.citation]}
        start = cited.end
    if rest := text[start:]:
        yield {"type": "text", "text": rest}


def _whole_call(call: Mapping[str, Any], metadata: ResponseMetadata, number: int) -> JSON:
    function = call.get("function") or {}
    arguments = function.get("arguments") or "{}"
    given = object_in(arguments)
    if given is None:  # As Anthropic wraps what was cut, or is no object.
        given = {"INVALID_JSON": arguments}
    named = {"id": call.get("id") or _call_id(metadata, number), "name": function.get("name") or ""}
    return {"type": "tool_use", **named, "input": given}


def _call_id(metadata: ResponseMetadata, number: int) -> str:
    """The id of a call to which the model server gives none."""
    return f"toolu_{metadata.id}_{number}"


def _thoughts_in(extra: Mapping[str, JSON]) -> str:
    return next((thoughts for name in _THOUGHTS if isinstance(thoughts := extra.get(name), str) and thoughts), "")


def _refusal_in(extra: Mapping[str, JSON]) -> str:
    refusal = extra.get("refusal")
    return refusal if isinstance(refusal, str) else ""


def event(name: str, fields: Mapping[str, JSON]) -> bytes:
    """An event of a stream."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **fields}))


class MessageEvents:
    """Writes a streamed answer as events. The first piece comes in one item with the events before it.

    Behind the citations of a sentence, the next one begins a text block of its own.

    Args:
        metadata: Of this response.
        write: Sends one item.
        form: What the answer has.
        include_report: Whether the last `message_delta` has the report.
    """

    def __init__(
        self, metadata: ResponseMetadata, write: Callable[[bytes], None], form: Form, include_report: bool
    ) -> None:
        self._metadata = metadata
        self._write = write
        self._form = form
        self._include_report = include_report
        self._kind = ""
        """The type of the open block; empty before the first one."""
        self._index = -1
        """The index of the open block."""
        self._before: bytes | None = None
        """A delta of the open text block up to its text; None if the next text begins a block."""
        self._calls: dict[int, int] = {}
        """The indexes of the blocks of calls, by the calls' own."""
        self._turns = CallsInTurn()
        self._refused = False
        self._end: Finished | None = None

    def text(self, text: str, choice: int = 0) -> None:
        before = self._before or self._before_text(text)
        self._write(b"".join((before, orjson.dumps(text), b"}}\n\n")))

    def delta(self, delta: TextDelta) -> None:
        extra = delta.extra or {}
        if self._form.shows_thinking and (thoughts := _thoughts_in(extra)):
            opening = b"" if self._kind == "thinking" else self._begin("thinking", {"thinking": "", "signature": ""})
            self._write(opening + self._delta("thinking_delta", "thinking", thoughts))
        refusal = _refusal_in(extra)
        self._refused = self._refused or bool(refusal)
        if text := delta.text + refusal:
            self.text(text)
        for number, piece in self._turns.pieces(extra):
            if events := self._call(number, piece):
                self._write(events)
        if ANNOTATIONS in extra:
            for cited in cited_in(extra, self._form.sources):
                # Behind a call, late citations of the text before it have a block of their own, without text.
                opening = b"" if self._kind == "text" else self._begin("text", {"text": ""})
                fields = {"index": self._index, "delta": {"type": "citations_delta", "citation": cited.citation}}
                self._write(opening + event("content_block_delta", fields))
            self._before = None

    def finished(self, end: Finished) -> None:
        self._end = self._end or end

    def close(self) -> None:
        """Write the end of the block, and that of the message."""
        opening = b"".join([self._call(number, piece) for number, piece in self._turns.rest()])
        opening += b"" if self._kind else self._begin("text", {"text": ""})
        assert self._end
        end, refused = self._end, self._refused
        ending = _ending(end.reason, end.stop_string, self._form, called=bool(self._calls), refused=refused)
        fields: dict[str, JSON] = {"delta": ending, "usage": self._usage(end.usage)}
        if self._include_report and (report := self._metadata.reports.get(0)):
            fields["report"] = report_object(report)
        stop = event("content_block_stop", {"index": self._index})
        self._write(b"".join((opening, stop, event("message_delta", fields), event("message_stop", {}))))

    def _before_text(self, text: str) -> bytes:
        """Returns what is to be written before a text; only text that is not blank begins a block behind another."""
        before = _delta_before(self._index, "text_delta", "text")
        if self._kind == "text" and text.isspace():
            return before
        opening = self._begin("text", {"text": ""})
        self._before = _delta_before(self._index, "text_delta", "text")
        return opening + self._before

    def _begin(self, kind: str, fields: Mapping[str, JSON]) -> bytes:
        """Returns the events that end the open block and begin the next one; those of the message before the first."""
        self._before = None
        is_first = not self._kind
        before = self._start() if is_first else event("content_block_stop", {"index": self._index})
        self._kind, self._index = kind, self._index + 1
        block = {"index": self._index, "content_block": {"type": kind, **fields}}
        return before + event("content_block_start", block) + (_PING if is_first else b"")

    def _start(self) -> bytes:
        begun = message(self._metadata, [], {"stop_reason": None, "stop_sequence": None}, self._usage(None))
        return event("message_start", {"message": begun})

    def _usage(self, usage: Usage | None) -> JSON:
        report = self._metadata.reports.get(0)
        return _usage(usage, report.prompt_tokens if report else None)

    def _delta(self, kind: str, field: str, text: str, index: int | None = None) -> bytes:
        before = _delta_before(self._index if index is None else index, kind, field)
        return before + orjson.dumps(text) + b"}}\n\n"

    def _call(self, number: int, piece: Mapping[str, Any]) -> bytes:
        """Returns the events for a piece of a call. One that comes behind a text is still one of the call's block."""
        function = piece.get("function") or {}
        opening = b""
        if number not in self._calls:
            identity = piece.get("id") or _call_id(self._metadata, number)
            opening = self._begin("tool_use", {"id": identity, "name": function.get("name") or "", "input": {}})
            self._calls[number] = self._index
        if arguments := function.get("arguments"):
            opening += self._delta("input_json_delta", "partial_json", arguments, self._calls[number])
        return opening


def _delta_before(index: int, kind: str, field: str) -> bytes:
    """Returns a `content_block_delta` up to its text."""
    data = f'{{"type":"content_block_delta","index":{index},"delta":{{"type":"{kind}","{field}":'
    return b"event: content_block_delta\ndata: " + data.encode()
