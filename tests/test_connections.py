"""Connections of clients: deadlines, sizes, how many there may be, and HTTP that could be read in two ways."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from comps.limits import CONNECTIONS
from comps.model_servers.scripted import Scripted
from tests.service import PATH, PATIENCE, Answer, Service, running, until_idle

BODY = json.dumps({"messages": "Hello?", "stream": False}).encode()
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % PATH.encode()
QUICK = {"USVC_HEADER_SECONDS": "0.2", "USVC_BODY_SECONDS": "0.2", "USVC_IDLE_SECONDS": "0.2"}
SMALL = {"USVC_MAX_HEADER_KB": "20", "USVC_MAX_URL_KB": "1", "USVC_MAX_BODY_MB": "1"}


def post(body: bytes = BODY, *further: str, path: str = PATH, length: int | None = None) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body) if length is None else length}", *further]
    return "\r\n".join([*head, "", ""]).encode() + body


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with running(Scripted([["one", " two"]]), monkeypatch, getattr(request, "param", {})) as service:
        yield service


async def said(service: Service, *parts: bytes, pause: float = 0.0) -> tuple[list[Answer], bytes]:
    """All answers to what is sent in these parts, and what came after them until the server ended the connection."""
    async with service.connect() as client:
        answers = []
        sending = asyncio.ensure_future(_send(client.writer, parts, pause))
        try:
            while True:
                answers.append(await client.answer())
        except asyncio.IncompleteReadError as end:
            return answers, end.partial
        except ConnectionResetError:
            return answers, b""
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def _send(writer: asyncio.StreamWriter, parts: tuple[bytes, ...], pause: float) -> None:
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause)


def only(answers: list[Answer]) -> Answer:
    """The answer, which is the only one, has an id, and is said to be the last."""
    (answer,) = answers
    assert answer.headers["x-request-id"]
    assert answer.headers["connection"] == "close"
    return answer


@pytest.mark.parametrize("service", [QUICK], indirect=True)
async def test_what_comes_too_late_is_told_so_and_the_connection_ends(service: Service) -> None:
    late = {
        "one byte": [b"G"],
        "half a head": [GET[:30]],
        "a head byte by byte": [bytes([byte]) for byte in GET + b" " * 100],
        "a head with ever more headers": [GET[:-2], *[b"X: y\r\n"] * 100],
        "a body of one byte": [post(b"{", length=10)],
        "no body": [post(b"", length=10)],
        "a chunk of one byte": [CHUNKED + b"5\r\n{"],
        "ever more trailers": [CHUNKED + b"0\r\n", *[b"X: y\r\n"] * 100],
        "a second head": [GET + b"GET"],
    }
    ended = CONNECTIONS.ended.copy()
    found = await asyncio.gather(*(said(service, *parts, pause=0.01) for parts in late.values()))
    assert {name: [one.status for one in answers] for name, (answers, _) in zip(late, found, strict=True)} == {
        name: [200, 408] if name == "a second head" else [408] for name in late
    }
    assert {answers[-1].headers["connection"] for answers, _ in found} == {"close"}
    assert found[4][0][0].json["detail"] == "body: it took too long"
    counted = CONNECTIONS.ended - ended
    assert counted == {"late_head": 5, "late_body": 4}
    metrics = (await service.get("/metrics")).body
    assert b'opea_llm_connections_ended_total{reason="late_body"}' in metrics
    await until_idle(service)


@pytest.mark.parametrize("service", [QUICK], indirect=True)
async def test_a_connection_without_a_request_is_closed_without_a_word(service: Service) -> None:
    empty, after_an_answer, after_line_breaks, after_a_late_body = await asyncio.gather(
        said(service),
        said(service, GET),
        said(service, *[b"\r\n"] * 100, pause=0.01),
        said(service, post(b"{", path="/nowhere", length=2), b"}", pause=0.05),
    )
    assert empty == after_line_breaks == ([], b"")
    assert [answer.status for answer in after_an_answer[0]] == [200]
    assert [answer.status for answer in after_a_late_body[0]] == [404]


@pytest.mark.parametrize("service", [QUICK], indirect=True)
async def test_a_long_answer_and_a_body_that_goes_on_are_not_late(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comps.connections._BODY_RATE", 10)
    parts = [post(BODY, length=len(BODY))[: -len(BODY)], *(bytes([byte]) for byte in BODY)]
    answers, _ = await said(service, *parts, pause=0.01)
    assert [answer.status for answer in answers] == [200]


async def test_an_answer_may_take_longer_than_any_deadline_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([["one"]], delay=0.6), monkeypatch, QUICK) as service:
        assert (await service.post(BODY)).status == 200


async def test_a_refusal_has_the_form_of_its_path_and_the_id_of_its_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "opea_llm")
    late, id_sent = "took too long", "X-Request-Id: mine"
    settings = {**QUICK, "LLM_DIALECTS": "square,openai,opea"}
    async with running(Scripted([["one"]]), monkeypatch, settings) as service:
        paths = (PATH, "/v1/completions?a=b", "/api/scripted/worker_generate_stream")
        found = await asyncio.gather(*(said(service, post(b"{", path=path, length=9)) for path in paths))
        (head,), _ = await said(service, b"nonsense\r\n\r\n")
        with_id = await asyncio.gather(
            *(
                said(service, *parts)
                for parts in (
                    [post(b"{", id_sent, length=9)],
                    [CHUNKED.replace(b"Host", b"%b\r\nHost" % id_sent.encode()) + b"1\r\n{\r\n", b"nonsense\r\n"],
                    [GET[:-2] + b"%b\r\nHost: x\r\n\r\n" % id_sent.encode()],
                )
            )
        )
        await until_idle(service)
    assert {only(answers).headers["x-request-id"] for answers, _ in with_id} == {"mine"}
    assert re.findall(r"refused: (\d+) id=mine ", caplog.text) == ["400", "400", "408"]
    made = only(found[0][0]).headers["x-request-id"]
    assert re.findall(rf"(\d+|gone) id={made} ", caplog.text) == ["408", "gone"]
    chat, completion, square = [json.loads(only(answers).body.rstrip(b"\0")) for answers, _ in found]
    assert late in chat["error"]["message"]
    assert late in completion["error"]["message"]
    assert late in square["error_message"]
    assert head.status == 400
    assert b"error_message" in head.body


def sized(size: int) -> bytes:
    """A request whose headers and URL have so many bytes, as they are counted: with `: ` and the line break."""
    usual = len("/health") + len("Host: x\r\n") + len("A: \r\n")
    return GET[:-2] + b"A: %b\r\n\r\n" % (b"a" * (size - usual))


SIZES: dict[str, tuple[int, bytes]] = {
    "headers just small enough": (200, sized(20_000)),
    "headers just too large": (431, sized(20_001)),
    "many headers": (431, GET[:-2] + b"a: b\r\n" * 8000),
    "one header": (431, GET[:-2] + b"A: " + b"a" * 60_000),
    "one name": (431, GET[:-2] + b"a" * 60_000),
    "a URL just short enough": (200, b"GET /health?%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 992)),
    "a URL just too long": (414, b"GET /health?%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 993)),
    "an endless URL": (414, b"GET /%b" % (b"a" * 60_000)),
    "many trailers": (400, CHUNKED + b"0\r\n" + b"a: b\r\n" * 12_000),
    "one trailer": (400, CHUNKED + b"0\r\nA: " + b"a" * 60_000),
    "one extension": (400, CHUNKED + b"1;" + b"a" * 60_000),
    "many extensions": (400, CHUNKED + b"1;aaaaaaaaaaaaaaaaaaaa\r\n{\r\n" * 5_000),
}


@pytest.mark.parametrize("service", [{**SMALL, "USVC_IDLE_SECONDS": "0.1"}], indirect=True)
@pytest.mark.parametrize("size", [1000, 1_000_000], ids=["in packets", "at once"])
async def test_headers_and_framing_have_a_size(service: Service, size: int) -> None:
    cases = {name: [whole[at : at + size] for at in range(0, len(whole), size)] for name, (_, whole) in SIZES.items()}
    found = await asyncio.gather(*(said(service, *parts) for parts in cases.values()))
    statuses = {name: [one.status for one in answers] for name, (answers, _) in zip(cases, found, strict=True)}
    assert statuses == {name: [status] for name, (status, _) in SIZES.items()}
    assert all(only(answers).json["detail"] for answers, _ in found if answers[0].status != 200)


@pytest.mark.parametrize("service", [SMALL], indirect=True)
async def test_a_body_that_is_too_large_is_refused_before_it_is_there(service: Service) -> None:
    declared, expected, streamed, on_another_path = await asyncio.gather(
        said(service, post(b"{", length=1_000_001)),
        said(service, post(b"", "Expect: 100-continue", length=1_000_001)),
        said(service, CHUNKED, *[b"10000\r\n" + b" " * 65_536 + b"\r\n"] * 20),
        said(service, b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", *[b" " * 65_536] * 40),
    )
    refused, _ = await said(service, post(b"", "Expect: 100-continue", path="/nowhere", length=9))
    assert [answer.status for answer in refused] == [404]  # The connection ends: a body may come, or the next request.
    for answers, rest in (declared, expected, streamed):
        assert (only(answers).status, rest) == (413, b"")
    assert [answer.status for answer in on_another_path[0]] == [200]
    async with service.connect() as client:
        client.writer.write(post(BODY, "Expect: 100-continue")[: -len(BODY)])
        assert (await client.head()).status == 100
        client.writer.write(BODY)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("service", [{"USVC_MAX_CONNECTIONS": "2", "USVC_MAX_BODY_MB": "1"}], indirect=True)
async def test_connections_beyond_the_most_are_told_so(service: Service) -> None:
    async with service.connect() as one, service.connect() as two:
        for client in (one, two):
            await client.send("GET", "/health")
            await client.answer()
        answers, _ = await said(service, post())
        assert only(answers).status == 503
        assert only(answers).headers["retry-after"] == "1"
        assert (await service.get("/health")).status == 200
        await one.send("POST", PATH, BODY)
        assert (await one.answer()).status == 200
        ended_before = CONNECTIONS.ended["connections"]
        many = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(80)]
        ended = await asyncio.gather(*(reader.read() for reader, _ in many[70:]), return_exceptions=True)
        assert all(not one or isinstance(one, ConnectionError) for one in ended)
        assert CONNECTIONS.ended["connections"] - ended_before >= 10
        for _, writer in many:
            writer.close()


AMBIGUOUS: dict[str, bytes] = {
    "length and chunks": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
    "the same length twice": b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a list of lengths": b"Content-Length: 2, 2\r\n\r\n{}",
    "a length with a sign": b"Content-Length: +2\r\n\r\n{}",
    "a negative length": b"Content-Length: -2\r\n\r\n{}",
    "a length in base 16": b"Content-Length: 0x2\r\n\r\n{}",
    "a length beyond 64 bits": b"Content-Length: 18446744073709551618\r\n\r\n{}",
    "no length": b"Content-Length: \r\n\r\n{}",
    "another coding": b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "two codings": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks hidden from one reader": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks after a tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "identity": b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a space in a name": b"X y: z\r\n\r\n",
    "no name": b": z\r\n\r\n",
    "no colon": b"X\r\n\r\n",
    "a folded header": b"X: y\r\n z\r\n\r\n",
    "a folded length": b"Content-Length:\r\n 2\r\n\r\n{}",
    "folded chunks": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a bare LF": b"X: y\nContent-Length: 2\r\n\r\n{}",
    "a bare CR": b"X: y\rContent-Length: 2\r\n\r\n{}",
    "an end of bare LFs": b"X: y\r\n\n",
    "NUL in a value": b"X: y\0z\r\n\r\n",
    "NUL in a name": b"X\0: y\r\n\r\n",
    "a control character": b"X: y\x01\r\n\r\n",
    "two hosts": b"Host: y\r\n\r\n",
    "a length in trailers": b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 2\r\n\r\n",
    "a chunk that ends with LF": b"Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
    "a chunk without an end": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
    "LF in an extension": b"Transfer-Encoding: chunked\r\n\r\n2;a\nb\r\n{}\r\n0\r\n\r\n",
    "a size with 0x": b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "a negative size": b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\n{}\r\n0\r\n\r\n",
}
STARTS: dict[str, bytes] = {
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /v1/chat/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/2": b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n",
    "bare LFs": b"GET /health HTTP/1.1\nHost: x\n\n",
    "a tab": b"GET\t/health HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space in the URL": b"GET /hea lth HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the URL": b"GET /health\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


async def test_http_that_could_be_read_in_two_ways_is_refused_and_nothing_after_it_read(service: Service) -> None:
    cases = {name: b"POST %b HTTP/1.1\r\nHost: x\r\n" % PATH.encode() + rest for name, rest in AMBIGUOUS.items()}
    cases |= STARTS
    found = await asyncio.gather(*(said(service, case + GET) for case in cases.values()))
    statuses = {name: [one.status for one in answers] for name, (answers, _) in zip(cases, found, strict=True)}
    assert statuses == {name: [505] if name in ("HTTP/0.9", "HTTP/2") else [400] for name in cases}
    assert all(only(answers).json["detail"] and rest == b"" for answers, rest in found)
    await until_idle(service)


async def test_trailers_are_no_headers_and_extensions_are_passed_over(service: Service) -> None:
    size = b'%x;name="a value"\r\n' % len(BODY)
    trailers = b"Content-Encoding: gzip\r\nX-Request-Id: trailed\r\nOrigin: http://a.example\r\n\r\n"
    async with service.connect() as client:
        client.writer.write(CHUNKED + size)  # The handler reads the headers when the trailers have come.
        client.writer.write(BODY + b"\r\n0\r\n" + trailers)
        answer = await client.answer()
    assert (answer.status, answer.headers["x-request-id"] == "trailed") == (200, False)


async def test_what_is_wrong_is_told_after_the_answers_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    streamed = json.dumps({"messages": "Hello?", "stream": True}).encode()
    async with running(Scripted([["one", gate, " two"]] * 2), monkeypatch) as service, service.connect() as client:
        client.writer.write(post(streamed) + GET + b"nonsense\r\n\r\n" + post(streamed))
        first = await client.head()
        first.chunks.append(await client.chunk())
        gate.set()
        while chunk := await client.chunk():
            first.chunks.append(chunk)
        assert b"[DONE]" in first.body
        assert [(await client.answer()).status for _ in range(2)] == [200, 400]
        assert await client.reader.read() == b""


async def test_what_is_wrong_in_a_body_cancels_its_request(service: Service) -> None:
    answers, _ = await said(service, CHUNKED + b"1\r\n{\r\n", b"nonsense\r\n")
    assert only(answers).status == 400
    await until_idle(service)


async def test_pipelined_requests_wait_unread_for_the_answers_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    number = 200
    async with running(Scripted([[gate, "one"]]), monkeypatch) as service, service.connect() as client:
        client.writer.write(post() + (GET[:-2] + b"A: %b\r\n\r\n" % (b"a" * 500)) * number)
        kept: Any = next(iter(service.server.server_state.connections))

        async def until_held() -> None:
            while kept._held is None:
                await service.get("/health")

        await asyncio.wait_for(until_held(), PATIENCE)
        assert len(kept.pipeline) < 40  # One slice of bytes.
        assert kept.flow.read_paused
        gate.set()
        statuses = [(await client.answer()).status for _ in range(1 + number)]
        assert statuses == [200] * (1 + number)
