"""What one core carries: CPU per request and per token, memory per open stream, and requests a second at most.

`make bench-sizing` runs it. The service is a process of its own, held to one core, before a model server that costs
nothing to speak of: it says words at a set pace, and stands for vLLM with its tokenizer. The same requests through
nginx, if there is one, show what merely handing them on costs. docker/SIZING.md works with what is printed.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import uvloop

from tests.benchmarks.relay.targets import nginx_configuration
from tests.benchmarks.relay.wire import chunk
from tests.process import free_port, serving

PATH = "/v1/chat/completions"
CORE = "0"
STREAMS, TOKENS, PAUSE_MS = 64, 200, 5
"""Streams at once, tokens of each, and milliseconds between two of them, so that each comes alone."""
REQUESTS = 1600
OPEN = 2000
"""Streams that are open and wait for their next token."""
CLIENTS, SECONDS = 32, 5.0
"""For the most requests a second: how many ask without a pause, and for how long."""
PASSAGE = (
    "Intel Gaudi 2 has 96 GB of HBM2E memory on board, and is made for training and inference of large models. " * 8
)
QUESTION = "How much memory does Gaudi 2 have?"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = b'{"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":" word"}}]}'
END = (
    b'{"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
    b'{"id":"c","model":"m","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":5,"total_tokens":10}}',
    b"[DONE]",
)


def chat(tokens: int, pause_ms: int = 0, *, stream: bool = True) -> dict[str, Any]:
    """A question with nothing beside it; the model server takes `seed` for the milliseconds between its tokens."""
    messages = [{"role": "user", "content": QUESTION}]
    return {"model": "m", "messages": messages, "max_tokens": tokens, "seed": pause_ms, "stream": stream}


def question() -> dict[str, Any]:
    """OPEA's body, with four passages of 200 tokens."""
    return {"query": QUESTION, "documents": [PASSAGE] * 4, "max_new_tokens": 1, "streaming": False}


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The model server: every request on a connection, as cheaply as can be."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            body = json.loads(await reader.readexactly(int(length[1]))) if length else {}
            if "max_tokens" in body:
                await _stream(writer, body["max_tokens"], body.get("seed") or 0)
            else:
                said = json.dumps(_facts(body)).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n" % len(said))
                writer.write(b"content-type: application/json\r\n\r\n" + said)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _stream(writer: asyncio.StreamWriter, tokens: int, pause_ms: int) -> None:
    writer.write(HEAD)
    for number in range(tokens):
        if number and pause_ms:
            await asyncio.sleep(pause_ms / 1000)
        if writer.is_closing():  # uvloop writes to no closed connection.
            raise ConnectionError
        writer.write(_event(TOKEN))
    writer.write(b"".join(map(_event, END)) + b"0\r\n\r\n")


def _event(data: bytes) -> bytes:
    return chunk(b"data: " + data + b"\n\n")


