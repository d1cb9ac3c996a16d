"""No request holds the service's event loop for long, whatever its size; see `watchdog`."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from comps.core.beside import beside
from comps.core.types import Embeddings, Token
from tests.service import PATH, Able
from tests.watchdog import LIMIT, WatchedService, watched

pytestmark = pytest.mark.xdist_group("stalls")

MEGABYTE = 1_000_000
WORDS = "the memory of Gaudi 2 is large, and paper needs no power; "
CHAT = {"messages": "How much memory does Gaudi 2 have?", "max_tokens": 3}


COHERE = {"messages": [{"role": "user", "content": "How much memory?"}], "model": "scripted"}


def words(size: int) -> str:
    return (WORDS * (size // len(WORDS) + 1))[:size]


def documents(number: int, size: int) -> list[str]:
    """Different documents."""
    return [f"{place} {words(size)}" for place in range(number)]


FUNCTION = {"type": "function", "description": words(7_000), "parameters": {"type": "object"}}


def chat(**fields: Any) -> bytes:
    return json.dumps({**CHAT, **fields}).encode()


def message(size: int) -> bytes:
    """A document whose sentences are cited, as Anthropic's API has it."""
    document = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": words(size)},
        "citations": {"enabled": True},
    }
    content = [document, {"type": "text", "text": "How much memory?"}]
    return json.dumps(
        {"messages": [{"role": "user", "content": content}], "max_tokens": 9, "model": "scripted"}
    ).encode()


class Quick(Able):
    """It does not look at the prompt, which is not to be measured."""

    async def generate(self, prompt: Any, sampling: Any, options: Any, answer: Any) -> None:
        await super().generate("", sampling, options, answer)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        length = 2_000 if len(texts) <= 1_000 else 2  # To make and to free more of them is not to be measured.
        return Embeddings(tuple([0.5] * length for _ in texts), 1)

    async def tokenize(self, text: str) -> Sequence[Token]:
        return await beside(lambda: [Token(0, end) for end in range(5, len(text), 5)])


@pytest.fixture(scope="module")
def service() -> Iterator[WatchedService]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        answer = ("This ", "is [1]. ", f"{words(8000)} ")
        with watched(lambda: Quick([answer]), monkeypatch, {}) as running:
            yield running


