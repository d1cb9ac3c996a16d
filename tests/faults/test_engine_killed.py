"""The process of an embedded engine is killed: its requests fail clearly, and it comes back by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading

import pytest

from comps.core.errors import SettingsError
from comps.model_servers import FRAMEWORKS
from comps.model_servers.embedded import base
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


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_requests_of_a_killed_engine_fail_and_it_is_started_again_without_being_asked(
    monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    monkeypatch.setattr(base, "_FIRST_PAUSE", 0.01)
    server = Held()
    async with running(server, monkeypatch, {"FRAMEWORK": framework, "LLM_NAME": "words"}) as service:
        whole = asyncio.ensure_future(service.post({**body("words", False, QUESTION), "max_tokens": MANY}))
        stream = await begun(service)
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        streamed, got = of_stream(await asyncio.wait_for(stream, PATIENCE)), await asyncio.wait_for(whole, PATIENCE)
        assert streamed.text.startswith(" round")
        assert streamed.error == "the model's process has ended (exit code -9)"
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


async def test_an_engine_that_nobody_asks_is_started_again_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Words("words")
    async with running(server, monkeypatch, {"LLM_NAME": "words"}) as service:
        before = server.pid
        assert before
        os.kill(before, signal.SIGKILL)

        async def look() -> None:
            while server.pid in (before, None):
                await service.get("/health")  # Which asks no model.

        await asyncio.wait_for(look(), PATIENCE)


async def until_ready(service: Service) -> None:
    while (await service.get("/ready")).status != 200:
        pass
