"""The room for large bodies: who gets it when, and what becomes of those for whom there is none."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from comps.body_memory import BodyMemory
from comps.core.errors import Overloaded
from comps.model_servers.scripted import Scripted
from comps.requests import ClientGone, Incoming
from tests.service import PATH, PATIENCE, Connection, Service, running, until_idle

LARGE = json.dumps({"messages": "word " * 120_000, "stream": False}).encode()
"""600 kB: of two of them, one has room in a megabyte."""
SMALL = json.dumps({"messages": "Hello?", "stream": False}).encode()
ROOM = {"USVC_MAX_BODIES_MB": "1", "USVC_MAX_BODY_MB": "1"}


async def until(holds: Callable[[], bool]) -> None:
    async def look() -> None:
        while not holds():  # noqa: ASYNC110  # There is no event for it.
            await asyncio.sleep(0.001)

    await asyncio.wait_for(look(), PATIENCE)


async def test_room_is_given_in_order_and_one_body_alone_may_have_more() -> None:
    memory, order = BodyMemory(10, 0), list[str]()

    async def taken(name: str, size: int) -> None:
        await memory.take(name, size)
        order.append(name)

    await taken("more than all", 50)
    waiting = [asyncio.ensure_future(taken(name, size)) for name, size in (("a", 6), ("b", 6), ("c", 1), ("d", 4))]
    await asyncio.sleep(0)
    assert order == ["more than all"]
    memory.give_back("more than all")
    await waiting[0]
    assert memory.held == 6
    waiting[1].cancel()
    await asyncio.gather(*waiting[1:3], return_exceptions=True)
    assert (order[1:], memory.held) == (["a", "c"], 7)
    memory.settle("a", 5)
    await waiting[3]
    assert memory.held == 10
    for name in ("a", "b", "c", "d", "unknown"):
        memory.give_back(name)
    assert memory.held == 0


async def test_callers_take_turns_and_none_has_more_than_its_share_unless_one_body_is_more() -> None:
    memory, order = BodyMemory(10, 0, 5), list[str]()

    async def taken(name: str, size: int) -> None:
        await memory.take(name, size, name[0])
        order.append(name)

    sizes = [("a1", 4), ("a2", 4), ("a3", 1), ("a4", 4), ("b1", 3), ("c1", 3), ("c2", 2), ("b2", 9)]
    waiting = [asyncio.ensure_future(taken(name, size)) for name, size in sizes]
    await asyncio.sleep(0)
    assert (order, memory.held, memory.waiting) == (["a1", "b1", "c1"], 10, 5)
    waiting[1].cancel()
    for name, further in (("a1", ["c2", "a3"]), ("b1", []), ("c1", []), ("c2", ["b2"]), ("b2", ["a4"])):
        before = len(order)
        memory.give_back(name)
        await asyncio.sleep(0.001)
        assert order[before:] == further, name
    for name in ("a3", "a4"):
        memory.give_back(name)
    assert (memory.held, memory.waiting, memory._sizes, memory._held_by) == (0, 0, {}, {})


async def test_room_that_is_not_there_in_time_is_refused() -> None:
    memory = BodyMemory(10, 0.01)
    await memory.take("a", 10)
    with pytest.raises(Overloaded, match="too many large requests"):
        await memory.take("b", 1)
    memory.give_back("b")
    assert memory.held == 10


async def test_a_client_that_leaves_just_as_there_is_room_has_left() -> None:
    told = iter([{"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(told)  # A server may tell it only once.

    with pytest.raises(ClientGone):
        await Incoming(receive, 10).unless_gone(asyncio.sleep(0, "room"))


def chunked(body: bytes) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % PATH.encode()
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


async def post(client: Connection, kind: str) -> None:
    if kind == "chunked":
        client.writer.write(chunked(LARGE))
    elif kind == "compressed":
        await client.send("POST", PATH, gzip.compress(LARGE), {"Content-Encoding": "gzip"})
    else:
        await client.send("POST", PATH, LARGE)


@pytest.mark.parametrize("kind", ["plain", "chunked", "compressed"])
async def test_a_large_body_waits_for_the_answers_before_it_and_a_small_one_does_not(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    scripted = Scripted([[gate, "one"], ["two"]])
    async with running(scripted, monkeypatch, ROOM) as service, service.connect() as one, service.connect() as two:
        bodies = service.app.state.service.bodies
        await post(one, kind)
        await until(lambda: len(scripted.asked) == 1)
        await post(two, kind)
        await until(lambda: bodies.waiting == 1)
        assert (await service.post(SMALL)).status == 200
        assert bodies.held == len(LARGE)
        gate.set()
        assert [(await client.answer()).status for client in (one, two)] == [200, 200]
        await until_idle(service)
        assert bodies.held == 0


async def test_no_key_alone_takes_all_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**ROOM, "USVC_API_KEYS": "greedy = a, modest = b"}
    async with running(Scripted([["one"]]), monkeypatch, environment) as service:
        bodies = service.app.state.service.bodies
        async with service.connect() as one, service.connect() as two:
            for client in (one, two):
                head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-API-Key: a\r\nContent-Length: 400000\r\n\r\n"
                client.writer.write(head.encode())
            await until(lambda: bodies.waiting == 1)
            body = json.dumps({"messages": "Hi " * 100_000, "stream": False}).encode()
            assert (await service.post(body, **{"X-API-Key": "b"})).status == 200
        await until(lambda: bodies.held == 0)


async def large(service: Service, path: str, client: Connection) -> int:
    await client.send("POST", path, LARGE)
    answer = await client.answer()
    assert answer.headers["retry-after"]
    assert b"too many large requests" in answer.body
    return answer.status


async def test_a_body_that_waits_too_long_is_told_when_to_come_again_and_one_that_leaves_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = asyncio.Event()
    scripted = Scripted([[gate, "one"]])
    environment = {**ROOM, "USVC_MAX_WAIT_SECONDS": "0.2"}
    async with running(scripted, monkeypatch, environment) as service:
        bodies = service.app.state.service.bodies
        async with service.connect() as one, service.connect() as two, service.connect() as three:
            await one.send("POST", PATH, LARGE)
            await until(lambda: len(scripted.asked) == 1)
            assert await large(service, PATH, two) == 429
            assert await large(service, "/ui/read?name=a.txt", three) == 429
        await until_idle(service)  # The first one has left.
        assert bodies.held == 0


WEB = {"Origin": "http://page"}


@asynccontextmanager
async def without_room(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Service, Connection, asyncio.Event]]:
    """A service in which one body has all the room until the event is set, and the connection that has sent it."""
    gate = asyncio.Event()
    scripted = Scripted([[gate, "one"]])
    environment = {**ROOM, "USVC_MAX_WAIT_SECONDS": "0"}
    async with running(scripted, monkeypatch, environment) as service, service.connect() as one:
        await one.send("POST", PATH, LARGE)
        await until(lambda: len(scripted.asked) == 1)
        yield service, one, gate


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        (PATH, {}, LARGE),
        (PATH, WEB, LARGE),
        (PATH, {"Content-Encoding": "gzip"}, gzip.compress(LARGE)),
        (PATH, {"Content-Length": "900000"}, LARGE),
        (PATH, {"Content-Length": "900000", "Expect": "100-continue"}, b""),
        ("/v1/messages", {}, LARGE),
        ("/api/chat", {}, LARGE),
        ("/ui/read?name=a.txt", {}, LARGE),
    ],
    ids=["plain", "from a page", "compressed", "a part", "nothing yet", "anthropic", "ollama", "a file"],
)
async def test_a_body_that_waits_is_dropped_at_once_when_its_client_leaves(
    path: str, headers: dict[str, str], body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with without_room(monkeypatch) as (service, one, gate):
        bodies = service.app.state.service.bodies
        async with AsyncExitStack() as stack:
            for client in [await stack.enter_async_context(service.connect()) for _ in range(3)]:
                await client.send("POST", path, body, headers)
            await until(lambda: bodies.waiting == 3)
        await until(lambda: bodies.waiting == 0)
        assert (bodies.held, bodies.ahead.held, bodies.ahead.waiting) == (len(LARGE), 0, 0)
        gate.set()
        assert (await one.answer()).status == 200


@pytest.mark.parametrize("headers", [{}, WEB, {"Expect": "100-continue"}])
async def test_a_body_whose_first_64_kb_have_not_come_needs_no_room_to_be_dropped(
    headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with without_room(monkeypatch) as (service, one, gate):
        bodies = service.app.state.service.bodies
        async with service.connect() as stays:
            await stays.send("POST", PATH, LARGE[:300_000], {"Content-Length": str(len(LARGE))})
            await until(lambda: bodies.ahead.held > 0)
            async with service.connect() as leaves:
                await leaves.send("POST", PATH, b"", {"Content-Length": "100000", **headers})
                await until(lambda: bodies.waiting == 2)
                leaves.writer.write(LARGE[:65_000])
                await leaves.writer.drain()
            await until(lambda: bodies.waiting == 1)
            assert bodies.ahead.waiting == 0
            stays.writer.write(LARGE[300_000:])
            gate.set()
            assert [(await client.answer()).status for client in (one, stays)] == [200, 200]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (PATH, lambda said: said["detail"]),
        ("/v1/completions", lambda said: said["error"]["message"]),
        ("/v1/messages", lambda said: said["error"]["message"]),
        ("/api/chat", lambda said: said["error"]),
    ],
)
async def test_a_body_that_was_read_ahead_gets_its_errors_in_its_own_dialect(
    path: str, error: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    scripted = Scripted([[gate, "one"]])
    environment = {**ROOM, "USVC_MAX_WAIT_SECONDS": "0.1"}
    async with running(scripted, monkeypatch, environment) as service, service.connect() as one:
        await one.send("POST", PATH, LARGE)
        await until(lambda: len(scripted.asked) == 1)
        late = await service.post(LARGE, path)
        assert (late.status, "too many large requests" in error(late.json)) == (429, True)
        async with service.connect() as client:
            client.writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode())
            client.writer.write(b"f4240\r\n%b\r\n2\r\n[]\r\n0\r\n\r\n" % bytes(1_000_000))
            large = await client.answer()
        assert (large.status, "larger than the 1000000 bytes" in error(large.json)) == (413, True)