USUAL: dict[str, tuple[Callable[[], bytes], str, dict[str, str], int]] = {
    "ten thousand documents": (lambda: chat(documents=documents(10_000, 10)), PATH, {}, 200),
    "a long document": (lambda: chat(documents=[words(4 * MEGABYTE)]), PATH, {}, 200),
    "ten thousand messages": (
        lambda: json.dumps({**CHAT, "messages": [{"role": "user", "content": "Hi"}] * 10_000}).encode(),
        PATH,
        {},
        200,
    ),
    "thousands of prompts": (
        lambda: json.dumps({"prompt": ["a"] * 2_000, "max_tokens": 1}).encode(),
        "/v1/completions",
        {},
        200,
    ),
    "documents matched with the answer": (
        lambda: chat(documents=documents(1500, 300), citations="matched"),
        PATH,
        {},
        200,
    ),
    "millions of values": (lambda: b'{"messages":"q","x":[' + b"{}," * 2 * MEGABYTE + b"1]}", PATH, {}, 400),
    "wrong messages": (
        lambda: json.dumps({"messages": [{"role": "boss", "content": words(400)}] * 9_000}).encode(),
        PATH,
        {},
        400,
    ),
    "many members of gzip": (
        lambda: gzip.compress(b"") * 100_000,
        PATH,
        {"content-encoding": "gzip"},
        413,
    ),
    "half of control tokens": (lambda: chat(documents=["<|" * (MEGABYTE // 5)]), PATH, {}, 200),
    "a preview": (lambda: chat(documents=documents(3_000, 200)), "/v1/prompt", {}, 200),
}
USUAL["a document without sentences that is cited"] = (
    lambda: message(MEGABYTE),
    "/v1/messages",
    {},
    200,
)
USUAL["many vectors"] = (
    lambda: json.dumps({"input": ["a"] * 900}).encode(),
    "/v1/embeddings",
    {},
    200,
)
USUAL["blanks before a word"] = (lambda: chat(documents=["a" + " " * MEGABYTE + "b\n"]), PATH, {}, 200)
USUAL["a template that repeats the documents"] = (
    lambda: chat(documents=[words(40_000)], chat_template="{context}" * 5_000),
    PATH,
    {},
    400,
)
SIZE = 15 * MEGABYTE
USUAL["instructions that a stream repeats"] = (
    lambda: json.dumps({"input": "?", "instructions": words(SIZE), "stream": True}).encode(),
    "/v1/responses",
    {},
    200,
)
LARGEST: dict[str, tuple[Callable[[], bytes], str, dict[str, str], int]] = {
    "one question": (lambda: chat(messages=words(SIZE)), PATH, {}, 200),
    "one document": (lambda: chat(documents=[words(SIZE)]), PATH, {}, 200),
    "a document that is not ASCII": (
        lambda: json.dumps({**CHAT, "documents": ["жук " * (SIZE // 8)]}, ensure_ascii=False).encode(),
        PATH,
        {},
        200,
    ),
    "ten thousand documents": (lambda: chat(documents=documents(10_000, 1480)), PATH, {}, 200),
    "ten thousand documents by relevance": (
        lambda: chat(documents=documents(10_000, 800), order="relevance"),
        PATH,
        {},
        200,
    ),
    "ten thousand documents matched": (
        lambda: chat(documents=documents(10_000, 400), citations="matched"),
        PATH,
        {},
        200,
    ),
    "a hundred thousand messages": (
        lambda: json.dumps({"messages": [{"role": "user", "content": "Hi"}] * 100_000}).encode(),
        PATH,
        {},
        400,
    ),
    "fields": (lambda: chat(**{f"f{number}": words(1500) for number in range(9_900)}), PATH, {}, 200),
    "numbers": (lambda: b'{"messages":"q","x":[' + b"1," * (SIZE // 2) + b"1]}", PATH, {}, 400),
    "objects": (lambda: b'{"messages":"q","x":[' + b'{"a":1},' * (SIZE // 8) + b"1]}", PATH, {}, 400),
    "lists in lists": (lambda: b'{"messages":"q","x":' + b"[" * SIZE + b"}", PATH, {}, 400),
    "an infinite number at the end": (
        lambda: b'{"messages":"' + b"x" * SIZE + b'","temperature":NaN}',
        PATH,
        {},
        400,
    ),
    "no text": (lambda: b"\xff\xfe" + bytes(range(256)) * (SIZE // 256), PATH, {}, 400),
    "gzip": (lambda: gzip.compress(chat(documents=[words(SIZE)]), 1), PATH, {"content-encoding": "gzip"}, 200),
    "a gzip bomb": (lambda: gzip.compress(bytes(200 * MEGABYTE)), PATH, {"content-encoding": "gzip"}, 413),
    "halves of control tokens": (lambda: chat(documents=["<|" * (SIZE // 2)]), PATH, {}, 200),
    "blank lines": (lambda: chat(documents=["a\n\n\n" * (MEGABYTE // 4)]), PATH, {}, 200),
    "a title": (lambda: chat(documents=[{"text": "a", "title": words(SIZE)}]), PATH, {}, 200),
    "a report": (lambda: chat(documents=documents(10_000, 10), include_report=True), PATH, {}, 200),
    "a preview": (lambda: chat(documents=documents(10_000, 1480)), "/v1/prompt", {}, 200),
    "embeddings": (lambda: json.dumps({"input": documents(10_000, 1480)}).encode(), "/v1/embeddings", {}, 200),
    "prompts": (lambda: json.dumps({"prompt": ["a"] * 10_000, "max_tokens": 1}).encode(), "/v1/completions", {}, 200),
    "opea": (lambda: json.dumps({"query": words(SIZE), "max_tokens": 2}).encode(), PATH, {}, 200),
    "opea's documents": (
        lambda: json.dumps(
            {"initial_query": "q", "retrieved_docs": [{"text": one} for one in documents(10_000, 1400)]}
        ).encode(),
        PATH,
        {},
        200,
    ),
    "kaito": (lambda: json.dumps({"prompt": words(SIZE)}).encode(), "/generate", {}, 200),
    "llm_api": (lambda: json.dumps({"prompt": words(SIZE)}).encode(), "/agenerate", {}, 200),
    "tgi": (
        lambda: json.dumps({"inputs": words(SIZE), "parameters": {"details": True}}).encode(),
        "/generate",
        {},
        200,
    ),
    "tgi's prompt at the end of a stream": (
        lambda: json.dumps({"inputs": words(SIZE), "stream": True, "parameters": {"return_full_text": True}}).encode(),
        "/",
        {},
        200,
    ),
    "functions that a stream repeats": (
        lambda: json.dumps(
            {"input": "?", "tools": [{**FUNCTION, "name": f"f{number}"} for number in range(2_000)], "stream": True}
        ).encode(),
        "/v1/responses",
        {},
        200,
    ),
    "cohere's cited document": (
        lambda: json.dumps({**COHERE, "documents": [words(SIZE)]}).encode(),
        "/v2/chat",
        {},
        200,
    ),
    "cohere's cited document in a stream": (
        lambda: json.dumps({**COHERE, "documents": [words(SIZE)], "stream": True}).encode(),
        "/v2/chat",
        {},
        200,
    ),
    "kaito's chat, which is repeated": (
        lambda: json.dumps({"input_data": {"input_string": [[{"role": "user", "content": words(SIZE)}]]}}).encode(),
        "/chat",
        {},
        200,
    ),
    "the tokens of a text": (lambda: json.dumps({"inputs": words(2 * MEGABYTE)}).encode(), "/tokenize", {}, 200),
    "the name of a field": (lambda: json.dumps({"input": "a", "k" * SIZE: 1}).encode(), "/v1/embeddings", {}, 200),
    "a text to tokenize": (lambda: json.dumps({"inputs": words(SIZE)}).encode(), "/tokenize", {}, 422),
    "a document that is cited": (lambda: message(SIZE), "/v1/messages", {}, 200),
    "tgi's grammar": (
        lambda: json.dumps({"inputs": "", "parameters": {"grammar": {"type": "json", "value": words(SIZE)}}}).encode(),
        "/generate",
        {},
        422,
    ),
    "ollama": (lambda: json.dumps({"prompt": words(SIZE), "raw": True}).encode(), "/api/generate", {}, 200),
    "ollama's images": (
        lambda: json.dumps({"messages": [{"role": "user", "content": "?", "images": ["QUFB" * 100]}] * 9_000}).encode(),
        "/api/chat",
        {},
        200,
    ),
    "ollama's template": (
        lambda: json.dumps({"prompt": words(SIZE), "template": "{{ .Prompt }}" * 100}).encode(),
        "/api/generate",
        {},
        400,
    ),
    "ollama's keep_alive": (
        lambda: json.dumps({"prompt": "?", "keep_alive": "1m" * (SIZE // 2)}).encode(),
        "/api/generate",
        {},
        400,
    ),
    "a model's name": (lambda: json.dumps({"model": "x" * SIZE}).encode(), "/api/show", {}, 404),
    "a model that is not served": (
        lambda: json.dumps({"prompt": "?", "images": ["QUFB" * (SIZE // 4)], "model": "x"}).encode(),
        "/api/generate",
        {},
        404,
    ),
}


@pytest.mark.parametrize("name", USUAL)
def test_a_large_request_does_not_hold_the_event_loop(name: str, service: WatchedService) -> None:
    make, path, headers, status = USUAL[name]
    found = service.post_until_quick(make(), path, headers)
    assert found.status == status, found.body[:300]
    assert found.seconds < LIMIT


@pytest.mark.soak
@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_requests_do_not_hold_the_event_loop(name: str, service: WatchedService) -> None:
    make, path, headers, status = LARGEST[name]
    found = service.post_until_quick(make(), path, headers)
    print(f"{name}: {found.seconds * 1000:.0f} ms")
    assert found.status == status, found.body[:300]
    assert found.seconds < LIMIT
    if status >= 400:
        assert len(found.body) < 1000


def test_the_watchdog_sees_what_holds_the_loop(service: WatchedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comps.handler.LONG", 10**9)
    monkeypatch.setattr("comps.handler.MANY", 10**9)
    assert service.post(chat(documents=documents(10_000, 10))).seconds > LIMIT
