"""One request to a model server and its response: what arrives is handed on in the call in which it arrives.

A response is pushed: `asyncio` calls the connection with bytes, httptools calls back with parts of the body, and these
become events, pieces of an answer and chunks to the client before that call returns. Nothing waits in between.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Protocol

from comps.core.errors import ModelServerError
from comps.core.errors import Timeout as ServerTimeout
from comps.model_servers.remote.sse import EventStream
from comps.model_servers.target import Access

NEVER = float("inf")
MOST_OF_FAILURE = 4000
"""Bytes that are read of a body that is no answer."""
MOST_OF_WHOLE = 1_000_000_000
"""Bytes of a whole answer; more would only fill the memory."""
_NO_STREAM = (b"application/json", b"text/html")
"""What comes instead of a stream from something else than a model server. Others may have a stream mislabelled."""
_REST_SECONDS = 0.05
"""How long the last bytes behind all events may take."""
_PIECE = 65536
"""Bytes that are decompressed at once: of a compression bomb, no more than some megabytes come at once."""
_AUTOMATIC = 47
"""The window bits with which zlib takes gzip's header as well as its own."""


class Broken(Exception):
    """The connection broke before the response was complete.

    Args:
        said: How.
        unanswered: Whether nothing of a response had arrived, on a connection that had been used before: the server may
            have closed it while it was idle, and has not begun.
    """

    def __init__(self, said: str, unanswered: bool = False) -> None:
        super().__init__(said)
        self.unanswered = unanswered


class Reader(Protocol):
    """What reads the events of a streamed answer."""

    def event(self, data: bytes) -> bool:
        """Read the data of an event; True: that was all that is wanted of the stream.

        Raises:
            ModelServerError: It makes no sense, or tells of a failure.
        """
        ...

    @property
    def full(self) -> bool:
        """Whether what is read is not taken on as fast as it comes; see `comps.core.ports.Answer`."""
        ...

    async def drain(self) -> None:
        """Wait until it is."""
        ...


