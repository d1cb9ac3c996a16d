"""A client that leaves: the model server sees its connection close, in each window, dialect and framework."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from statistics import median
from time import monotonic
from typing import Any

import pytest

from comps.access import Allowance, Caller
from comps.core.types import GenerationRequest, Sampling, Usage
from comps.dialects import DIALECTS
from comps.dialects.shared.base import DescriptionCall, GenerationCall
from comps.exchange import Exchange
from comps.model_servers import FRAMEWORKS
from comps.telemetry import Telemetry
from tests.dialects.kinds import KINDS, Kind
from tests.hanging import CHAT, CHAT_PATH, Hanging, hanging, in_front, metric
from tests.service import PATIENCE, Service, until_idle, until_in_flight

SECONDS = 2.0
"""Within which the model server's connection closes, also on a busy machine; `make soak` prints how long it takes."""


async def until_closed(server: Hanging, number: int = 1) -> float:
    """Wait until connections with answers have closed; returns after how many milliseconds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(number):
        await asyncio.wait_for(server.closed.get(), SECONDS)
    return (loop.time() - began) * 1000


async def leave(service: Service, server: Hanging, path: str, body: Any, answers: int = 1) -> float:
    """Ask, wait until the model server answers, leave; returns after how many milliseconds it has noticed."""
    async with service.connect() as client:
        await client.send("POST", path, json.dumps(body).encode())
        for _ in range(answers):
            await asyncio.wait_for(server.reached.get(), PATIENCE)
        if server.begins:
            await client.head()
            for _ in range(answers):
                assert b"word" in await client.chunk()
    return await until_closed(server, answers)


def windows(dialect: str) -> list[tuple[Kind, str, Any]]:
    """Each kind of body with each window in which its client may leave, but for the queue."""
    found: list[tuple[Kind, str, Any]] = []
    for kind in (one for one in KINDS if one.dialect == dialect and not issubclass(one.call, DescriptionCall)):
        for streamed in (True, False):
            for body in kind.bodies(streamed)[:1]:
                found += [(kind, window, body) for window in (("first_token", "stream") if streamed else ("whole",))]
    return found


async def leave_everywhere(dialect: str, framework: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Leave in each window of each kind of body; returns the windows and the milliseconds."""
    left: list[tuple[str, float]] = []
    async with (
        hanging() as server,
        in_front([server], monkeypatch, framework, LLM_DIALECTS=dialect) as service,
    ):
        saved = 0
        for kind, window, body in windows(dialect):
            server.begins = window == "stream"
            server.counts = issubclass(kind.call, GenerationCall)
            server.asked.clear()
            path = kind.route.replace("{model:path}", "m")
            left.append((window, await leave(service, server, path, body, kind.answers(body))))
            allowed = sum(asked["max_tokens"] * asked.get("n", 1) for asked in server.asked if "max_tokens" in asked)
            if dialect == "kaito" and "prompt" in body:
                allowed = 200  # Of prompt and answer together.
            saved += max(allowed - (kind.answers(body) if window == "stream" else 0), 0)
        await until_idle(service)
        assert await metric(service, "opea_llm_cancelled_requests_total") == Counter(window for window, _ in left)
        assert await metric(service, "opea_llm_saved_tokens_total") == {"": saved}
        assert server.closed.empty()
    return left


EVERYWHERE = [(dialect, framework) for dialect in DIALECTS for framework in FRAMEWORKS]


@pytest.mark.parametrize(("dialect", "framework"), EVERYWHERE)
async def test_the_model_server_sees_the_connection_close_in_each_window(
    monkeypatch: pytest.MonkeyPatch, dialect: str, framework: str
) -> None:
    assert await leave_everywhere(dialect, framework, monkeypatch)


@pytest.mark.soak
async def test_how_long_the_model_server_takes_to_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    print("\nframework  window        times  median ms  slowest ms")
    for framework in FRAMEWORKS:
        took: dict[str, list[float]] = {}
        for dialect in list(DIALECTS) * 5:
            for window, milliseconds in await leave_everywhere(dialect, framework, monkeypatch):
                took.setdefault(window, []).append(milliseconds)
        for window, times in took.items():
            print(f"{framework:9}  {window:11}  {len(times):6}  {median(times):9.2f}  {max(times):10.2f}")


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_all_prompts_and_choices_of_a_body_are_given_up(monkeypatch: pytest.MonkeyPatch, framework: str) -> None:
    body = {"model": "m", "prompt": ["a", "b", "c"], "n": 2, "max_tokens": 7, "stream": True}
    async with hanging() as server, in_front([server], monkeypatch, framework) as service:
        await leave(service, server, "/v1/completions", body, answers=3)
        server.begins = True
        await leave(service, server, "/v1/completions", body, answers=3)
        await until_idle(service)
        assert await metric(service, "opea_llm_saved_tokens_total") == {"": 3 * 2 * 7 + 3 * (2 * 7 - 1)}


