"""A Ray of one node for tests, a model server of known pace, and what is needed to start and end both."""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PATIENCE = 120.0
"""Seconds after which a test gives up on something that should have come before."""
CHAT = "/v1/chat/completions"


def until(what: str, true: Callable[[], Any]) -> Any:
    """Poll until a condition is true, and return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (said := true()):
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        time.sleep(0.1)
    return said


def free_ports(number: int) -> list[int]:
    """Ports that neither Ray nor the system takes unasked, as both do with any that is free."""
    found: list[int] = []
    while len(found) < number:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found


@contextmanager
def process(words: list[Any], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its log, which is asked to end if it has not ended, with all that it started."""
    with log.open("wb") as said:
        running = subprocess.Popen(
            [str(word) for word in words], env=environment, cwd=ROOT, stdout=said, stderr=said, start_new_session=True
        )
    try:
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            running.wait(PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait(PATIENCE)


def answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(url, timeout=PATIENCE).status_code == 200
    return False


@dataclass
class ModelServer:
    """The model server behind the front."""

    url: str

    def count(self, line: str) -> float:
        """A number of its metrics, by a pattern of the line before it."""
        metrics = httpx.get(f"{self.url}/metrics").text
        found = re.search(rf"^{line} (\S+)$", metrics, re.MULTILINE)
        return float(found[1]) if found else 0.0

    @property
    def answering(self) -> float:
        return self.count("opea_llm_requests_in_flight")

    @property
    def left(self) -> float:
        """Requests whose connection was closed before their end."""
        return self.count(f'opea_llm_requests_total{{.*outcome="gone",path="{CHAT}".*}}')


@contextmanager
def paced_model_server(log: Path, key: str) -> Iterator[ModelServer]:
    """The model server `paced`, with an API key."""
    (port,) = free_ports(1)
    with process([sys.executable, "-m", "tests.live.paced", port, key], log, os.environ):
        url = f"http://127.0.0.1:{port}"
        until("the model server answers", lambda: answers(f"{url}/health"))
        yield ModelServer(url)


@dataclass
class Node:
    """A Ray of one node, with its dashboard."""

    folder: Path
    environment: dict[str, str]
    dashboard: str
    headers: dict[str, str] = field(repr=False)

    def serve(self, *words: Any) -> subprocess.CompletedProcess[str]:
        """One of Ray Serve's commands, to its end."""
        command = [str(word) for word in (BIN / "serve", *words)]
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def applications(self) -> dict[str, Any]:
        """What the dashboard tells of all applications."""
        told = httpx.get(f"{self.dashboard}/api/serve/applications/", headers=self.headers, timeout=PATIENCE)
        applications: dict[str, Any] = told.raise_for_status().json()["applications"]
        return applications

    def replicas(self) -> list[dict[str, Any]]:
        """The replicas that may be sent requests."""
        (application,) = self.applications().values()
        all_of_them = application["deployments"]["microservice"]["replicas"] if application["deployments"] else []
        return [one for one in all_of_them if one["state"] == "RUNNING"]

    def log(self, replica: Mapping[str, Any]) -> str:
        """What a replica has written."""
        path = self.folder / "session_latest" / "logs" / str(replica["log_file_path"]).lstrip("/")
        return path.read_text("utf-8")

    def logs(self) -> Iterator[str]:
        """All that Ray has written."""
        for path in (self.folder / "session_latest" / "logs").rglob("*"):
            if path.is_file():
                yield path.read_text("utf-8", "replace")


@contextmanager
def started_node(**variables: str) -> Iterator[Node]:
    """A node, with these environment variables besides the usual ones."""
    gcs, dashboard, agent, client, metrics = free_ports(5)
    token = secrets.token_hex(32)
    # Short, for the sockets in it.
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "PYTHONPATH": str(ROOT),
            **variables,
        }
        words = ["--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=4", f"--temp-dir={folder}"]
        words += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        words += [f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}"]
        words += ["--object-store-memory=100000000"]
        with process([BIN / "ray", "start", *words], Path(folder) / "log", environment):
            url = f"http://127.0.0.1:{dashboard}"
            told = {**environment, "RAY_ADDRESS": f"127.0.0.1:{gcs}", "RAY_DASHBOARD_ADDRESS": url}
            # The probes of rayservice.yaml have no token.
            until("the node is well", lambda: answers(f"http://127.0.0.1:{agent}/api/healthz"))
            yield Node(Path(folder), told, url, {"Authorization": f"Bearer {token}"})
