"""A service with more requests than it takes: who is refused, how, and what is left afterwards."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from comps import app as composition
from comps.access import Caller
from comps.core.beside import LONG
from comps.core.errors import ModelServerError, Overloaded
from comps.core.request_id import REQUEST_ID
from comps.core.types import ModelInfo
from comps.model_servers.scripted import Script, Scripted
from tests.dialects.kinds import KINDS
from tests.service import PATH, PATIENCE, Able, Connection, Service, running, until_idle

KEY = "X-Test-Key"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}], "stream": True}


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers have keys, with the names that are in a header."""

    def with_keys(app: FastAPI) -> ASGIApp:
        served = composition.direct(app)

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            name = dict(scope.get("headers", ())).get(KEY.lower().encode())
            if name:
                scope["opea_llm.caller"] = Caller(name.decode())
            await served(scope, receive, send)

        return serve

    monkeypatch.setattr("tests.service.direct", with_keys)


async def metrics(service: Service) -> dict[str, float]:
    """The values of the service's metrics, by their names with labels."""
    lines = (await service.get("/metrics")).body.decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


async def until(service: Service, **wanted: float) -> None:
    """Ask the metrics until the model `scripted` has so many requests `running` and `waiting`."""

    async def look() -> None:
        while True:
            values = await metrics(service)
            if all(values[f'opea_llm_requests_{name}{{model="scripted"}}'] == value for name, value in wanted.items()):
                return

    await asyncio.wait_for(look(), PATIENCE)


def limits(running: int, waiting: int, seconds: float = 0) -> dict[str, str]:
    return {
        "USVC_MAX_RUNNING": str(running),
        "USVC_MAX_WAITING": str(waiting),
        "USVC_MAX_WAIT_SECONDS": str(seconds),
    }


