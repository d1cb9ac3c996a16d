"""What is measured: the service, and what it is compared with, each started as a process on the targets' core."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tests.benchmarks.relay.processes import on_core
from tests.process import ROOT, free_port

SMG = ROOT / ".venv-bench" / "smg" / "bin" / "smg"
PATIENCE = 60.0
"""Seconds within which a target must have started."""


class Failed(Exception):
    """A process that was to be measured did not start, or ended."""


@dataclass(frozen=True)
class Target:
    """Something that answers."""

    name: str
    port: int
    process: int
    exact: bool = False
    """It hands every byte on as it is."""
    tgi: bool = False
    """It is asked on TGI's own API."""
    ready_after: float = 0.0
    """Seconds from its start until it could answer."""


@contextmanager
def started(
    name: str,
    command: Sequence[str],
    core: int,
    port: int,
    path: str,
    *,
    cwd: Path = ROOT,
    exact: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Target]:
    """A process, from the moment at which GET `path` is answered with 200 to the end of the block."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if key in os.environ}
    with tempfile.TemporaryFile() as said:
        with on_core(core):
            began = time.perf_counter()
            process = subprocess.Popen(command, env={**kept, **environment}, cwd=cwd, stdout=said, stderr=said)
        try:
            if not _answers(process, port, path):
                said.seek(0)
                raise Failed(f"{name} did not start: {said.read()[-2000:].decode(errors='replace')}")
            yield Target(name, port, process.pid, exact, ready_after=time.perf_counter() - began)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(process: subprocess.Popen[bytes], port: int, path: str) -> bool:
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return True
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.005)
    return False


@contextmanager
def service(
    name: str, framework: str, core: int, model_server: int, *, kind: str = "vllm", checkout: Path = ROOT
) -> Iterator[Target]:
    """The service of a checkout, with its default settings."""
    port = free_port()
    environment = {
        "PYTHONPATH": str(checkout),
        "USVC_HOST": "127.0.0.1",
        "USVC_PORT": str(port),
        "FRAMEWORK": framework,
        "MODEL_SERVER": kind,
        "LLM_NAME": "m",
        "LLM_MODEL_SERVER_ENDPOINT": f"http://127.0.0.1:{model_server}",
    }
    command = [sys.executable, "-m", "comps", "serve"]
    with started(name, command, core, port, "/ready", cwd=checkout, environment=environment) as target:
        yield target


@contextmanager
def bare_relay(core: int, model_server: int) -> Iterator[Target]:
    """`bare_relay.py`, which all ratios are to."""
    port = free_port()
    program = str(Path(__file__).with_name("bare_relay.py"))
    command = [sys.executable, program, str(port), f"http://127.0.0.1:{model_server}"]
    with started("relay", command, core, port, "/v1/models", exact=True) as target:
        yield target


def nginx_configuration(folder: str, port: int, model_server: int) -> str:
    """nginx with one worker, which only hands on."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return (
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log stderr crit; worker_rlimit_nofile 20000;"
        f"events {{ worker_connections 20000; }} http {{ access_log off; keepalive_requests 100000;"
        + "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
        + f"upstream m {{ server 127.0.0.1:{model_server}; keepalive 64; keepalive_requests 100000; }}"
        f"server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://m; proxy_buffering off;"
        'proxy_http_version 1.1; proxy_set_header Connection ""; } } }'
    )


@contextmanager
def nginx(core: int, model_server: int) -> Iterator[Target]:
    """nginx, if there is one.

    Raises:
        Failed: There is none.
    """
    program = shutil.which("nginx")
    if not program:
        raise Failed("nginx is left out: it is not on the PATH")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "nginx.conf")
        file.write_text(nginx_configuration(folder, port, model_server), "utf-8")
        with started("nginx", [program, "-c", str(file)], core, port, "/v1/models", exact=True) as target:
            yield target


@contextmanager
def smg(core: int, model_server: int) -> Iterator[Target]:
    """SGLang's gateway before one worker, at its fastest: nothing is looked at to choose one, nor logged.

    Raises:
        Failed: It is not installed.
    """
    if not SMG.exists():
        raise Failed("SMG is left out: it is not installed in .venv-bench/smg")
    port, metrics = free_port(), free_port()
    command = [str(SMG), "launch", "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
    command += ["--policy", "round_robin", "--disable-load-monitoring", "--log-level", "warn"]
    command += ["--worker-urls", f"http://127.0.0.1:{model_server}"]
    with started("SMG", command, core, port, "/readiness", environment={"HF_HUB_OFFLINE": "1"}) as target:
        yield target
