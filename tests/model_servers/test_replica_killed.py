"""Replicas over real sockets: one is killed, and takes no more with it than what it had begun."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import comps
from tests.service import PATH, PATIENCE, Connection, Service, running

ROOT = Path(comps.__file__).parent.parent


@asynccontextmanager
async def process() -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A replica in a process of its own, and its URL."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.model_servers.replica",
        cwd=ROOT,
        env={**os.environ, "LLM_NAME": "served", "MODEL_SERVER": "scripted", "FRAMEWORK": "native"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout
    try:
        port = int(await asyncio.wait_for(child.stdout.readline(), PATIENCE))
        yield child, f"http://127.0.0.1:{port}"
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def in_flight(url: str, number: int) -> None:
    """Ask a replica's metrics until it is answering that many requests."""
    line = f"opea_llm_requests_in_flight {float(number)}\n"
    for _ in range(10_000):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        connection = Connection(reader, writer)
        await connection.send("GET", "/metrics")
        metrics = (await connection.answer()).body.decode()
        connection.close()
        if line in metrics:
            return
    pytest.fail(f"{number} requests never came")


class Streams:
    """Streams of a service, and how many of them had begun before a replica was killed.

    Args:
        service: Where they are asked for.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.begun: asyncio.Queue[None] = asyncio.Queue()
        self.killed = asyncio.Event()

    async def stream(self) -> tuple[bytes, bool]:
        """All items of one stream, and whether it had begun before the replica was killed."""
        async with self._service.connect() as client:
            await client.send("POST", PATH, json.dumps({"messages": "?", "stream": True}).encode())
            head = await client.head()
            assert head.status == 200
            chunks = [await client.chunk()]
            early = not self.killed.is_set()
            self.begun.put_nowait(None)
            while chunk := await client.chunk():
                chunks.append(chunk)
            return b"".join(chunks), early


@pytest.mark.parametrize("framework", ["native", "langchain"])
async def test_a_replica_that_is_killed_takes_no_more_than_what_it_had_begun(
    monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    async with process() as (doomed, first), process() as (survivor, second):
        environment = {
            "FRAMEWORK": framework,
            "LLM_NAME": "served",
            "MODEL_SERVER": "openai_api",
            "LLM_MODEL_SERVER_ENDPOINT": f"{first}, {second}/v1",
        }
        async with running({}, monkeypatch, environment) as service:
            streams = Streams(service)
            answers = [asyncio.ensure_future(streams.stream()) for _ in range(64)]
            for _ in range(32):
                await asyncio.wait_for(streams.begun.get(), PATIENCE)
            for url in (first, second):
                await asyncio.wait_for(in_flight(url, 32), PATIENCE)
            os.kill(doomed.pid, signal.SIGKILL)
            streams.killed.set()
            await asyncio.wait_for(in_flight(second, 48), PATIENCE)
            assert survivor.stdin
            survivor.stdin.write(b"go on\n")
            ended = await asyncio.wait_for(asyncio.gather(*answers), PATIENCE)
            ready = await service.get("/v1/health_check")
            after, _ = await asyncio.wait_for(streams.stream(), PATIENCE)
    assert ready.status == 200
    check([*ended, (after, False)], whole=49)


def check(answers: list[tuple[bytes, bool]], whole: int) -> None:
    """So many answers are whole, and the others had begun before the replica was killed and end with an error."""
    broken = [(answer, early) for answer, early in answers if b"[DONE]" not in answer]
    assert (len(broken), len(answers)) == (16, 16 + whole)
    for answer, early in broken:
        assert early
        assert b'"one"' in answer
        *_, last = answer.strip().split(b"\n\n")
        assert "error" in json.loads(last.removeprefix(b"data: "))
    for answer in [answer for answer, _ in answers if b"[DONE]" in answer]:
        assert (answer.count(b'"one"'), answer.count(b'" two"'), b"error" in answer) == (1, 1, False)
