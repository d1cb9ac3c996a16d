"""Clients that read slowly: the model server is made to wait, and nothing but a bounded buffer is kept for each."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from comps.limits import CONNECTIONS
from comps.model_servers import open_model_server
from comps.model_servers.scripted import Scripted
from comps.model_servers.target import Target
from comps.server import ServerProtocol
from tests.hot_path import END, HEAD, USAGE, chunk
from tests.service import PATH, PATIENCE, Connection, Service, running, until_idle

CLIENTS = {"native": 64, "langchain": 4}
PIECE = "word " * 200
PIECES = 1000
"""Of an answer: 1 MB."""
MOST_KEPT = 400_000
"""Bytes that the service may keep for a stream: what it read at once, written on, and the limit from which it waits."""


class Flood(asyncio.Protocol):
    """A model server that writes as fast as it may."""

    floods: list[Flood] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.sent = 0
        self.pieces = 0
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        transport.set_write_buffer_limits(high=16_384)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST"):
            self.floods.append(self)
            self.task = asyncio.ensure_future(self._answer())
        elif data.startswith(b"GET"):
            listed = b'{"data": [{"id": "m", "max_model_len": 100000}]}'
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(listed), listed))

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()

    async def _answer(self) -> None:
        self.transport.write(HEAD)
        piece = chunk(json.dumps({"choices": [{"index": 0, "delta": {"content": PIECE}}]}).encode())
        for _ in range(PIECES):
            await self.may_write.wait()
            self.transport.write(piece)
            self.pieces += 1
        self.transport.write(b"".join(map(chunk, (END, USAGE, b"[DONE]"))) + b"0\r\n\r\n")


def all_waiting(monkeypatch: pytest.MonkeyPatch, clients: int) -> asyncio.Event:
    """An event that is set once so many connections take no more."""
    everybody = asyncio.Event()
    paused: set[ServerProtocol] = set()
    original = ServerProtocol.pause_writing

    def pause_writing(self: ServerProtocol) -> None:
        paused.add(self)
        if len(paused) == clients:
            everybody.set()
        original(self)

    monkeypatch.setattr(ServerProtocol, "pause_writing", pause_writing)
    return everybody


def keep_little(service: Service) -> None:
    """On loopback, the kernel would keep megabytes of what is sent."""
    for listening in service.server.servers[0].sockets:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)


def slow_client(port: int, sent: bytes = b"") -> socket.socket:
    """A client that has asked for a stream or sent something else, whose kernel takes little for it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    body = json.dumps({"messages": "?", "stream": True, "max_tokens": PIECES}).encode()
    client.sendall(sent or posted(body))
    return client


def posted(body: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (PATH.encode(), len(body), body)


async def read_all(client: socket.socket) -> bytes:
    """All that is sent, up to the end of the body."""
    loop, said = asyncio.get_running_loop(), bytearray()
    while not said.endswith(b"0\r\n\r\n"):
        part = await loop.sock_recv(client, 1 << 20)
        assert part
        said += part
    return bytes(said)


@pytest.mark.parametrize("framework", CLIENTS)
async def test_clients_that_read_slowly_let_the_model_server_wait_and_lose_nothing(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = CLIENTS[framework]
    waiting = all_waiting(monkeypatch, number)
    Flood.floods = []
    model_server = await asyncio.get_running_loop().create_server(Flood, "127.0.0.1", 0)
    port = model_server.sockets[0].getsockname()[1]
    settings = {"LLM_NAME": "m", "USVC_MAX_RUNNING": str(number), "FRAMEWORK": framework}
    async with (
        model_server,
        running(open_model_server("vllm", Target("m", f"http://127.0.0.1:{port}")), monkeypatch, settings) as service,
    ):
        keep_little(service)
        clients = [await asyncio.to_thread(slow_client, service.port) for _ in range(number)]
        await asyncio.wait_for(waiting.wait(), 60)
        for client in clients:  # A little is read, as by a slow client, which must not open the way for all the rest.
            await asyncio.get_running_loop().sock_recv(client, 1024)
        before = [flood.pieces for flood in Flood.floods]
        await asyncio.sleep(0.3)  # In which nothing shall happen.
        kept = [one.transport.get_write_buffer_size() for one in service.server.server_state.connections]
        made_to_wait = [flood.pieces < PIECES and not flood.may_write.is_set() for flood in Flood.floods]
        assert made_to_wait == [True] * number, before
        assert max(kept) < MOST_KEPT, kept
        answers = await asyncio.wait_for(asyncio.gather(*map(read_all, clients)), 60)
        for client in clients:
            client.close()
    for answer in answers:
        assert answer.count(PIECE.encode()) in (PIECES - 1, PIECES)  # The first may be among what was read before.
        assert b"[DONE]" in answer


WHOLE = json.dumps({"messages": "?", "stream": False}).encode()
STREAMED = json.dumps({"messages": "?", "stream": True}).encode()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""

    async def wait() -> None:
        while not condition():
            await asyncio.to_thread(time.sleep, 0.01)

    await asyncio.wait_for(wait(), PATIENCE)


@pytest.mark.parametrize("framework", CLIENTS)
@pytest.mark.parametrize(
    "request_", [posted(WHOLE), b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["answers", "pages"]
)
async def test_a_client_gets_the_next_answer_when_it_has_taken_the_one_before(
    framework: str, request_: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, answer = 4, "word " * 150_000  # Larger than the page.
    waiting = all_waiting(monkeypatch, 1)
    async with running(Scripted([[answer]]), monkeypatch, {"FRAMEWORK": framework}) as service:
        keep_little(service)
        client = await asyncio.to_thread(slow_client, service.port, request_ * number)
        await asyncio.wait_for(waiting.wait(), PATIENCE)
        for _ in range(3):  # In which nothing shall happen.
            await service.get("/health")
        connections: list[Any] = list(service.server.server_state.connections)
        (connection,) = [one for one in connections if one.flow.write_paused]
        assert connection.transport.get_write_buffer_size() < 1.1 * len(answer)
        assert len(connection.pipeline) == number - 1
        reader = Connection(*await asyncio.open_connection(sock=client))
        assert [(await reader.answer()).status for _ in range(number)] == [200] * number
        reader.close()


@pytest.mark.parametrize("framework", CLIENTS)
@pytest.mark.parametrize("body", [WHOLE, STREAMED], ids=["whole", "streamed"])
async def test_a_client_that_takes_nothing_of_its_answer_is_given_up(
    framework: str, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = Scripted([["word " * 1000] * 1000])
    settings = {"FRAMEWORK": framework, "USVC_STALLED_CLIENT_SECONDS": "0.3"}
    async with running(scripted, monkeypatch, settings) as service:
        keep_little(service)
        stalled = CONNECTIONS.ended["stalled"]
        client = await asyncio.to_thread(slow_client, service.port, posted(body))
        await until(lambda: CONNECTIONS.ended["stalled"] > stalled)
        if body == STREAMED:
            await asyncio.wait_for(scripted.closed.wait(), PATIENCE)
        await until_idle(service)
        client.close()
