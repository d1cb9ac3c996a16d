"""Many clients at once, and for long: open streams, and the memory of the service's process. The load has a process of
its own, as has the model server."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import resource
import subprocess
import sys
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
from tests.process import ROOT, Running, serving

STREAMS = 2000
Load = Callable[[int, int, int], int]
"""So many streams at once, of so many tokens each, with so many milliseconds between them: the tokens that came."""


def test_memory_is_given_back_once_a_storm_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float]] = []

    class Noted:
        def __init__(self, requests: int) -> None:
            assert requests == 500
            told.append(("filled", now))

        def give_back(self) -> None:
            told.append(("given back", now))

    monkeypatch.setattr(memory, "Gaps", Noted)
    kept = Memory()
    for now in range(100):
        kept.look(float(now), running=500 if 40 <= now < 80 else 50 if now < 90 else 10)
    # Once more for what is kept for a while.
    assert told == [("filled", 80), ("given back", 83), ("filled", 83), ("given back", 86)]


async def test_objects_that_asyncio_keeps_for_reuse_are_replaced_by_ones_that_lie_together() -> None:
    future = asyncio.get_running_loop().create_future()
    several = [[future.__await__() for _ in range(300)] for _ in range(30)]
    spread = [ones.pop() for ones in several for _ in range(10)]
    del several
    spread.clear()
    gaps = memory.Gaps(1000)
    dense = {id(one) for one in gaps._dense}
    await asyncio.sleep(0)
    gaps.give_back()
    assert {id(one) for one in [future.__await__() for _ in range(200)]} <= dense


def test_large_blocks_are_returned_at_once_whatever_lies_between_them() -> None:
    program = r"""
import re
from comps.memory import return_large_blocks
def megabytes():
    return int(re.search(r"VmRSS:\s+(\d+)", open("/proc/self/status").read())[1]) / 1000
return_large_blocks()
del_me = b"x" * 16_000_000
del del_me
before = megabytes()
blocks = [(b"x" * 2_000_000, b"x" * 100_000) for _ in range(50)]
between = [small for _, small in blocks]
assert megabytes() > before + 90
del blocks
assert megabytes() < before + 10, (before, megabytes())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=ROOT)


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


def megabytes(service: Running, what: str = "VmRSS") -> float:
    """The memory of the service's process; `VmHWM`: the most that it has had."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found: Any = re.search(rf"^{what}:\s+(\d+) kB", status, re.MULTILINE)
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
        time.sleep(3 * memory._LOOK_SECONDS)
        after = megabytes(service)
    with capsys.disabled():
        print(f"\n{framework}: {before:.0f} MB, in the storm {storm:.0f} MB, after it {after:.0f} MB")
    assert after < 1.4 * before


@pytest.mark.soak
def test_three_hundred_bodies_of_two_megabytes_take_a_bounded_memory_and_leave_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = "word and more of it " * 100_000
    body = json.dumps({**chat(5), "messages": [{"role": "user", "content": text}]}).encode()

    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (PATH.encode(), len(body)) + body)
        answer = await reader.read()
        writer.close()
        return answer[:12]

    async def all_of_them(port: int) -> set[bytes]:
        return set(await asyncio.gather(*(ask(port) for _ in range(300))))

    with loaded(FRAMEWORK="native", LLM_CONTEXT_WINDOW="10000000") as (service, load):
        load(64, 50, 0)
        before = megabytes(service)
        assert asyncio.run(all_of_them(service.port)) == {b"HTTP/1.1 200"}
        most = megabytes(service, "VmHWM")
        time.sleep(3 * memory._LOOK_SECONDS)
        after = megabytes(service)
    with capsys.disabled():
        print(f"\n{before:.0f} MB, with the bodies {most:.0f} MB, after them {after:.0f} MB")
    assert most < before + 5 * 128
    assert after < 1.15 * before


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
