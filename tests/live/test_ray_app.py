"""The Ray Serve application as its clients see it: a real Ray, real replicas, a real model, over a socket."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from comps import Message, Prompt, Sampling, collect
from comps.model_servers import open_model_server
from comps.model_servers.target import Target

pytest.importorskip("ray")

APP = Path(__file__).parents[2] / "impl" / "model_server" / "ray" / "serve_app.py"
PATIENCE = 120.0
"""Seconds after which a test gives up on something that should have come before."""
CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Count from one to ten thousand, in words."}],
    "max_tokens": 6000,
    "temperature": 0,
    "repetition_penalty": 1.3,
}

pytestmark = [pytest.mark.live, pytest.mark.xdist_group("ray")]


def start(tmp_path: Path, port: int, **environment: str) -> subprocess.Popen[bytes]:
    """The application, told apart from all others by its log's name."""
    usual = {"LLM_RAY_HOST": "127.0.0.1", "LLM_ENDPOINT_PORT": str(port), "LLM_RAY_CPUS": "0.1"}
    with (tmp_path / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(APP)],
            env={**os.environ, **usual, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(what: str, true: Callable[[], bool]) -> None:
    """Poll until a condition is true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of an application that may have two replicas, and has the second one at two answers under way."""
    folder, port = tmp_path_factory.mktemp("ray"), free_port()
    scaling = {"LLM_RAY_MAX_REPLICAS": "2", "LLM_RAY_REPLICA_REQUESTS": "1", "LLM_RAY_UPSCALE_SECONDS": "0"}
    process = start(folder, port, **scaling)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
            until("Ray says that it serves", lambda: _serves(folder, process))
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _serves(folder: Path, process: subprocess.Popen[bytes]) -> bool:
    said = (folder / "log").read_text("utf-8", "replace")
    assert process.poll() is None, said
    return "ray_serve: listening on" in said


def test_a_whole_answer_is_openai_s(app: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "What is Deep Learning?"}], "max_tokens": 5, "temperature": 0}
    answer = app.post(CHAT, json=body).raise_for_status().json()
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5


def test_the_openai_client_reads_its_streams(app: httpx.Client) -> None:
    with OpenAI(base_url=f"{app.base_url}/v1", api_key="none") as client:
        (model,) = client.models.list()
        chat = client.chat.completions.create(
            model=model.id, messages=[{"role": "user", "content": "Hello"}], max_tokens=4, stream=True
        )
        chunks = list(chat)
        pieces = list(client.completions.create(model=model.id, prompt="Deep learning is", max_tokens=4, stream=True))
    assert len(chunks) > 2, "the stream came in one piece"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert "".join(piece.choices[0].text for piece in pieces)
    assert pieces[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_wrong_field_is_a_400_in_openai_s_form(app: httpx.Client, path: str) -> None:
    question: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {"prompt": "x"}
    answer = app.post(path, json={**question, "max_tokens": -4})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["param"] == "max_tokens"


@pytest.mark.parametrize("prompt", ["Deep learning is", (Message("user", "What is Deep Learning?"),)])
async def test_the_kind_ray_serve_asks_it(app: httpx.Client, prompt: Prompt) -> None:
    server = open_model_server("ray_serve", Target("SmolLM2-135M-Instruct", str(app.base_url)))
    try:
        assert (await server.describe()).context_window == 8192
        answer = await collect(server.generate, prompt, Sampling(max_tokens=5, temperature=0), {})
    finally:
        await server.aclose()
    assert answer.text
    assert answer.reason == "length"
    assert answer.usage
    assert answer.usage.completion_tokens == 5


def test_liveness_and_an_unknown_path(app: httpx.Client) -> None:
    assert app.get("/health").status_code == 200
    assert app.post("/v1/nothing", json={}).status_code == 404


def engines(client: httpx.Client) -> list[int]:
    """The process ids of the engines that belong to this application: those with its port in their environment."""
    mark = f"LLM_ENDPOINT_PORT={client.base_url.port}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = mark in (process / "environ").read_bytes().split(b"\0")
            if ours and b"openvino_engine" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def ticks(process: int) -> int:
    """The processor time that a process has had, in clock ticks."""
    after_name = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()
    return int(after_name[11]) + int(after_name[12])


def idle(client: httpx.Client) -> bool:
    """Whether no engine has worked for a moment; one that generates takes all of that moment."""
    before = {process: ticks(process) for process in engines(client)}
    time.sleep(0.5)
    return bool(before) and all(ticks(process) - had <= 5 for process, had in before.items())


def test_leaving_a_stream_stops_the_engine(app: httpx.Client) -> None:
    with app.stream("POST", CHAT, json={**LONG, "stream": True}) as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(6)]
        assert not idle(app), "the answer was over before it was left"
    until("the engines rest", lambda: idle(app))


def test_leaving_a_whole_answer_stops_the_engine(app: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        app.post(CHAT, json=LONG, timeout=2)
    until("the engines rest", lambda: idle(app))


async def test_load_brings_a_second_replica(app: httpx.Client) -> None:
    assert len(engines(app)) == 1
    async with httpx.AsyncClient(base_url=app.base_url, timeout=PATIENCE) as client:
        asking = [asyncio.ensure_future(client.post(CHAT, json=LONG)) for _ in range(6)]
        try:
            await asyncio.to_thread(until, "there are two engines", lambda: len(engines(app)) == 2)
        finally:
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)


def test_told_to_stop_it_ends_what_is_under_way_and_leaves_nothing_behind(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, port)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
        until("Ray says that it serves", lambda: _serves(tmp_path, process))
        with client.stream("POST", CHAT, json={**LONG, "max_tokens": 40, "stream": True}) as answer:
            lines = answer.iter_lines()
            assert next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(PATIENCE) == 0
        until("the engine has ended", lambda: not engines(client))


def test_a_model_that_is_not_there_ends_it_with_the_reason(tmp_path: Path) -> None:
    process = start(tmp_path, free_port(), LLM_NAME="/nowhere/model.gguf")
    assert process.wait(PATIENCE) == 1
    last = (tmp_path / "log").read_text("utf-8").splitlines()[-1]
    assert last.startswith("ray_serve: /nowhere/model.gguf (openvino) cannot be served:")
    assert "no such file" in last
