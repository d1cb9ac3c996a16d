"""A log that cannot be written, and a clock that jumps."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path

import pytest

from comps.model_servers.remote.failures import failure
from tests.faults.model_server import FaultyServer, Reply, Script
from tests.faults.outcomes import body, of_stream
from tests.faults.test_replies import served
from tests.process import PATIENCE, Running, serving
from tests.service import PATH

SCRIPTED = {"MODEL_SERVER": "scripted", "LLM_NAME": "demo"}
ASKED = {"messages": "?"}
FULL_STDERR = """
import os, runpy, sys
print("answering with", file=sys.stderr, flush=True)
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
sys.argv = ["opea-llm", "serve"]
runpy.run_module("comps", run_name="__main__")
"""
YEARS = 10 * 365 * 86_400.0


def check_answers(service: Running) -> None:
    for _ in range(30):
        assert b"choices" in service.post(ASKED)


def test_a_full_disk_for_the_log_is_told_once_and_requests_go_on() -> None:
    with serving(**SCRIPTED, LOG_PATH="/dev/full") as service:
        check_answers(service)
        assert service.end(signal.SIGTERM) == 0
    told = [line for line in service.said if "log" in line]
    assert told == ["the log cannot be written: /dev/full: [Errno 28] No space left on device\n"]


def test_a_full_disk_for_standard_error_stops_no_request() -> None:
    with serving("-c", FULL_STDERR, **SCRIPTED) as service:
        for _ in range(PATIENCE * 100):  # It cannot say when it is ready.
            with suppress(OSError, AssertionError):
                service.post(ASKED)
                break
            time.sleep(0.01)
        check_answers(service)
        assert service.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("jump", [YEARS, -YEARS])
async def test_a_clock_that_jumps_moves_no_deadline(
    jump: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The wall clock jumps in the middle of a stream."""
    jumped, real = asyncio.Event(), time.time

    def after_the_jump(reply: Reply) -> Script:
        yield reply.head()
        yield from reply.chunks[:2]
        yield jumped
        yield from reply.chunks[2:]
        yield b"0\r\n\r\n"

    async with (
        FaultyServer(after_the_jump).listening() as server,
        served(server.url, monkeypatch, tmp_path, LLM_TOTAL_SECONDS="60") as service,
        service.connect() as client,
    ):
        await client.send("POST", PATH, json.dumps(body("vllm", True)).encode())
        assert (await client.head()).status == 200
        data = await client.chunk()
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        jumped.set()
        while chunk := await client.chunk():
            data += chunk
        got = of_stream(data)
        assert (got.text, got.ended) == ("".join(server.tokens), True)
        metrics = (await service.get("/metrics")).body.decode()
        assert all(float(line.split()[-1]) < YEARS / 10 for line in metrics.splitlines() if "seconds_sum" in line)


@pytest.mark.parametrize("jump", [YEARS, -YEARS])
def test_a_date_to_retry_after_is_read_by_the_clock_of_the_server_that_said_it(
    jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    headers = {b"retry-after": formatdate(now + 30, usegmt=True).encode()}
    dated = {**headers, b"date": formatdate(now, usegmt=True).encode()}
    monkeypatch.setattr(time, "time", lambda: now + jump)
    assert failure(503, dated, b"").retry_after == 30
    undated = failure(503, headers, b"").retry_after
    assert undated is not None
    assert 1 <= undated <= 86_400
