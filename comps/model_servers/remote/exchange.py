"""One HTTP exchange with a model server: a request and its response.

The response is pushed: asyncio calls the connection with bytes, httptools calls back with parts of the body, and these
become events, deltas and chunks to the client within the same call. Nothing on that path awaits.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Protocol

from comps.core.errors import ModelServerError
from comps.core.ports import Answer
from comps.model_servers.remote.deadlines import NEVER, Deadlines
from comps.model_servers.remote.sse import (
    BLANK,
    BRACE,
    EVENTS,
    EventStream,
    JSONLines,
    is_done,
    keeps_alive,
    media_type,
    parser_for,
)

MOST_OF_COLLECTED = 256_000_000
"""The maximum size of a stream that is collected to a whole answer, in bytes: about a million tokens."""
MOST_OF_FAILURE = 4000
"""The maximum size of a body that is an error, in bytes."""
MOST_OF_WHOLE = 64_000_000
"""The maximum size of a whole answer, in bytes, as of an event in a stream; vectors may have more."""
GO_ON, STOP, NO_TOKEN = 0, 1, 2
"""What `Reader.event` returns: go on; the rest of the stream is not wanted; go on, and the event is no sign of the
model, such as those that only keep the connection open."""
_REST_SECONDS = 0.05
"""The deadline for the end of the body after the last event, in seconds."""
_PIECE = 65536
"""The number of bytes that are decompressed at once."""
_MOST_PIECES = 500
"""The maximum number of such pieces from one read of at most 256 KiB; more is a compression bomb."""
_CODINGS, _NO_CODING = (b"gzip", b"x-gzip", b"deflate"), (b"", b"identity")
"""The content codings that are read, though nobody asked for one."""
_AUTOMATIC = 47
"""zlib's window bits for automatic detection of gzip and zlib headers."""


class Broken(Exception):
    """The connection broke before the response was complete.

    Args:
        said: The cause.
        unanswered: Whether the request may be retried: the connection was reused, and nothing of a response had
            arrived. The server has probably closed it while it was idle.
    """

    def __init__(self, said: str, unanswered: bool = False) -> None:
        super().__init__(said)
        self.unanswered = unanswered


class Reader(Protocol):
    """The reader of a stream's events."""

    @property
    def answer(self) -> Answer:
        """The answer to which it writes."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end of the body follows the answer. It is asked for when `event` returns `STOP`."""
        ...

    def event(self, data: bytes, name: bytes = b"") -> int:
        """Read the data of an event; returns `GO_ON`, `STOP` or `NO_TOKEN`.

        Args:
            data: The data, not empty.
            name: The event's name, if it has one.

        Raises:
            LLMError: It is an error.
            ModelServerError: The data is invalid.
        """
        ...


def too_long(most: float) -> ModelServerError:
    """Returns the error of an answer with more than that many bytes."""
    return ModelServerError(f"the model server's answer has more than {most:,} bytes")


def has_succeeded(status: int) -> bool:
    """Returns whether an HTTP status is one of success."""
    return 200 <= status < 300


