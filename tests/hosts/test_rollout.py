"""Upgrades under load: two processes of the service behind nginx, set up as docker/nginx.conf says, restarted one at a
time while clients ask without a pause.

`make hosts-test` runs it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from comps.model_servers.scripted import Scripted
from tests.process import PATIENCE, ROOT, Running, command, free_port, serving
from tests.service import PATH, Answer, Connection, Service, running

WORDS = [f" word{number}" for number in range(60)]
PACE = 0.005
"""Seconds before each word, so that an answer takes a while."""
CLIENTS = 8
WHOLE = {"query": "?", "streaming": False}
STREAMED = {"messages": "?", "stream": True}

pytestmark = [
    pytest.mark.live,
    pytest.mark.xdist_group("hosts"),
    pytest.mark.skipif(not shutil.which("nginx"), reason="the command nginx is missing: install nginx"),
]


class Fleet:
    """Two processes of the service, in front of the same model server and behind the same nginx."""

    def __init__(self, folder: Path, model_server: Service, started: ExitStack) -> None:
        self.port, self.ports = free_port(), [free_port(), free_port()]
        self._folder = folder
        self._endpoint = model_server.url
        self._started = started
        self.processes = [self.start(number) for number in (0, 1)]

    def start(self, number: int, **environment: str) -> Running:
        """Start one of the processes, and wait until it listens."""
        usual = {"MODEL_SERVER": "vllm", "FRAMEWORK": "native", "LLM_MODEL_SERVER_ENDPOINT": self._endpoint}
        port = {"USVC_PORT": str(self.ports[number])}
        return self._started.enter_context(serving(**{**usual, **port, **environment}))

    def end(self, number: int) -> None:
        """End one of the processes as a supervisor does."""
        assert self.processes[number].end(signal.SIGTERM) == 0

    @contextmanager
    def nginx(self) -> Iterator[None]:
        """nginx before them, with our own file, but for the ports."""
        site = (ROOT / "docker" / "nginx.conf").read_text("utf-8")
        for said, here in {
            ":9001": f":{self.ports[0]}",
            ":9002": f":{self.ports[1]}",
            "listen 9000": f"listen {self.port}",
        }.items():
            assert site.count(said) == 1
            site = site.replace(said, str(here))
        folders = "".join(
            f"{kind}_temp_path {self._folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        file = self._folder / "nginx.conf"
        file.write_text(
            f"daemon off; pid {self._folder / 'pid'}; error_log stderr crit;"
            f"events {{}} http {{ access_log off; {folders} {site} }}"
        )
        subprocess.run(["nginx", "-t", "-q", "-c", file], check=True)
        process = subprocess.Popen(["nginx", "-c", file])
        try:
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)

    async def ask(self, body: object) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        connection = Connection(reader, writer)
        try:
            await connection.send("POST", PATH, json.dumps(body).encode())
            return await asyncio.wait_for(connection.answer(), PATIENCE)
        finally:
            connection.close()

    async def is_ready(self, number: int) -> bool:
        """What one of the processes says of itself."""
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.ports[number]))
        try:
            await connection.send("GET", "/ready")
            return (await connection.answer()).status == 200
        finally:
            connection.close()


@pytest.fixture
async def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    async with running(Scripted([WORDS], delay=PACE), monkeypatch) as model_server:
        with ExitStack() as started:
            fleet = await asyncio.to_thread(Fleet, tmp_path, model_server, started)
            with fleet.nginx():
                await until(lambda: _listens(fleet.port))
                yield fleet


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Poll until a condition is true."""

    async def look() -> None:
        while not await true():
            pass

    await asyncio.wait_for(look(), PATIENCE)


@asynccontextmanager
async def load(fleet: Fleet) -> AsyncIterator[Counter[str]]:
    """Clients that ask one question after the other until the end of the block; how their answers ended is counted."""
    ends: Counter[str] = Counter()
    over = asyncio.Event()

    async def client(number: int) -> None:
        while not over.is_set():
            body = STREAMED if (number + ends.total()) % 2 else WHOLE
            try:
                ends[_end(body, await fleet.ask(body))] += 1
            except (OSError, EOFError, ValueError) as error:
                ends[repr(error)] += 1

    asking = [asyncio.ensure_future(client(number)) for number in range(CLIENTS)]
    try:
        yield ends
    finally:
        over.set()
        await asyncio.wait_for(asyncio.gather(*asking), PATIENCE)


def _end(body: object, answer: Answer) -> str:
    """How an answer ended; `whole` or `stream` if nothing of it is missing."""
    if answer.status != 200:
        return f"{answer.status}: {answer.body!r}"
    if body is WHOLE:
        return "whole" if answer.json["text"] == "".join(WORDS) else f"whole, cut: {answer.body!r}"
    events = [line[6:] for line in answer.body.decode().split("\n\n") if line.startswith("data: ")]
    if events[-1:] != ["[DONE]"]:
        return f"stream, cut: {events[-1:]}"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    return (
        "stream" if "".join(one["delta"].get("content") or "" for one in choices) == "".join(WORDS) else "stream, gaps"
    )


async def test_a_rolling_restart_under_load_loses_no_answer(fleet: Fleet) -> None:
    async with load(fleet) as ends:
        for number in (0, 1, 0, 1):
            before = ends.total()
            await asyncio.to_thread(fleet.end, number)
            fleet.processes[number] = await asyncio.to_thread(fleet.start, number)
            await until(partial(fleet.is_ready, number))
            assert ends.total() > before, "answers went on meanwhile"
        await asked(fleet)
    print(dict(ends))
    assert set(ends) == {"whole", "stream"}
    assert min(ends.values()) > 2 * CLIENTS


async def asked(fleet: Fleet) -> None:
    """Ask a few questions more, one after the other."""
    for _ in range(5):
        assert _end(WHOLE, await fleet.ask(WHOLE)) == "whole"


async def test_a_wrong_setting_ends_the_new_process_with_the_reason_while_the_other_answers(fleet: Fleet) -> None:
    async with load(fleet) as ends:
        await asyncio.to_thread(fleet.end, 0)
        wrong = {"USVC_PORT": str(fleet.ports[0]), "MODEL_SERVER": "vlm"}
        for what in ("check", "serve"):
            done = await asyncio.to_thread(command, what, environment=wrong)
            assert done.returncode == 2
            assert "vlm" in done.stderr
        await asked(fleet)
    assert set(ends) == {"whole", "stream"}


async def test_a_new_process_that_reaches_no_model_server_is_not_ready_and_the_other_answers(fleet: Fleet) -> None:
    async with load(fleet) as ends:
        await asyncio.to_thread(fleet.end, 0)
        nobody = f"http://127.0.0.1:{free_port()}"
        await asyncio.to_thread(lambda: fleet.start(0, LLM_MODEL_SERVER_ENDPOINT=nobody))
        assert not await fleet.is_ready(0)
        await asked(fleet)
    assert set(ends) == {"whole", "stream"}
