"""The faults of a model server, by name, and what becomes of a request that meets one.

Each is a function that spoils a good reply. Its docstring is its line in `docs/faults.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.faults.model_server import Fault, Pause, Reply, Script, Step, Then, chunk

BROKE = "the connection to the model server broke"
SLOW = "the model server did not (begin|go on) in time"
_FILLING = b"x" * 65_536


@dataclass(frozen=True)
class Case:
    """A fault, and what is to be said of it.

    Args:
        fault: How a good reply is spoilt.
        said: A regular expression that the error's message matches; empty: the answer is whole.
        status: The status of an error before the answer begins.
        begins: Whether a stream begins before the fault, so that its error is an item.
        seconds: The deadlines for the first token and between tokens.
    """

    fault: Fault
    said: str = BROKE
    status: int = 502
    begins: bool = False
    seconds: float = 60.0

    @property
    def name(self) -> str:
        return self.fault.__name__.replace("_", " ")

    @property
    def description(self) -> str:
        assert self.fault.__doc__
        return self.fault.__doc__.strip().rstrip(".")


CASES: list[Case] = []
"""All faults of a reply."""


def case(
    said: str = BROKE, status: int = 502, *, begins: bool = False, seconds: float = 60.0
) -> Callable[[Fault], Fault]:
    """Add a function to `CASES`; see `Case`."""

    def added(fault: Fault) -> Fault:
        CASES.append(Case(fault, said, status, begins, seconds))
        return fault

    return added


def begun(reply: Reply) -> Iterator[Step]:
    """The head, and the first two pieces as chunks."""
    yield reply.head()
    yield from reply.chunks[:2]


def until_it_leaves(data: bytes) -> Iterator[Step]:
    """The same bytes again and again, until the client has closed the connection."""
    while True:
        yield data


# --- Connections that end ---


@case()
def reset_before_headers(reply: Reply) -> Script:
    """The connection is reset when the request has arrived."""
    yield Then.RESET


@case()
def closed_before_headers(reply: Reply) -> Script:
    """The connection is closed when the request has arrived."""
    yield Then.CLOSE


@case()
def reset_in_headers(reply: Reply) -> Script:
    """A reset in the middle of the headers."""
    yield reply.head()[:40]
    yield Then.RESET


@case()
def closed_in_headers(reply: Reply) -> Script:
    """The connection is closed in the middle of the headers."""
    yield reply.head()[:40]
    yield Then.CLOSE


@case(begins=True)
def reset_in_a_chunk(reply: Reply) -> Script:
    """A reset in the middle of a chunk, after two tokens."""
    yield from begun(reply)
    yield reply.chunks[2][:-12]
    yield Then.RESET


@case(begins=True)
def closed_in_a_chunk(reply: Reply) -> Script:
    """The connection is closed in the middle of a chunk, after two tokens."""
    yield from begun(reply)
    yield reply.chunks[2][:-12]
    yield Then.CLOSE


@case(begins=True)
def closed_between_chunks(reply: Reply) -> Script:
    """The connection is closed behind a whole token, without the end of the body."""
    yield from begun(reply)
    yield Then.CLOSE


@case(begins=True)
def reset_in_a_character(reply: Reply) -> Script:
    """A reset in the middle of a UTF-8 character, after two tokens."""
    yield reply.head()
    yield chunk(_cut_in_a_character(reply))
    yield Then.RESET


@case("the model server sent something that is no JSON|makes no sense|broke off|no text", begins=True)
def ended_in_a_character(reply: Reply) -> Script:
    """A body without a length ends in the middle of a UTF-8 character."""
    yield reply.head(b"Connection: close")
    yield _cut_in_a_character(reply)
    yield Then.CLOSE


def _cut_in_a_character(reply: Reply) -> bytes:
    body = b"".join(reply.pieces)
    place = -1
    for _ in range(3):
        place = body.index("€".encode(), place + 1)
    return body[: place + 1]


@case("broke off|ended without|no JSON|makes no sense|no text", begins=True)
def ended_early(reply: Reply) -> Script:
    """The body ends as HTTP has it, after two tokens."""
    yield from begun(reply)
    yield b"0\r\n\r\n"


@case("")
def reset_behind_the_answer(reply: Reply) -> Script:
    """A reset behind the last event, before the end of the body; of a whole answer, behind it."""
    yield (
        reply.head()
        if len(reply.pieces) > 1 and reply.media_type != b"application/json"
        else reply.head(b"Content-Length: %d" % len(reply.body))
    )
    yield from reply.chunks if reply.media_type != b"application/json" else [reply.body]
    yield Then.RESET


# --- Peers that say nothing ---


@case(SLOW, 504, seconds=0.3)
def silent(reply: Reply) -> Script:
    """The request is accepted, and never answered."""
    yield Then.HANG


@case(SLOW, 504, begins=True, seconds=0.3)
def silent_after_tokens(reply: Reply) -> Script:
    """Nothing comes after two tokens, and the connection stays open."""
    yield from begun(reply)
    yield Then.HANG


@case(SLOW, 504, seconds=0.3)
def trickling_headers(reply: Reply) -> Script:
    """The headers come byte by byte (one a second, in proportion)."""
    for byte in reply.head():
        yield bytes([byte])
        yield Pause(0.1)


@case(SLOW, 504, begins=True, seconds=0.3)
def trickling_body(reply: Reply) -> Script:
    """After two tokens the body comes byte by byte (one a second, in proportion)."""
    yield from begun(reply)
    for byte in reply.pieces[2]:
        yield chunk(bytes([byte]))
        yield Pause(0.1)
    yield Then.HANG


# --- No HTTP ---


@case(f"{BROKE}: what came is no HTTP")
def garbage(reply: Reply) -> Script:
    """Random bytes instead of HTTP."""
    yield bytes(range(256)) * 4
    yield Then.HANG


@case(f"{BROKE}: what came is no HTTP", begins=True)
def malformed_chunk_size(reply: Reply) -> Script:
    """A chunk's size is no number, after two tokens."""
    yield from begun(reply)
    yield b"zz\r\n"
    yield Then.HANG


