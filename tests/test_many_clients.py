"""Many clients at once, and for long: open streams, and the memory of the service's process. The load has a process of
its own, as has the model server."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from comps import memory
from comps.core.beside import is_busy, run_beside
from tests.benchmarks.sizing import PATH, chat, run_model_server
from tests.process import ROOT, Running, serving

STREAMS = 2000
Load = Callable[[int, int, int], int]
"""So many streams at once, of so many tokens each, with so many milliseconds between them: the tokens that came."""


@pytest.mark.parametrize(("running", "busy"), [(1, True), (500, False)], ids=["a large body", "many requests"])
def test_garbage_is_collected_once_a_minute_if_there_is_a_quiet_moment(
    running: int, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: list[float] = []
    kept = memory.Memory()

    async def look(now: float, is_quiet: bool) -> None:
        monkeypatch.setattr(memory, "gc", SimpleNamespace(collect=lambda: collected.append(now)))
        monkeypatch.setattr(memory, "is_busy", lambda: busy and not is_quiet)
        kept.look(now, 1 if is_quiet else running)

    for now in map(float, range(0, 1000, 5)):
        asyncio.run(look(now, not 100 <= now < 130 and now < 200))
    assert collected == [55.0, 130.0, 190.0, 790.0]  # The last one waited for as long as it may.


def test_garbage_is_collected_in_storms_that_follow_each_other_while_large_bodies_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collected: list[float] = []
    kept = memory.Memory()
    monkeypatch.setattr(memory.Allocators, "use_glibc", lambda _: None)
    monkeypatch.setattr(memory, "is_busy", lambda: True)

    async def look(now: float) -> None:
        monkeypatch.setattr(memory, "gc", SimpleNamespace(collect=lambda: collected.append(now)))
        kept.in_storm()
        kept.look(now, 1)

    for now in map(float, range(0, 2000, 5)):
        asyncio.run(look(now))
    assert collected == [540.0, 1085.0, 1630.0]  # As for one storm: waiting does not begin anew.


async def test_work_beside_the_loop_is_known_until_it_has_ended() -> None:
    assert not is_busy()
    work = asyncio.ensure_future(run_beside(asyncio.sleep(3600)))
    await asyncio.sleep(0)
    assert is_busy()
    work.cancel()
    await asyncio.wait([work])
    assert not is_busy()


MEGABYTES = """
import re
def megabytes():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1000
"""


def run_program(program: str, **environment: str) -> str:
    """What a program of its own prints."""
    command = [sys.executable, "-c", MEGABYTES + program]
    done = subprocess.run(
        command, check=True, timeout=60, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    return done.stdout


def test_of_a_storm_with_a_few_objects_that_stay_no_memory_is_left() -> None:
    program = """
import asyncio
from comps import memory
async def main():
    kept = memory.Memory()
    def storm():
        kept.in_storm()
        objects = [[None, float(number), bytes(number % 400)] for number in range(200_000)]
        told.append(megabytes())
        return objects[::500]
    async def rest():
        kept.look(next(times), memory.STORM // 2)  # It goes on.
        told.append(megabytes())
        kept.look(next(times), memory.STORM // 2 - 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        told.append(megabytes())
    told, times, before = [], iter(range(0, 99, 10)), megabytes()
    few = [storm()]
    await rest()
    few.append(storm())
    await rest()
    print(*(round(one - before) for one in told))
asyncio.run(main())
"""
    first, going_on, after, second, _, after_second = (int(one) for one in run_program(program).split())
    assert min(first, going_on, second) > 60
    assert after < 5
    assert after_second < 8


@pytest.mark.parametrize(
    "environment", [{}, {"PYTHONMALLOC": "debug"}, {"PYTHONMALLOC": "malloc"}, {"PYTHONDEVMODE": "1"}], ids=str
)
def test_objects_outlive_the_allocator_that_they_came_from(environment: dict[str, str]) -> None:
    program = """
from comps.memory import Allocators, _name
allocators, kept = Allocators(), []
own = _name()
for number in range(20):
    (allocators.use_python if number % 2 else allocators.use_glibc)()
    print("own" if _name() == own else "mixed")
    for one in kept:  # What is there grows, shrinks and goes.
        one += [bytes(size) for size in range(0, 700, 7)]
        del one[::3]
    kept.append([{number: str(number)} for number in range(1000)])
    if number % 5 == 4:
        del kept[::2]
allocators.use_python()
allocators.use_python()
assert _name() == own
"""
    used = run_program(program, **environment).split()
    assert used == ["own"] * 20 if environment else ["mixed", "own"] * 10


def test_large_blocks_are_returned_at_once_whatever_lies_between_them() -> None:
    program = """
from comps.memory import return_large_blocks
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
    run_program(program)


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
        after = []
        for _ in range(3):
            assert load(STREAMS, 20, 500) == STREAMS * 20
            time.sleep(3 * memory._LOOK_SECONDS)
            after.append(megabytes(service))
        most = megabytes(service, "VmHWM")
    with capsys.disabled():
        told = ", ".join(f"{one:.0f}" for one in after)
        print(f"\n{framework}: {before:.0f} MB, in three storms {most:.0f} MB, after each {told} MB")
    assert max(after) < 1.25 * before


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
