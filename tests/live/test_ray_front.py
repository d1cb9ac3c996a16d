"""The microservice as a Ray Serve application: a real Ray, real replicas, in front of a model server of known pace."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.live.paced import NAME, WORDS
from tests.live.ray_node import (
    BIN,
    CHAT,
    PATIENCE,
    ROOT,
    ModelServer,
    Node,
    answers,
    free_ports,
    paced_model_server,
    process,
    started_node,
    until,
)
from tests.service import Connection

pytest.importorskip("ray")

NOTICED = 5.0
"""Seconds after which nothing fails any longer because of a replica that is gone."""
QUESTION = {"query": "What is Deep Learning?", "max_new_tokens": 40}
LONGER = {**QUESTION, "max_new_tokens": 100}
ENDLESS = {"query": "Count.", "max_new_tokens": len(WORDS)}
"""Takes minutes."""
ANSWER = WORDS[:40]
SECRET = f"sk-{secrets.token_hex(8)}"
TABLE = ROOT / "build" / "ray.md"

pytestmark = [pytest.mark.live, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    with paced_model_server(tmp_path_factory.mktemp("paced") / "log", SECRET) as server:
        yield server


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with started_node() as started:
        yield started


@pytest.fixture(scope="class")
def front(node: Node, model_server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of two replicas that `serve run` has deployed on the node; only its own process knows the settings."""
    (port,) = free_ports(1)
    started = node.serve("start", "--http-host=127.0.0.1", f"--http-port={port}")
    assert started.returncode == 0, started.stderr
    settings = {
        "MODEL_SERVER": "ray_serve",
        "LLM_MODEL_SERVER_ENDPOINT": model_server.url,
        "LLM_NAME": NAME,
        "LLM_API_KEY": SECRET,
        "USVC_DRAIN_SECONDS": "20",
    }
    words = ["run", "impl.microservice.ray_app:app", "min_replicas=2", "num_cpus=0.1"]
    log = tmp_path_factory.mktemp("run") / "log"
    with process([BIN / "serve", *words], log, {**node.environment, **settings}) as running:
        url = f"http://127.0.0.1:{port}"

        def there_are_two() -> bool:
            assert running.poll() is None, log.read_text("utf-8", "replace")
            return bool(node.applications()) and len(node.replicas()) == 2

        until("there are two replicas", there_are_two)
        until("they answer", lambda: answers(f"{url}/ready"))
        yield url
        running.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            running.wait(PATIENCE)


async def raw(url: str, body: Mapping[str, Any], look: Callable[[], Any] = lambda: None) -> tuple[Any, list[bytes]]:
    """The head and the HTTP chunks of an answer; looks when the first one is there."""
    connection = Connection(*await asyncio.open_connection("127.0.0.1", httpx.URL(url).port))
    try:
        await connection.send("POST", CHAT, json.dumps(body).encode())
        head = await connection.head()
        chunks = [await connection.chunk()]
        await asyncio.to_thread(look)
        while chunks[-1]:
            chunks.append(await connection.chunk())
        return head, chunks[:-1]
    finally:
        connection.close()


