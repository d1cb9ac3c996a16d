"""The connection of a client, with limits: uvicorn has none for the head of a request, and none for its body.

Nothing here sets a timer. A connection moves its deadline as a number, and the server looks through all connections
once a second (`overdue`, `stalled`).

Requests that are refused here never get to a handler. The application gives the error its form: it has an attribute
`refusal`, as `comps.refusals.Refusals`, and perhaps an attribute `limits`.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from errno import ETIMEDOUT
from math import inf
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from comps.core.errors import InvalidHTTP, LLMError, Unreachable
from comps.core.tallies import TIMEOUTS
from comps.limits import CONNECTIONS, Limits
from comps.requests import REQUEST_ID_HEADER, REQUEST_ID_OF_SCOPE, request_id

log = logging.getLogger("opea_llm")

_HEAD, _BODY, _BETWEEN, _CLOSING = range(4)
"""What comes next from the client: the rest of a head, of a body, a new request, or nothing that is read."""
_SLICE = 16_384
"""Bytes that are parsed at once. Between two slices the sizes are looked at."""
_MOST_PIPELINED = 8
"""Requests that wait for the answers before theirs; what comes after them is not parsed until they are answered."""
_SPARE = 64
"""Connections beyond `max_connections` that are told so; still more are closed at once."""
_LINGER_SECONDS = 2.0
"""How long the rest of a refused request is read and dropped. To close at once could reset the connection, and the
client would lose the answer: https://www.rfc-editor.org/rfc/rfc9112#section-9.6"""
_BODY_RATE = 16_000
"""Bytes of a body for which it gets one second more."""
_FRAMING_PER_BYTE = 16
"""Bytes of chunk sizes, extensions and trailers that are read for each byte of a body."""
_NOTED = frozenset({b"host", b"expect", b"transfer-encoding"})


class RequestRefused(Exception):
    """The request is refused already; raised out of a callback of the parser, it ends the parsing."""


