"""A model server that has no model: it speaks as vLLM and as TGI do, as cheaply as can be, in a process of its own.

`max_tokens` in a request is how many tokens there are, and `seed` when they come: see `words.moments`. Streams of the
same pace get their tokens in the same moment, as vLLM's steps make them. Each token is one event, one HTTP chunk and
one write. `GET /stats` tells how many streams there were, and how many clients left before the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any, Protocol, cast

import httptools
import orjson
import uvloop

from tests.benchmarks.relay import wire, words

MODEL = "m"
KEPT = 1024
"""How many answers are kept, ready to be sent."""


@dataclass
class Stats:
    """What has happened since the start."""

    requests: int = 0
    streams: int = 0
    finished: int = 0
    """Streams that were sent to their end."""
    cancelled: int = 0
    """Streams whose client left before that."""
    connections: int = 0
    """Open at the moment."""


class Read(Protocol):
    """Reads one kind of body: the prompt's text, the number of tokens, and the seed."""

    def __call__(self, body: Any) -> tuple[str, int, int]: ...


def read_chat(body: Any) -> tuple[str, int, int]:
    content = body["messages"][-1]["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return text, body.get("max_tokens") or body["max_completion_tokens"], body.get("seed") or 0


def read_completion(body: Any) -> tuple[str, int, int]:
    return body["prompt"], body["max_tokens"], body.get("seed") or 0


def read_generate(body: Any) -> tuple[str, int, int]:
    parameters = body["parameters"]
    return body["inputs"], parameters["max_new_tokens"], parameters.get("seed") or 0


READS: dict[str, Read] = {
    "/v1/chat/completions": read_chat,
    "/v1/completions": read_completion,
    "/generate": read_generate,
    "/generate_stream": read_generate,
}


def said(asked: str, tokens: int) -> wire.Said:
    return wire.Said(words.answer(asked, tokens), words.prompt_tokens(asked), model=MODEL)


@lru_cache(KEPT)
def streamed(path: str, asked: str, tokens: int, usage: bool) -> list[bytes]:
    """The events of an answer."""
    one = said(asked, tokens)
    if path == "/generate_stream":
        return wire.tgi_stream(one)
    return (wire.chat_stream if path == "/v1/chat/completions" else wire.completion_stream)(one, usage)


@lru_cache(KEPT)
def in_chunks(path: str, asked: str, tokens: int, usage: bool) -> list[bytes]:
    """What is written of an answer, one item at a time: the head with the role or the first token, each token, and the
    last one with all that follows it, as vLLM sends them."""
    chunks = [wire.chunk(event) for event in streamed(path, asked, tokens, usage)]
    role = path == "/v1/chat/completions"
    head = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % wire.STREAM
    writes = [head + chunks[0], *chunks[1 : tokens + role]]
    writes[-1] += b"".join([*chunks[tokens + role :], b"0\r\n\r\n"])
    return writes


@lru_cache(KEPT)
def whole(path: str, asked: str, tokens: int, prompt: bool) -> bytes:
    """A whole response."""
    one = said(asked, tokens)
    if path == "/generate":
        counted = b"x-prompt-tokens: %d\r\nx-generated-tokens: %d\r\n" % (one.prompt_tokens, tokens)
        return response(wire.tgi_whole(one, prompt), counted)
    return response((wire.chat_whole if path == "/v1/chat/completions" else wire.completion_whole)(one))


def response(body: bytes, headers: bytes = b"", status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n" % (status, wire.JSON, len(body))
    return head + headers + b"\r\n" + body


def tokenized(path: str, body: Any) -> Any:
    """The routes for tokens: a word is one, and TGI's chat template writes the last message's text alone."""
    if path == "/chat_tokenize":
        text = read_chat({**body, "max_tokens": 1})[0]
        return {"tokenize_response": _tokens(text), "templated_text": text}
    if "inputs" in body:
        return _tokens(body["inputs"])
    text = body.get("prompt") or read_chat({**body, "max_tokens": 1})[0]
    count = words.prompt_tokens(text)
    return {"count": count, "max_model_len": wire.WINDOW, "tokens": list(range(count)), "token_strs": None}


def _tokens(text: str) -> list[dict[str, Any]]:
    return [{"id": place, "text": word, "start": 0, "stop": 0} for place, word in enumerate(text.split())]


class Connection(asyncio.Protocol):
    """One connection, and one answer at a time on it."""

    def __init__(self, stats: Stats, twist: Callable[[bytes], bytes] | None) -> None:
        self._stats = stats
        self._twist = twist
        """What tests do to each write of a stream."""
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._body = b"", bytearray()
        self._writes: list[bytes] = []
        self._next = 0
        self._timer: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop has a class of its own.
        self._stats.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._stats.connections -= 1
        if self._timer:
            self._timer.cancel()
            self._timer = None
            self._stats.cancelled += 1

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url, self._body = url, bytearray()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path = self._url.decode()
        self._stats.requests += path != "/stats"
        if not (read := READS.get(path)):
            self._transport.write(self._fact(path))
            return
        body = orjson.loads(self._body)
        asked, tokens, seed = read(body)
        if path != "/generate_stream" and not body.get("stream"):
            prompt = bool(body.get("parameters", {}).get("decoder_input_details"))
            self._transport.write(whole(path, asked, tokens, prompt))
            return
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self._stats.streams += 1
        self._writes, self._next = in_chunks(path, asked, tokens, usage), 0
        self._role = path == "/v1/chat/completions"
        self._due, self._pause = words.moments(seed, asyncio.get_running_loop().time())
        self._step()

    def _step(self) -> None:
        """Write the next item, and come again when that behind it is due."""
        data = self._writes[self._next]
        self._transport.write(self._twist(data) if self._twist else data)
        self._next += 1
        if self._next == len(self._writes):
            self._timer = None
            self._stats.finished += 1
        elif self._pause:
            due = self._due + (self._next - self._role) * self._pause
            self._timer = asyncio.get_running_loop().call_at(due, self._step)
        else:
            self._timer = asyncio.get_running_loop().call_soon(self._step)

    def _fact(self, path: str) -> bytes:
        if path == "/stats":
            return response(wire.dumped(asdict(self._stats)))
        if path == "/v1/models":
            return response(wire.models(MODEL))
        if path == "/info":
            return response(wire.tgi_info(MODEL))
        if path in ("/tokenize", "/chat_tokenize"):
            return response(wire.dumped(tokenized(path, orjson.loads(self._body))))
        return response(b"{}") if path == "/health" else response(b"{}", status=b"404 Not Found")


async def listen(stats: Stats, twist: Callable[[bytes], bytes] | None = None) -> asyncio.Server:
    """Start to listen, on a free port of loopback."""
    made = partial(Connection, stats, twist)
    return await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0, backlog=4096)


async def serve() -> None:
    """Listen, tell the port on standard output, and answer until the process ends."""
    server = await listen(Stats())
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
