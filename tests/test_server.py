"""The HTTP server below ASGI: upgrades, HTTP/1.0, pipelined requests, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from comps.model_servers.scripted import Scripted
from comps.server import Server, ServerProtocol
from tests.service import PATH, Service, running

BODY = json.dumps({"messages": "Hello?", "stream": False}).encode()
STREAMED = json.dumps({"messages": "Hello?", "stream": True}).encode()
H2C = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQBAAAAAAIAAAAA"}
_HEAD = [f"POST {PATH} HTTP/1.1", "Host: x", f"Content-Length: {len(BODY)}", *(": ".join(one) for one in H2C.items())]
UPGRADING = "\r\n".join([*_HEAD, "", ""]).encode() + BODY


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with running(Scripted([["one", " two"]]), monkeypatch) as service:
        yield service


@pytest.mark.parametrize(
    "headers",
    [
        H2C,
        {"Connection": "Upgrade", "Upgrade": "websocket"},
        {"Connection": "keep-alive, Upgrade", "Upgrade": "TLS/1.0, something/7"},
        {"Connection": "upgrade", "Upgrade": "h2c", "Expect": "100-continue"},
    ],
    ids=["Java and curl", "websocket", "others", "lower case, with an expectation"],
)
async def test_an_upgrade_that_is_not_taken_is_passed_over_and_the_body_read(
    service: Service, headers: dict[str, str]
) -> None:
    async with service.connect() as client:
        for _ in range(2):  # The connection stays what it was.
            await client.send("POST", PATH, BODY, headers)
            answer = await client.head()
            if answer.status == 100:
                answer = await client.head()
            said = json.loads(await client.reader.readexactly(int(answer.headers["content-length"])))
            assert (answer.status, said["choices"][0]["message"]["content"]) == (200, "one two")
            assert "upgrade" not in answer.headers


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_an_upgrade_is_passed_over_wherever_its_bytes_are_cut(service: Service, size: int) -> None:
    async with service.connect() as client:
        for at in range(0, len(UPGRADING), size):
            client.writer.write(UPGRADING[at : at + size])
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.answer()).json["choices"][0]["message"]["content"] == "one two"


async def test_two_requests_with_an_upgrade_may_come_at_once(service: Service) -> None:
    async with service.connect() as client:
        client.writer.write(UPGRADING * 2)
        for _ in range(2):
            assert (await client.answer()).json["choices"][0]["message"]["content"] == "one two"


async def test_any_number_of_requests_with_an_upgrade_may_come_at_once(service: Service) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    async with service.connect() as client:
        client.writer.write(request * 700)
        statuses = [(await client.answer()).status for _ in range(700)]
    assert statuses == [200] * 700


async def test_what_asks_for_a_proxy_is_refused(service: Service) -> None:
    async with service.connect() as client:
        client.writer.write(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
        assert (await client.answer()).status == 400


async def http_1_0(service: Service, request: bytes) -> tuple[dict[str, str], bytes]:
    """The headers and the body of an answer to a client of HTTP/1.0; the end of the connection is that of the body."""
    async with service.connect() as client:
        client.writer.write(request)
        answer = await client.head()
        assert answer.status == 200
        return answer.headers, await asyncio.wait_for(client.reader.read(), 10)


@pytest.mark.parametrize("body", [BODY, STREAMED], ids=["whole", "streamed"])
@pytest.mark.parametrize("origin", [b"", b"Origin: http://a.example\r\n"], ids=["direct", "through middlewares"])
async def test_a_client_of_http_1_0_gets_no_chunked_coding(service: Service, body: bytes, origin: bytes) -> None:
    head = b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n%b\r\n" % (PATH.encode(), len(body), origin)
    headers, said = await http_1_0(service, head + body)
    assert "transfer-encoding" not in headers
    if body == BODY:
        assert json.loads(said)["choices"][0]["message"]["content"] == "one two"
    else:
        assert said.startswith(b"data: {")
        assert said.endswith(b"}\n\ndata: [DONE]\n\n")


async def test_a_page_for_a_client_of_http_1_0_is_whole(service: Service) -> None:
    headers, said = await http_1_0(service, b"GET /openapi.json HTTP/1.0\r\n\r\n")
    assert "transfer-encoding" not in headers
    assert json.loads(said)["openapi"]


class Recorded:
    """A transport that keeps what is written to it.

    Args:
        transport: It.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_streamed_answer_that_is_there_at_once_is_sent_at_once(
    monkeypatch: pytest.MonkeyPatch, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def check() -> None:
        async with running(Scripted([["one"]]), monkeypatch) as service, service.connect() as client:
            await client.send("GET", "/health")
            await client.answer()
            (connection,) = service.server.server_state.connections
            transport = Recorded(connection.transport)
            connection.transport = cast(Any, transport)
            await client.send("POST", PATH, STREAMED)
            await client.answer()
        (packet,) = transport.written
        assert packet.startswith(b"HTTP/1.1 200")
        assert packet.endswith(b"[DONE]\n\n\r\n0\r\n\r\n")

    loop = new_loop()
    loop.run_until_complete(check())
    loop.close()


def test_many_connections_are_accepted_in_a_round_of_the_event_loop() -> None:
    many = 64

    async def rounds() -> int:
        server = Server(uvicorn.Config(silent, http=ServerProtocol, lifespan="off", log_config=None))
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            address = listening.getsockname()
            await server.startup([listening])
            clients = [socket.create_connection(address) for _ in range(many)]
            number = 0
            while len(server.server_state.connections) < many:
                number += 1
                await asyncio.sleep(0)
            for client in clients:
                client.close()
            for one in server.servers:
                one.close()
        with pytest.raises(ConnectionRefusedError):  # No copy of the socket listens any more.
            socket.create_connection(address)
        return number

    loop = uvloop.new_event_loop()
    assert loop.run_until_complete(rounds()) <= many / 8
    loop.close()


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers nothing."""


async def test_pipelined_requests_are_answered_in_their_order(service: Service) -> None:
    async with service.connect() as client:
        for body in (STREAMED, BODY, STREAMED):
            await client.send("POST", PATH, body)
        kinds = [(await client.answer()).headers["content-type"].partition(";")[0] for _ in range(3)]
    assert kinds == ["text/event-stream", "application/json", "text/event-stream"]


@pytest.mark.parametrize(
    ("path", "body"),
    [(PATH, {"messages": "Hello?", "stream": True}), ("/api/scripted/worker_generate_stream", {"prompt": "Once"})],
    ids=["direct", "through the router"],
)
async def test_a_client_that_leaves_stops_the_model_whichever_way_it_came(
    monkeypatch: pytest.MonkeyPatch, path: str, body: Any
) -> None:
    scripted = Scripted([["one", asyncio.Event(), "never"]])
    async with running(scripted, monkeypatch) as service, service.connect() as client:
        await client.send("POST", path, json.dumps(body).encode())
        assert (await client.head()).status == 200
        await client.chunk()
        client.close()
        await asyncio.wait_for(scripted.closed.wait(), 5)
