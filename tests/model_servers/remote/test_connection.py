"""Connections to model servers that misbehave: what one response leaves behind never reaches another request."""

from __future__ import annotations

import asyncio
import gzip
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from comps.core.answers import Collector
from comps.core.errors import InvalidRequest, ModelServerError, Overloaded, Timeout
from comps.model_servers.remote import connection
from comps.model_servers.remote.client import HTTP
from comps.model_servers.target import Access

Serve = Callable[[int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Texts(Collector):
    """Reads the data of events as texts."""

    is_complete = False

    def __init__(self) -> None:
        super().__init__()
        self.answer = self
        self.data: list[str] = []

    def event(self, data: bytes, name: bytes = b"") -> bool:
        self.data.append(data.decode())
        return False


class Paused(Texts):
    """The same, and never reads on."""

    def __init__(self) -> None:
        super().__init__()
        self.full = True
        self.waits = asyncio.Event()

    async def drain(self) -> None:
        self.waits.set()
        await asyncio.Event().wait()


def response(text: str, head: str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream") -> bytes:
    body = f"data: {text}\n\ndata: [DONE]\n\n".encode()
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def read_request(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0))


@asynccontextmanager
async def served(serve: Serve, access: Access | None = None) -> AsyncIterator[tuple[HTTP, list[int]]]:
    """A client of a server that `serve` plays on each connection, and the numbers of its connections so far."""
    numbers: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        numbers.append(len(numbers))
        try:
            await serve(numbers[-1], reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.ensure_future(play(reader, writer)))

    async with await asyncio.start_server(connected, "127.0.0.1", 0, backlog=500) as server:
        http = HTTP(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", access or Access())
        yield http, numbers
        await http.aclose()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ask(http: HTTP) -> list[str]:
    reader = Texts()
    await asyncio.wait_for(http.stream("/ask", {}, reader), 10)
    return reader.data


@pytest.mark.parametrize(
    "surplus",
    [
        b"garbage\r\n\r\n",
        response("leaked"),
        response("leaked")[:10],
        b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\nabc",
        b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno",
    ],
    ids=["garbage", "a response", "the beginning of one", "half of one", "a failure"],
)
async def test_what_follows_a_response_is_dropped_with_its_connection(surplus: bytes) -> None:
    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for text in ("one", "two"):
            await read_request(reader)
            writer.write(response(f"{text} of {number}") + surplus)

    async with served(serve) as (http, numbers):
        assert [await ask(http) for _ in range(2)] == [["one of 0"], ["one of 1"]]
        assert len(numbers) == 2


async def test_trailers_and_chunk_extensions_are_passed_over() -> None:
    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await read_request(reader)
            event = b"data: 1\n\n"
            writer.write(
                b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"%x;ext=1\r\n%b\r\n0\r\nContent-Type: text/html\r\n\r\n" % (len(event), event)
            )

    async with served(serve) as (http, numbers):
        assert [await ask(http) for _ in range(2)] == [["1"], ["1"]]
        assert len(numbers) == 1


async def test_a_request_that_a_kept_connection_may_have_begun_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "_STALE_SECONDS", 0.1)

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(response("one"))
        await read_request(reader)
        await asyncio.sleep(0.2)  # It works, and ends without an answer.

    async with served(serve) as (http, numbers):
        await ask(http)
        with pytest.raises(ModelServerError, match="broke"):
            await ask(http)
        assert len(numbers) == 1


async def test_the_total_time_holds_also_while_the_reader_waits() -> None:
    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: %b\n\n" % (b"x" * 5000))
        await reader.read()

    async with served(serve, Access(total_seconds=0.3)) as (http, _):
        with pytest.raises(Timeout):
            await asyncio.wait_for(http.stream("/ask", {}, Paused()), 10)


async def test_500_answers_are_streamed_at_once() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))  # Both ends are in this process.
    all_there = asyncio.Event()
    requests = 0

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await read_request(reader)
        requests += 1
        if requests == 500:
            all_there.set()
        await all_there.wait()
        writer.write(response(str(number)))
        await writer.drain()

    async with served(serve) as (http, numbers):
        answers = [Texts() for _ in range(500)]
        await asyncio.wait_for(asyncio.gather(*(http.stream("/ask", {}, answer) for answer in answers)), 30)
        assert sorted(int(answer.data[0]) for answer in answers) == numbers == list(range(500))


async def test_a_client_that_is_closed_ends_what_it_asks_for() -> None:
    reached = asyncio.Event()

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        reached.set()
        await reader.read()

    async with served(serve, Access(first_token_seconds=0)) as (http, _):
        asking = asyncio.ensure_future(ask(http))
        await asyncio.wait_for(reached.wait(), 10)
        await http.aclose()
        with pytest.raises(ModelServerError, match="closed"):
            await asyncio.wait_for(asking, 10)


async def test_the_first_event_is_waited_for_no_longer_than_set_also_while_connecting() -> None:
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)  # The kernel's queue is full after one or two.
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        http = HTTP(url, Access(connect_seconds=0, first_token_seconds=0.2))
        with pytest.raises(Timeout, match="did not begin in time"):
            await ask(http)


async def test_a_connection_with_half_of_a_request_in_it_is_not_used_again() -> None:
    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"Content-Length: 2\r\n" not in head:
            writer.write(b"HTTP/1.1 413 Too large\r\nContent-Length: 2\r\n\r\n{}")
            await asyncio.Event().wait()
        writer.write(response(f"of {number}"))
        await reader.read()

    async with served(serve) as (http, _):
        with pytest.raises(InvalidRequest):
            await asyncio.wait_for(http.stream("/ask", ["x" * 20_000_000], Texts()), 10)
        assert await ask(http) == ["of 1"]


@pytest.mark.parametrize("status", [200, 429])
async def test_an_answer_that_is_compressed_in_an_unknown_way_is_said_to_be_and_an_error_keeps_its_status(
    status: int,
) -> None:
    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(b"HTTP/1.1 %d X\r\nContent-Encoding: br\r\nContent-Length: 6\r\n\r\n\x1b\x02data" % status)

    kind, said = (Overloaded, "Too Many") if status == 429 else (ModelServerError, "compressed in a way that is not")
    async with served(serve) as (http, _):
        for asking in (ask(http), http.response("/ask", {})):
            with pytest.raises(kind, match=said):
                await asking


async def test_a_compressed_stream_is_read_but_for_one_that_would_fill_the_memory() -> None:
    bodies = [gzip.compress(b"data: 1\n\ndata: [DONE]\n\n"), gzip.compress(b":" + b" " * 100_000_000)]

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in bodies:
            await read_request(reader)
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            await writer.drain()
        await reader.read()

    async with served(serve) as (http, _):
        assert await ask(http) == ["1"]
        with pytest.raises(ModelServerError):
            await ask(http)


async def test_a_body_that_comes_in_the_largest_reads_is_no_endless_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio and uvloop read up to 256 KiB at once, as much as headers may have."""
    received, came = connection.Connection.data_received, bytearray()
    text = "x" * 600_000

    def data_received(self: connection.Connection, data: bytes) -> None:
        came.extend(data)
        if came.endswith(b"[DONE]\n\n"):
            for begin, end in ((0, 200), (200, 4_000), (4_000, 4_000 + 262_144), (4_000 + 262_144, len(came))):
                received(self, bytes(came[begin:end]))

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(response(text))
        await writer.drain()
        await reader.read()

    monkeypatch.setattr(connection.Connection, "data_received", data_received)
    async with served(serve) as (http, _):
        assert await ask(http) == [text]
