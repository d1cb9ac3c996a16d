"""Counts what the service calls for a request and for a token: the model server and the client run in another thread.

Each token is sent when the one before has arrived, so that every one of them comes alone and the counts are the same
on any machine.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import comps
from comps.model_servers import open_model_server
from comps.model_servers.target import Target
from tests.service import PATH, running

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WORD = (
    b'{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}'
)
END = b'{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
USAGE = b'{"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":5,"total_tokens":10}}'


def chunk(data: bytes) -> bytes:
    return b"%x\r\ndata: %b\n\n\r\n" % (len(data) + 8, data)


class OtherThread:
    """A model server like vLLM and a client, in an event loop of their own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.go_on = asyncio.Event()
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.call(self._listen())

    def call(self, work: Any) -> Any:
        """The result of a coroutine that runs there."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """End all of it."""
        self.call(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
            await writer.wait_closed()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
                body = json.loads(await reader.readexactly(length) or b"{}")
                if not body.get("stream"):
                    writer.write(whole(body))
                    continue
                writer.write(HEAD)
                for _ in range(body["max_tokens"]):
                    writer.write(chunk(WORD))
                    await self.go_on.wait()
                    self.go_on.clear()
                writer.write(b"".join(map(chunk, (END, USAGE, b"[DONE]"))) + b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass

    async def ask(self, port: int, body: dict[str, Any], times: int) -> None:
        """Post a body so many times, on one connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        self._writers.append(writer)
        data = json.dumps(body).encode()
        for _ in range(times):
            writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            if not body["stream"]:
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                assert b" word" in await reader.readexactly(length)
                continue
            while size := int(await reader.readline(), 16):
                item = await reader.readexactly(size + 2)
                if b" word" in item:
                    self.go_on.set()
            await reader.readexactly(2)


def whole(body: dict[str, Any]) -> bytes:
    said: Any = {"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 8192}]}
    if body:
        message = {"role": "assistant", "content": " word" * body["max_tokens"]}
        usage = {"prompt_tokens": 5, "completion_tokens": body["max_tokens"], "total_tokens": 5 + body["max_tokens"]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        said = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    data = json.dumps(said).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


ROOT = str(Path(comps.__file__).parent.parent)


def short(file: str) -> str:
    """The path of a file of ours from the root of the project, else its name."""
    return file.removeprefix(f"{ROOT}/") if file.startswith(f"{ROOT}/comps/") else file.rpartition("/")[2]


@contextmanager
def counted(calls: Counter[str]) -> Iterator[None]:
    """Counts the calls of functions in this thread, of Python's and of C's."""

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            calls[f"{short(code.co_filename)}:{code.co_name}"] += 1
        elif event == "c_call":
            calls[f"C {getattr(argument, '__qualname__', argument)}"] += 1

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)


@asynccontextmanager
async def counting(monkeypatch: pytest.MonkeyPatch, framework: str) -> AsyncIterator[Any]:
    """Gives a function that counts the calls of some requests; what is only done once is done before."""
    other = await asyncio.to_thread(OtherThread)
    server = open_model_server("vllm", Target("m", f"http://127.0.0.1:{other.port}"))
    async with running(server, monkeypatch, {"FRAMEWORK": framework, "LLM_NAME": "m"}) as service:

        async def count(tokens: int, times: int = 1, stream: bool = True) -> Counter[str]:
            messages = [{"role": "user", "content": "hi"}]
            body = {"model": "m", "messages": messages, "max_tokens": tokens, "stream": stream}
            calls: Counter[str] = Counter()
            for into in (Counter(), calls):
                asking = asyncio.run_coroutine_threadsafe(other.ask(service.port, body, times), other.loop)
                with counted(into):
                    await asyncio.wrap_future(asking)
            return calls

        yield count
    await asyncio.to_thread(other.close)