class Exchange:
    """An exchange whose response is read as a whole.

    Args:
        request: The bytes of the request.
        deadlines: The deadlines of the response.
        most: The maximum size of the body, in bytes; 0: `MOST_OF_WHOLE`. More is an error; of a body that is an error
            itself, the rest is not read.
        unread: A status at which the exchange ends without reading the body; 0: none.
    """

    def __init__(self, request: bytes, deadlines: Deadlines, most: int = 0, unread: int = 0) -> None:
        self.request = request
        self.deadlines = deadlines
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        """The headers by lower-case name; of repeated ones, the last."""
        self.ended = False
        """Whether the exchange is over."""
        self.is_done = False
        """Whether the response is complete except for the end of its body."""
        self.arrived = 0
        """The bytes of the response so far, as of the connection's last check."""
        self.most_arriving = NEVER
        """The maximum of `arrived`."""
        self._most = most or MOST_OF_WHOLE
        self._unread = unread
        self._pieces: list[bytes] = []
        self._length = 0
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._inflate: zlib._Decompress | None = None
        deadlines.watch(self.fail)

    @property
    def body(self) -> bytes:
        """The body, as far as it has arrived."""
        return b"".join(self._pieces)

    def reset(self) -> None:
        """Prepare for a retry on another connection, after `Broken.unanswered`."""
        self.ended = False
        self._failure = None

    async def wait(self) -> None:
        """Wait for the end of the exchange.

        Raises:
            Broken: The connection broke.
            ModelServerError: The response is invalid, or missed a deadline (`Timeout`).
        """
        while not self.ended:
            self._waiter = self.deadlines.loop.create_future()
            await self._waiter
        self._raise_failure()

    def _raise_failure(self) -> None:
        """Raise the error with which it ended, and forget it: its traceback refers to the exchange, and to its data."""
        if self._failure:
            try:
                raise self._failure
            finally:
                self._failure = None

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Called when the status line and the headers have arrived."""
        self.status = status
        self.headers = headers
        self.request = b""  # It may be large, and is not sent again.
        if not has_succeeded(status):
            self._most = min(self._most, MOST_OF_FAILURE)
        coding = headers.get(b"content-encoding", b"").strip().lower()
        if coding in _CODINGS:
            self._inflate = zlib.decompressobj(_AUTOMATIC)
        elif coding not in _NO_CODING and has_succeeded(status):
            self.fail(ModelServerError("the model server's answer is compressed in a way that is not read here"))
        if status == self._unread or coding not in (*_CODINGS, *_NO_CODING):
            self.end()

    def _take_compressed(self, data: bytes) -> None:
        assert self._inflate
        try:
            for _ in range(_MOST_PIECES):
                self.read(self._inflate.decompress(data, _PIECE))
                data = self._inflate.unconsumed_tail
                if self._inflate.eof and self._inflate.unused_data:  # gzip may have several members.
                    data = self._inflate.unused_data
                    self._inflate = zlib.decompressobj(_AUTOMATIC)
                if not data or self.ended:
                    return
        except zlib.error:
            raise ModelServerError("the model server's answer cannot be decompressed") from None
        raise ModelServerError("the model server's answer is compressed too much")

    def take(self, data: bytes) -> None:
        """Decompress, if necessary, and read bytes of the body.

        Raises:
            ModelServerError: The body is invalid, or contains an error.
        """
        if self._inflate is None:
            self.read(data)
        else:
            self._take_compressed(data)

    def read(self, data: bytes) -> None:
        """Read decompressed bytes of the body."""
        self._pieces.append(data)
        self._length += len(data)
        if self._length <= self._most:
            return
        if self._most > MOST_OF_FAILURE:
            raise too_long(self._most)
        self.end()

    def complete(self) -> None:
        """Called at the end of the body."""
        self.end()

    def await_rest(self) -> None:
        """Called when `is_done` is set: a deadline for the end of the body."""

    @property
    def full(self) -> bool:
        """Whether to pause reading from the connection."""
        return False

    def fail(self, error: Exception) -> None:
        """End with an error. What was written before remains."""
        if not self.ended:
            self._failure = error
            self.end()

    def end(self) -> None:
        """End the exchange."""
        self.ended = True
        self.wake()

    def close(self) -> None:
        """Stop the deadlines, and drop references in circles, so that the exchange leaves no garbage to collect."""
        self.deadlines.stop()

    def wake(self) -> None:
        """Wake `wait`."""
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class StreamExchange(Exchange):
    """An exchange whose response is parsed as server-sent events, up to `[DONE]` or the end of the body.

    If the response is no event stream, the beginning of its body is collected, for the error.

    Args:
        request: The bytes of the request.
        deadlines: The deadlines of the response.
        reader: The reader of the events.
        unread: A status at which the exchange ends without reading the body; 0: none.
        is_collected: Whether the answer is kept in memory, so that its length has a limit.
    """

    def __init__(
        self, request: bytes, deadlines: Deadlines, reader: Reader, unread: int = 0, is_collected: bool = False
    ) -> None:
        super().__init__(request, deadlines, MOST_OF_FAILURE, unread)
        if is_collected:
            self.most_arriving = MOST_OF_COLLECTED
        self._reader = reader
        self._now = deadlines.loop.time
        self.streams = False
        """Whether the response is an event stream."""
        self.is_json = False
        """Whether it is a whole JSON document instead."""
        self._kind = b""
        """The media type."""
        self._is_known = False
        """Whether it is known what the response is."""
        self._stream: EventStream | JSONLines | None = None
        self._rest: asyncio.TimerHandle | None = None
        self.resume: Callable[[], None] | None = None
        """Resumes reading from the connection; None unless reading is paused."""

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        super().head(status, headers)
        self._kind = media_type(headers)
        self._is_known = not has_succeeded(status)
        if self._kind == EVENTS and not self._is_known:
            self._parse_with(EventStream(self._event))

    def read(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.feed(data)
            return
        if self._is_known:
            super().read(data)
            return
        self._look_at(b"".join((*self._pieces, data)))

    def _look_at(self, body: bytes) -> None:
        """Find out by the first bytes of the body what it is, since servers and proxies may mislabel it."""
        begin = body.lstrip(BLANK)
        self._pieces = [body]
        if not begin and len(body) < self._most:
            return
        self._is_known = True
        if parser := parser_for(self._kind, begin):
            stream = parser(self._event)
            self._parse_with(stream)
            self._pieces = []
            stream.feed(body)
        elif begin[:1] in (b"{", b"[") or self._kind == b"application/json":
            self.is_json = True
            self._most = MOST_OF_WHOLE

    def _parse_with(self, stream: EventStream | JSONLines) -> None:
        self._is_known = self.streams = True
        self._stream = stream
        if self._inflate is None:
            self.take = stream.feed  # type: ignore[method-assign]  # One call less for each token.

    def complete(self) -> None:
        if not self._is_known and parser_for(self._kind, b""):
            self.streams = True  # It has ended before its first event.
        try:
            if self._stream is not None and not self.ended:
                self._stream.close()
        except Exception as error:
            self.fail(error)
        self.end()

    def _event(self, data: bytes, name: bytes) -> None:
        if self.ended or self.is_done:
            return
        if data[0] != BRACE:
            if is_done(data):
                self.is_done = True
                return
            if keeps_alive(data.strip(b' \t:"')):  # It is no sign of the model.
                return
        said = self._reader.event(data, name)
        if not said:
            self.deadlines.last_token = self._now()
        elif said == STOP:
            if self._reader.is_complete:
                self.is_done = True
            else:  # The model is stopped.
                self.end()

    def await_rest(self) -> None:
        """Set a deadline for the end of the body, after which the connection can be reused."""
        if not self._rest and not self.ended:
            self._rest = self.deadlines.loop.call_later(_REST_SECONDS, self.end)

    def fail(self, error: Exception) -> None:
        if self.is_done:  # The response was complete before the error.
            self.end()
        else:
            super().fail(error)

    def end(self) -> None:
        if self._rest:
            self._rest.cancel()
        super().end()

    def close(self) -> None:
        super().close()
        self._stream = None
        self.__dict__.pop("take", None)

    @property
    def full(self) -> bool:
        return self._stream is not None and self._reader.answer.full

    async def wait(self) -> None:
        while not self.ended:
            self._waiter = self.deadlines.loop.create_future()
            await self._waiter
            if self.resume and not self.ended:
                await self._drain()
        self._raise_failure()

    async def _drain(self) -> None:
        """Wait until the reader has drained, or the exchange has ended meanwhile, and read on."""
        self.deadlines.suspend()
        self._waiter = self.deadlines.loop.create_future()
        draining = asyncio.ensure_future(self._reader.answer.drain())
        try:
            await asyncio.wait((draining, self._waiter), return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                draining.result()
        finally:
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)
        if self.resume and not self.ended:
            self.deadlines.resume()
            self.resume()