class Clients(AsyncExitStack):
    """Clients that wait for their answers."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service

    async def ask(self, key: str = "", body: Any = CHAT, path: str = PATH) -> Connection:
        client = await self.enter_async_context(self._service.connect())
        await client.send("POST", path, json.dumps(body).encode(), {KEY: key})
        return client


@asynccontextmanager
async def full(
    monkeypatch: pytest.MonkeyPatch, gate: asyncio.Event, environment: Mapping[str, str], asked: int = 2
) -> AsyncIterator[tuple[Service, Clients, list[Connection]]]:
    """A service with one slot, whose answers wait for `gate`, and the clients that have been admitted."""
    async with (
        running(Able([[gate, "one"]]), monkeypatch, environment) as service,
        Clients(service) as clients,
    ):
        admitted = []
        for number in range(asked):
            admitted.append(await clients.ask())
            await until(service, running=1, waiting=number)
        yield service, clients, admitted
        gate.set()


async def test_beyond_the_queue_every_body_is_refused_in_its_own_shape_before_it_is_validated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = asyncio.Event()
    dialects = {"LLM_DIALECTS": ",".join(dict.fromkeys(kind.dialect for kind in KINDS))}
    async with full(monkeypatch, gate, limits(1, 1) | dialects) as (service, _, admitted):
        handlers = {one.endpoint.path: one.endpoint for one in service.app.state.service.handlers}
        read = [kind for kind in KINDS if any(call is kind.call for call, _ in handlers[kind.route].calls)]
        with monkeypatch.context() as patched:
            patched.setattr("comps.dialects.shared.endpoint._validated", None)  # What calls it fails.
            for kind in read:
                answer = await service.post(kind.examples[0], kind.path)
                assert (answer.status, answer.headers["retry-after"]) == (429, "1")
                style = kind.call.style
                REQUEST_ID.set(answer.headers["x-request-id"])  # Some errors have it in them.
                assert answer.body == style.encode(style.error(Overloaded("too many requests: 1 are waiting already")))
        with uncollected() as left:
            assert (await service.post(CHAT)).status == 429
        assert left == []
        for path in ("/health", "/ready", "/metrics", "/v1/models"):
            assert (await service.get(path)).status == 200
        told = await metrics(service)
        assert told['opea_llm_requests_refused_total{model="scripted",reason="queue_full"}'] == len(read) + 1
        gate.set()
        assert [(await client.answer()).status for client in admitted] == [200, 200]
        await until_idle(service)
        assert (await metrics(service))['opea_llm_queue_seconds_count{model="scripted"}'] == 1


@contextmanager
def uncollected() -> Iterator[list[str]]:
    """The kinds of objects of ours that are left to the garbage collector."""
    left: list[str] = []
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield left
        gc.collect()
        left += [type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith("comps")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


LARGE = "word " * LONG


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":"' + LARGE.encode(),
        {**CHAT, "messages": LARGE, "temperature": "hot"},
        {"messages": [{"a": LARGE}]},
    ],
    ids=["no JSON", "a field", "a message"],
)
async def test_a_large_body_that_is_refused_is_not_left_to_the_garbage_collector(
    body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Scripted([["one"]]), monkeypatch) as service:
        await service.post(body)  # What is loaded with the first one stays.
        with uncollected() as left:
            assert (await service.post(body)).status == 400
    assert left == []


async def test_a_model_that_is_full_refuses_no_request_of_another_and_none_before_its_prompt_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    config = tmp_path / "config.ini"
    config.write_text("[Model]\nmodel_name = scripted\nmodel_server = scripted\n[Model.other]\n")
    monkeypatch.chdir(tmp_path)
    servers = {"scripted": Scripted([[gate, "one"]]), "other": Scripted([["two"]])}
    async with running(servers, monkeypatch, limits(1, 0)) as service, Clients(service) as clients:
        await clients.ask()
        await until(service, running=1)
        with monkeypatch.context() as patched:
            patched.setattr("comps.handler._requests", None)  # What calls it fails.
            assert (await service.post(CHAT)).status == 429
        assert (await service.post({**CHAT, "model": "other"})).status == 200
        told = await metrics(service)
        assert [told[f'opea_llm_requests_running{{model="{name}"}}'] for name in servers] == [1, 0]
        refused = [told[f'opea_llm_requests_refused_total{{model="{name}",reason="queue_full"}}'] for name in servers]
        assert refused == [1, 0]
        gate.set()
        await until_idle(service)


class Describing(Scripted):
    """A model server that does not tell what it is before `gate` is set."""

    gate: asyncio.Event | None = None
    times = 0

    async def describe(self) -> ModelInfo:
        if self.gate:
            self.times += 1
            await self.gate.wait()
        return await super().describe()


@pytest.mark.parametrize("path", [PATH, "/v1/prompt"])
async def test_a_description_is_asked_for_within_a_slot(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Describing([["one"]])
    server.gate = asyncio.Event()
    async with running(server, monkeypatch, limits(1, 1)) as service, Clients(service) as clients:
        admitted = []
        for waiting in range(2):
            admitted.append(await clients.ask(path=path))
            await until(service, running=1, waiting=waiting)
        assert (await service.post(CHAT, path)).status == 429
        assert server.times == 1
        server.gate.set()
        assert [(await client.answer()).status for client in admitted] == [200, 200]


async def test_a_waiting_request_whose_client_leaves_frees_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    async with full(monkeypatch, gate, limits(1, 1)) as (service, clients, admitted):
        assert (await service.post(CHAT)).status == 429
        admitted[1].close()
        await until(service, running=1, waiting=0)
        admitted[1] = await clients.ask()
        await until(service, running=1, waiting=1)
        gate.set()
        assert [(await client.answer()).status for client in admitted] == [200, 200]


@pytest.mark.parametrize("stream", [True, False])
async def test_who_waits_too_long_is_refused(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with full(monkeypatch, asyncio.Event(), limits(1, 1, 0.05), asked=1) as (service, _, _):
        answer = await service.post({**CHAT, "stream": stream})
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert "no slot became free within 0.05 s" in answer.json["error"]["message"]
        assert (await metrics(service))[
            'opea_llm_requests_refused_total{model="scripted",reason="waited_too_long"}'
        ] == 1


async def test_who_waits_too_long_and_has_got_a_comment_gets_an_error_item(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"USVC_KEEPALIVE_SECONDS": "0.02", **limits(1, 1, 0.4)}
    async with full(monkeypatch, asyncio.Event(), settings, asked=1) as (service, _, _):
        answer = await service.post(CHAT)
    assert (answer.status, answer.chunks[0]) == (200, b": keep-alive\n\n")
    assert b"no slot became free within 0.4 s" in answer.chunks[-1]


@pytest.mark.usefixtures("keys")
async def test_a_key_that_fills_the_queue_gives_way_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    async with running(Scripted([[gate, "one"]]), monkeypatch, limits(1, 4)) as service, Clients(service) as clients:
        greedy = []
        for waiting in range(5):
            greedy.append(await clients.ask("greedy"))
            await until(service, running=1, waiting=waiting)
        assert (await service.post(CHAT, **{KEY: "greedy"})).status == 429
        modest = await clients.ask("modest")
        refused = await greedy.pop().answer()
        assert refused.status == 429
        assert refused.json["error"]["message"].endswith("the newest one gave its place to another key")
        told = await metrics(service)
        assert told['opea_llm_requests_refused_total{model="scripted",reason="key_share"}'] == 1
        gate.set()
        assert [(await client.answer()).status for client in (modest, *greedy)] == [200] * 5


class Storm:
    """Clients that ask for all kinds of answers and leave in all states, the same with the same seed."""

    bodies = (
        (PATH, CHAT),
        (PATH, {**CHAT, "stream": False}),
        (PATH, {**CHAT, "model": "other"}),
        ("/v1/completions", {"prompt": ["a", "b", "c"], "stream": True}),
        ("/v1/completions", {"prompt": ["a", "b"], "model": "other"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/prompt", CHAT),
        ("/generate", {"prompt": "a"}),
        (PATH, {"messages": 5}),
    )

    def __init__(self, service: Service, seed: int) -> None:
        self._service = service
        self._random = Random(seed)
        self.outcomes: Counter[int | str] = Counter()

    async def client(self) -> None:
        path, body = self._random.choice(self.bodies)
        leaves = self._random.choice(("never", "never", "in the body", "at once", "later", "after the head"))
        key = self._random.choice(("", "a", "a", "b"))
        data = json.dumps(body).encode()
        rounds = self._random.randrange(200)
        async with self._service.connect() as connection:
            headers = {KEY: key}
            if leaves == "in the body":
                await connection.send("POST", path, data[:-3], {**headers, "Content-Length": str(len(data))})
            else:
                await connection.send("POST", path, data, headers)
            for _ in range(rounds if leaves == "later" else 0):
                await asyncio.sleep(0)
            if leaves == "after the head":
                await connection.head()
            self.outcomes[(await connection.answer()).status if leaves == "never" else leaves] += 1


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("seed", range(2))
async def test_after_a_storm_nothing_runs_and_nothing_waits(
    seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config.ini"
    config.write_text("[Model]\nmodel_name = scripted\nmodel_server = scripted\n[Model.other]\n")
    monkeypatch.chdir(tmp_path)
    answers: list[Script] = [["a", "b"], [ModelServerError("no")], ["a"] * 20, ["a", ModelServerError("no")]]
    servers = {"scripted": Able(answers, delay=0.001), "other": Able(answers)}
    async with running(servers, monkeypatch, limits(3, 4, 0.05)) as service:
        storm = Storm(service, seed)
        await asyncio.wait_for(asyncio.gather(*(storm.client() for _ in range(200))), PATIENCE)
        await until_idle(service)
        told = await metrics(service)
        for gauge in ("running", "waiting"):
            assert [told[f'opea_llm_requests_{gauge}{{model="{name}"}}'] for name in servers] == [0, 0]
        assert {200, 400, 429, "in the body", "at once", "later", "after the head"} <= storm.outcomes.keys()
        bodies = [{**CHAT, "stream": False, "model": name} for name in servers for _ in range(4)]
        assert {(await service.post(body)).status for body in bodies} <= {200, 502}  # There are slots for all.
