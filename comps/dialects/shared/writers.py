"""Writers of streamed answers that several dialects share: OpenAI's chunks and OPEA's Python literals.

A writer calls `write` once for each item, a whole server-sent event. `text` runs once for each token: what its bytes
have in common is encoded once for each choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import ClassVar

import orjson

from comps.core.citations import cited_numbers
from comps.core.types import JSON, Finished, Report, TextDelta, Usage
from comps.dialects.shared.framing import (
    DONE,
    ResponseMetadata,
    citations_in,
    comment,
    report_object,
    sse,
    usage_object,
)


class _Chunks:
    """What OpenAI's two kinds of chunks have in common.

    Args:
        metadata: Of this response.
        write: Sends one item.
        include_usage: Whether a last chunk has the usage.
        include_report: Whether a chunk for each prompt has its report.
    """

    __slots__ = ("_after", "_before", "_head", "_include_usage", "_reports", "_tail", "_usage", "_write")

    _id_prefix: ClassVar[str]
    _object: ClassVar[str]
    _text_end: ClassVar[bytes]
    """What ends the object with the text, which is the choice itself in a `text_completion`."""

    def __init__(
        self,
        metadata: ResponseMetadata,
        write: Callable[[bytes], None],
        include_usage: bool = False,
        include_report: bool = False,
    ) -> None:
        self._write = write
        head = {"id": self._id_prefix + metadata.id, "object": self._object}
        self._head = orjson.dumps({**head, "created": metadata.created, "model": metadata.model})[:-1]
        self._include_usage = include_usage
        self._reports: Mapping[int, Report] = metadata.reports if include_report else {}
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._usage: Usage | None = None
        self._before: dict[int, bytes] = {}
        """A chunk up to its text, by choice."""
        self._after = self._text_end + self._unfinished(b"null")
        """What follows the text of a chunk that has only text."""

    def _opening(self, choice: int) -> bytes:
        """A chunk up to the index of a choice."""
        return b"data: " + self._head + b',"choices":[{"index":%d,' % choice

    def _unfinished(self, logprobs: bytes) -> bytes:
        """What follows the text of a chunk that does not end its choice."""
        return b',"logprobs":' + logprobs + b',"finish_reason":null}' + self._tail

    def _last(self, end: Finished, content: bytes) -> None:
        """Write the chunk that ends a choice."""
        self._usage = self._usage or end.usage
        reason = b',"logprobs":null,"finish_reason":' + orjson.dumps(end.reason) + b"}"
        self._write(self._opening(end.choice) + content + reason + self._tail)

    def close(self) -> None:
        """Write the reports and the usage, if they are wanted, and `[DONE]`."""
        several = len(self._reports) > 1
        for number, report in sorted(self._reports.items()):
            prompt = b',"prompt":%d' % number if several else b""
            encoded = orjson.dumps(report_object(report))
            self._write(sse(self._head + b',"choices":[]' + prompt + b',"report":' + encoded + b"}"))
        if self._include_usage:
            usage = orjson.dumps(usage_object(self._usage))
            self._write(sse(self._head + b',"choices":[],"usage":' + usage + b"}"))
        self._write(DONE)


class ChatChunks(_Chunks):
    """Writes OpenAI's `chat.completion.chunk`s: a piece of text each, then the finish reason, then the usage.

    https://platform.openai.com/docs/api-reference/chat-streaming
    """

    __slots__ = ()

    _id_prefix = "chatcmpl-"
    _object = "chat.completion.chunk"
    _text_end = b"}"

    def text(self, text: str, choice: int = 0) -> None:
        before = self._before.get(choice)
        if before is None:
            before = self._begin(choice)
        self._write(b"".join((before, orjson.dumps(text), self._after)))

    def delta(self, delta: TextDelta) -> None:
        if not delta.extra:
            self.text(delta.text, delta.choice)
            return
        before = self._before.get(delta.choice)
        further, logprobs = _fields(delta.extra)
        if before is not None and not delta.text:
            # OPEA's pipelines take every content that is there for text, null as well.
            opened = self._opening(delta.choice) + b'"delta":{' + further[1:]
        else:
            opened = (before or self._begin(delta.choice)) + orjson.dumps(delta.text or None) + further
        self._write(opened + b"}" + self._unfinished(logprobs))

    def finished(self, end: Finished) -> None:
        begun = end.choice in self._before
        self._last(end, b'"delta":{}' if begun else b'"delta":{"role":"assistant","content":""}')

    def _begin(self, choice: int) -> bytes:
        """The first chunk of a choice up to its text; it alone has the role."""
        opening = self._opening(choice)
        self._before[choice] = opening + b'"delta":{"content":'
        return opening + b'"delta":{"role":"assistant","content":'


class ChunksAndSources(ChatChunks):
    """Writes OpenAI's chunks and, behind `[DONE]`, Enterprise-RAG's item with the documents (`json: {…}`).

    Args:
        metadata: Of this response.
        write: Sends one item.
        include_usage: Whether a last chunk has the usage.
        include_report: Whether a chunk for each prompt has its report.
        sources: The item's content, given the numbers of the cited documents.
    """

    __slots__ = ("_cited", "_sources")

    def __init__(
        self,
        metadata: ResponseMetadata,
        write: Callable[[bytes], None],
        include_usage: bool,
        include_report: bool,
        sources: Callable[[AbstractSet[int]], JSON],
    ) -> None:
        super().__init__(metadata, write, include_usage, include_report)
        self._cited: set[int] = set()
        self._sources = sources

    def delta(self, delta: TextDelta) -> None:
        self._cited |= cited_numbers(delta.extra)
        super().delta(delta)

    def close(self) -> None:
        super().close()
        self._write(b"json: " + orjson.dumps(self._sources(self._cited)) + b"\n\n")


class TextChunks(_Chunks):
    """Writes OpenAI's `text_completion` chunks, as `ChatChunks` does those of chats.

    https://platform.openai.com/docs/api-reference/completions
    """

    __slots__ = ()

    _id_prefix = "cmpl-"
    _object = "text_completion"
    _text_end = b""

    def text(self, text: str, choice: int = 0) -> None:
        before = self._before.get(choice) or self._begin(choice)
        self._write(b"".join((before, orjson.dumps(text), self._after)))

    def delta(self, delta: TextDelta) -> None:
        if not delta.extra:
            self.text(delta.text, delta.choice)
            return
        further, logprobs = _fields(delta.extra)
        before = self._before.get(delta.choice) or self._begin(delta.choice)
        self._write(before + orjson.dumps(delta.text) + further + self._unfinished(logprobs))

    def finished(self, end: Finished) -> None:
        self._last(end, b'"text":""')

    def _begin(self, choice: int) -> bytes:
        """A chunk of a choice up to its text."""
        before = self._before[choice] = self._opening(choice) + b'"text":'
        return before


class LiteralEvents:
    """Writes OPEA's own stream: a Python literal an event; before the end, if reports are wanted, what the answer cites
    and the reports, as events of these types.

    Its clients know no finish reason: one other than `stop` is written as a comment behind `[DONE]`, where they stop
    reading.

    Args:
        write: Sends one item.
        literal: A text as a Python literal: `bytes_literal` or `repr`.
        reports: Of each prompt; None if they are not wanted.
    """

    __slots__ = ("_citations", "_literal", "_reason", "_reports", "_write")

    def __init__(
        self, write: Callable[[bytes], None], literal: Callable[[str], str], reports: Mapping[int, Report] | None = None
    ) -> None:
        self._write = write
        self._literal = literal
        self._reports = reports
        self._citations: dict[str, JSON] = {}
        self._reason = "stop"

    def text(self, text: str, choice: int = 0) -> None:
        self._write(b"".join((b"data: ", self._literal(text).encode(), b"\n\n")))

    def delta(self, delta: TextDelta) -> None:
        if delta.text:
            self.text(delta.text)
        elif delta.extra:
            self._citations = citations_in(delta.extra) or self._citations

    def finished(self, end: Finished) -> None:
        self._reason = end.reason

    def close(self) -> None:
        """Write the citations and the reports, if they are wanted, `[DONE]` and the finish reason."""
        if self._reports is not None and self._citations:
            self._write(b"event: annotations\n" + sse(orjson.dumps(self._citations)))
        for report in (self._reports or {}).values():
            self._write(b"event: report\n" + sse(orjson.dumps(report_object(report))))
        self._write(DONE)
        if self._reason != "stop":
            self._write(comment(f"finish_reason={self._reason}"))


def bytes_literal(text: str) -> str:
    """`b' Deep'`"""
    return repr(text.encode())


def _fields(extra: Mapping[str, JSON]) -> tuple[bytes, bytes]:
    """The fields that follow a text within its object, with a comma before each, and its logprobs, as JSON."""
    fields = {name: value for name, value in extra.items() if name != "logprobs"}
    return b"," + orjson.dumps(fields)[1:-1] if fields else b"", orjson.dumps(extra.get("logprobs"))
