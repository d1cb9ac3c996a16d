"""The stream of a response: typed events with sequence numbers, and the response that they add up to.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from comps.core.citations import UNKNOWN
from comps.core.errors import LLMError
from comps.core.tool_calls import NamedCalls, calls_in
from comps.core.types import JSON, Finished, Generation, Report, TextDelta, Usage
from comps.dialects.responses.objects import (
    cited_in,
    ended,
    error_event,
    error_object,
    logprobs_in,
    moved_by,
    place_of,
    usage_object,
)
from comps.dialects.shared.framing import ResponseMetadata, report_object


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of part: of a message or of reasoning."""

    type: str
    field: str
    """The field with its text."""
    events: str
    """The name of its events with text, without `delta` and `done`."""
    item: str
    """The type of the items that have it."""
    prefix: str
    """What the ids of these items begin with."""
    parts: str = "content"
    """The field of the item with its parts."""
    part_events: str = "response.content_part"
    index: str = "content_index"

    def part(self) -> dict[str, JSON]:
        """An empty part."""
        further: dict[str, JSON] = {"annotations": [], "logprobs": []} if self is _TEXT else {}
        return {"type": self.type, self.field: "", **further}

    def item_object(self) -> dict[str, JSON]:
        """The fields of an item without parts."""
        if self.item == "message":
            return {"type": "message", "role": "assistant", "content": []}
        return {"type": "reasoning", "summary": [], **({"content": []} if self.parts == "content" else {})}


_TEXT = _Kind("output_text", "text", "response.output_text", "message", "msg")
_REFUSAL = _Kind("refusal", "refusal", "response.refusal", "message", "msg")
_REASONING = _Kind("reasoning_text", "text", "response.reasoning_text", "reasoning", "rs")
_SUMMARY = _Kind(
    *("summary_text", "text", "response.reasoning_summary_text", "reasoning", "rs"),
    *("summary", "response.reasoning_summary_part", "summary_index"),
)
_GOES_ON = "in_progress"
_LONG = 100_000
"""Bytes of events whose pieces are written one by one, since to join them would copy them."""
_REASONS = ("reasoning_content", "reasoning")
"""The names that model servers have for reasoning; what comes under both is the same."""


