"""No answer of a model server holds the service's event loop for long, whatever its size; see `watchdog`."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.connection import Connection
from typing import Any

import pytest

from comps.model_servers import open_model_server, through_framework
from comps.model_servers.target import Target
from tests.service import PATH
from tests.watchdog import LIMIT, Watched, WatchedService, watched

pytestmark = pytest.mark.xdist_group("stalls")

SIZE = 15_000_000
WORDS = "the memory of Gaudi 2 is large, and paper needs no power; "
MESSAGES = {"messages": [{"role": "user", "content": "How much memory does Gaudi 2 have?"}], "model": "m"}
TOKEN = {"token": "the ", "logprob": -0.123456789, "bytes": [116, 104, 101, 32]}


def words(size: int) -> str:
    return (WORDS * (size // len(WORDS) + 1))[:size]


def whole(message: dict[str, Any], **fields: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop", **fields}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def with_logprobs(tokens: int) -> bytes:
    content = [{**TOKEN, "top_logprobs": [TOKEN] * 5}] * tokens
    return whole({"content": "the " * tokens}, logprobs={"content": content})


def with_call() -> bytes:
    function = {"name": "f", "arguments": json.dumps({"a": words(SIZE)})}
    return whole({"content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]})


def vectors(number: int) -> bytes:
    items = [{"object": "embedding", "index": at, "embedding": [-0.012345 * (at + 1)] * 1000} for at in range(number)]
    return json.dumps({"object": "list", "data": items, "usage": {"prompt_tokens": 1, "total_tokens": 1}}).encode()


def tokens(number: int) -> bytes:
    return json.dumps({"count": number, "tokens": list(range(number))}).encode()


def many_events(number: int) -> bytes:
    event = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"the "}}]}\n\n'
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    return event * number + end


Case = tuple[Callable[[], bytes], str, dict[str, Any]]
"""The model server's answer, and the path and the body of the request."""
USUAL: dict[str, Case] = {
    "log probabilities": (lambda: with_logprobs(15_000), PATH, {**MESSAGES, "logprobs": True}),
    "vectors": (lambda: vectors(1_000), "/v1/embeddings", {"input": ["a"] * 1_000}),
    "a stream that comes at once": (lambda: many_events(40_000), PATH, {**MESSAGES, "stream": True}),
}
LARGEST: dict[str, Case] = {
    "text": (lambda: whole({"content": words(SIZE)}), PATH, MESSAGES),
    "text with escapes": (lambda: whole({"content": 'a\n"' * (SIZE // 5)}), PATH, MESSAGES),
    "text that is not ASCII": (lambda: whole({"content": "жук" * (SIZE // 18)}), PATH, MESSAGES),
    "reasoning": (lambda: whole({"content": "a", "reasoning_content": words(SIZE)}), PATH, MESSAGES),
    "a tool call": (with_call, PATH, MESSAGES),
    "log probabilities": (lambda: with_logprobs(30_000), PATH, {**MESSAGES, "logprobs": True}),
    "vectors": (lambda: vectors(1_000), "/v1/embeddings", {"input": ["a"] * 1_000}),
    "tokens": (lambda: tokens(500_000), "/tokenize", {"inputs": "a" * 500_000}),
    "a stream that comes at once": (lambda: many_events(200_000), PATH, {**MESSAGES, "stream": True}),
    "responses' stream that comes at once": (
        lambda: many_events(100_000),
        "/v1/responses",
        {"input": "?", "model": "m", "stream": True},
    ),
    "ollama's text": (lambda: whole({"content": words(SIZE)}), "/api/chat", {**MESSAGES, "stream": False}),
    "ollama's log probabilities": (
        lambda: with_logprobs(30_000),
        "/api/chat",
        {**MESSAGES, "stream": False, "logprobs": True},
    ),
    "ollama's vectors": (lambda: vectors(1_000), "/api/embed", {"input": ["a"] * 1_000, "model": "m"}),
    "anthropic's text": (lambda: whole({"content": words(SIZE)}), "/v1/messages", {**MESSAGES, "max_tokens": 9}),
    "anthropic's tool call": (with_call, "/v1/messages", {**MESSAGES, "max_tokens": 9}),
    "cohere's text": (lambda: whole({"content": words(SIZE)}), "/v2/chat", MESSAGES),
    "cohere's log probabilities": (lambda: with_logprobs(30_000), "/v2/chat", {**MESSAGES, "logprobs": True}),
    "responses' text": (lambda: whole({"content": words(SIZE)}), "/v1/responses", {"input": "?", "model": "m"}),
    "responses' tool call": (with_call, "/v1/responses", {"input": "?", "model": "m"}),
    "responses' log probabilities": (
        lambda: with_logprobs(30_000),
        "/v1/responses",
        {"input": "?", "model": "m", "include": ["message.output_text.logprobs"]},
    ),
    "tgi's text": (lambda: whole({"content": words(SIZE)}), "/generate", {"inputs": "?"}),
    "opea's": (lambda: whole({"content": words(SIZE)}), PATH, {"query": "?", "stream": False}),
}


class ModelServer(BaseHTTPRequestHandler):
    """Answers with what it was told last."""

    protocol_version = "HTTP/1.1"
    said = b""

    def do_GET(self) -> None:
        self.answer(b'{"data":[{"id":"m","max_model_len":100000}]}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.answer(self.said)

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        kind = "text/event-stream" if body.startswith(b"data:") else "application/json"
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def run_model_server(told: Connection) -> None:
    server = HTTPServer(("127.0.0.1", 0), ModelServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told.send(server.server_port)
    while True:
        try:
            ModelServer.said = told.recv_bytes()
        except EOFError:
            return
        told.send("understood")


@dataclass
class Ours:
    """A service, before a model server that is a process of its own and uses none of the service's time."""

    service: WatchedService
    model_server: Connection

    def post(self, case: Case) -> Watched:
        make, path, body = case
        self.model_server.send_bytes(make())
        self.model_server.recv()
        return self.service.post_until_quick(json.dumps(body).encode(), path)


@pytest.fixture(scope="module", params=["native", "langchain"])
def ours(request: pytest.FixtureRequest) -> Iterator[Ours]:
    context = multiprocessing.get_context("spawn")
    tells, told = context.Pipe()
    process = context.Process(target=run_model_server, args=(told,), daemon=True)
    process.start()
    told.close()
    server = open_model_server("vllm", Target("m", f"http://127.0.0.1:{tells.recv()}"))
    environment = {"LLM_NAME": "m", "DIALECTS": "opea,openai,anthropic,cohere,ollama,tgi,responses"}
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        watched(lambda: through_framework(server, request.param, "m"), monkeypatch, environment) as service,
    ):
        yield Ours(service, tells)
    tells.close()
    process.join()


@pytest.mark.parametrize("name", USUAL)
def test_a_large_answer_does_not_hold_the_event_loop(name: str, ours: Ours) -> None:
    found = ours.post(USUAL[name])
    assert found.status == 200
    assert found.seconds < LIMIT


@pytest.mark.soak
@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_answers_do_not_hold_the_event_loop(name: str, ours: Ours) -> None:
    found = ours.post(LARGEST[name])
    print(f"{name}: {found.seconds * 1000:.0f} ms")
    assert found.status == 200
    assert found.seconds < LIMIT
