"""The process of an embedded engine is killed or stopped: requests fail clearly, and it comes back by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading

import pytest

from comps.core.errors import SettingsError
from comps.model_servers import FRAMEWORKS
from comps.model_servers.embedded import base, engine_process
from comps.model_servers.embedded.base import Embedded
from comps.model_servers.embedded.model_files import BUNDLED_MODEL
from comps.model_servers.embedded.openvino import OpenVINO
from tests.faults.outcomes import body, of_stream, outcome
from tests.model_servers.embedded.word_engine import Words
from tests.service import PATH, PATIENCE, Service, running

QUESTION = "round and"
MANY = 50_000_000
"""Tokens, more than an engine generates in a test."""


class Held(Words):
    """The engine without a model, which is found a second time only when it may be; its first two times then fail."""

    def __init__(self) -> None:
        super().__init__("words", context_window=100_000_000)
        self.may_be_found = threading.Event()
        self.searches = 0
        self.find = self._find  # type: ignore[method-assign]

    def _find(self, model_name: str, local_dir: str) -> str:
        self.searches += 1
        if self.searches > 1:
            assert self.may_be_found.wait(PATIENCE)
        if self.searches in (2, 3):
            raise SettingsError("the disk is away")
        return model_name


async def begun(service: Service) -> asyncio.Task[bytes]:
    """The rest of a stream that has begun."""
    first = asyncio.Event()

    async def read() -> bytes:
        async with service.connect() as client:
            question = {**body("words", True, QUESTION), "max_tokens": MANY}
            await client.send("POST", PATH, json.dumps(question).encode())
            assert (await client.head()).status == 200
            data = b""
            while chunk := await client.chunk():
                data += chunk
                first.set()
            return data

    reading = asyncio.ensure_future(read())
    await asyncio.wait_for(first.wait(), PATIENCE)
    return reading


SAID = {
    signal.SIGKILL: "the model's process has ended (exit code -9)",
    signal.SIGSTOP: "the model's process did not react any more, and was ended",
}


@pytest.fixture(params=SAID, ids=["killed", "stopped"])
def blow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> signal.Signals:
    """What the process gets. That it is stopped is noticed soon."""
    what: signal.Signals = request.param
    if what == signal.SIGSTOP:
        monkeypatch.setattr(engine_process, "_LOOK_SECONDS", 0.1)
    return what


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_requests_of_an_engine_that_is_killed_or_stopped_fail_and_it_is_started_again(
    monkeypatch: pytest.MonkeyPatch, framework: str, blow: signal.Signals
) -> None:
    monkeypatch.setattr(base, "_FIRST_PAUSE", 0.01)
    server = Held()
    async with running(server, monkeypatch, {"FRAMEWORK": framework, "LLM_NAME": "words"}) as service:
        whole = asyncio.ensure_future(service.post({**body("words", False, QUESTION), "max_tokens": MANY}))
        stream = await begun(service)
        assert server.pid
        os.kill(server.pid, blow)
        streamed, got = of_stream(await asyncio.wait_for(stream, PATIENCE)), await asyncio.wait_for(whole, PATIENCE)
        assert streamed.text.startswith(" round")
        assert streamed.error == SAID[blow]
        assert (got.status, got.json["error"]["message"]) == (503, streamed.error)
        assert (await service.get("/ready")).status == 503
        assert (await service.get("/health")).status == 200
        refused = await outcome(service, "words", True)
        assert (refused.status, refused.error) == (
            503,
            "the process of the model words has ended; it is being started again",
        )
        server.may_be_found.set()
        await asyncio.wait_for(until_ready(service), PATIENCE)
        assert server.searches == 4
        assert (await outcome(service, "words", True, "a .")).text == " a"


async def test_an_engine_that_nobody_asks_is_started_again_as_well(
    monkeypatch: pytest.MonkeyPatch, blow: signal.Signals
) -> None:
    server = Words("words")
    async with running(server, monkeypatch, {"LLM_NAME": "words"}) as service:
        before = server.pid
        assert before
        os.kill(before, blow)
        await asyncio.wait_for(until_another(service, server, before), PATIENCE)


async def until_another(service: Service, server: Embedded, before: int) -> None:
    """Wait until there is another process."""
    while server.pid in (before, None):
        await service.get("/health")  # Which asks no model.


async def until_ready(service: Service) -> None:
    while (await service.get("/ready")).status != 200:
        pass


@pytest.mark.soak
async def test_the_bundled_model_is_started_again_if_it_is_stopped_and_not_if_it_is_idle_or_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_process, "_LOOK_SECONDS", 0.1)
    server = OpenVINO(BUNDLED_MODEL)
    async with running(server, monkeypatch, {"LLM_NAME": "m", "LLM_FIRST_TOKEN_SECONDS": "0.5"}) as service:
        before = server.pid
        assert before
        await asyncio.sleep(5)
        assert server.pid == before
        long = {**body("m", False, "word " * 6000), "max_tokens": 1}
        assert (await service.post(long)).json["error"]["message"] == "the model server did not begin in time"
        os.kill(before, signal.SIGSTOP)
        late = await outcome(service, "m", True)
        assert (late.status, late.error) == (504, "the model server did not begin in time")
        await asyncio.wait_for(until_another(service, server, before), PATIENCE)
        await asyncio.wait_for(until_ready(service), PATIENCE)
        assert (await service.post({**body("m", False), "max_tokens": 1})).status == 200
