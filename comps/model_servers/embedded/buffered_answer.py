"""`BufferedAnswer`: an answer on its way from the engine's process to the client."""

from __future__ import annotations

import asyncio
from collections import deque

from comps.core.ports import Answer
from comps.core.types import Finished, TextDelta, Usage
from comps.model_servers.embedded.tool_calls import Piece, Reader


class BufferedAnswer:
    """Writes what the engine generates to an answer as it comes, and buffers what comes while the answer is full.

    An engine computes at its own pace and does not wait for a slow reader. So the buffer may hold what is left of the
    answer, which `max_tokens` and the context window bound.

    Args:
        answer: Where it is written to.
        reader: Reads tool calls in the text; None: all of it is text.
        echoed: What is written before the first piece.
    """

    def __init__(self, answer: Answer, reader: Reader | None = None, echoed: str = "") -> None:
        self._answer = answer
        self._reader = reader
        self._echoed = echoed
        self._buffer: deque[Piece] = deque()
        self._flushing: asyncio.Task[None] | None = None

    def push(self, text: str) -> None:
        """Write a piece of text, which may be empty."""
        if self._echoed:
            text, self._echoed = self._echoed + text, ""
        if self._reader is None:
            if text:
                self._write(text)
            return
        for piece in self._reader.push(text):
            self._write(piece)

    def end(self) -> None:
        """Write what is left at the end."""
        for piece in self._reader.flush() if self._reader else ():
            self._write(piece)

    def finish(self, reason: str, usage: Usage) -> None:
        """Write the end of the answer, which the engine has ended for `reason`."""
        if self._reader and self._reader.called and reason == "stop":
            reason = self._reader.reason
        self._answer.finished(Finished(reason, usage))

    def _write(self, piece: Piece) -> None:
        if not (self._buffer or self._answer.full):
            self._write_through(piece)
            return
        self._buffer.append(piece)
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.ensure_future(self._write_buffer())

    def _write_through(self, piece: Piece) -> None:
        if isinstance(piece, str):
            self._answer.text(piece)
        else:
            self._answer.delta(TextDelta("", extra=piece))

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
