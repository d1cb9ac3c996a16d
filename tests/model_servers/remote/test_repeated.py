"""Requests that are sent to the same server again, over real sockets: which, how often, and within which deadline."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from comps.core.answers import collect
from comps.core.errors import LLMError, ModelServerError, Timeout, Unreachable
from comps.core.retries import Retries
from comps.core.tallies import RETRIES
from comps.core.types import Embeddings, Generation, Sampling
from comps.model_servers import through_framework
from comps.model_servers.remote.deadlines import Deadlines
from comps.model_servers.remote.vllm import VLLM
from comps.model_servers.target import Access
from tests.model_servers.replay import Replay, Reply, replaying, sse
from tests.service import PATIENCE

EMBED, COUNT, MODELS = "/v1/embeddings", "/tokenize", "/v1/models"
END = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}
STREAM = sse({"choices": [END]}, b"data: [DONE]\n\n")
VECTORS = Reply([b'{"data": [{"index": 0, "embedding": [1.0]}]}'])
NOT_READY = Reply([b"{}"], 503)
TEXT = "?"


async def stream(server: Any) -> Generation:
    return await collect(server.generate, TEXT, Sampling(), {})


async def whole(server: Any) -> Generation:
    generation: Generation = await server.complete(TEXT, Sampling(), {})
    return generation


async def embed(server: Any) -> Embeddings:
    vectors: Embeddings = await server.embed(["a"])
    return vectors


Ask = Callable[[Any], Coroutine[Any, Any, Any]]
ASKS = [
    pytest.param(stream, "/v1/completions", STREAM, id="stream"),
    pytest.param(
        whole,
        "/v1/completions",
        Reply([b'{"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}']),
        id="whole",
    ),
    pytest.param(embed, EMBED, VECTORS, id="embed"),
]


def server(replay: Replay, framework: str = "native", **access: Any) -> Any:
    return through_framework(VLLM("m", replay.url, Access(**access)), framework, "m")


async def ask_of(ask: Ask, asked: Any) -> Any:
    try:
        return await ask(asked)
    finally:
        await asked.aclose()


@pytest.mark.parametrize("framework", ["native", "langchain"])
@pytest.mark.parametrize(("ask", "path", "answer"), ASKS)
async def test_a_server_that_is_not_ready_is_asked_again(ask: Ask, path: str, answer: Reply, framework: str) -> None:
    before = RETRIES["", "unreachable"]
    async with replaying({path: [NOT_READY, answer]}) as replay:
        # LangChain reads files when it is imported, which happens before the event loop runs.
        asked = await asyncio.to_thread(server, replay, framework)
        assert await ask_of(ask, asked)
    assert len(replay.asked) == 2
    assert RETRIES["", "unreachable"] - before == 1


@pytest.mark.parametrize(("ask", "path", "answer"), ASKS)
async def test_it_is_asked_no_more_often_than_set(ask: Ask, path: str, answer: Reply) -> None:
    for most in (0, 2):
        async with replaying({path: NOT_READY}) as replay:
            with pytest.raises(Unreachable):
                await ask_of(ask, server(replay, retries=Retries(most=most)))
        assert len(replay.asked) == 1 + most


@pytest.mark.parametrize(
    "reply",
    [Reply([b"{}"], 500), Reply([b"{}"], 502), Reply([b"{}"], 504), Reply([b"{}"], 429), Reply([], unanswered=True)],
    ids=["500", "502", "504", "429", "closed without an answer"],
)
@pytest.mark.parametrize(("ask", "path", "answer"), ASKS)
async def test_a_request_that_may_have_been_begun_or_is_too_much_is_not_sent_again(
    ask: Ask, path: str, answer: Reply, reply: Reply
) -> None:
    async with replaying({path: [reply, answer]}) as replay:
        with pytest.raises(LLMError):
            await ask_of(ask, server(replay))
    assert len(replay.asked) == 1


async def test_what_generates_nothing_is_sent_once() -> None:
    async with replaying({COUNT: NOT_READY, MODELS: NOT_READY}) as replay:
        asked = server(replay)
        for fact in (asked.count_tokens("a"), asked.describe()):
            with pytest.raises(Unreachable):
                await fact
        await asked.aclose()
    assert [path for path, _, _ in replay.asked] == [COUNT, MODELS]


async def test_a_connection_that_is_refused_is_tried_again() -> None:
    listens = asyncio.Event()

    class Opening(Retries):
        """Lets the port listen before the first retry."""

        def pause(self, *arguments: Any, **more: Any) -> float | None:
            bound.listen()
            listens.set()
            return super().pause(*arguments, **more)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 44\r\n\r\n" + b'{"data": [{"index": 0, "embedding": [1.0]}]}')
        writer.close()

    with socket.create_server(("127.0.0.1", 0)) as port_of:
        port = port_of.getsockname()[1]
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))  # Nobody listens yet.
        asked = VLLM("m", f"http://127.0.0.1:{port}", Access(retries=Opening()))
        embedding = asyncio.ensure_future(ask_of(embed, asked))
        await asyncio.wait_for(listens.wait(), PATIENCE)
        async with await asyncio.start_server(answer, sock=bound):
            assert (await embedding).vectors == ([1.0],)


async def test_a_server_that_is_away_is_asked_little_more_than_once_for_each_request() -> None:
    async with replaying({EMBED: NOT_READY}) as replay:
        asked = server(replay)
        answers = await asyncio.gather(*(embed(asked) for _ in range(200)), return_exceptions=True)
        await asked.aclose()
    assert all(isinstance(answer, Unreachable) for answer in answers)
    assert 200 < len(replay.asked) <= 200 + 10 + 0.2 * 200


async def test_a_retry_after_that_is_too_long_is_told_at_once() -> None:
    async with replaying({EMBED: Reply([b"{}"], 503, {"Retry-After": "30"})}) as replay:
        with pytest.raises(Unreachable) as caught:
            await ask_of(embed, server(replay))
    assert (caught.value.retry_after, len(replay.asked)) == (30, 1)


async def test_retries_get_the_retry_after_and_what_is_left_to_the_deadline() -> None:
    told: list[tuple[float, float]] = []

    class Told(Retries):
        def pause(self, number: int, reason: str, least: float = 0.0, within: float = 0.0) -> float | None:
            told.append((least, within))
            return None

    for headers, seconds in (({}, 0), ({"Retry-After": "3"}, 3), ({"Retry-After-Ms": "1500"}, 2)):
        async with replaying({EMBED: Reply([b"{}"], 503, headers)}) as replay:
            with pytest.raises(Unreachable):
                await ask_of(embed, server(replay, retries=Told(), first_token_seconds=50))
        least, within = told.pop()
        assert least == seconds
        assert 0 < within < 50


async def test_the_deadline_holds_for_all_tries_together() -> None:
    deadlines = Deadlines(first=50, total=60)
    before = deadlines.left
    deadlines.stop()
    await asyncio.sleep(0.01)
    deadlines.restart()
    assert deadlines.left <= before - 0.01
    deadlines.stop()
    async with replaying({EMBED: [NOT_READY, Reply([], hang=True)]}) as replay:
        with pytest.raises(Timeout):
            await ask_of(embed, server(replay, total_seconds=0.4))
    assert len(replay.asked) == 2


async def test_a_kept_connection_that_was_closed_is_replaced_within_the_budget() -> None:
    closed = Reply([], unanswered=True)
    for retries, connections in ((Retries(), 2), (Retries(0), 1)):
        before = RETRIES["", "kept_connection"]
        async with replaying({EMBED: [VECTORS, closed, VECTORS]}) as replay:
            asked = server(replay, retries=retries)
            assert await embed(asked)
            if connections == 2:
                assert await embed(asked)
            else:
                with pytest.raises(ModelServerError, match="broke"):
                    await embed(asked)
            await asked.aclose()
        assert replay.connections == connections
        assert RETRIES["", "kept_connection"] - before == connections - 1


async def test_with_replicas_each_is_asked_once() -> None:
    async with replaying({EMBED: NOT_READY}) as replay:
        with pytest.raises(Unreachable):
            await ask_of(embed, server(replay, repeats=False))
    assert len(replay.asked) == 1


async def test_a_server_error_within_a_stream_is_not_asked_again() -> None:
    overloaded = sse({"error": {"message": "no", "code": 503}})
    async with replaying({"/v1/completions": [overloaded, STREAM]}) as replay:
        with pytest.raises(Unreachable):
            await ask_of(stream, server(replay))
    assert len(replay.asked) == 1
