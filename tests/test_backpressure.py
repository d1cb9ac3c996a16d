"""Clients that read slowly: the model server is made to wait, and nothing but a bounded buffer is kept for each."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from comps.model_servers import open_model_server
from comps.model_servers.target import Target
from comps.server import ServerProtocol
from tests.hot_path import END, HEAD, USAGE, chunk
from tests.service import PATH, running

CLIENTS = 64
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


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once as many connections as there are clients take no more."""
    everybody = asyncio.Event()
    paused: set[ServerProtocol] = set()
    original = ServerProtocol.pause_writing

    def pause_writing(self: ServerProtocol) -> None:
        paused.add(self)
        if len(paused) == CLIENTS:
            everybody.set()
        original(self)

    monkeypatch.setattr(ServerProtocol, "pause_writing", pause_writing)
    Flood.floods = []
    return everybody


def slow_client(port: int) -> socket.socket:
    """A client that has asked, whose kernel takes little for it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    body = json.dumps({"messages": "?", "stream": True, "max_tokens": PIECES}).encode()
    client.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (PATH.encode(), len(body), body))
    return client


async def read_all(client: socket.socket) -> bytes:
    """All that is sent, up to the end of the body."""
    loop, said = asyncio.get_running_loop(), bytearray()
    while not said.endswith(b"0\r\n\r\n"):
        part = await loop.sock_recv(client, 1 << 20)
        assert part
        said += part
    return bytes(said)


async def test_clients_that_read_slowly_let_the_model_server_wait_and_lose_nothing(
    monkeypatch: pytest.MonkeyPatch, waiting: asyncio.Event
) -> None:
    model_server = await asyncio.get_running_loop().create_server(Flood, "127.0.0.1", 0)
    port = model_server.sockets[0].getsockname()[1]
    settings = {"LLM_NAME": "m", "USVC_MAX_RUNNING": str(CLIENTS)}
    async with (
        model_server,
        running(open_model_server("vllm", Target("m", f"http://127.0.0.1:{port}")), monkeypatch, settings) as service,
    ):
        for listening in service.server.servers[0].sockets:  # On loopback, the kernel would keep megabytes.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        clients = [await asyncio.to_thread(slow_client, service.port) for _ in range(CLIENTS)]
        await asyncio.wait_for(waiting.wait(), 60)
        for client in clients:  # A little is read, as by a slow client, which must not open the way for all the rest.
            await asyncio.get_running_loop().sock_recv(client, 1024)
        before = [flood.pieces for flood in Flood.floods]
        await asyncio.sleep(0.3)  # In which nothing shall happen.
        kept = [one.transport.get_write_buffer_size() for one in service.server.server_state.connections]
        made_to_wait = [flood.pieces < PIECES and not flood.may_write.is_set() for flood in Flood.floods]
        assert made_to_wait == [True] * CLIENTS, before
        assert max(kept) < MOST_KEPT, kept
        answers = await asyncio.wait_for(asyncio.gather(*map(read_all, clients)), 60)
        for client in clients:
            client.close()
    for answer in answers:
        assert answer.count(PIECE.encode()) in (PIECES - 1, PIECES)  # The first may be among what was read before.
        assert b"[DONE]" in answer
