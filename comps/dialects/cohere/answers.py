"""How answers look in Cohere's API, whole and streamed: content blocks, tool calls, citations, usage.

https://docs.cohere.com/reference/chat and https://docs.cohere.com/reference/chat-stream
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import orjson

from comps.core.citations import ANNOTATIONS, own_citations_in
from comps.core.errors import LLMError, Timeout
from comps.core.tool_calls import CallsInTurn, calls_in
from comps.core.types import JSON, Finished, Generation, Report, TextDelta, Usage
from comps.dialects.cohere.bodies import Source
from comps.dialects.shared.framing import DONE, ResponseMetadata, report_object

_REASONS = {"stop": "COMPLETE", "length": "MAX_TOKENS", "tool_calls": "TOOL_CALL", "function_call": "TOOL_CALL"}
"""The API's finish reasons by OpenAI's; any other one is an ERROR."""
_NOT_COUNTED = {"billed_units": {"input_tokens": 0, "output_tokens": 0}}
"""The usage at the end of a stream where the model server does not count: LangChain's client needs one there."""
_REASONING = ("reasoning_content", "reasoning")
"""The fields in which model servers have what a model thinks, the first one that is there."""


def whole(generation: Generation, metadata: ResponseMetadata, sources: Sequence[Source]) -> dict[str, JSON]:
    """A whole answer.

    Args:
        generation: The answer.
        metadata: Of this response.
        sources: What the answer may cite, by citation number, from 1.
    """
    extra = generation.extra or {}
    text, calls = said(generation.text, extra), calls_in(extra)
    thought = reasoning(extra)
    content: list[JSON] = [{"type": "thinking", "thinking": thought}] if thought else []
    message: dict[str, JSON] = {"role": "assistant"}
    if calls:
        message |= {"tool_plan": text} if text else {}
        message["tool_calls"] = [_tool_call(call, place, metadata) for place, call in enumerate(calls)]
    elif text or not thought:
        content.append({"type": "text", "text": text})
    if content:
        message["content"] = content
    block = None if calls else [(0, max(len(content) - 1, 0))]
    if cited := [*citations(extra, text, sources, block, set())]:
        message["citations"] = cited
    answer: dict[str, JSON] = {"id": metadata.id, "finish_reason": finish_reason(generation, bool(calls))}
    answer["message"] = message
    if generation.usage:
        answer["usage"] = usage(generation.usage)
    if items := _logprobs(extra):
        answer["logprobs"] = items
    return answer


def said(text: str, extra: Mapping[str, JSON]) -> str:
    """The text of an answer, and what a model says to refuse one."""
    refusal = extra.get("refusal")
    return text + (refusal if isinstance(refusal, str) else "")


def reasoning(extra: Mapping[str, JSON]) -> str:
    """What a model thought, of the fields that came with its text."""
    return next((thought for name in _REASONING if isinstance(thought := extra.get(name), str) and thought), "")


def finish_reason(end: Finished | Generation, has_calls: bool) -> str:
    """The API's finish reason. Some model servers say `stop` for an answer that they made a call."""
    if end.reason == "stop" and (has_calls or end.stop_string):
        return "TOOL_CALL" if has_calls else "STOP_SEQUENCE"
    return _REASONS.get(end.reason, "ERROR")


def usage(counted: Usage) -> JSON:
    """The API's usage; nothing is billed here, so it is what was used."""
    tokens = {"input_tokens": counted.prompt_tokens, "output_tokens": counted.completion_tokens}
    cached = counted.details.get("prompt_tokens_details", {}).get("cached_tokens")
    return {"billed_units": tokens, "tokens": tokens} | ({} if cached is None else {"cached_tokens": cached})


def citations(
    extra: Mapping[str, JSON],
    text: str,
    sources: Sequence[Source],
    blocks: Sequence[tuple[int, int]] | None,
    named: set[int],
) -> Iterator[JSON]:
    """Yields the citations of a text.

    Args:
        extra: The fields that came with the text; its annotations have the numbers of our documents.
        text: The text.
        sources: What it may cite, by citation number, from 1.
        blocks: Where each content block with a part of the text begins in it, and the block's index; None: the text is
            the plan of a call.
        named: The numbers of the long documents that have been cited: each is written once, and named by its id then.
    """
    for found in own_citations_in(extra):
        number, start, end = found["number"], found["start_index"], found["end_index"]
        if not 0 < number <= len(sources):
            continue  # It is a model server's own.
        source = sources[number - 1]
        cited = {"text": text[start:end], "sources": [source.name if number in named else source.told]}
        if source.is_long:
            named.add(number)
        if blocks is None:
            yield {"start": start, "end": end, **cited, "type": "PLAN"}
            continue
        begin, index = next((block for block in reversed(blocks) if block[0] <= start), blocks[0])
        yield {"start": start - begin, "end": end - begin, **cited, "content_index": index, "type": "TEXT_CONTENT"}


