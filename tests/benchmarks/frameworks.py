"""What LangChain costs: CPU per token and per request of a model server over HTTP, through it and without it.

`make bench` runs it. The server is a process of its own, on loopback; its time is not counted.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from contextlib import aclosing
from multiprocessing.connection import Connection

from comps.core.ports import ModelServer
from comps.core.types import Finished, Message, Prompt, Sampling
from comps.model_servers import FRAMEWORKS, open_model_server, through_framework
from comps.model_servers.target import Target

STREAMS = 16
TOKENS = 300
REQUESTS = 300
ROUNDS = 3
PAUSE = 0.003
"""Seconds between two tokens of a stream, so that each comes alone."""
QUESTION: Prompt = (Message("user", "Hi"),)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = b'{"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":" word"}}]}'
END = (
    b'{"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
    b'{"id":"c","model":"m","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":5,"total_tokens":10}}',
    b"[DONE]",
)


def chunk(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request on a connection with as many tokens as it asks for with `max_tokens`."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            tokens = int(body.partition(b'"max_tokens":')[2].partition(b",")[0])
            writer.write(HEAD)
            for _ in range(tokens):
                writer.write(chunk(TOKEN))
                await asyncio.sleep(PAUSE if tokens > 1 else 0)
            writer.write(b"".join(map(chunk, END)) + b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def serve(told: Connection) -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    told.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def run_server(told: Connection) -> None:
    asyncio.run(serve(told))


async def ask(server: ModelServer, tokens: int) -> None:
    async with aclosing(server.generate(QUESTION, Sampling(max_tokens=tokens), {})) as events:
        got = [event async for event in events]
    assert len(got) == tokens + 1
    assert isinstance(got[-1], Finished)


async def measure(url: str, framework: str) -> tuple[float, float]:
    """Microseconds of CPU for a token, and for a request of one token."""
    server = through_framework(open_model_server("vllm", Target("m", url)), framework, "m")
    await ask(server, 2)
    started = time.process_time()
    await asyncio.gather(*(ask(server, TOKENS) for _ in range(STREAMS)))
    per_token = (time.process_time() - started) / (STREAMS * TOKENS)
    started = time.process_time()
    for _ in range(REQUESTS):
        await ask(server, 1)
    per_request = (time.process_time() - started) / REQUESTS
    await server.aclose()
    return per_token * 1e6, per_request * 1e6


def main() -> None:
    os.environ.pop("LANGSMITH_TRACING", None)
    told, telling = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=run_server, args=(telling,), daemon=True)
    process.start()
    try:
        url = f"http://127.0.0.1:{told.recv()}"
        for _ in range(ROUNDS):
            figures = {framework: asyncio.run(measure(url, framework)) for framework in FRAMEWORKS}
            for number, what in enumerate(("token", "request of one token")):
                through, native = figures["langchain"][number], figures["native"][number]
                print(
                    f"CPU per {what}: langchain / native = {through:.0f} µs / {native:.0f} µs = {through / native:.1f}"
                )
    finally:
        process.terminate()
        process.join()


if __name__ == "__main__":
    main()