class Deadlines:
    """By when an exchange must go on. One timer watches all of it: a deadline is a number that moves.

    Args:
        first: Seconds to the first event, or to the whole answer; 0: no limit.
        between: Seconds from one event to the next; 0: no limit.
        total: Seconds to the end; 0: no limit.
    """

    __slots__ = ("_begun", "_between", "_due", "_end", "_late", "_timer", "loop")

    def __init__(self, first: float = 0.0, between: float = 0.0, total: float = 0.0) -> None:
        self.loop = asyncio.get_running_loop()
        """The event loop, looked up once for an exchange."""
        now = self.loop.time()
        self._between = between or NEVER
        self._end = now + (total or NEVER)
        self._due = min(now + (first or NEVER), self._end)
        self._begun = False
        self._late: Callable[[Exception], None] | None = None
        # No event can be late before this, so that the timer need not be set anew with the first event.
        begins = min(self._due, now + self._between)
        self._timer = self.loop.call_at(begins, self._look) if begins != NEVER else None

    @classmethod
    def of_stream(cls, access: Access) -> Deadlines:
        """Those of a streamed answer."""
        return cls(access.first_token_seconds, access.between_tokens_seconds, access.total_seconds)

    @classmethod
    def of_whole(cls, access: Access) -> Deadlines:
        """Those of a whole answer: its first piece is its last."""
        return cls(access.first_token_seconds, 0.0, access.total_seconds)

    def watch(self, late: Callable[[Exception], None]) -> None:
        """Call `late` with an error once a deadline is missed, until `stop`."""
        self._late = late

    def extend(self) -> None:
        """An event has arrived."""
        self._begun = True
        self._due = min(self.loop.time() + self._between, self._end)

    def suspend(self) -> None:
        """The reader makes the server wait, which is not the server's fault; the total goes on."""
        self._due = self._end

    def stop(self) -> None:
        """Watch no longer."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = self.loop.time()
        if now < self._due:
            when = min(self._due, now + self._between)
            self._timer = self.loop.call_at(when, self._look) if when != NEVER else None
            return
        self._timer = None
        if self._late:
            self._late(ServerTimeout(f"the model server did not {'go on' if self._begun else 'begin'} in time"))


class Exchange:
    """A request and its response, whole.

    Args:
        request: The request, as it goes over the wire.
        deadlines: By when the response must be there.
        most: Bytes of the body that are read.
        unread: A status whose body is not read.
    """

    def __init__(self, request: bytes, deadlines: Deadlines, most: int = MOST_OF_WHOLE, unread: int = 0) -> None:
        self.request = request
        self.deadlines = deadlines
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        """Their names in lower case; of several with the same name the last."""
        self.ended = False
        """Whether nothing more is wanted of the response."""
        self.is_done = False
        """Whether all that is wanted is there, and only the end of the body is to come."""
        self._most = most
        self._unread = unread
        self._pieces: list[bytes] = []
        self._length = 0
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._inflate: zlib._Decompress | None = None
        deadlines.watch(self.fail)

    @property
    def body(self) -> bytes:
        """What has been collected of the body."""
        return b"".join(self._pieces)

    def reset(self) -> None:
        """Be ready to be sent once more, on another connection; nothing of a response has arrived."""
        self.ended = False
        self._failure = None

    async def wait(self) -> None:
        """Wait for the end.

        Raises:
            Broken: The connection broke.
            ModelServerError: What was read makes no sense, or came too late.
        """
        while not self.ended:
            self._waiter = self.deadlines.loop.create_future()
            await self._waiter
        if self._failure:
            raise self._failure

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """The status line and the headers have arrived."""
        self.status = status
        self.headers = headers
        if headers.get(b"content-encoding", b"identity").lower() in (b"gzip", b"x-gzip", b"deflate"):
            self._inflate = zlib.decompressobj(_AUTOMATIC)
        if status == self._unread:
            self.end()

    def _take_compressed(self, data: bytes) -> None:
        assert self._inflate
        try:
            while data and not self.ended:
                self.read(self._inflate.decompress(data, _PIECE))
                data = self._inflate.unconsumed_tail
        except zlib.error:
            raise ModelServerError("the model server's answer cannot be decompressed") from None

    def take(self, data: bytes) -> None:
        """Take bytes of the body as they came.

        Raises:
            ModelServerError: They make no sense, or tell of a failure.
        """
        if self._inflate is None:
            self.read(data)
        else:
            self._take_compressed(data)

    def read(self, data: bytes) -> None:
        """Read bytes of the body, no longer compressed."""
        self._pieces.append(data)
        self._length += len(data)
        if self._length > self._most:
            self.end()

    def complete(self) -> None:
        """The body has ended."""
        self.end()

    def await_rest(self) -> None:
        """Wait a little for the end of the body."""

    @property
    def full(self) -> bool:
        """Whether the connection shall be read no further for now."""
        return False

    def fail(self, error: Exception) -> None:
        """End with an error; what came before stays written."""
        if not self.ended:
            self._failure = error
            self.end()

    def end(self) -> None:
        """Want nothing more."""
        self.ended = True
        self.wake()

    def wake(self) -> None:
        """Let `wait` look again."""
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class StreamExchange(Exchange):
    """A request and its response, read as server-sent events as they arrive, up to `[DONE]` or the end of the body.

    Where it is no stream of events, the beginning of the body is collected, as of any failure.

    Args:
        reader: What reads the events.
        unread: A status whose body is not read.
    """

    def __init__(self, request: bytes, deadlines: Deadlines, reader: Reader, unread: int = 0) -> None:
        super().__init__(request, deadlines, MOST_OF_FAILURE, unread)
        self._reader = reader
        self._stream: EventStream | None = None
        self._rest: asyncio.TimerHandle | None = None
        self.resume: Callable[[], None] | None = None
        """Set while the connection is read no further; goes on."""

    @property
    def streams(self) -> bool:
        """Whether the response is a stream of events."""
        return self._stream is not None

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        super().head(status, headers)
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if status == 200 and kind not in _NO_STREAM:
            self._stream = EventStream(self._event)

    def take(self, data: bytes) -> None:
        if self._stream is not None and self._inflate is None:  # As nearly all that comes.
            self._stream.feed(data)
        else:
            super().take(data)

    def read(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.feed(data)
        else:
            super().read(data)

    def complete(self) -> None:
        try:
            if self._stream is not None and not self.ended:
                self._stream.close()
        except Exception as error:
            self.fail(error)
        self.end()

    def _event(self, data: bytes) -> None:
        if self.ended or self.is_done:
            return
        if data == b"[DONE]":
            self.is_done = True
            return
        self.deadlines.extend()
        if self._reader.event(data):
            self.end()

    def await_rest(self) -> None:
        """Wait a little for the end of the body, with which the connection can be used again."""
        if not self._rest and not self.ended:
            self._rest = self.deadlines.loop.call_later(_REST_SECONDS, self.end)

    def fail(self, error: Exception) -> None:
        if self.is_done:  # All that is wanted was there before.
            self.end()
        else:
            super().fail(error)

    def end(self) -> None:
        if self._rest:
            self._rest.cancel()
        super().end()

    @property
    def full(self) -> bool:
        return self._stream is not None and self._reader.full

    async def wait(self) -> None:
        while not self.ended:
            self._waiter = self.deadlines.loop.create_future()
            await self._waiter
            if self.resume and not self.ended:
                self.deadlines.suspend()
                await self._reader.drain()
                self.deadlines.extend()
                self.resume()
        if self._failure:
            raise self._failure
