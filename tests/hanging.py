"""A model server over TCP that never ends an answer, the service in front of it, and its metrics."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.hot_path import HEAD, WORD, chunk
from tests.service import Service, running

LISTED = b'{"data": [{"id": "m", "max_model_len": 8192}]}'
COUNTED = b'{"count": 90, "tokens": [], "prompt": ""}'
CHAT = {"model": "m", "messages": [{"role": "user", "content": "?"}], "max_tokens": 7}
CHAT_PATH = "/v1/chat/completions"


def response(body: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), headers, body)


@dataclass
class Hanging:
    """A model server like vLLM that never ends an answer, and notes when a connection with one closes."""

    url: str = ""
    begins: bool = False
    """Whether a stream begins with one event."""
    beat: bytes = b""
    """What is sent in a stream again and again; empty: nothing."""
    counts: bool = True
    """Whether tokens are counted; otherwise, that never ends either."""
    lists: bool = True
    """Whether models are listed; otherwise, that never ends."""
    not_ready: bytes = b""
    """Headers of the response 503 to each question; empty: there is none."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    reached: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    closed: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    def answer(self, path: str, body: dict[str, Any]) -> bytes | None:
        """What is sent for a POST request at once; None if the connection is held with nothing sent."""
        if path in ("/tokenize", "/detokenize") and self.counts:
            return response(COUNTED)
        self.asked.append(body)
        self.reached.put_nowait(path)
        if self.not_ready:
            return response(b"{}", b"503 Not ready", self.not_ready)
        return None


class Held(asyncio.Protocol):
    """A connection of it."""

    def __init__(self, server: Hanging) -> None:
        self._server = server
        self._data = b""
        self._path = ""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if not end or len(body) < int(length[1] if length else 0):
            return
        self._data = b""
        if head.startswith(b"GET"):
            if self._server.lists:
                self._transport.write(response(LISTED))
            return
        path, asked = head.split()[1].decode(), json.loads(body)
        said = self._server.answer(path, asked)
        if said is not None:
            self._transport.write(said)
            return
        self._path = path
        if asked.get("stream") and (self._server.begins or self._server.beat):
            self._transport.write(HEAD + (chunk(WORD) if self._server.begins else b""))
            self._beat()

    def _beat(self) -> None:
        beat = self._server.beat
        if beat and not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(beat), beat))
            asyncio.get_running_loop().call_later(0.01, self._beat)

    def connection_lost(self, error: Exception | None) -> None:
        if self._path:
            self._server.closed.put_nowait(self._path)


@asynccontextmanager
async def hanging(**how: Any) -> AsyncIterator[Hanging]:
    server = Hanging(**how)
    listening = await asyncio.get_running_loop().create_server(lambda: Held(server), "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening:
        yield server


@asynccontextmanager
async def in_front(
    servers: Sequence[Hanging], monkeypatch: pytest.MonkeyPatch, framework: str, **settings: str
) -> AsyncIterator[Service]:
    urls = ",".join(server.url for server in servers)
    reached = {"MODEL_SERVER": "vllm", "LLM_NAME": "m", "LLM_MODEL_SERVER_ENDPOINT": urls, "FRAMEWORK": framework}
    async with running({}, monkeypatch, {**reached, **settings}) as service:
        yield service


async def metric(service: Service, name: str) -> dict[str, float]:
    """The values of a metric by its one label; without one, by an empty text."""
    text = (await service.get("/metrics")).body.decode()
    found = re.findall(rf'^{name}(?:\{{\w+="(\w+)"\}})? (\S+)$', text, re.MULTILINE)
    return {label: float(value) for label, value in found}