class ResponseEvents:
    """Writes the events of a response. What one delta brings is one item, of as many events as it takes.

    Args:
        metadata: Of this response.
        write: Sends one item.
        response: The response without output, with all that is known before it begins.
        summarises: Whether reasoning is written as its summary, the only form in which many clients show it.
        include_report: Whether the response has its report.
    """

    __slots__ = (
        *("_before", "_calls", "_end", "_events", "_item", "_kind", "_metadata", "_named", "_number", "_output"),
        *("_part", "_pieces", "_place", "_reasoning", "_reports", "_texts", "_usage", "_write", "response"),
    )

    def __init__(
        self,
        metadata: ResponseMetadata,
        write: Callable[[bytes], None],
        response: dict[str, JSON],
        *,
        summarises: bool = False,
        include_report: bool = False,
    ) -> None:
        self._metadata = metadata
        self._write = write
        self.response = response
        self._reasoning = _SUMMARY if summarises else _REASONING
        self._reports: Mapping[int, Report] = metadata.reports if include_report else {}
        self._number = 0
        """The next event's."""
        self._events: list[bytes] = []
        """The pieces of those of the item that is about to be written."""
        self._output: list[dict[str, JSON]] = []
        self._item: dict[str, JSON] | None = None
        """The message or the reasoning that goes on, the last of the output; None: none does."""
        self._kind: _Kind | None = None
        """Of the part that goes on; None: none does."""
        self._part: dict[str, JSON] = {}
        self._place: dict[str, JSON] = {}
        """The fields that say in each event to which part it belongs."""
        self._pieces: list[str] = []
        """The text of that part."""
        self._texts: list[tuple[int, dict[str, JSON], dict[str, JSON]]] = []
        """The parts with text: where each begins in the whole text, its place and itself."""
        self._calls: dict[int, tuple[int, list[str]]] = {}
        """The places in the output of the calls, and their arguments, by the numbers of the calls."""
        self._named = NamedCalls()
        self._before: bytes | None = None
        """An event with text up to its text; None while no text goes on."""
        self._end: Finished | None = None
        self._usage: Usage | None = None

    def text(self, text: str, choice: int = 0) -> None:
        before = self._before
        if before is None:
            self._add_piece(_TEXT, text, logprobs=[])
            self._flush()
            return
        self._pieces.append(text)
        number = self._number
        self._number = number + 1
        self._write(b"".join((before, orjson.dumps(text), b',"logprobs":[],"sequence_number":%d}\n\n' % number)))

    def delta(self, delta: TextDelta) -> None:
        extra = delta.extra or {}
        if reasoning := next((one for name in _REASONS if isinstance(one := extra.get(name), str) and one), ""):
            self._add_piece(self._reasoning, reasoning)
        logprobs = logprobs_in(extra)
        if delta.text or logprobs:
            self._add_piece(_TEXT, delta.text, logprobs=logprobs)
            self._part["logprobs"] += logprobs
        if isinstance(refusal := extra.get("refusal"), str) and refusal:
            self._add_piece(_REFUSAL, refusal)
        for number, piece in self._named.pieces(extra):
            self._add_call(number, piece)
        if self._texts:
            self._cite(extra)
        self._flush()

    def finished(self, end: Finished) -> None:
        """Note the end of the choice; `close` writes it, since there is one response."""
        self._end = self._end or end
        self._usage = self._usage or end.usage

    def close(self) -> None:
        """Write the ends of all items, and that of the response."""
        for number, piece in self._named.rest():
            self._add_call(number, piece)
        if not self._output:
            self._open_part(_TEXT)
        outcome = ended(self._end.reason if self._end else "stop")
        self._end_items(outcome["status"])
        reports = [report_object(report) for _, report in sorted(self._reports.items())]
        report = {"report": reports[0]} if reports else {}
        usage = usage_object(self._usage)
        self.response = {**self.response, **outcome, "output": self._output, "usage": usage, **report}
        self._add(f"response.{outcome['status']}", response=self.response)
        self._flush()

    def failed(self, error: LLMError) -> bytes:
        """The last item of a stream that failed."""
        self._events.clear()
        self._add("error", **error_event(error))
        if self._output:
            self._fill()
            output = [{**one, "status": "incomplete"} if one["status"] == _GOES_ON else one for one in self._output]
            failure = {"status": "failed", "error": error_object(error), "output": output}
            self._add("response.failed", response={**self.response, **failure})
        return b"".join(self._events)

    def _add(self, kind: str, **fields: Any) -> None:
        """Add an event to the item that is about to be written."""
        self._events += _pieces(kind, self._number, fields)
        self._number += 1

    def _flush(self) -> None:
        if sum(map(len, self._events)) > _LONG:
            for piece in self._events:
                self._write(piece)
        elif self._events:
            self._write(b"".join(self._events))
        self._events.clear()

    def _new_item(self, prefix: str, **fields: JSON) -> dict[str, JSON]:
        """Add an item to the output, behind the one that goes on; the first one begins the response."""
        self._end_item("completed")
        if not self._output:
            begun = orjson.Fragment(orjson.dumps({**self.response, "status": _GOES_ON}))
            self._add("response.created", response=begun)
            self._add("response.in_progress", response=begun)
        place = len(self._output)
        item = {"id": f"{prefix}_{self._metadata.id}{place:02x}", **fields, "status": _GOES_ON}
        self._output.append(item)
        self._add("response.output_item.added", output_index=place, item=item)
        return item

    def _add_piece(self, kind: _Kind, text: str, **further: JSON) -> None:
        if self._kind is not kind:
            self._open_part(kind)
        self._pieces.append(text)
        self._add(f"{kind.events}.delta", **self._place, delta=text, **further)

    def _open_part(self, kind: _Kind) -> None:
        """Begin a part, in the item that goes on if it may have such."""
        self._end_part()
        item = self._item
        if item is None or item["type"] != kind.item:
            item = self._item = self._new_item(kind.prefix, **kind.item_object())
        place = {"item_id": item["id"], "output_index": len(self._output) - 1, kind.index: len(item[kind.parts])}
        part = kind.part()
        self._add(f"{kind.part_events}.added", **place, part=part)
        item[kind.parts].append(part)
        self._kind, self._part, self._place, self._pieces = kind, part, place, []
        if kind is _TEXT:
            before = self._texts[-1] if self._texts else None
            start = before[0] + len(before[2]["text"]) if before else 0
            self._texts.append((start, place, part))
            name = f"{kind.events}.delta"
            opened = orjson.dumps({"type": name, **place})[:-1]
            self._before = b"event: " + name.encode() + b"\ndata: " + opened + b',"delta":'

    def _end_part(self) -> None:
        """End the part that goes on, if one does; its item goes on."""
        kind, part = self._kind, self._part
        if kind is None:
            return
        self._fill()
        told = {kind.field: part[kind.field]} | ({"logprobs": part["logprobs"]} if kind is _TEXT else {})
        self._add(f"{kind.events}.done", **self._place, **told)
        self._add(f"{kind.part_events}.done", **self._place, part=part)
        self._kind = self._before = None

    def _end_item(self, status: str) -> None:
        """End the message or the reasoning that goes on, if one does."""
        if self._item is not None:
            self._end_part()
            self._item = None
            self._item_done(len(self._output) - 1, status)

    def _item_done(self, place: int, status: str) -> None:
        item = self._output[place]
        item["status"] = status
        self._add("response.output_item.done", output_index=place, item=item)

    def _end_items(self, status: str) -> None:
        self._end_item(status)
        self._fill()
        for place, _ in self._calls.values():
            item = self._output[place]
            told = {"name": item["name"], "arguments": item["arguments"]}
            self._add("response.function_call_arguments.done", item_id=item["id"], output_index=place, **told)
            self._item_done(place, status if place == len(self._output) - 1 else "completed")

    def _fill(self) -> None:
        """Put the texts so far into the part that goes on, and into the calls."""
        if self._kind is not None:
            self._part[self._kind.field] = "".join(self._pieces)
        for place, arguments in self._calls.values():
            self._output[place]["arguments"] = "".join(arguments)

    def _add_call(self, number: int, piece: Mapping[str, JSON]) -> None:
        """Add a piece of a call. Pieces of several calls may come in any order, so calls go on until the end."""
        function = piece.get("function") or {}
        if number not in self._calls:
            identity = piece.get("id") or f"call_{self._metadata.id}{number:02x}"
            named = {"call_id": identity, "name": function.get("name") or "", "arguments": ""}
            self._new_item("fc", type="function_call", **named)
            self._calls[number] = (len(self._output) - 1, [])
        place, arguments = self._calls[number]
        if more := function.get("arguments"):
            arguments.append(more)
            item_id = self._output[place]["id"]
            self._add("response.function_call_arguments.delta", item_id=item_id, output_index=place, delta=more)

    def _cite(self, extra: Mapping[str, JSON]) -> None:
        """Add the citations of a delta to the text that they are in. It may have ended, since they come last."""
        for annotation in cited_in(extra):
            at: int = place_of(annotation)
            start, place, part = next((one for one in reversed(self._texts) if one[0] <= at), self._texts[0])
            moved = moved_by(-start, annotation)
            number = len(part["annotations"])
            told = {"annotation_index": number, "annotation": moved}
            self._add("response.output_text.annotation.added", **place, **told)
            part["annotations"].append(moved)
        if unknown := extra.get(UNKNOWN):
            self._texts[-1][2][UNKNOWN] = unknown