class PendingResponse(Protocol):
    """A response that has not ended."""

    @property
    def complete(self) -> bool: ...

    def left(self) -> None:
        """It is not wanted any more."""
        ...


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's protocol, with the limits of `Limits`. Subclasses parse in `feed`, and call `accept_head`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app: Any = self.config.app
        self.limits: Limits = getattr(app, "limits", None) or Limits()
        self.url = b""
        self.headers = []
        self.scope: dict[str, Any] = {}  # type: ignore[assignment]
        self.responses: list[PendingResponse] = []
        """The incomplete responses: several if requests are pipelined."""
        self.deadline = inf
        """The time of the event loop at which `overdue` is called."""
        self._phase = _BETWEEN
        self._head_size = 0
        """Bytes of the head; then of the body with its framing, from the next slice on.

        Of a head in the same slice as the message before, they are without that slice.
        """
        self._body_size = 0
        self._hosts = 0
        self._fault = ""
        self._held: bytes | None = None
        """What is parsed when the requests before it are answered."""
        self._last_words: bytes | None = None
        """The refusal that is written after the pending responses."""
        self._waits_for_reader = False
        self._is_surplus = False
        self._unsent = 0
        self._unsent_since = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        CONNECTIONS.open += 1
        self.deadline = self.loop.time() + self.limits.header_seconds
        surplus = len(self.connections) - self.limits.max_connections
        if surplus > 0:
            self._is_surplus = True
            if surplus > _SPARE:
                CONNECTIONS.ended["connections"] += 1
                transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        CONNECTIONS.open -= 1
        super().connection_lost(exc)
        stalled = isinstance(exc, OSError) and exc.errno == ETIMEDOUT  # See `notice_silence`.
        for response in self.responses:
            if stalled and not response.complete:
                TIMEOUTS["client"] += 1
            response.left()

    # What comes in.

    def data_received(self, data: bytes) -> None:
        if (
            self._held is not None
            or len(data) > _SLICE
            or self._phase == _CLOSING
            or (self.pipeline and len(self.pipeline) >= _MOST_PIPELINED)
        ):
            self._feed_slices(data)
        else:
            self._head_size += len(data)
            self.feed(data)
            if self._phase < _BETWEEN:
                self._check_incomplete()

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """Parse a part of what the client sends."""

    def _feed_slices(self, data: bytes) -> None:
        """Parse slice by slice, as far as it is bounded what waits for answers."""
        if self._held is not None:
            data, self._held = self._held + data, None
        for at in range(0, len(data), _SLICE):
            if self._phase == _CLOSING:
                return
            if len(self.pipeline) >= _MOST_PIPELINED:
                self._held = data[at:]
                self.flow.pause_reading()
                return
            self.data_received(data[at : at + _SLICE])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = _HEAD
        self.deadline = inf
        self._hosts = 0
        self._fault = ""

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase != _HEAD:  # Trailers are not headers: https://www.rfc-editor.org/rfc/rfc9110#section-6.5.1
            return
        name = name.lower()
        if name in _NOTED:
            if name == b"host":
                self._hosts += 1
            else:
                self._note(name, value.lower())
        self.headers.append((name, value))

    def _note(self, name: bytes, value: bytes) -> None:
        if name == b"expect":
            self.expect_100_continue = self.expect_100_continue or value == b"100-continue"
        elif value != b"chunked":
            self._fault = "transfer-encoding: only chunked is read"
        elif self.parser.get_http_version() == "1.0":
            self._fault = "transfer-encoding: not in HTTP/1.0"

    def accept_head(self) -> None:
        """Check the head that has just been parsed.

        Raises:
            RequestRefused: It is refused, which ends the parsing.
        """
        limits, size = self.limits, self._head_size
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._refuse(InvalidHTTP("only HTTP/1.0 and HTTP/1.1 are spoken here", 505), "malformed")
        elif self._hosts != 1 and (self._hosts or version == "1.1"):
            self._refuse(InvalidHTTP("host: there must be one", 400), "malformed")
        elif self._fault:
            self._refuse(InvalidHTTP(self._fault, 400), "malformed")
        elif len(self.url) > limits.max_target or (
            size > limits.max_header - _SLICE and self._exact_head_size() > limits.max_header
        ):
            self._refuse_size()
        elif self._is_surplus and self.parser.get_method() not in (b"GET", b"HEAD"):
            error = Unreachable(f"too many connections: {limits.max_connections} are open already")
            self._refuse(error, "connections")
        else:
            self._phase = _BODY
            self.deadline = inf
            self._head_size = self._body_size = 0
            return
        raise RequestRefused

    def _exact_head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        self._body_size += len(body)
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body
            cycle.message_event.set()
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # The head comes once more.
            return
        self._phase = _BETWEEN
        self._head_size = 0
        cycle = self.cycle
        if cycle.response_complete:
            self.deadline = self.loop.time() + self.limits.idle_seconds
        else:
            self.deadline = inf
            cycle.more_body = False
            cycle.message_event.set()
            if self.flow.read_paused:
                self.notice_end()

    def notice_end(self) -> None:
        """Read on while a request is answered: unread, a connection does not tell that its client leaves."""
        if not self._waits_for_reader:
            self.flow.resume_reading()

    def _check_incomplete(self) -> None:
        """Look at the sizes of a message whose end has not come, and give it a deadline if it has none."""
        limits = self.limits
        if self._phase == _HEAD:
            if self.deadline == inf:
                self.deadline = self.loop.time() + limits.header_seconds
            if self._head_size > limits.max_header + _SLICE or len(self.url) > limits.max_target:
                self._refuse_size()
            return
        if self.deadline == inf:
            self.deadline = self.loop.time() + limits.body_seconds
        if self._head_size - self._body_size > limits.max_header + _FRAMING_PER_BYTE * self._body_size:
            self._refuse(InvalidHTTP("more chunks and trailers than content", 400, "body"), "malformed")
        elif self._body_size > limits.max_body and self.cycle.response_complete:
            CONNECTIONS.ended["large_body"] += 1
            self.close_gently()

    # What is due, and what is answered.

    def overdue(self) -> None:
        """The deadline has passed."""
        if self._phase >= _BETWEEN:
            self.deadline = inf
            self.transport.close()
        elif self.flow.read_paused or (self._phase == _BODY and self.cycle.waiting_for_100_continue):  # We wait.
            self.deadline = self.loop.time() + self.limits.body_seconds
        elif self._phase == _HEAD:
            self._refuse(InvalidHTTP("the headers took too long", 408), "late_head")
        elif self.loop.time() >= self.deadline + self._body_size / _BODY_RATE:
            self._refuse(InvalidHTTP("it took too long", 408, "body"), "late_body")

    def stalled(self, now: float) -> bool:
        """Whether the client has taken nothing of its answer for too long.

        Args:
            now: The time of the event loop.
        """
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        return unsent > 0 and now - self._unsent_since >= self.limits.stalled_client_seconds

    def give_up(self) -> None:
        """End a connection whose client takes nothing."""
        CONNECTIONS.ended["stalled"] += 1
        TIMEOUTS["client"] += 1
        self.transport.abort()

    def refuse_malformed(self, said: str) -> None:
        """Refuse what is no HTTP that is read here."""
        self._refuse(InvalidHTTP(said, 400), "malformed")

    def _refuse_size(self) -> None:
        limits = self.limits
        if len(self.url) > limits.max_target:
            error = InvalidHTTP(f"the URL is longer than the {limits.max_target} bytes that are read", 414)
        else:
            error = InvalidHTTP(f"the headers are larger than the {limits.max_header} bytes that are read", 431)
        self._refuse(error, "large_head")

    def _refuse(self, error: LLMError, reason: str) -> None:
        """Answer the request that is being received with an error, after those before it, and close the connection."""
        if self._phase == _CLOSING or self.transport.is_closing():
            return
        CONNECTIONS.ended[reason] += 1
        is_answered = self._phase == _BODY and self._drop_request()
        self._phase, self.deadline, self._held = _CLOSING, inf, None
        if is_answered:
            self.transport.close()
            return
        self._last_words = self._refusal(error)
        if all(response.complete for response in self.responses):
            self._say_last_words()

    def _drop_request(self) -> bool:
        """Cancel the request whose body is being received; returns whether its answer has begun."""
        cycle = self.cycle
        if cycle.response_started:
            return True
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
        self.responses.pop().left()
        return False

    def _refusal(self, error: LLMError) -> bytes:
        """The response with an error, and with an id of the request: its handler's, the one sent, or a new one."""
        path = self.url.partition(b"?")[0].decode("latin-1")
        status, body, kind = self.config.app.refusal(error, path, self.headers)  # type: ignore[union-attr]
        said = self.scope.get(REQUEST_ID_OF_SCOPE) or request_id(dict(self.headers).get(REQUEST_ID_HEADER))
        log.info("refused: %d id=%s %s", status, said, error)
        headers = [*self.server_state.default_headers, (b"content-type", kind.encode())]
        headers.append((REQUEST_ID_HEADER, said.encode()))
        if further := self.config.app.refusal.id_header(path, self.headers):  # type: ignore[union-attr]
            headers.append((further, said.encode()))
        headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        if error.retry_after is not None:
            headers.append((b"retry-after", b"%d" % error.retry_after))
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        return b"".join([STATUS_LINE[status], *lines, b"\r\n", body])

    def _say_last_words(self) -> None:
        assert self._last_words is not None
        self.transport.write(self._last_words)
        self._last_words = None
        self.close_gently()

    def close_gently(self) -> None:
        """Send the end of the connection, and read and drop what still comes, until the client ends it as well."""
        self._phase = _CLOSING
        self.deadline = self.loop.time() + _LINGER_SECONDS
        if self.transport.can_write_eof():
            self.flow.resume_reading()
            self.transport.write_eof()
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.write_paused:  # The client has to take this answer before it gets another one.
            self._waits_for_reader = True
            self.flow.pause_reading()
        else:
            self._go_on()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._waits_for_reader:
            self._waits_for_reader = False
            if not self.transport.is_closing():
                self._go_on()

    def _go_on(self) -> None:
        """Begin with the next request, or wait for it."""
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._last_words is not None:
            self._say_last_words()
        elif self._phase == _BODY and (not self.cycle.keep_alive or (self.expect_100_continue and not self._body_size)):
            self.close_gently()  # A client that was not told to continue may send no body, but its next request.
        elif self._phase == _BETWEEN:
            self.deadline = self.loop.time() + self.limits.idle_seconds
        if self._held is not None:
            self._feed_slices(b"")
        if self._held is None:
            self.flow.resume_reading()
