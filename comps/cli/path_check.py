"""The path to a running service, through all proxies: what a client gets, and when.

The service sends a stream whose times it writes into its events (`comps.model_servers.stream_test`). What arrives here
is compared with that; `comps.cli.path_faults` names what is wrong.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

from comps.cli.path_faults import (
    Finding,
    Received,
    TimedEvent,
    certificate_finding,
    clock_finding,
    idle_finding,
    refused,
    stream_findings,
    unreachable,
)
from comps.cli.progress import progress
from comps.core.errors import SettingsError
from comps.core.types import JSON
from comps.model_servers.stream_test import LONGEST_SECONDS, STREAM_TEST

_STEP, _PAIR = 0.06, 0.004
PAUSES = [0.0, *([_STEP] * 12), *([_STEP, _PAIR] * 8)]
"""The pauses of the timed stream: events one by one, and then in pairs, in seconds."""
_SECONDS = 30.0
"""How long the service may say nothing, where it should say something at once."""
_ANSWER_SECONDS = 300.0
"""How long an answer of the model may take to begin."""
_MARGIN = 15.0
"""Seconds beyond the silence that is tried after which a stream counts as lost."""
_SET_AGAIN_SECONDS = 0.005
_REDIRECTS = (301, 302, 303, 307, 308)
_GZIP = 47
"""zlib's window bits for automatic detection of gzip and zlib headers."""