class TestServeRun:
    """What `serve run` deploys."""

    def test_a_question_is_answered_whole(self, front: str) -> None:
        answer = httpx.post(f"{front}{CHAT}", json={**QUESTION, "streaming": False}, timeout=PATIENCE)
        assert answer.json()["text"] == "".join(ANSWER)
        assert answer.json()["prompt"] == QUESTION["query"]
        assert answer.headers["x-finish-reason"] == "length"

    async def test_each_event_of_a_stream_is_one_chunk_at_its_time(self, front: str, model_server: ModelServer) -> None:
        seen: list[float] = []
        head, chunks = await raw(front, QUESTION, lambda: seen.append(model_server.answering))
        assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert chunks[:-2] == [f"data: b'{word}'\n\n".encode() for word in ANSWER]
        assert chunks[-2:] == [b"data: [DONE]\n\n", b": finish_reason=length\n\n"]
        assert seen == [1], "the first event came when all was said"

    def test_openais_stream_passes_as_well(self, front: str) -> None:
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "stream": True}
        lines = [line for line in httpx.post(f"{front}{CHAT}", json=body, timeout=PATIENCE).text.splitlines() if line]
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[0].removeprefix("data: "))["object"] == "chat.completion.chunk"

    def test_health_and_what_there_is(self, front: str) -> None:
        assert httpx.get(f"{front}/health").status_code == 200
        assert httpx.get(f"{front}/v1/models").json()["data"][0]["id"] == NAME
        assert httpx.post(f"{front}/v1/nothing").status_code == 404
        assert httpx.get(f"{front}/-/healthz").text == "success"

    @pytest.mark.parametrize("streaming", [True, False])
    def test_leaving_closes_the_model_servers_connection(
        self, front: str, node: Node, model_server: ModelServer, streaming: bool
    ) -> None:
        before = model_server.left
        with (
            httpx.Client(timeout=httpx.Timeout(PATIENCE, read=2)) as client,
            suppress(httpx.ReadTimeout),
            client.stream("POST", f"{front}{CHAT}", json={**ENDLESS, "streaming": streaming}) as answer,
        ):
            next(answer.iter_raw())
        until("the model server sees it", lambda: model_server.left == before + 1)
        assert model_server.answering == 0
        until("a replica counts it so", lambda: any(f"{CHAT} gone" in log for log in node.logs()))

    async def test_one_of_two_replicas_is_killed_under_load(
        self, front: str, node: Node, model_server: ModelServer
    ) -> None:
        load = Load(front)
        asking = [asyncio.create_task(load.ask(streaming=number % 3 > 0)) for number in range(9)]
        try:
            await asyncio.sleep(8)
            killed, survivor = await asyncio.to_thread(node.replicas)
            os.kill(killed["pid"], signal.SIGKILL)
            load.killed = time.monotonic()
            gone = killed["replica_id"]
            again = await asyncio.to_thread(until, "there are two again", lambda: _two_without(gone, node.replicas()))
            load.whole_again = time.monotonic()
            assert survivor["replica_id"] in again
            await asyncio.sleep(5)
        finally:
            load.over = True
            await asyncio.wait_for(asyncio.gather(*asking), PATIENCE)
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(load.table())
        print(f"\n{load.table()}")
        assert not [one for one in load.asked if one.outcome == "false end"], "an answer was cut and said it was whole"
        failed = [one for one in load.asked if one.outcome != "answered"]
        assert failed, "the replica that was killed had nothing to do"
        assert all(one.ended > load.killed for one in failed)
        assert all(one.started < load.killed + NOTICED for one in failed)
        answered_by_survivor = set(re.findall(rf"(\S+) -- POST {CHAT} 200", node.log(survivor)))
        assert len(answered_by_survivor & {one.number for one in load.asked if one.outcome == "answered"}) > 20
        assert not answered_by_survivor & {one.number for one in failed}
        await asyncio.to_thread(until, "the model server has no request of nobody", lambda: model_server.answering == 0)

    def test_no_log_and_no_page_shows_the_secret(self, front: str, node: Node) -> None:
        assert SECRET not in json.dumps(node.applications())
        assert not [log for log in node.logs() if SECRET in log]


def _two_without(gone: str, replicas: list[dict[str, Any]]) -> list[str]:
    names = [one["replica_id"] for one in replicas]
    return names if len(names) == 2 and gone not in names else []


@dataclass
class Asked:
    """A request, as its client saw it end."""

    streaming: bool
    started: float
    ended: float = 0.0
    outcome: str = ""
    number: str = ""
    """Ray's."""


@dataclass
class Load:
    """Clients that ask one question after the other."""

    front: str
    asked: list[Asked] = field(default_factory=list)
    killed: float = 0.0
    whole_again: float = 0.0
    over: bool = False

    async def ask(self, *, streaming: bool) -> None:
        """A client, with nearly no pause between two questions."""
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            while not self.over:
                one = Asked(streaming, time.monotonic())
                self.asked.append(one)
                try:
                    one.outcome = await self._outcome(client, one)
                except httpx.HTTPError as error:
                    one.outcome = f"connection closed ({type(error).__name__})"
                one.ended = time.monotonic()

    async def _outcome(self, client: httpx.AsyncClient, one: Asked) -> str:
        body = {**LONGER, "streaming": one.streaming}
        async with client.stream("POST", f"{self.front}{CHAT}", json=body) as answer:
            one.number = answer.headers.get("x-request-id", "")
            text = (await answer.aread()).decode()
        if answer.status_code != 200:
            return f"{answer.status_code}: {text[:60]!r}"
        if not one.streaming:
            return "answered" if json.loads(text)["text"] == "".join(WORDS[:100]) else "false end"
        items = [line for line in text.splitlines() if line.startswith("data: ")]
        if "data: [DONE]" not in items:
            return f"stream without [DONE], last: {items[-1:]}"
        return "answered" if items[:-1] == [f"data: b'{word}'" for word in WORDS[:100]] else "false end"

    def table(self) -> str:
        """What became of all requests."""
        phases: dict[str, Callable[[Asked], bool]] = {
            "ended before the kill": lambda one: one.ended <= self.killed,
            "under way at the kill": lambda one: one.started <= self.killed < one.ended,
            "begun within a second after it": lambda one: self.killed < one.started <= self.killed + 1,
            "begun later, one replica": lambda one: self.killed + 1 < one.started <= self.whole_again,
            "begun later, two replicas": lambda one: max(self.whole_again, self.killed + 1) < one.started,
        }
        rows = [
            "| requests | streams | answered | whole answers | answered | the others |",
            "|---|---|---|---|---|---|",
        ]
        for phase, belongs in phases.items():
            cells = []
            for streaming in (True, False):
                ones = [one for one in self.asked if one.streaming is streaming and belongs(one)]
                cells += [len(ones), sum(one.outcome == "answered" for one in ones)]
            others = sorted(one.outcome for one in self.asked if belongs(one) and one.outcome != "answered")
            told = ", ".join(f"{others.count(what)} × {what}" for what in dict.fromkeys(others))
            rows.append(f"| {phase} | {' | '.join(map(str, cells))} | {told or '-'} |")
        rows += ["", f"Two replicas again after {self.whole_again - self.killed:.1f} s."]
        return "\n".join(rows) + "\n"


