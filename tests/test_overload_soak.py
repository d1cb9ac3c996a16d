"""Ten times more requests than can be answered, for a minute, from a load generator in a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.process import PATIENCE, ROOT, Running, serving

RUNNING, WAITING, TOKENS, SECONDS_A_TOKEN = 64, 64, 20, 0.05
CAPACITY = RUNNING / (TOKENS * SECONDS_A_TOKEN)
"""Answers a second."""
SLOW = f"""
import asyncio
from time import monotonic
from comps.cli import cli
from comps.core.types import Finished, Usage
from comps.model_servers.scripted import Scripted

class Slow(Scripted):
    @classmethod
    def open(cls, target):
        return cls(name=target.model_name)

    async def generate(self, prompt, sampling, options, answer):
        began = monotonic()
        for number in range({TOKENS}):
            await asyncio.sleep(began + (number + 1) * {SECONDS_A_TOKEN} - monotonic())
            answer.text(" word")
        answer.finished(Finished("stop", Usage(1, {TOKENS})))

Scripted.open = Slow.open
cli(["serve"])
"""
"""A service with a model server whose tokens come by the clock, however late the service takes them."""


def load(service: Running, rate: float, seconds: float) -> dict[str, Any]:
    """The figures of `tests.load`, which are printed too."""
    command = [sys.executable, "-m", "tests.load", str(service.port), str(rate), str(seconds)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + PATIENCE, check=True)
    said: dict[str, Any] = json.loads(out.stdout)
    print(f"{rate:g} requests a second for {seconds:g} s:", json.dumps(said, indent=2))
    return said


def metrics(service: Running) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
    connection.request("GET", "/metrics")
    said = connection.getresponse().read().decode()
    connection.close()
    return said


@pytest.mark.soak
def test_ten_times_overload(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {
        "LLM_NAME": "scripted",
        "MODEL_SERVER": "scripted",
        "LOG_PATH": "/dev/null",
        "USVC_MAX_RUNNING": str(RUNNING),
        "USVC_MAX_WAITING": str(WAITING),
    }
    others = os.getloadavg()[0]
    with capsys.disabled(), serving("-c", SLOW, **settings) as service:
        peak = load(service, 1.2 * CAPACITY, 20)
        overload = load(service, 10 * CAPACITY, 60)
        told = metrics(service)
    assert peak["others"] == overload["others"] == {}
    assert overload["refused"]["number"] > 5 * CAPACITY * 60
    for gauge in ("running", "waiting"):
        assert f'opea_llm_requests_{gauge}{{model="scripted"}} 0.0' in told
    if others > (os.cpu_count() or 1):
        pytest.skip(f"the machine is busy (load average {others:.1f}): times are printed, and not judged")
    assert overload["whole answers a second"] >= 0.95 * peak["whole answers a second"] > 0.5 * CAPACITY
    assert overload["refused"]["p99"] < 50
    for path in ("/health", "/metrics", "/v1/models"):
        assert overload[path]["p95"] < 250
