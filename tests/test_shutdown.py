"""The end of the service: readiness, requests that run meanwhile, connections, signals and exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from comps.core.types import ModelInfo
from comps.dialects.shared.base import GenerationCall
from comps.model_servers.scripted import Scripted
from tests.dialects.kinds import KINDS, Kind
from tests.process import PATIENCE, ROOT, Running, children, serving
from tests.service import PATH, Answer, Connection, Service, running, until_in_flight

STREAMED = {"messages": "?", "stream": True}
WHOLE = {"messages": "?", "stream": False}
SAID = b"the service is shutting down"
READINESS = ["/ready", "/v1/health_check", "/check", "/api/worker_status", "/healthz"]


class Told(Scripted):
    """A model server that begins each answer, and ends it when it is told to; the test sees how many it has begun."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        super().__init__([["one", self.goes_on, " two"]])


async def told(connection: Connection, body: Any, path: str = PATH, **headers: str) -> None:
    await connection.send("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)


async def is_closed(connection: Connection) -> bool:
    """Whether the server has closed the connection, once it does something with it."""
    return await asyncio.wait_for(connection.reader.read(1), PATIENCE) == b""


@asynccontextmanager
async def connections(service: Service, number: int) -> AsyncIterator[list[Connection]]:
    async with AsyncExitStack() as opened:
        yield [await opened.enter_async_context(service.connect()) for _ in range(number)]


async def test_before_it_accepts_no_more_it_is_not_ready_and_still_answers_on_connections_that_are_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted([["one"]]), monkeypatch) as service:
        answers = [(await service.get(path)).status for path in READINESS]
        assert answers == [200] * len(READINESS)
        service.server.pre_stop_seconds = 3600
        async with service.connect() as kept:
            await kept.send("GET", "/health")
            assert "connection" not in (await kept.answer()).headers
            service.app.state.service.withdraw()
            service.server.end()
            for path in READINESS:
                answer = await service.get(path)
                assert (path, answer.status, SAID in answer.body) == (path, 503, True)
            assert [(await service.get(path)).status for path in ("/health", "/v1/models", "/metrics")] == [200] * 3
            await told(kept, WHOLE)
            answer = await kept.answer()
            assert answer.json["choices"][0]["message"]["content"] == "one"
            assert answer.headers["connection"] == "close"
            assert await is_closed(kept)
        service.server.end_at_once()


async def test_then_nothing_is_accepted_idle_connections_are_closed_and_running_answers_are_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Told()
    async with running(model, monkeypatch) as service, connections(service, 4) as (idle, new, streamed, whole):
        service.server.config.timeout_graceful_shutdown = 3600
        await idle.send("GET", "/health")
        await idle.answer()
        await told(streamed, STREAMED)
        await streamed.head()
        await told(whole, WHOLE)
        await until_in_flight(service, 2)
        service.server.end()
        assert await is_closed(idle)
        assert await is_closed(new)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", service.port)
        model.goes_on.set()
        chunks = [chunk async for chunk in rest(streamed)]
        assert chunks[-1] == b"data: [DONE]\n\n"
        answer = await whole.answer()
        assert answer.json["choices"][0]["message"]["content"] == "one two"
        assert answer.headers["connection"] == "close"
        assert await is_closed(streamed)
        assert await is_closed(whole)
    assert service.server.cut_off == 0


async def rest(connection: Connection) -> AsyncIterator[bytes]:
    """The chunks of a stream that are left."""
    while chunk := await connection.chunk():
        yield chunk


def bodies(streamed: bool) -> list[tuple[Kind, Any]]:
    """One body of each kind that asks for text."""
    kinds = [kind for kind in KINDS if issubclass(kind.call, GenerationCall)]
    return [(kind, found[0]) for kind in kinds if (found := kind.bodies(streamed=streamed))]


async def test_what_runs_too_long_ends_with_an_error_in_every_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    streams, whole = bodies(True), bodies(False)
    asked = [*streams, *whole]
    async with running(Told(), monkeypatch) as service, connections(service, len(asked)) as opened:
        service.server.config.timeout_graceful_shutdown = 0
        for connection, (kind, body) in zip(opened, asked, strict=True):
            await told(connection, body, kind.path)
        begun = [await connection.head() for connection in opened[: len(streams)]]
        await until_in_flight(service, len(asked))
        service.server.end()
        for connection, (kind, _), head in zip(opened, streams, begun, strict=False):
            content = await asyncio.wait_for(connection.reader.read(), PATIENCE)
            assert head.status == 200
            assert b"[DONE]" not in content, kind
            if kind.path == "/agenerate":  # No item of it could say so, so its end is missing.
                assert not content.endswith(b"\r\n0\r\n\r\n")
            else:
                assert SAID in content or b"data: [ERROR]\n\n" in content, kind
                assert content.endswith(b"\r\n0\r\n\r\n"), kind
        for connection, (kind, _) in zip(opened[len(streams) :], whole, strict=True):
            answer = await connection.answer()
            assert (kind, answer.status, SAID in answer.body) == (kind, 503, True)
            assert answer.headers["connection"] == "close"
    assert service.server.cut_off == len(asked)