@dataclass
class _Reply:
    """A response to one request."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    received: Received = field(default_factory=Received)
    certificate: Mapping[str, Any] = field(default_factory=dict)
    """The certificate of the connection, as `SSLSocket.getpeercert` has it; empty without TLS."""

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class PathCheck:
    """Checks the path to a service.

    Args:
        url: The service's URL, as its clients have it, with or without `/v1`.
        api_key: The key; empty: none.
        model: The model that must answer; None: any.
        idle: Seconds of silence that a stream must survive; 0: this is not tried.

    Raises:
        SettingsError: The URL or the key is invalid.
    """

    def __init__(self, url: str, api_key: str, model: str | None, idle: float) -> None:
        from comps.model_servers.remote.addresses import proxy_for
        from comps.model_servers.remote.openai_api import check_endpoint, split_endpoint

        try:
            check_endpoint(url)
        except SettingsError as error:
            raise SettingsError(*(_in_our_words(problem) for problem in error.problems)) from None
        if not api_key.isprintable():
            raise SettingsError("--api-key: it has a line break in it, or something else that no key has")
        root, api = split_endpoint(url)
        self._url = urlsplit(root)
        self._path = self._url.path + api
        self._proxy = proxy_for(self._url)
        self._key = api_key
        self._model = model
        self._idle = min(idle, LONGEST_SECONDS)

    def findings(self) -> Iterator[Finding]:
        """Yields what is found, faults and what is right, in the order in which it is looked for."""
        try:
            yield from self._looked_at()
        except (OSError, http.client.HTTPException) as error:
            yield unreachable(self._url.geturl(), error)

    def _looked_at(self) -> Iterator[Finding]:
        with progress(f"Waiting for {self._url.netloc}"):
            listing = self._asked("GET", "/models", None, _SECONDS)
        yield from self._connected(listing)
        if listing.status in (401, 403) or listing.status in _REDIRECTS:
            yield refused(listing.status, "GET /models", self._key, to=listing.headers.get("location", ""))
            return
        with ThreadPoolExecutor(1) as pool:  # The silence is long; all else is tried meanwhile.
            silent = pool.submit(self._silent) if self._idle else None
            yield from self._streamed()
            yield from self._answered(listing)
            if silent:
                with progress(f"Trying {self._idle:g} s of silence"):
                    yield from silent.result()

    def _silent(self) -> list[Finding]:
        """Returns the finding about a silent stream; none where the service has no stream whose times are known."""
        started = time.monotonic()
        try:
            reply = self._timed([0.0, self._idle])
        except (OSError, http.client.HTTPException) as error:
            received = Received(broken=str(error) or type(error).__name__)
            return [idle_finding(self._idle, received, time.monotonic() - started)]
        if reply.status == 200 and not reply.received.events and reply.received.is_whole:
            return []
        received = reply.received
        if reply.status >= 500:
            received.broken = f"status {reply.status}"
        elif reply.status != 200:
            return []
        begun = received.events[0].arrived if received.events else started
        return [idle_finding(self._idle, received, (received.ended or time.monotonic()) - begun)]

    def _connected(self, listing: _Reply) -> Iterator[Finding]:
        if self._url.scheme == "https":
            yield certificate_finding(str(self._url.hostname), str(listing.certificate["notAfter"]))
        if sent := listing.headers.get("date"):
            try:
                ahead = parsedate_to_datetime(sent).timestamp() - time.time()
            except ValueError:
                return
            yield clock_finding(ahead, "the header Date")

    def _streamed(self) -> Iterator[Finding]:
        """Check the timed stream; where the service has none, an answer of its model alone is looked at."""
        with progress("Timing a stream"):
            reply = self._timed(PAUSES)
        received = reply.received
        if reply.status not in (200, 404):
            yield refused(reply.status, "POST /chat/completions", self._key)
        elif reply.status == 404 or (received.is_whole and not received.events):
            said = f"{self._url.netloc} has no {STREAM_TEST}: it is another program, or an older version"
            yield Finding("stream", True, said, "the times of its streams cannot be checked; ask the service itself")
        else:
            yield from stream_findings(received, PAUSES, _kind(reply.headers))

    def _answered(self, listing: _Reply) -> Iterator[Finding]:
        """Check which model answers."""
        told = listing.json()
        listed = told.get("data") if isinstance(told, dict) else None
        names = [str(one.get("id")) for one in listed or () if isinstance(one, dict)]
        if self._model and names and self._model not in names:
            yield Finding("model", True, f"{self._model} is not served there; served: {', '.join(names)}", _MODEL)
            return
        wanted = self._model or next(iter(names), "")
        question = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 8, "stream": False}
        with progress(f"Waiting for an answer of {wanted or 'the model'}"):
            reply = self._asked("POST", "/chat/completions", {**question, "model": wanted}, _ANSWER_SECONDS)
        if reply.status != 200:
            yield refused(reply.status, "POST /chat/completions", self._key, said=reply.body)
            return
        answer = reply.json()
        named = answer.get("model") if isinstance(answer, dict) else None
        if wanted and named != wanted:
            yield Finding("model", True, f"{wanted} was asked, and {named or 'no model'} answered", _MODEL)
        else:
            yield Finding("model", False, f"{named} answers")

    def _timed(self, pauses: list[float]) -> _Reply:
        """Returns what arrives of a stream with these pauses, to its end or to where it broke off."""
        message = {"role": "user", "content": json.dumps(pauses)}
        body = {"model": STREAM_TEST, "messages": [message], "stream": True}
        return self._asked("POST", "/chat/completions", body, max(pauses) + _MARGIN, timed=True)

    def _asked(self, method: str, path: str, body: JSON, seconds: float, *, timed: bool = False) -> _Reply:
        """Returns the response to a request, each on a connection of its own.

        Args:
            method: GET or POST.
            path: Below that of the API.
            body: The JSON body; None: none.
            seconds: How long the service may say nothing.
            timed: Whether the body is a stream, whose times are taken, and which may break off.
        """
        connection, target = self._connection(seconds), self._path + path
        if self._proxy and self._url.scheme == "http":
            target = f"http://{self._url.netloc}{target}"
        headers = {"Accept": "*/*", "Accept-Encoding": "gzip"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        with closing(connection):
            connection.connect()
            line = connection.sock
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            reply = _Reply(response.status, {name.lower(): value for name, value in response.getheaders()})
            if isinstance(line, ssl.SSLSocket):
                reply.certificate = line.getpeercert() or {}
            if timed and response.status == 200:
                with _late_acknowledgements(line):
                    _read_stream(response, reply)
            else:
                reply.body = _unpacked(response.read(), reply.headers)
        return reply

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        proxy, at = self._proxy, self._proxy or self._url
        assert at.hostname
        if self._url.scheme == "http":
            return http.client.HTTPConnection(at.hostname, at.port, timeout=seconds)
        context = ssl.create_default_context()
        secure = http.client.HTTPSConnection(at.hostname, at.port, timeout=seconds, context=context)
        if proxy and self._url.hostname:
            secure.set_tunnel(self._url.hostname, self._url.port or 443)
        return secure


_MODEL = "another service answers at this URL, or its settings name another model; see the route in the proxy"


def _in_our_words(problem: str) -> str:
    """Returns what the client of model servers says about a URL, with the names of flags."""
    return problem.replace("model_server_endpoint", "--through").replace("LLM_API_KEY", "--api-key")


def _kind(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip()


def _unpacked(body: bytes, headers: Mapping[str, str]) -> bytes:
    """Returns a whole body, decompressed if it is compressed."""
    if headers.get("content-encoding", "identity") == "identity":
        return body
    try:
        return zlib.decompress(body, _GZIP)
    except zlib.error:
        return body


def _read_stream(response: http.client.HTTPResponse, reply: _Reply) -> None:
    """Read a stream of events as it comes: a read has one HTTP chunk at most."""
    received = reply.received
    received.encoding = reply.headers.get("content-encoding", "")
    unpack = zlib.decompressobj(_GZIP) if received.encoding in ("gzip", "deflate") else None
    events = _Events(received)
    try:
        while data := response.read1(65536):
            events.read(unpack.decompress(data) if unpack else data, time.monotonic(), time.time())
    except http.client.IncompleteRead:
        received.broken = "the connection was closed"
    except (OSError, http.client.HTTPException, zlib.error) as error:
        received.broken = str(error) or type(error).__name__
    received.ended = time.monotonic()


@contextmanager
def _late_acknowledgements(line: socket.socket) -> Iterator[None]:
    """Acknowledges what arrives as late as a client may that has sent several requests on its connection.

    Otherwise Linux acknowledges at once, and nobody waits. It returns to that by itself after each late one, so that
    the option is set again and again: https://man7.org/linux/man-pages/man7/tcp.7.html
    """
    ended = Event()

    def delay() -> None:
        with suppress(OSError):
            while not ended.wait(_SET_AGAIN_SECONDS):
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)

    thread = Thread(target=delay, daemon=True)
    if hasattr(socket, "TCP_QUICKACK"):
        thread.start()
    try:
        yield
    finally:
        ended.set()


class _Events:
    """Takes a stream apart: the events with times in it, and the reads that they came in."""

    def __init__(self, received: Received) -> None:
        self._received = received
        self._rest = b""
        self._reads = 0
        self._first_read = 0
        """The read in which the rest began."""

    def read(self, data: bytes, at: float, wall: float) -> None:
        """Take a part of the stream, which arrived at a time of the monotonic clock, and of the day."""
        self._reads += 1
        *events, self._rest = (self._rest + data.replace(b"\r\n", b"\n")).split(b"\n\n")
        for event in events:
            if event.startswith(b":"):
                self._received.comments += 1
            elif event == b"data: [DONE]":
                self._received.is_whole = True
            elif times := _times_in(event):
                sent, of_day = times
                self._received.events.append(
                    TimedEvent(sent, at, of_day - wall, (self._first_read or self._reads, self._reads))
                )
            self._first_read = 0
        if not self._rest:
            self._first_read = 0
        elif not self._first_read or events:
            self._first_read = self._reads


def _times_in(event: bytes) -> tuple[float, float] | None:
    """Returns the time since the first event, and that of the day, in seconds; None if an event has none."""
    try:
        text = json.loads(event.removeprefix(b"data:"))["choices"][0]["delta"]["content"]
        sent, of_day = text.split()
        return float(sent), float(of_day)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def report(findings: Iterator[Finding], as_json: bool) -> bool:
    """Print what is found, each as soon as it is known; returns whether there is a fault."""
    from comps.cli.path_faults import shown

    found = []
    for finding in findings:
        found.append(finding)
        if not as_json:
            print(shown(finding), flush=True)
    if as_json:
        print(json.dumps([finding.as_json() for finding in found], ensure_ascii=False))
    return any(finding.is_fault for finding in found)