def told(metadata: ResponseMetadata) -> dict[str, JSON]:
    """The report of what became of the documents, as a field."""
    report: Report | None = metadata.reports.get(0)
    return {"report": report_object(report)} if report else {}


def _tool_call(call: Mapping[str, JSON], place: int, metadata: ResponseMetadata) -> JSON:
    """A tool call, or the beginning of one."""
    function = call.get("function") or {}
    name = function.get("name") or ""
    named = {"name": name, "arguments": function.get("arguments") or ""}
    return {"id": call.get("id") or f"{name}_{metadata.id[:12]}{place}", "type": "function", "function": named}


def _logprobs(extra: Mapping[str, JSON]) -> list[JSON]:
    """The log probabilities of the tokens in a text; model servers do not say the ids of these."""
    said = extra.get("logprobs")
    tokens = said.get("content") if isinstance(said, dict) else None
    read = [one for one in tokens if isinstance(one, dict)] if isinstance(tokens, list) else []
    return [
        {"text": str(one["token"]), "token_ids": [], "logprobs": [one["logprob"]]}
        for one in read
        if one.get("token") is not None and isinstance(one.get("logprob"), int | float)
    ]


def _joined(items: Iterable[JSON]) -> JSON:
    """The log probabilities of several tokens as those of one piece of text."""
    items = list(items)
    logprobs = [number for one in items for number in one["logprobs"]]
    return {"text": "".join(one["text"] for one in items), "token_ids": [], "logprobs": logprobs}


def event(data: Mapping[str, JSON]) -> bytes:
    """One event, with the name that is its type."""
    return b"".join((_named(str(data["type"])), b"data: ", orjson.dumps(data), b"\n\n"))  # It may be long: one copy.


def error_event(error: LLMError) -> bytes:
    """The last event of a stream that failed."""
    reason = "TIMEOUT" if isinstance(error, Timeout) else "ERROR"
    return event({"type": "message-end", "delta": {"error": str(error), "finish_reason": reason}})


def _named(name: str) -> bytes:
    return b"event: " + name.encode() + b"\n"


def _piece(kind: str, index: int) -> bytes:
    """An event with a piece of text in a content block, up to the text."""
    opened = b'data: {"type":"content-delta","index":%d,"delta":{"message":{"content":{"' % index
    return _named("content-delta") + opened + kind.encode() + b'":'


_PLAN = _named("tool-plan-delta") + b'data: {"type":"tool-plan-delta","delta":{"message":{"tool_plan":'
_END = b"}\n\n"
_AFTER_CONTENT, _AFTER_PLAN = b"}}}" + _END, b"}}" + _END
"""What follows the text in an event."""


