"""The command in a process of its own, as a person runs it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
PATH = "/v1/chat/completions"
PATIENCE = 120
QUICK = {"PYTHONPATH": str(ROOT), "FRAMEWORK": "native"}
"""What every command is run with, unless a test says otherwise: to import LangChain takes longer than most tests."""


def command(
    *arguments: str, cwd: Path = ROOT, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "comps", *arguments],
        env={**os.environ, **QUICK, **(environment or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def free_port() -> int:
    """A port that is free at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


class Running:
    """A service in a process of its own, as `opea-llm serve` runs it."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port
        self.said: list[str] = []
        self.ready = threading.Event()
        self._news = threading.Condition()
        self.reading = threading.Thread(target=self._read)
        self.reading.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._news:
                self.said.append(line)
                self._news.notify_all()
            if "answering with" in line or "not ready" in line:
                self.ready.set()
        self.ready.set()

    def until_said(self, what: str) -> None:
        """Wait until it has said something."""
        with self._news:
            assert self._news.wait_for(lambda: any(what in line for line in self.said), PATIENCE)

    def children(self) -> list[int]:
        """The processes that it has started."""
        return children(self.process.pid)

    @contextmanager
    def posting(self, body: object, path: str = PATH) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("POST", path, json.dumps(body))
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    def post(self, body: object) -> bytes:
        with self.posting(body) as response:
            assert response.status == 200
            return response.read()

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self.reading.join(PATIENCE)
        return code


@contextmanager
def serving(*program: str, within: Sequence[str] = (), **environment: str) -> Iterator[Running]:
    """The service, started by `program`, `within` another command that runs it, until the end of the block."""
    port = environment.get("USVC_PORT") or str(free_port())
    process = subprocess.Popen(
        [*within, sys.executable, *(program or ("-m", "comps", "serve"))],
        env={**os.environ, **QUICK, "USVC_PORT": port, "USVC_HOST": "127.0.0.1", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    running = Running(process, int(port))
    try:
        assert running.ready.wait(PATIENCE)
        yield running
    finally:
        process.kill()
        process.wait()
        running.reading.join(PATIENCE)
        assert process.stderr
        process.stderr.close()
