"""The service as clients see it: a real uvicorn on loopback, and a client that shows raw HTTP chunks."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from comps.app import direct, make_app, read_settings
from comps.core import ports
from comps.core.errors import LLMError
from comps.core.prompts import text_of
from comps.core.types import JSON, Embeddings, ModelInfo, Prompt, Sampling, Token
from comps.dialects.shared.base import Dialect
from comps.model_servers.scripted import Scripted
from comps.server import Server, ServerProtocol

PATH = "/v1/chat/completions"
PATIENCE = 60.0
"""Seconds after which a test gives up on something that should have come at once."""


class Able(Scripted):
    """A model server that makes vectors and counts: a character is a token."""

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        return Embeddings(tuple([1.0, float(len(text))] for text in texts), sum(map(len, texts)))

    async def count_tokens(self, text: str) -> int:
        return len(text)

    async def tokenize(self, text: str) -> Sequence[Token]:
        return [Token(ord(character), end) for end, character in enumerate(text, 1)]

    async def render(self, prompt: Prompt, options: Mapping[str, JSON]) -> str:
        if isinstance(prompt, str):
            return prompt
        return "".join(f"<{one.role}>{text_of(one.content)}{one.extra or ''}" for one in prompt) + str(dict(options))


class CountingAlone(Able):
    """A model server that counts the characters of all that the model reads, and generates nothing."""

    async def describe(self) -> ModelInfo:
        return ModelInfo("scripted", 1000, frozenset({"max_tokens", "stop", "tools", "messages.*"}))

    async def generate(
        self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: ports.Answer
    ) -> None:
        raise AssertionError("it is only to count")


@dataclass
class Answer:
    """A response, as it came over the socket."""

    status: int
    headers: dict[str, str]
    chunks: list[bytes] = field(default_factory=list)
    """HTTP chunks; of a body that came with a length, one."""

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One HTTP/1.1 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send a request; `headers` may replace the usual ones, or take them away with an empty value."""
        usual = {"Host": "test", "Content-Length": str(len(body)), "Content-Type": "application/json"}
        lines = [f"{name}: {value}\r\n" for name, value in {**usual, **(headers or {})}.items() if value]
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + body)
        await self.writer.drain()

    async def head(self) -> Answer:
        """The status line and the headers."""
        text = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE)).decode()
        first, *lines = text.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(int(first.split()[1]), headers)

    async def chunk(self) -> bytes:
        """The next HTTP chunk; empty at the end of the body."""
        size = int(await asyncio.wait_for(self.reader.readline(), PATIENCE), 16)
        data = await asyncio.wait_for(self.reader.readexactly(size + 2), PATIENCE)
        assert data.endswith(b"\r\n")
        return data[:-2]

    async def answer(self) -> Answer:
        """A whole response."""
        answer = await self.head()
        if "content-length" in answer.headers:
            answer.chunks.append(await self.reader.readexactly(int(answer.headers["content-length"])))
        else:
            while chunk := await self.chunk():
                answer.chunks.append(chunk)
        return answer

    def close(self) -> None:
        self.writer.close()


class Announced(Server):
    """The server, with an event that says that it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


class Service:
    """A running service."""

    def __init__(self, app: FastAPI, server: Announced, port: int) -> None:
        self.app = app
        self.server = server
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def connect(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Connection]:
        name = "localhost" if tls else None
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port, ssl=tls, server_hostname=name))
        try:
            yield connection
        finally:
            connection.close()

    async def post(self, body: Any, path: str = PATH, **headers: str) -> Answer:
        """Post a body: bytes as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.connect() as connection:
            await connection.send("POST", path, data, headers)
            return await connection.answer()

    async def get(self, path: str, **headers: str) -> Answer:
        async with self.connect() as connection:
            await connection.send("GET", path, b"", headers)
            return await connection.answer()


@asynccontextmanager
async def running(
    model_server: ports.ModelServer | Mapping[str, ports.ModelServer],
    monkeypatch: pytest.MonkeyPatch,
    environment: Mapping[str, str] | None = None,
    *,
    loaded: bool = True,
    further: Sequence[Dialect] = (),
) -> AsyncIterator[Service]:
    """The service in front of `model_server`, or of several by their models' names, with settings from `environment`
    and `further` dialects before those; waits until all are loaded."""
    for name, value in {"FRAMEWORK": "native", "LLM_NAME": "scripted", **(environment or {})}.items():
        monkeypatch.setenv(name, value)
    ready = asyncio.Event()

    def on_loaded(failed: LLMError | None) -> None:
        assert failed is None
        ready.set()

    def make() -> FastAPI:
        settings = read_settings(None)
        servers = model_server if isinstance(model_server, Mapping) else {settings.model.model_name: model_server}
        return make_app(settings, servers, on_loaded, further=further)

    # Before the loop runs, as in the command; here in a thread, since making a service reads files.
    app = await asyncio.to_thread(make)
    trusted = list(app.state.service.settings.microservice.trusted_proxies)
    config = uvicorn.Config(
        direct(app),
        port=0,
        host="127.0.0.1",
        http=ServerProtocol,
        ws="none",
        proxy_headers=bool(trusted),
        forwarded_allow_ips=trusted,
        ssl_context_factory=(lambda *_: app.state.tls.context) if app.state.tls else None,
        log_config=None,
        access_log=False,
    )
    server = Announced(config)
    serving = asyncio.ensure_future(server.serve())
    try:
        await asyncio.wait_for(server.listening.wait(), PATIENCE)
        if loaded:
            await asyncio.wait_for(ready.wait(), PATIENCE)
        yield Service(app, server, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.end()
        await asyncio.wait_for(serving, PATIENCE)


async def until_in_flight(service: Service, number: int) -> None:
    """Ask the service's own metrics until that many requests are being answered."""
    line = f"opea_llm_requests_in_flight {float(number)}"

    async def look() -> None:
        while line not in (await service.get("/metrics")).body.decode():
            pass

    await asyncio.wait_for(look(), PATIENCE)


async def until_idle(service: Service) -> None:
    await until_in_flight(service, 0)