def _facts(body: dict[str, Any]) -> Any:
    if not body:
        return {"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 8192}]}
    text = body.get("prompt") or "".join(str(message["content"]) for message in body["messages"])
    words = [word.replace(" ", "Ġ") for word in re.findall(r" ?[^ ]+| ", text)]
    return {"count": len(words), "max_model_len": 8192, "tokens": [], "token_strs": words}


async def serve(told: Connection) -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
    told.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def run_model_server(told: Connection) -> None:
    uvloop.run(serve(told))


class Measured(Protocol):
    """What stands before the model server."""

    port: int

    def process_ids(self) -> list[int]: ...


def cpu(measured: Measured) -> float:
    """Seconds of processor time that it has had."""
    threads = [path for process in measured.process_ids() for path in Path(f"/proc/{process}/task").iterdir()]
    return sum(int((thread / "schedstat").read_text("utf-8").split()[0]) for thread in threads) / 1e9


def memory(measured: Measured) -> int:
    """Bytes of memory that are its own."""
    kilobytes = 0
    for process in measured.process_ids():
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text("utf-8")
        kilobytes += sum(int(size) for size in re.findall(r"^Private_\w+:\s+(\d+)", rollup, re.MULTILINE))
    return kilobytes * 1024


async def begin(port: int, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask, and read up to the head of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await send(reader, writer, body)
    return reader, writer


async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    writer.write(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (PATH.encode(), len(data)) + data)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head + await reader.read(1000)
    if length := re.search(rb"content-length: (\d+)", head.lower()):
        await reader.readexactly(int(length[1]))
    elif body["max_tokens"] < OPEN:
        await reader.readuntil(b"0\r\n\r\n")
    else:
        await reader.readuntil(b"\n\n")


async def ask(port: int, body: dict[str, Any], times: int = 1) -> None:
    """Ask on one connection, one time after the other."""
    reader, writer = await begin(port, body)
    for _ in range(times - 1):
        await send(reader, writer, body)
    writer.close()


async def per_request(measured: Measured, body: dict[str, Any]) -> float:
    """Milliseconds of CPU for a request."""
    before = cpu(measured)
    await asyncio.gather(*(ask(measured.port, body, REQUESTS // 8) for _ in range(8)))
    return (cpu(measured) - before) / REQUESTS * 1e3


async def per_token(measured: Measured) -> float:
    """Microseconds of CPU for a token of a stream."""
    before = cpu(measured)
    await asyncio.gather(*(ask(measured.port, chat(TOKENS, PAUSE_MS)) for _ in range(STREAMS)))
    return (cpu(measured) - before) / (STREAMS * TOKENS) * 1e6


def slab() -> int:
    """Bytes that the kernel has in small pieces, sockets among them."""
    found = re.search(r"^Slab:\s+(\d+)", Path("/proc/meminfo").read_text("utf-8"), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


async def per_stream(measured: Measured) -> tuple[float, float]:
    """Kilobytes of memory for a stream that is open: the process's own, and the kernel's.

    Of the four ends of its two connections, two are the service's.
    """
    own, kernel = memory(measured), slab()
    writers = []
    for _ in range(OPEN // 20):
        opened = await asyncio.gather(*(begin(measured.port, chat(OPEN, 3_600_000)) for _ in range(20)))
        writers += [writer for _, writer in opened]
    took = (memory(measured) - own) / OPEN / 1e3, (slab() - kernel) / OPEN / 2 / 1e3
    for writer in writers:
        writer.close()
    return took


async def requests_a_second(measured: Measured, body: dict[str, Any]) -> tuple[float, float]:
    """Requests a second, asked for without a pause, and the share of its core that it had meanwhile: less than a whole
    one if it was not the limit."""
    until, done = time.monotonic() + SECONDS, 0

    async def client() -> None:
        nonlocal done
        reader, writer = await begin(measured.port, body)
        while time.monotonic() < until:
            await send(reader, writer, body)
            done += 1
        writer.close()

    before, started = cpu(measured), time.monotonic()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    took = time.monotonic() - started
    return done / took, (cpu(measured) - before) / took


class Process:
    """A process that listens."""

    def __init__(self, process_id: int, port: int) -> None:
        self.port = port
        self._process_id = process_id

    def process_ids(self) -> list[int]:
        """It and its children."""
        children = Path(f"/proc/{self._process_id}/task/{self._process_id}/children").read_text("utf-8")
        return [self._process_id, *map(int, children.split())]


@contextmanager
def nginx(model_server: int) -> Iterator[Process]:
    """nginx with one worker, which only hands on."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "nginx.conf")
        file.write_text(nginx_configuration(folder, port, model_server))
        process = subprocess.Popen(["taskset", "-c", CORE, "nginx", "-c", str(file)])
        try:
            _wait(port)
            yield Process(process.pid, port)
        finally:
            process.terminate()
            process.wait()


def _wait(port: int) -> None:
    async def look() -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
            writer.close()
            return

    asyncio.run(asyncio.wait_for(look(), 30))


@contextmanager
def service(model_server: int, framework: str) -> Iterator[Process]:
    """The service, with a queue for all requests."""
    with serving(
        within=("taskset", "-c", CORE),
        MODEL_SERVER="vllm",
        LLM_NAME="m",
        FRAMEWORK=framework,
        LLM_MODEL_SERVER_ENDPOINT=f"http://127.0.0.1:{model_server}",
        LLM_DIALECTS="openai, opea",
        LLM_FIRST_TOKEN_SECONDS="0",
        LLM_BETWEEN_TOKENS_SECONDS="0",
        USVC_MAX_RUNNING="100000",
        LOG_PATH=os.devnull,
    ) as running:
        yield Process(running.process.pid, running.port)


async def measure(measured: Measured, *, documents: bool) -> dict[str, float]:
    """All figures of what stands before the model server."""
    short = chat(1)
    await ask(measured.port, short, 50)
    figures = {
        "CPU per request of one token, ms": await per_request(measured, short),
        "CPU per token, µs": await per_token(measured),
    }
    if documents:
        whole = {**question(), "max_tokens": 1}
        await ask(measured.port, whole, 20)
        figures["CPU per question with four passages, ms"] = await per_request(measured, whole)
    figures["memory per open stream, kB"], figures["the kernel's, kB"] = await per_stream(measured)
    rate, share = await requests_a_second(measured, short)
    return {**figures, "requests of one token a second": rate, "with this share of the core": share}


def main() -> None:
    told, telling = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=run_model_server, args=(telling,), daemon=True)
    process.start()
    found: dict[str, dict[str, float]] = {}
    try:
        port: int = told.recv()
        if shutil.which("nginx"):
            with nginx(port) as relay:
                found["nginx"] = uvloop.run(measure(relay, documents=False))
        for framework in ("native", "langchain"):
            with service(port, framework) as one:
                found[framework] = uvloop.run(measure(one, documents=True))
    finally:
        process.terminate()
        process.join()
    print(f"| | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for what in found["native"]:
        figures = [f"{figures[what]:.3g}" if what in figures else "–" for figures in found.values()]
        print(f"| {what} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