class _Whole(ResponseEvents):
    """Adds up a response without writing events."""

    __slots__ = ()

    def _add(self, kind: str, **fields: Any) -> None:
        """No event is written."""


def whole_response(
    generation: Generation, metadata: ResponseMetadata, response: dict[str, JSON], *, summarises: bool
) -> dict[str, JSON]:
    """The response with its output, as its events would add it up; see `ResponseEvents`."""
    extra = dict(generation.extra or {})
    if calls := calls_in(extra):  # Only in a stream do calls have an index.
        extra["tool_calls"] = [{**call, "index": number} for number, call in enumerate(calls)]
    whole = _Whole(metadata, lambda _: None, response, summarises=summarises)
    whole.delta(TextDelta(generation.text, 0, extra))
    whole.finished(Finished(generation.reason, generation.usage))
    whole.close()
    return whole.response


def event(kind: str, number: int, fields: Mapping[str, JSON]) -> bytes:
    """One typed event."""
    return b"".join(_pieces(kind, number, fields))


def _pieces(kind: str, number: int, fields: Mapping[str, Any]) -> tuple[bytes, ...]:
    data = orjson.dumps({"type": kind, **fields, "sequence_number": number})
    return b"event: " + kind.encode() + b"\ndata: ", data, b"\n\n"