@case(begins=True)
def chunk_longer_than_its_size(reply: Reply) -> Script:
    """A chunk has more bytes than its size says, after two tokens."""
    yield from begun(reply)
    yield b"4\r\n" + reply.pieces[2] + b"\r\n"
    yield Then.HANG


@case(f"{BROKE}: what came is no HTTP")
def two_lengths(reply: Reply) -> Script:
    """Both `Content-Length` and `Transfer-Encoding` say where the body ends."""
    yield reply.head(b"Content-Length: 10", b"Transfer-Encoding: chunked")
    yield from reply.chunks
    yield b"0\r\n\r\n"


@case(begins=True)
def content_length_too_long(reply: Reply) -> Script:
    """`Content-Length` is more than the body has, and the connection is closed."""
    yield reply.head(b"Content-Length: %d" % (len(reply.body) + 10))
    yield from reply.pieces[:3]
    yield Then.CLOSE


@case("broke off|no JSON|makes no sense|no text|the connection to the model server broke", begins=True)
def content_length_too_short(reply: Reply) -> Script:
    """`Content-Length` is less than the body has."""
    yield reply.head(b"Content-Length: %d" % len(b"".join(reply.pieces[:3])))
    yield reply.body


# --- Without an end ---


@case("the model server sent headers without an end")
def endless_headers(reply: Reply) -> Script:
    """Header after header, without an end."""
    yield reply.head()[:-2]
    yield from until_it_leaves(b"X-More: " + _FILLING[:1000] + b"\r\n")


@case("the model server sent headers without an end")
def endless_header_line(reply: Reply) -> Script:
    """A header line without an end."""
    yield reply.head()[:-2] + b"X-More: "
    yield from until_it_leaves(_FILLING)


@case("the model server sent headers without an end")
def endless_interim_responses(reply: Reply) -> Script:
    """Interim responses (100 Continue) without an end."""
    yield from until_it_leaves(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


@case("the model server sent headers without an end", begins=True)
def endless_trailers(reply: Reply) -> Script:
    """After two tokens, a body's last chunk and a trailer line without an end."""
    yield from begun(reply)
    yield b"0\r\nX-More: "
    yield from until_it_leaves(_FILLING)


@case("the model server sent headers without an end", begins=True)
def endless_chunk_extension(reply: Reply) -> Script:
    """After two tokens, a chunk's size with an extension without an end."""
    yield from begun(reply)
    yield b"5;more="
    yield from until_it_leaves(_FILLING)


def endless_line(size: int) -> Fault:
    """A fault: the last piece has a text of that many bytes."""

    def fault(reply: Reply) -> Script:
        yield reply.head(b"Connection: close")
        yield from reply.pieces[:2]
        yield b'data: {"choices":[{"delta":{"content":"' if reply.media_type != b"application/json" else b""
        for _ in range(size // 100_000):
            yield b"x" * 100_000
        yield Then.HANG

    return fault
