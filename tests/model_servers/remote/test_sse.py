"""Server-sent events of unusual size and cut; what else they may be is shown with whole answers, in test_openai_api."""

from __future__ import annotations

import pytest

from comps.core.errors import ModelServerError
from comps.model_servers.remote import sse
from comps.model_servers.remote.sse import EventStream


def test_an_event_of_megabytes_is_whole_however_its_bytes_are_cut() -> None:
    body = b"data: " + b"a" * 5_000_000 + b"\n\ndata: b\n\n"
    lengths: list[int] = []
    stream = EventStream(lambda data, name: lengths.append(len(data)))
    for at in range(0, len(body), 1400):
        stream.feed(body[at : at + 1400])
    assert lengths == [5_000_000, 1]


@pytest.mark.parametrize("line", [b"a" * 100, b"data: " + b"a" * 93 + b"\n"], ids=["a line", "lines"])
def test_an_event_without_an_end_is_an_error_before_it_fills_the_memory(
    monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    monkeypatch.setattr(sse, "_LONGEST", 1000)
    events: list[bytes] = []
    stream = EventStream(lambda data, name: events.append(data))
    stream.feed(b"data: before\n\ndata: ")
    sent = 0
    while sent < 900:
        sent += 100
        stream.feed(line)
    with pytest.raises(ModelServerError, match="an event without an end"):
        stream.feed(line * 2)
    assert events == [b"before"]


SENT = (
    b"\xef\xbb\xbfdata: 1\n\n: a comment\n\ndata:2\r\n\r\nevent: x\nid: 7\ndata: 3\ndata: 3b\n\n\n\nretry: 5\n\n"
    b'data: \n\ndata: {"a": "data: no event"}\n\ndata: [DONE]\n\ndata: last'
)
EVENTS = [b"1", b"2", b"3\n3b", b'{"a": "data: no event"}', b"[DONE]", b"last"]
LF = SENT.replace(b"\r\n", b"\n")


@pytest.mark.parametrize("size", [*range(1, 40), len(SENT)])
@pytest.mark.parametrize("sent", [SENT, LF.replace(b"\n", b"\r\n"), LF.replace(b"\n", b"\r")], ids=["LF", "CRLF", "CR"])
def test_events_are_the_same_wherever_their_bytes_are_cut(sent: bytes, size: int) -> None:
    events: list[bytes] = []
    stream = EventStream(lambda data, name: events.append(data))
    for at in range(0, len(sent), size):
        stream.feed(sent[at : at + size])
    stream.close()
    assert events == EVENTS


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=repr)
def test_an_event_comes_with_its_last_byte_however_lines_end(end: bytes) -> None:
    events: list[bytes] = []
    stream = EventStream(lambda data, name: events.append(data))
    for number in (b"1", b"2"):
        stream.feed(b"data: " + number + end)
        stream.feed(end)
        assert events[-1] == number


def test_llama_cpps_field_for_errors_is_an_event_of_that_name() -> None:
    events: list[tuple[bytes, bytes]] = []
    stream = EventStream(lambda data, name: events.append((data, name)))
    stream.feed(b'data: 1\n\nerror: {"message":"broke"}\n\n')
    assert events == [(b"1", b""), (b' {"message":"broke"}', b"error")]