class Hanging(Scripted):
    """A model server that does not say what it is, from some moment on."""

    hangs = False

    async def describe(self) -> ModelInfo:
        if self.hangs:
            self.reached.set()
            await asyncio.Event().wait()
        return await super().describe()


@pytest.mark.parametrize("path", ["/ready", "/v1/health_check"])
async def test_a_route_that_waits_for_a_model_server_is_cut_off_as_well(
    monkeypatch: pytest.MonkeyPatch, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Hanging([["one"]])
    async with running(model, monkeypatch) as service, service.connect() as connection:
        service.server.config.timeout_graceful_shutdown = 0
        model.hangs = True
        await connection.send("GET", path)
        await asyncio.wait_for(model.reached.wait(), PATIENCE)
        service.server.end()
        answer = await connection.answer()
    assert (answer.status, SAID in answer.body) == (503, True)
    assert "Exception" not in caplog.text


@pytest.mark.parametrize(
    ("sent", "headers"),
    [(json.dumps(WHOLE).encode()[:5], {}), (json.dumps(WHOLE).encode(), {"Origin": "http://a.example"})],
    ids=["half of it has come", "through the middlewares"],
)
async def test_other_requests_that_are_cut_off_get_503_as_well(
    monkeypatch: pytest.MonkeyPatch, sent: bytes, headers: dict[str, str]
) -> None:
    async with running(Told(), monkeypatch) as service, service.connect() as connection:
        service.server.config.timeout_graceful_shutdown = 0
        length = str(len(json.dumps(WHOLE)))
        await connection.send("POST", PATH, sent, {"Content-Length": length, **headers})
        await until_in_flight(service, 1)
        service.server.end()
        answer = await connection.answer()
    assert (answer.status, SAID in answer.body) == (503, True)


async def test_what_waits_in_the_queue_is_answered_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Told()
    one = {"USVC_MAX_RUNNING": "1"}
    async with running(model, monkeypatch, one) as service, connections(service, 2) as opened:
        for connection in opened:
            await told(connection, WHOLE)
        await until_in_flight(service, 2)
        service.server.end()
        model.goes_on.set()
        contents = [(await connection.answer()).json["choices"][0]["message"]["content"] for connection in opened]
    assert contents == ["one two", "one two"]


# Signals and exit codes, of the command.


def in_own_namespace() -> Sequence[str]:
    """What a program is run with so that it is process 1."""
    within = ("unshare", "--pid", "--fork", "--kill-child")
    try:
        done = subprocess.run([*within, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return ()
    return within if done.returncode == 0 else ()


AS_PROCESS_1 = in_own_namespace()
"""Empty: it takes root, and the command unshare."""


@pytest.fixture
def heeding_hup() -> Iterator[None]:
    """Where the tests run under `nohup`, HUP is ignored, and it would be by the processes that they start."""
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    yield
    signal.signal(signal.SIGHUP, before)


@asynccontextmanager
async def command(
    monkeypatch: pytest.MonkeyPatch, model: Scripted, *arguments: str, within: Sequence[str] = (), **environment: str
) -> AsyncIterator[Running]:
    """`serve` in a process of its own, `within` another command that runs it, in front of `model`."""
    async with running(model, monkeypatch) as server:
        usual = {"MODEL_SERVER": "vllm", "FRAMEWORK": "native", "LLM_MODEL_SERVER_ENDPOINT": server.url}
        program = ("-m", "comps", "serve", *arguments)
        started = serving(*program, within=within, **{"LLM_NAME": "scripted", **usual, **environment})
        service = await asyncio.to_thread(started.__enter__)
        try:
            yield service
        finally:
            await asyncio.to_thread(started.__exit__, None, None, None)


@asynccontextmanager
async def connected(service: Running) -> AsyncIterator[Connection]:
    connection = Connection(*await asyncio.open_connection("127.0.0.1", service.port))
    try:
        yield connection
    finally:
        connection.close()


async def got(service: Running, path: str) -> Answer:
    async with connected(service) as connection:
        await connection.send("GET", path)
        return await connection.answer()


async def said(service: Running, what: str) -> None:
    """Wait until the service has said something."""
    await asyncio.to_thread(service.until_said, what)


async def exit_code(service: Running) -> int:
    return await asyncio.to_thread(service.process.wait, PATIENCE)


@pytest.mark.parametrize(
    ("workers", "first", "second"),
    [("1", signal.SIGTERM, signal.SIGTERM), ("2", signal.SIGHUP, signal.SIGINT)],
)
@pytest.mark.usefixtures("heeding_hup")
async def test_at_a_signal_it_is_not_ready_and_still_answers_and_at_a_second_one_it_ends_at_once_even_as_process_1(
    monkeypatch: pytest.MonkeyPatch, workers: str, first: signal.Signals, second: signal.Signals
) -> None:
    model, long = Told(), {"USVC_PRE_STOP_SECONDS": "3600", "USVC_DRAIN_SECONDS": "3600"}
    long |= {"USVC_WORKERS": workers}
    async with command(monkeypatch, model, within=AS_PROCESS_1, **long) as service, connected(service) as running:
        process = service.children()[0] if AS_PROCESS_1 else service.process.pid
        await told(running, STREAMED)
        await running.head()
        os.kill(process, first)
        await said(service, "not ready any more")
        ready = await got(service, "/ready")
        assert (ready.status, SAID in ready.body) == (503, True)
        assert (await got(service, "/health")).status == 200
        async with connected(service) as late:
            await told(late, STREAMED)
            assert (await late.head()).status == 200
            os.kill(process, second)
            for stream in (running, late):
                content = await asyncio.wait_for(stream.reader.read(), PATIENCE)
                assert SAID in content
                assert content.endswith(b"\r\n0\r\n\r\n")
        assert await exit_code(service) == 128 + second
    assert "Traceback" not in "".join(service.said)


@pytest.mark.usefixtures("heeding_hup")
async def test_answers_that_are_cut_off_at_the_end_of_the_grace_period_have_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with command(monkeypatch, Told(), USVC_DRAIN_SECONDS="0") as service, connected(service) as streamed:
        await told(streamed, STREAMED)
        await streamed.head()
        service.process.send_signal(signal.SIGHUP)
        assert SAID in await asyncio.wait_for(streamed.reader.read(), PATIENCE)
        assert await exit_code(service) == 4
        await said(service, "1 answers were cut off")


async def test_told_to_shut_down_over_http_it_finishes_the_stream_that_is_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Told()
    async with command(monkeypatch, model, USVC_ALLOW_SHUTDOWN="true") as service, connected(service) as running:
        await told(running, STREAMED)
        await running.head()
        async with connected(service) as asking:
            await asking.send("POST", "/shutdown")
            answer = await asking.answer()
        await said(service, "ending when all running answers have ended")
        model.goes_on.set()
        content = await asyncio.wait_for(running.reader.read(), PATIENCE)
        assert (answer.status, answer.json) == (200, {})
        assert b" two" in content
        assert b"data: [DONE]" in content
        assert await exit_code(service) == 0


@pytest.mark.skipif(not AS_PROCESS_1, reason="a namespace for processes needs root and the command unshare")
def test_as_process_1_it_ends_at_a_signal_while_it_is_still_being_imported() -> None:
    process = subprocess.Popen(
        [*AS_PROCESS_1, sys.executable, "-v", "-m", "comps", "serve"],  # -v tells every import.
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    for line in process.stderr:
        if line.startswith("import 'comps.app'") or "comps/app.py" in line:
            break
    os.kill(children(process.pid)[0], signal.SIGTERM)
    process.stderr.read()
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    process.stderr.close()


# The process of an embedded model.

LOADING = """
import threading
from comps.model_servers.embedded.engine_program import serve
def load(**_):
    print("loading", flush=True)
    threading.Event().wait()
serve(load)
"""


def test_the_process_of_a_model_ends_with_its_service_while_it_loads() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LOADING], cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as engine:
        assert engine.stdin
        assert engine.stderr
        engine.stdin.write(b'{"id": 1, "load": {}}\n')
        engine.stdin.flush()
        assert engine.stderr.readline() == b"loading\n"
        engine.stdin.close()
        assert engine.wait(PATIENCE) == 1
