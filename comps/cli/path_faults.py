"""What is wrong with the path to a service: names for it, how it is recognised, and what mends it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import median

_HELD = 0.03
"""Seconds by which half of the events are late if something holds them back."""
_WHOLE = 0.6
"""The part of a stream's events that come in one moment if it is held back to its end."""
_MOMENT = 0.002
"""Seconds between events that come in one moment."""
_SHORTEST_STEP, _LONGEST_STEP = 0.025, 0.25
"""Seconds that the second of two events waits for the acknowledgement of the first: 40 ms on Linux, 200 ms elsewhere.
https://www.rfc-editor.org/rfc/rfc9293#section-3.7.4, https://www.rfc-editor.org/rfc/rfc1122#page-96"""
_NEAR = 0.02
"""Seconds between the two events of a pair at most."""
_CLOCK = 5.0
"""Seconds by which two clocks may differ; a Date header has whole seconds."""
_SOON_DAYS = 7
_CODES = {10: "has expired", 9: "is not valid yet", 62: "is for another host"}
"""https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/"""
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)
_TLS_MEND = {
    "has expired": "renew it, and have the proxy read it again",
    "is not valid yet": "compare the clocks of both machines",
    "is for another host": "use the name that is in the certificate, or have one issued for this name",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was looked for."""

    name: str
    """Its name in one word, such as `buffering`."""
    is_fault: bool
    said: str
    mend: str = ""
    """What mends it, if it is a fault."""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TimedEvent:
    """An event of a timed stream."""

    sent: float
    """When it was sent, in seconds since the first event."""
    arrived: float
    """When it arrived, in seconds on this machine's monotonic clock."""
    clock_ahead: float
    """The service's clock when it was sent, less this machine's when it arrived, in seconds."""
    reads: tuple[int, int]
    """The numbers of the reads in which it began and ended; a read has one HTTP chunk at most."""


@dataclass(slots=True)
class Received:
    """What arrived of a timed stream."""

    events: list[TimedEvent] = field(default_factory=list)
    comments: int = 0
    is_whole: bool = False
    """Whether its end mark arrived."""
    broken: str = ""
    """The error that ended it."""
    encoding: str = ""
    """The content encoding; empty: none."""
    ended: float = 0.0
    """When it ended, in seconds on the monotonic clock."""


def stream_findings(received: Received, pauses: Sequence[float], kind: str) -> Iterator[Finding]:
    """Yields what is wrong with a timed stream; if nothing is, that.

    Args:
        received: What arrived.
        pauses: The pauses between its events, in seconds.
        kind: Its content type.
    """
    faults = list(_stream_faults(received, pauses, kind))
    yield from faults
    events = received.events
    if events:
        yield clock_finding(median(event.clock_ahead for event in events), "the service's clock")
    if not faults:
        late = max(_lateness(events))
        yield Finding("stream", False, f"{len(events)} events came one by one, none later than {late * 1000:.0f} ms")


def _stream_faults(received: Received, pauses: Sequence[float], kind: str) -> Iterator[Finding]:
    events = received.events
    if kind != "text/event-stream" and not events:
        yield Finding(
            "stream",
            True,
            f"a stream was asked for, and the answer came whole, as {kind or 'no known type'}",
            "set disable_streaming and output_guard of the service to false, or see which filter answers in its place",
        )
        return
    if received.encoding not in ("", "identity"):
        yield Finding(
            "gzip",
            True,
            f"the stream is compressed ({received.encoding}) on the way, which holds events back",
            "compress no text/event-stream in the proxy; nginx: take it out of gzip_types",
        )
    if len(events) < len(pauses):
        yield Finding(
            "cut",
            True,
            f"the stream ended after {len(events)} of {len(pauses)} events{_why(received)}",
            "see the proxy's log; it has limits for the time or the size of a response",
        )
    if len(events) > 2:
        yield from _timing_faults(events)


def _timing_faults(events: Sequence[TimedEvent]) -> Iterator[Finding]:
    late, split = _lateness(events), sum(event.reads[0] != event.reads[1] for event in events)
    if (held := _buffering(events, late)) is not None:
        yield held
    else:
        pairs = [(one, two) for one, two in pairwise(events) if two.sent - one.sent <= _NEAR]
        yield from _pair_faults(pairs)
    if split > len(events) // 4:
        yield Finding(
            "split",
            True,
            f"{split} of {len(events)} events came in several parts",
            "no harm to clients that read server-sent events; those that take an HTTP chunk for an event misread them: "
            "let nothing cut chunks anew on the way",
        )


def _buffering(events: Sequence[TimedEvent], late: Sequence[float]) -> Finding | None:
    """Returns the finding that events are held back; None if they are not."""
    if median(late) < _HELD:
        return None
    arrivals = [event.arrived for event in events]
    moments = 1 + sum(two - one > _MOMENT for one, two in pairwise(arrivals))
    lasted = events[-1].sent - events[0].sent
    together = sum(event.arrived >= arrivals[-1] - _HELD for event in events)
    if together >= _WHOLE * len(events):
        said = (
            f"{together} of {len(events)} events came at once, {max(late):.1f} s after the first of them was sent: the "
            f"stream of {lasted:.1f} s is kept back to its end"
        )
    else:
        said = (
            f"{len(events)} events came in {moments} blocks instead of one by one, half of them {median(late):.2f} s "
            f"late or more, the latest {max(late):.2f} s"
        )
    return Finding(
        "buffering",
        True,
        said,
        "switch buffering off in the proxy; nginx: proxy_buffering off, and no proxy_ignore_headers X-Accel-Buffering; "
        "a CDN or gateway: let it stream responses",
    )


def _pair_faults(pairs: Sequence[tuple[TimedEvent, TimedEvent]]) -> Iterator[Finding]:
    """Yields what is wrong with events that are sent right after each other."""
    if not pairs:
        return
    joined = sum(one.reads == two.reads for one, two in pairs)
    if joined > len(pairs) // 2:
        yield Finding(
            "joined",
            True,
            f"{joined} of {len(pairs)} pairs of events came as one HTTP chunk",
            "no harm to clients that read server-sent events; those that take an HTTP chunk for an event, as OPEA's "
            "orchestrator does, lose tokens: let them ask the service itself",
        )
        return
    waits = [(two.arrived - one.arrived) - (two.sent - one.sent) for one, two in pairs]
    if _SHORTEST_STEP <= median(waits) <= _LONGEST_STEP:
        yield Finding(
            "step",
            True,
            f"of two events sent together, the second comes {median(waits) * 1000:.0f} ms later: it waits for the "
            "acknowledgement of the first (Nagle's algorithm with delayed acknowledgements)",
            "set TCP_NODELAY in the proxy; nginx: proxy_buffering off, since it sends buffered responses without that; "
            "HAProxy: option http-no-delay",
        )


def _lateness(events: Sequence[TimedEvent]) -> list[float]:
    """Returns how much later than the punctual ones each event came, in seconds."""
    after = [event.arrived - event.sent for event in events]
    return [one - min(after) for one in after]


def _why(received: Received) -> str:
    return f" ({received.broken})" if received.broken else ""


def idle_finding(idle: float, received: Received, lasted: float) -> Finding:
    """Returns the finding about a stream that is silent after its first event.

    Args:
        idle: How long, in seconds.
        received: What arrived of it.
        lasted: How long it was silent until it ended, in seconds.
    """
    if len(received.events) > 1 and received.is_whole:
        how = f", in which {received.comments} comments came" if received.comments else ""
        return Finding("idle", False, f"a stream survives {idle:g} s of silence{how}")
    said = f"a silent stream was cut after {lasted:.1f} s{_why(received)}"
    if received.comments:
        return Finding(
            "idle",
            True,
            f"{said}, in spite of {received.comments} comments",
            "raise the time that the proxy allows a whole response; Envoy: route timeout; a gateway: its limit",
        )
    return Finding(
        "idle",
        True,
        said,
        f"set keepalive_seconds of the service (USVC_KEEPALIVE_SECONDS) to less, such as {max(lasted / 3, 0.1):.2g}, "
        "or raise the proxy's time limit; nginx: proxy_read_timeout; HAProxy: timeout server",
    )


def certificate_finding(host: str, until: str) -> Finding:
    """Returns the finding about a certificate that is valid now.

    Args:
        host: Whose it is.
        until: Until when it is valid, as OpenSSL writes it.
    """
    days = (ssl.cert_time_to_seconds(until) - time.time()) / 86_400
    if days < _SOON_DAYS:
        return Finding("tls", True, f"the certificate of {host} expires in {days:.0f} days, at {until}", "renew it")
    return Finding("tls", False, f"the certificate of {host} is valid until {until}")


def clock_finding(ahead: float, whose: str) -> Finding:
    """Returns the finding about a clock.

    Args:
        ahead: By how many seconds it is ahead of this machine's.
        whose: What tells it.
    """
    if abs(ahead) <= _CLOCK:
        return Finding("clock", False, f"{whose} agrees with this machine's clock")
    said = f"{whose} is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's clock"
    return Finding(
        "clock", True, said, "have both machines keep their time by NTP; certificates and tokens depend on it"
    )


def refused(status: int, what: str, key: str, *, said: bytes = b"", to: str = "") -> Finding:
    """Returns the finding that a request is refused, or sent elsewhere.

    Args:
        status: The HTTP status.
        what: The request.
        key: The key that was sent; it is hidden in what the service says.
        said: What the service says.
        to: The URL that it redirects to.
    """
    if to:
        return Finding("status", True, f"{what} is redirected ({status}) to {to}", "give clients that URL")
    if status in (401, 403):
        mend = "this key is not known there" if key else "a key is needed: --api-key, or OPEA_LLM_API_KEY"
        return Finding("key", True, f"{what} is refused with status {status}", mend)
    text = " ".join(said.decode("utf-8", "replace").split())[:200]
    told = f"{what} is answered with status {status}{f': {text}' if text else ''}"
    mend = "see the proxy's log, and whether it has this route" if status in (404, 405, 502, 504) else "see its log"
    return Finding("status", True, told.replace(key, "***") if key else told, mend)


def unreachable(url: str, error: Exception) -> Finding:
    """Returns the finding that a request had no response: of TLS, or of the connection."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _of_certificate(url, error)
    if isinstance(error, ssl.SSLError):
        said = f"{url} speaks no TLS that this machine knows: {error.reason or error}"
        return Finding(
            "tls", True, said, "a port without TLS is asked with http://; otherwise see the proxy's versions"
        )
    if isinstance(error, socket.gaierror):
        return Finding("connection", True, f"{url}: no address has this name", "see the spelling, and the DNS")
    if isinstance(error, TimeoutError):
        return Finding("connection", True, f"{url} says nothing", "see whether a firewall drops what is sent there")
    if isinstance(error, http.client.HTTPException):
        said = f"{url} answers with no HTTP that is understood: {type(error).__name__}"
        return Finding("connection", True, said, "a port with TLS is asked with https://")
    why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return Finding(
        "connection", True, f"{url} cannot be reached: {why.lower()}", "see whether it runs, and on which port"
    )


def _of_certificate(url: str, error: ssl.SSLCertVerificationError) -> Finding:
    if error.verify_code in _UNKNOWN_AUTHORITY:
        said = f"{url}: its certificate is of an authority that is not known here: {error.verify_message}"
        mend = "SSL_CERT_FILE names a file of authorities to trust; the proxy must send all between it and them"
        return Finding("tls", True, said, mend)
    what = _CODES.get(error.verify_code, "cannot be verified")
    said = f"{url}: its certificate {what}: {error.verify_message}"
    return Finding("tls", True, said, _TLS_MEND.get(what, "see the certificate that the proxy has"))


def shown(finding: Finding) -> str:
    """Returns a finding as lines for a terminal, in colour if standard output is one and NO_COLOR is not set."""
    mark = "FAULT" if finding.is_fault else "ok"
    padded = f"{mark:5}"
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        padded = f"\x1b[{31 if finding.is_fault else 32}m{padded}\x1b[0m"
    said = json.dumps(finding.said, ensure_ascii=False)[1:-1].replace('\\"', '"')
    return f"{padded} {finding.name}: {said}" + (f"\n      mend: {finding.mend}" if finding.mend else "")
