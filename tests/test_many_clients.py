"""Many clients at once, and for long: open streams, and the memory of the service's process. The load has a process of
its own, as has the model server."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import uvloop

from comps import memory
from comps.memory import Memory
from tests.benchmarks.sizing import PATH, chat, run_model_server
from tests.process import Running, serving

STREAMS = 2000
Load = Callable[[int, int, int], int]
"""So many streams at once, of so many tokens each, with so many milliseconds between them: the tokens that came."""


def test_memory_is_given_back_once_a_storm_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[float] = []
    kept = Memory()
    for now in range(200):
        monkeypatch.setattr(memory, "give_back", lambda now=now: given_back.append(now))
        kept.look(float(now), running=500 if 40 <= now < 80 else 50 if now < 150 else 10)
    assert given_back == [90, 120]  # Once more for what is kept for a while.


async def stream(port: int, body: bytes) -> int:
    """The tokens of one stream, which has to be whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (PATH.encode(), len(body), body))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    tokens = 0
    while not (line := await reader.readline()).startswith(b"0\r\n"):
        tokens += b'" word"' in line
        assert line
    writer.close()
    return tokens


async def streams(port: int, number: int, tokens: int, pause_ms: int) -> int:
    body = json.dumps(chat(tokens, pause_ms)).encode()
    return sum(await asyncio.gather(*(stream(port, body) for _ in range(number))))


def run_load(told: Connection) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    while asked := told.recv():
        told.send(uvloop.run(streams(*asked)))


@contextmanager
def loaded(**environment: str) -> Iterator[tuple[Running, Load]]:
    """The service before a model server, and what puts load on it."""
    context = multiprocessing.get_context("spawn")
    told, tells = context.Pipe(duplex=False)
    ours, theirs = context.Pipe()
    processes = [
        context.Process(target=run_model_server, args=(tells,)),
        context.Process(target=run_load, args=(theirs,)),
    ]
    for process in processes:
        process.start()
    settings = {
        "LLM_MODEL_SERVER_ENDPOINT": f"http://127.0.0.1:{told.recv()}",
        "MODEL_SERVER": "vllm",
        "LLM_NAME": "m",
        "LOG_LEVEL": "WARNING",
        "USVC_MAX_RUNNING": str(STREAMS),
    }
    try:
        with serving(**settings, **environment) as service:

            def load(number: int, tokens: int, pause_ms: int) -> int:
                ours.send((service.port, number, tokens, pause_ms))
                assert ours.poll(600)
                came: int = ours.recv()
                return came

            yield service, load
    finally:
        for process in processes:
            process.kill()
            process.join()


def megabytes(service: Running) -> float:
    """The memory of the service's process (RSS)."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found: Any = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1000


@pytest.mark.soak
@pytest.mark.parametrize("framework", ["native", "langchain"])
def test_two_thousand_streams_are_open_at_once_without_an_error_and_their_memory_comes_back(
    framework: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with loaded(FRAMEWORK=framework) as (service, load):
        load(64, 200, 0)
        before = megabytes(service)
        assert load(STREAMS, 20, 500) == STREAMS * 20
        storm = megabytes(service)
        time.sleep(2 * memory._LOOKS + 5)
        after = megabytes(service)
    with capsys.disabled():
        print(f"\n{framework}: {before:.0f} MB, in the storm {storm:.0f} MB, after it {after:.0f} MB")
    assert after - before < 0.75 * (storm - before)


@pytest.mark.soak
@pytest.mark.parametrize("framework", ["native", "langchain"])
def test_memory_is_the_same_after_a_million_tokens(framework: str, capsys: pytest.CaptureFixture[str]) -> None:
    with loaded(FRAMEWORK=framework) as (service, load):
        found = []
        for _ in range(10):
            assert load(50, 2000, 0) == 100_000
            found.append(megabytes(service))
    with capsys.disabled():
        print(f"\n{framework}: {found[0]:.1f} MB after 100,000 tokens, {found[-1]:.1f} MB after 1,000,000")
    assert found[-1] < 1.05 * found[0]