class Events:
    """Writes an answer as events. The first piece comes with the events that begin the message and its content.

    Args:
        metadata: Of this response.
        write: Sends one item.
        sources: What the answer may cite, by citation number, from 1.
        is_plan: Whether a call is demanded, so that a text before it is the plan for it.
        include_report: Whether the last event has the report.
    """

    __slots__ = (
        *("_after", "_before", "_begun", "_block", "_call", "_calls", "_cited", "_documents", "_include_report"),
        *("_index", "_end", "_is_plan", "_metadata", "_pieces", "_sources", "_texts", "_turns", "_usage", "_write"),
    )

    def __init__(
        self,
        metadata: ResponseMetadata,
        write: Callable[[bytes], None],
        sources: Sequence[Source] = (),
        is_plan: bool = False,
        include_report: bool = False,
    ) -> None:
        self._metadata = metadata
        self._write = write
        self._sources = sources
        self._is_plan = is_plan
        self._include_report = include_report
        self._pieces: list[str] | None = [] if sources else None
        """The text, which citations quote; None if there is nothing to cite."""
        self._before: bytes | None = None
        """An event up to its text; None if no text is open."""
        self._after = _AFTER_PLAN if is_plan else _AFTER_CONTENT
        self._begun = False
        self._block = ""
        """The type of the content block that is open; empty: none."""
        self._index = -1
        """The index of the last content block."""
        self._call: int | None = None
        """The index of the tool call that is open."""
        self._calls: set[int] = set()
        self._turns = CallsInTurn()
        self._texts: list[tuple[int, int]] = []
        """Where each content block of text begins in the whole text, and its index, if there is something to cite."""
        self._cited = 0
        self._documents: set[int] = set()
        """The numbers of the long documents that have been cited."""
        self._end = Finished("stop")
        self._usage: Usage | None = None

    def text(self, text: str, choice: int = 0) -> None:
        before = self._before
        if before is None:
            before = self._open_text()
        if self._pieces is not None:
            self._pieces.append(text)
        self._write(b"".join((before, orjson.dumps(text), self._after)))

    def delta(self, delta: TextDelta) -> None:
        extra = delta.extra or {}
        if thought := reasoning(extra):
            self._write(
                self._open("thinking") + _piece("thinking", self._index) + orjson.dumps(thought) + _AFTER_CONTENT
            )
        text, items = said(delta.text, extra), _logprobs(extra)
        if text and not items:
            self.text(text)
        elif text or (items and self._before is not None):
            before = self._open_text() if self._before is None else self._before
            if self._pieces is not None:
                self._pieces.append(text)
            after = self._after[: -len(_END)] + b',"logprobs":' + orjson.dumps(_joined(items)) + _END
            self._write(before + orjson.dumps(text) + after)
        for index, call in self._turns.pieces(extra):
            self._write_call(index, call)
        if self._pieces is not None and ANNOTATIONS in extra:
            self._write_citations(extra, "".join(self._pieces))

    def finished(self, end: Finished) -> None:
        self._usage = self._usage or end.usage
        self._end = end

    def close(self) -> None:
        """Write the ends of what is open, and of the message."""
        for index, call in self._turns.rest():
            self._write_call(index, call)
        if not (self._calls or self._block or self._before):
            self._write(self._open("text"))
        if ends := self._content_end() + self._call_end():
            self._write(ends)
        delta: dict[str, JSON] = {"finish_reason": finish_reason(self._end, bool(self._calls))}
        if delta["finish_reason"] == "ERROR":
            delta["error"] = f"the model server says: {self._end.reason}"
        delta["usage"] = usage(self._usage) if self._usage else _NOT_COUNTED
        if self._include_report:
            delta |= told(self._metadata)
        self._write(event({"type": "message-end", "id": self._metadata.id, "delta": delta}))
        self._write(DONE)

    def _open_text(self) -> bytes:
        """The events before the first piece of a text, and the event of that up to its text."""
        if self._is_plan:
            opening = self._beginning() + self._content_end()
            self._before = _PLAN
        else:
            opening = self._open("text")
            if opening and self._pieces is not None:
                self._pieces = ["".join(self._pieces)]
                self._texts.append((len(self._pieces[0]), self._index))
            self._before = _piece("text", self._index)
        return opening + self._before

    def _open(self, kind: str) -> bytes:
        """The events before a piece of a content block, if it is not open."""
        if self._block == kind:
            return b""
        opening = self._beginning() + self._content_end()
        self._block = kind
        self._index += 1
        content = {"type": kind, kind: ""}
        start = {"type": "content-start", "index": self._index, "delta": {"message": {"content": content}}}
        return opening + event(start)

    def _beginning(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        delta = {"message": {"role": "assistant"}}
        return event({"type": "message-start", "id": self._metadata.id, "delta": delta})

    def _content_end(self) -> bytes:
        """The end of the content block that is open. It ends no tool call, of which more may come."""
        block, self._block, self._before = self._block, "", None
        return event({"type": "content-end", "index": self._index}) if block else b""

    def _call_end(self) -> bytes:
        """The end of the tool call that is open."""
        return b"" if self._call is None else event({"type": "tool-call-end", "index": self._call})

    def _write_call(self, index: int, call: Mapping[str, JSON]) -> None:
        """Write a piece of a tool call."""
        opening = self._beginning()
        if index not in self._calls:
            opening += self._content_end() + self._call_end()
            begun = _tool_call(call, index, self._metadata)
            begun["function"]["arguments"] = ""
            opening += event({"type": "tool-call-start", "index": index, "delta": {"message": {"tool_calls": begun}}})
            self._calls.add(index)
            self._call = index
        if arguments := (call.get("function") or {}).get("arguments"):
            piece = {"tool_calls": {"function": {"arguments": arguments}}}
            opening += event({"type": "tool-call-delta", "index": index, "delta": {"message": piece}})
        if opening:
            self._write(opening)

    def _write_citations(self, extra: Mapping[str, JSON], text: str) -> None:
        blocks = None if self._is_plan else self._texts or [(0, 0)]
        for cited in citations(extra, text, self._sources, blocks, self._documents):
            start = {"type": "citation-start", "index": self._cited, "delta": {"message": {"citations": cited}}}
            self._write(event(start))
            self._write(event({"type": "citation-end", "index": self._cited}))
            self._cited += 1