def configured(node: Node, model_server: ModelServer, port: int, **env_vars: str) -> Path:
    """docker/ray/serve.yaml with the address and the model server of this test, and at most two replicas."""
    config = yaml.safe_load((ROOT / "docker" / "ray" / "serve.yaml").read_text("utf-8"))
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = config["applications"]
    application["runtime_env"]["env_vars"] |= {
        "LLM_MODEL_SERVER_ENDPOINT": model_server.url,
        "LLM_NAME": NAME,
        "LLM_API_KEY_FILE": str(node.folder / "key"),
        **env_vars,
    }
    (deployment,) = application["deployments"]
    deployment["ray_actor_options"] = {"num_cpus": 0.1}
    deployment["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1}
    deployment["autoscaling_config"] |= {"upscale_delay_s": 0, "look_back_period_s": 2}
    (node.folder / "key").write_text(f"{SECRET}\n")
    path = node.folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="class")
def deployed(node: Node, model_server: ModelServer) -> Iterator[str]:
    """The URL of what docker/ray/serve.yaml deploys."""
    (port,) = free_ports(1)
    done = node.serve("deploy", configured(node, model_server, port))
    assert done.returncode == 0, done.stderr
    until("it runs", lambda: node.applications()["llm"]["status"] == "RUNNING")
    yield f"http://127.0.0.1:{port}"
    done = node.serve("shutdown", "-y")
    assert done.returncode == 0, done.stderr
    until("it is gone", lambda: not node.applications())