def test_the_saved_tokens_of_a_whole_answer_are_without_those_that_the_model_makes_in_that_time() -> None:
    telemetry, allowance = Telemetry(), Allowance(10_000)
    caller = Caller("web", frozenset(), None, allowance)
    request = GenerationRequest("x", sampling=Sampling(max_tokens=100))
    saved: list[float] = []
    for model, outcome, seconds in (
        ("m", "gone", 2),
        ("m", "200", 3),
        ("n", "200", 1),
        ("m", "gone", 2),
        ("m", "gone", 60),
    ):
        exchange = Exchange("/v1/completions", {})
        exchange.model, exchange.outcome, exchange.operation, exchange.window = model, outcome, "chat", "whole"
        exchange.asked, exchange.usage = [request], Usage(5, 60) if outcome == "200" else None
        exchange.asked_at, exchange.caller = monotonic() - seconds, caller
        exchange.answered_at = monotonic()
        telemetry.end(exchange)
        saved.append(telemetry._saved_tokens)
    assert saved == [100, 100, 100, pytest.approx(160, abs=1), saved[3]]
    # Two answers, and of those that were cancelled nothing while no speed is known, 40, and all.
    assert 10_000 - allowance._left == pytest.approx(2 * 65 + 40 + 100, abs=1)


@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/prompt"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_the_count_of_a_large_prompt_is_given_up(
    monkeypatch: pytest.MonkeyPatch, framework: str, path: str
) -> None:
    first, body = ({**CHAT, "documents": [word * 20_000], "stream": True} for word in ("a ", "word "))
    async with hanging() as server, in_front([server], monkeypatch, framework) as service:
        # What is asked once for a model, whoever leaves: whether its chat template takes system messages.
        assert (await service.post(first, "/v1/prompt")).status == 200
        server.counts = False
        async with service.connect() as client:
            await client.send("POST", path, json.dumps(body).encode())
            assert await asyncio.wait_for(server.reached.get(), PATIENCE) == "/tokenize"
        await until_closed(server)
        await until_idle(service)
        assert not any("stream" in asked for asked in server.asked)
        window = "first_token" if path == CHAT_PATH else "whole"
        assert await metric(service, "opea_llm_cancelled_requests_total") == {window: 1}


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_client_in_the_queue_and_one_that_is_still_sending_reach_no_model_server(
    monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    async with hanging() as server, in_front([server], monkeypatch, framework, USVC_MAX_RUNNING="1") as service:
        async with service.connect() as first:
            await first.send("POST", CHAT_PATH, json.dumps({**CHAT, "stream": True}).encode())
            await asyncio.wait_for(server.reached.get(), PATIENCE)
            async with service.connect() as queued, service.connect() as sending:
                await queued.send("POST", CHAT_PATH, json.dumps({**CHAT, "max_tokens": 5}).encode())
                await sending.send("POST", CHAT_PATH, b"{", {"Content-Length": "1000"})
                await until_in_flight(service, 3)
            await until_in_flight(service, 1)
        await until_closed(server)
        await until_idle(service)
        cancelled = await metric(service, "opea_llm_cancelled_requests_total")
        assert cancelled == {"queued": 1, "body": 1, "first_token": 1}
        assert await metric(service, "opea_llm_saved_tokens_total") == {"": 5 + 7}
    assert len(server.asked) == 1


@pytest.mark.parametrize("rest", [b"", b" " * 500_000], ids=["whole", "in part"])
async def test_a_client_that_has_sent_its_next_request_is_seen_to_leave_as_well(
    monkeypatch: pytest.MonkeyPatch, rest: bytes
) -> None:
    """Its connection is read on, though requests are answered one after the other."""
    body = json.dumps({**CHAT, "stream": True}).encode()
    async with hanging() as server, in_front([server], monkeypatch, "native") as service:
        async with service.connect() as client:
            await client.send("POST", CHAT_PATH, body)
            await client.send("POST", CHAT_PATH, body, {"Content-Length": str(len(body + rest))})
            await asyncio.wait_for(server.reached.get(), PATIENCE)
        await until_closed(server)
        await until_idle(service)
        assert await metric(service, "opea_llm_cancelled_requests_total") == {"first_token": 1}
    assert len(server.asked) == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_replica_sees_the_connection_close(
    monkeypatch: pytest.MonkeyPatch, framework: str, stream: bool
) -> None:
    async with hanging(begins=stream) as one, hanging(begins=stream) as other:
        async with in_front([one, other], monkeypatch, framework) as service:
            for server in (one, other):
                await leave(service, server, CHAT_PATH, {**CHAT, "stream": stream})
            await until_idle(service)
        assert (len(one.asked), len(other.asked)) == (1, 1)


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_client_that_leaves_before_its_request_is_sent_again_ends_it(
    monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    async with (
        hanging(not_ready=b"Retry-After: 4\r\n") as server,
        in_front([server], monkeypatch, framework) as service,
    ):
        async with service.connect() as client:
            await client.send("POST", CHAT_PATH, json.dumps(CHAT).encode())
            await asyncio.wait_for(server.reached.get(), PATIENCE)
            await until_in_flight(service, 1)
        await until_idle(service)
        assert await metric(service, "opea_llm_cancelled_requests_total") == {"whole": 1}
        assert len(server.asked) == 1
