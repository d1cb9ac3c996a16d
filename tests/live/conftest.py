"""A real model server for the tests marked `live`, and the table of what it did."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from comps.model_servers.embedded.model_files import BUNDLED_MODEL, find_model
from tests.live.servers import NAME, SERVERS, Server, python_of
from tests.live.table import HEAD, REPORTS, Table

pytest.register_assert_rewrite("tests.live.embedded_contract")

START_SECONDS, STOP_SECONDS = 240.0, 20.0
_TABLE = pytest.StashKey[Table]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server", choices=list(SERVERS), help="the model server that tests marked live run against")


@dataclass(frozen=True)
class Running:
    """A model server that answers."""

    name: str
    server: Server
    url: str
    model_name: str


@pytest.fixture(scope="session")
def running_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The chosen model server: a process of its own, unless it runs inside the service."""
    name = request.config.getoption("--server", None)
    if name is None:
        pytest.skip("say which model server: make live SERVER=…")
    server = SERVERS[name]
    folder = tmp_path_factory.mktemp(name)
    with started(server, folder) as url:
        yield Running(name, server, url, server.model_name.format(tiny=str(folder / NAME)))


@contextmanager
def started(server: Server, folder: Path) -> Iterator[str]:
    """The server's URL as long as it runs, or nothing if it runs inside the service.

    Its model is made in `folder` if it is to be the tiny one; what it says goes into a file there, and is shown if it
    does not start.
    """
    python, words = str(python_of(server)), " ".join([*server.command, server.model_name])
    if "{tiny}" in words:
        subprocess.run([python, "-m", "tests.model_servers.embedded.tiny_model", str(folder / NAME)], check=True)
    if not server.command:
        yield ""
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {"python": python, "port": str(port), "tiny": NAME, "bundled": str(_bundled(words))}
    log = folder / "log.txt"
    hub = folder / "hub"
    hub.mkdir()
    quiet = {
        "HF_HUB_CACHE": str(hub),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
    }
    with log.open("wb") as said:
        process = subprocess.Popen(
            [word.format(**values) for word in server.command],
            cwd=folder,
            env={**os.environ, **quiet, **{name: value.format(**values) for name, value in server.variables.items()}},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, url + server.ready, log)
        yield url
    finally:
        _end(process)


def _bundled(words: str) -> Path | None:
    return find_model(BUNDLED_MODEL) if "{bundled}" in words else None


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(
        f"the model server did not start; the end of what it said:\n{log.read_text('utf-8', 'replace')[-4000:]}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, with all the processes that it started; then insist."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)


def pytest_configure(config: pytest.Config) -> None:
    if name := config.getoption("--server", None):
        config.stash[_TABLE] = Table(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    check = item.get_closest_marker("check")
    if check and _TABLE in item.config.stash and (report.when == "call" or report.outcome != "passed"):
        params: dict[str, Any] = (
            item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        )
        item.config.stash[_TABLE].add(check.args[0], params.get("framework"), report.outcome)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _TABLE not in config.stash:
        return
    table = config.stash[_TABLE]
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / f"{table.server}.md").write_text("\n".join(table.rows()) + "\n")
    for line in (*HEAD, *table.rows()):
        terminalreporter.write_line(line)