class TestServeDeploy:
    """What `serve deploy` makes of docker/ray/serve.yaml."""

    def test_it_is_healthy_and_answers(self, deployed: str, node: Node) -> None:
        status = yaml.safe_load(node.serve("status").stdout)
        assert status["applications"]["llm"]["deployments"]["microservice"]["status"] == "HEALTHY"
        answer = httpx.post(f"{deployed}{CHAT}", json={**QUESTION, "streaming": False}, timeout=PATIENCE)
        assert answer.json()["text"] == "".join(ANSWER)

    async def test_load_brings_a_second_replica(self, deployed: str, node: Node) -> None:
        assert len(node.replicas()) == 1
        async with httpx.AsyncClient(base_url=deployed, timeout=PATIENCE) as client:
            asking = [asyncio.ensure_future(client.post(CHAT, json=ENDLESS)) for _ in range(6)]
            try:
                await asyncio.to_thread(until, "there are two replicas", lambda: len(node.replicas()) == 2)
            finally:
                for one in asking:
                    one.cancel()
                await asyncio.gather(*asking, return_exceptions=True)

    async def test_other_settings_take_over_under_load_and_lose_no_answer(
        self, deployed: str, node: Node, model_server: ModelServer
    ) -> None:
        before = [one["replica_id"] for one in node.replicas()]
        load = Load(deployed)
        asking = [asyncio.create_task(load.ask(streaming=number % 2 > 0)) for number in range(4)]
        try:
            port = httpx.URL(deployed).port
            assert port
            path = configured(node, model_server, port, LLM_OPEA_STREAM="bytes")
            assert (await asyncio.to_thread(node.serve, "deploy", path)).returncode == 0
            await asyncio.to_thread(until, "others have taken over", lambda: _others(before, node.applications()))
        finally:
            load.over = True
            await asyncio.wait_for(asyncio.gather(*asking), PATIENCE)
        assert len(load.asked) > 10
        assert [one for one in load.asked if one.outcome != "answered"] == []

    def test_a_wrong_setting_is_one_line_and_takes_nothing_away(
        self, deployed: str, node: Node, model_server: ModelServer
    ) -> None:
        port = httpx.URL(deployed).port
        assert port
        node.serve("deploy", configured(node, model_server, port, FRAMEWORK="fortran"))
        until("it is refused", lambda: node.applications()["llm"]["status"] == "DEPLOY_FAILED")
        message = node.applications()["llm"]["message"]
        assert message.splitlines()[1:] == [
            "environment FRAMEWORK: [Model] framework = fortran: Input should be 'langchain' or 'native'"
        ]
        answer = httpx.post(f"{deployed}{CHAT}", json={**QUESTION, "streaming": False}, timeout=PATIENCE)
        assert answer.json()["text"] == "".join(ANSWER)

    async def test_who_finds_the_queue_full_is_told_when_to_come_again(
        self, deployed: str, node: Node, model_server: ModelServer
    ) -> None:
        port = httpx.URL(deployed).port
        assert port
        one_place = configured(node, model_server, port, USVC_MAX_RUNNING="1", USVC_MAX_WAITING="1")
        config = yaml.safe_load(one_place.read_text("utf-8"))
        config["applications"][0]["deployments"][0]["autoscaling_config"]["max_replicas"] = 1
        one_place.write_text(yaml.safe_dump(config))
        node.serve("deploy", one_place)
        await asyncio.to_thread(
            until, "there is one replica", lambda: _settled(node.applications()["llm"], max_ongoing=1)
        )
        async with httpx.AsyncClient(base_url=deployed, timeout=PATIENCE) as client:
            asking = [asyncio.ensure_future(client.post(CHAT, json=ENDLESS)) for _ in range(4)]
            try:
                done, _ = await asyncio.wait(asking, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
                assert done, "nobody was refused"
                refused = done.pop().result()
            finally:
                for one in asking:
                    one.cancel()
                await asyncio.gather(*asking, return_exceptions=True)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        await asyncio.to_thread(until, "those who left are not answered", lambda: model_server.answering == 0)


def _others(before: list[str], applications: dict[str, Any]) -> bool:
    deployments = applications["llm"]["deployments"]  # None while Ray builds the application.
    replicas = deployments["microservice"]["replicas"] if deployments else []
    none_of_before = not [one for one in replicas if one["replica_id"] in before]
    return none_of_before and any(one["state"] == "RUNNING" for one in replicas)


def _settled(application: dict[str, Any], *, max_ongoing: int) -> bool:
    if not application["deployments"]:
        return False
    deployment = application["deployments"]["microservice"]
    states = [one["state"] for one in deployment["replicas"]]
    config = deployment["deployment_config"]
    return (
        application["status"] == "RUNNING" and states == ["RUNNING"] and config["max_ongoing_requests"] == max_ongoing
    )


def test_a_wrong_setting_ends_serve_run_with_one_line(node: Node) -> None:
    done = subprocess.run(
        [BIN / "serve", "run", "impl.microservice.ray_app:app"],
        env={**node.environment, "MODEL_SERVER": "vlm"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "Error: environment MODEL_SERVER: [Model] model_server = vlm: unknown"
    )
    assert "Traceback" not in done.stderr


def test_the_program_with_an_embedded_model_ends_what_is_under_way_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    mark = secrets.token_hex(8)
    settings = {"MODEL_SERVER": "openvino", "USVC_HOST": "127.0.0.1", "USVC_PORT": str(port), "RAY_FRONT_TEST": mark}
    log = tmp_path / "log"
    words = [sys.executable, "impl/microservice/ray_app.py", "num_cpus=0.1"]
    with process(words, log, {**os.environ, **settings}) as running:

        def listens() -> bool:
            said = log.read_text("utf-8", "replace")
            assert running.poll() is None, said
            return "listening on 127.0.0.1" in said

        until("it says that it listens", listens)
        body = {"query": "Count from one to ten thousand, in words.", "max_new_tokens": 60, "temperature": 0}
        with httpx.stream("POST", f"http://127.0.0.1:{port}{CHAT}", json=body, timeout=PATIENCE) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: b'")
            running.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in list(lines)
        assert running.wait(PATIENCE) == 0
        until("all has ended", lambda: not _marked(mark))


def _marked(mark: str) -> list[str]:
    """The processes that were started with a mark in their environment."""
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"RAY_FRONT_TEST={mark}".encode() in (one / "environ").read_bytes():
                found.append(one.name)
    return found
