"""What Ray's proxy costs: processor time of a token and of a request, through Ray and without it, side by side.

    .venv-live/ray/bin/python -m tests.benchmarks.ray_proxy

The same service with the same settings answers in three ways: by itself, as a replica behind Ray's own proxy, and as a
replica behind the HAProxy that Ray can put in its place. All are in front of one model server of known pace, whose time
and whose clients' time are not counted.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from tests.live.paced import NAME
from tests.live.ray_node import (
    BIN,
    CHAT,
    PATIENCE,
    ModelServer,
    Node,
    answers,
    free_ports,
    paced_model_server,
    process,
    started_node,
    until,
)

STREAMS = 24
TOKENS = 100
ROUNDS = 12
"""How often each stream's client asks for a single token."""
SECRET = secrets.token_hex(8)
TICKS = os.sysconf("SC_CLK_TCK")


def seconds(process_id: int) -> float:
    """The processor time that a process has had."""
    after_name = Path(f"/proc/{process_id}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / TICKS


def settings(model_server: ModelServer) -> dict[str, str]:
    told = {"MODEL_SERVER": "ray_serve", "LLM_MODEL_SERVER_ENDPOINT": model_server.url, "LLM_NAME": NAME}
    return {**told, "LLM_API_KEY": SECRET, "FRAMEWORK": "native", "LOG_LEVEL": "WARNING"}


@contextmanager
def alone(model_server: ModelServer, folder: Path) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """The service by itself: its URL, and its processes."""
    (port,) = free_ports(1)
    told = {**os.environ, **settings(model_server), "USVC_HOST": "127.0.0.1", "USVC_PORT": str(port)}
    words = [sys.executable, "-m", "comps", "serve", "--config", os.devnull]
    with process(words, folder / "alone.log", told) as running:
        url = f"http://127.0.0.1:{port}"
        until("the service answers", lambda: answers(f"{url}/ready"))
        yield url, {"service": [running.pid]}


@contextmanager
def on_ray(
    model_server: ModelServer, folder: Path, proxies: Callable[[str], bool], **variables: str
) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """The service as a replica: the URL of the proxy, and the processes of both."""
    with started_node(**variables) as node:
        (port,) = free_ports(1)
        started = node.serve("start", "--http-host=127.0.0.1", f"--http-port={port}")
        assert started.returncode == 0, started.stderr
        words = [BIN / "serve", "run", "impl.microservice.ray_app:app", "max_replicas=1"]
        told = {**node.environment, **settings(model_server)}
        with process(words, folder / "ray.log", told) as running:
            url = f"http://127.0.0.1:{port}"
            until("there is a replica", lambda: bool(node.applications()) and node.replicas())
            until("it answers", lambda: answers(f"{url}/ready"))
            yield url, {"service": [one["pid"] for one in node.replicas()], "proxy": _of(node, proxies)}
            running.send_signal(signal.SIGINT)
            running.wait(PATIENCE)


def _of(node: Node, wanted: Callable[[str], bool]) -> list[int]:
    """The processes of a node that look so."""
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        try:
            words = (one / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if wanted(words):
            found.append(int(one.name))
    assert found, "no proxy was found"
    return found


async def ask(url: str, tokens: int, rounds: int) -> None:
    """Stream as many answers one after the other from each client, all clients at once."""

    async def client() -> None:
        async with httpx.AsyncClient(timeout=PATIENCE) as http:
            for _ in range(rounds):
                body = {"query": "What is Deep Learning?", "max_new_tokens": tokens}
                answer = await http.post(f"{url}{CHAT}", json=body)
                assert answer.text.count("data: b'") == tokens, answer.text[-200:]

    await asyncio.gather(*(client() for _ in range(STREAMS)))


def measure(url: str, processes: dict[str, list[int]]) -> dict[str, tuple[float, float]]:
    """Milliseconds of a request with one token, and microseconds of each further token, by the process."""

    def total() -> dict[str, float]:
        return {name: sum(map(seconds, ids)) for name, ids in processes.items()}

    asyncio.run(ask(url, 1, 2))  # All connections are there, and all code has run.
    begin = total()
    asyncio.run(ask(url, 1, ROUNDS))
    middle = total()
    asyncio.run(ask(url, TOKENS, 2))
    end = total()
    measured = {}
    for name in processes:
        request = (middle[name] - begin[name]) / (STREAMS * ROUNDS)
        token = ((end[name] - middle[name]) / (STREAMS * 2) - request) / (TOKENS - 1)
        measured[name] = (request * 1e3, token * 1e6)
    return measured


def main() -> None:
    """Print the table."""
    rows = []
    with TemporaryDirectory() as temporary, paced_model_server(Path(temporary) / "paced.log", SECRET) as model_server:
        folder = Path(temporary)
        ways = {
            "alone": alone(model_server, folder),
            "Ray's proxy": on_ray(model_server, folder, lambda words: words.startswith("ray::ProxyActor")),
            "HAProxy": on_ray(
                model_server,
                folder,
                lambda words: "haproxy" in words and " -f " in words,
                RAY_SERVE_ENABLE_HA_PROXY="1",
            ),
        }
        for way, opened in ways.items():
            with opened as (url, processes):
                rows.append((way, measure(url, processes)))
    base = rows[0][1]["service"]
    print("| way | process | ms a request | ratio | µs a token | ratio |\n|---|---|---|---|---|---|")
    for way, measured in rows:
        whole = tuple(map(sum, zip(*measured.values(), strict=True)))
        for name, (request, token) in {**measured, "both": whole}.items():
            if name != "both" or len(measured) > 1:
                ratios = f"{request / base[0]:.1f} | {token:.0f} | {token / base[1]:.1f}"
                print(f"| {way} | {name} | {request:.2f} | {ratios} |")


if __name__ == "__main__":
    main()
