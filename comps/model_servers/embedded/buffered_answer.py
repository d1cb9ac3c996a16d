"""`BufferedAnswer`: an answer on its way from the engine's process to the client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from comps.core.ports import Answer
from comps.core.types import Finished, TextDelta, Usage
from comps.model_servers.embedded.logprobs import LOGPROBS, Form, Record
from comps.model_servers.embedded.tool_calls import Piece, Reader


class BufferedAnswer:
    """Writes what the engine generates to an answer as it comes, and buffers what comes while the answer is full.

    An engine computes at its own pace and does not wait for a slow reader. So the buffer may hold what is left of the
    answer, which `max_tokens` and the context window bound.

    Args:
        answer: Where it is written to.
        reader: Reads tool calls in the text; None: all of it is text.
        echoed: What is written before the first piece.
        form: Of the logprobs that are written with the text; None: there are none.
    """

    def __init__(
        self, answer: Answer, reader: Reader | None = None, echoed: str = "", form: Form | None = None
    ) -> None:
        self._answer = answer
        self._reader = reader
        self._echoed = echoed
        self._form = form
        self._records: list[Record] = []
        """Those that are to be written with the next piece."""
        self._buffer: deque[str | TextDelta] = deque()
        self._flushing: asyncio.Task[None] | None = None

    def push(self, text: str, records: Sequence[Record] | None = None) -> None:
        """Write a piece of text, which may be empty, with the records of its tokens; see `logprobs`."""
        if records:
            self._records.extend(records)
        if not text:
            return
        if self._echoed:
            text, self._echoed = self._echoed + text, ""
        if self._reader is None:
            self._write(text)
            return
        for piece in self._reader.push(text):
            self._write(_event(piece))

    def end(self) -> None:
        """Write what is left at the end."""
        if self._echoed:
            self._write(self._echoed)
        for piece in self._reader.flush() if self._reader else ():
            self._write(_event(piece))
        if self._records:
            self._write("")

    def finish(self, reason: str, usage: Usage, stop_string: str | None = None) -> None:
        """Write the end of the answer, which the engine has ended for `reason`, perhaps before a stop string."""
        if self._reader and self._reader.called and reason == "stop":
            reason = self._reader.reason
        self._answer.finished(Finished(reason, usage, stop_string=stop_string))

    def _write(self, event: str | TextDelta) -> None:
        if self._records:
            event = self._with_logprobs(event)
        if not (self._buffer or self._answer.full):
            self._write_through(event)
            return
        self._buffer.append(event)
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.ensure_future(self._write_buffer())

    def _with_logprobs(self, event: str | TextDelta) -> TextDelta:
        """The event with the records so far. Beside calls of functions they are those of the calls' tokens."""
        assert self._form
        delta = TextDelta(event) if isinstance(event, str) else event
        extra = {**(delta.extra or {}), LOGPROBS: self._form(self._records)}
        self._records = []
        return replace(delta, extra=extra)

    def _write_through(self, event: str | TextDelta) -> None:
        if isinstance(event, str):
            self._answer.text(event)
        else:
            self._answer.delta(event)

    async def flush(self) -> None:
        """Wait until the buffer is empty."""
        if self._flushing:
            await self._flushing

    def close(self) -> None:
        """Write nothing any more."""
        if self._flushing:
            self._flushing.cancel()

    async def _write_buffer(self) -> None:
        while self._buffer:
            await self._answer.drain()
            self._write_through(self._buffer.popleft())


def _event(piece: Piece) -> str | TextDelta:
    return piece if isinstance(piece, str) else TextDelta("", extra=piece)
