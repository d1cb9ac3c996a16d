"""The contract, held by the real thing: `make live SERVER=<name>`."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comps.core.answers import collect, read
from comps.core.errors import InvalidRequest, LLMError
from comps.core.ports import Completes, CountsTokens, Loads, ModelServer
from comps.core.types import Message, ModelInfo, Sampling, TextDelta
from comps.model_servers import open_model_server
from comps.model_servers.target import Target
from tests.live.conftest import Running
from tests.model_servers.contract import GREEDY, QUESTION, Contract, Subject, events_of, text_of
from tests.service import PATIENCE, running

pytestmark = [pytest.mark.live, pytest.mark.xdist_group("live")]

WILD = Sampling(max_tokens=12, temperature=1.5, seed=7)
FOREVER = Sampling(max_tokens=900, temperature=0.0)


@pytest.fixture
async def subject(running_server: Running) -> AsyncIterator[Subject]:
    server = running_server.server
    opened = open_model_server(server.kind, Target(running_server.model_name, running_server.url, engine=server.engine))
    if isinstance(opened, Loads):
        await opened.load()
    yield Subject(opened, server.window, counts=server.counts, shows_stop=server.shows_stop)
    await opened.aclose()


class TestContract(Contract):
    """What stand-ins are held to as well."""


@pytest.fixture
def server(subject: Subject, framework: Callable[[ModelServer], ModelServer]) -> ModelServer:
    return framework(subject.server)


def applies(error: type[LLMError] | None) -> type[LLMError]:
    if error is None:
        pytest.skip("this model server takes it")
    return error


@pytest.mark.check("whole")
async def test_a_whole_answer_of_the_service_is_what_it_streams(
    server: ModelServer, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"messages": [{"role": "user", "content": "What is Deep Learning?"}], "max_tokens": 12, "temperature": 0}
    async with running(server, monkeypatch) as service:
        whole = await service.post({**body, "stream": False})
        streamed = await service.post({**body, "stream": True, "stream_options": {"include_usage": True}})
    events = [line[6:] for line in streamed.body.decode().splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    (told,) = whole.json["choices"]
    assert told["message"]["content"]
    assert told["message"]["content"] == "".join(choice["delta"].get("content") or "" for choice in choices)
    assert [told["finish_reason"]] == [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    if subject.counts:
        assert [whole.json["usage"]] == [chunk["usage"] for chunk in chunks if chunk.get("usage")]


@pytest.mark.check("sampling")
async def test_a_seed_repeats_an_answer_and_another_gives_another(server: ModelServer) -> None:
    honoured(await server.describe(), "seed")
    first, again, *others = [await text_of(server, replace(WILD, seed=seed)) for seed in (1, 1, 2, 3)]
    assert first == again
    assert set(others) != {first}


@pytest.mark.check("sampling")
@pytest.mark.parametrize(("field", "value"), [("top_k", 1), ("top_p", 0.001)])
async def test_the_narrowest_choice_of_tokens_is_the_greedy_one(server: ModelServer, field: str, value: float) -> None:
    honoured(await server.describe(), field)
    assert await text_of(server, sampling_with(WILD, field, value)) == await text_of(server, GREEDY)


@pytest.mark.check("sampling")
@pytest.mark.parametrize(
    ("field", "value"), [("repetition_penalty", 2.0), ("frequency_penalty", 2.0), ("presence_penalty", 2.0)]
)
async def test_a_penalty_changes_the_greedy_answer(
    running_server: Running, server: ModelServer, field: str, value: float
) -> None:
    honoured(await server.describe(), field)
    if field in running_server.server.ignores:
        pytest.skip(f"this model server takes {field} and does nothing with it")
    long = replace(GREEDY, max_tokens=100)  # Long enough for something to be said again.
    assert await text_of(server, sampling_with(long, field, value)) != await text_of(server, long)


@pytest.mark.check("tokens")
async def test_it_counts_the_tokens_of_a_prompt_as_its_usage_does(server: ModelServer, subject: Subject) -> None:
    if not isinstance(subject.server, CountsTokens):
        pytest.skip("this model server counts no tokens")
    text = "Once upon a time"
    usage = (await collect(server.generate, text, GREEDY, {})).usage
    assert usage
    # Some servers put a mark in front of a text to continue.
    assert usage.prompt_tokens - await subject.server.count_tokens(text) in (0, 1)


@pytest.mark.check("bad value")
async def test_a_value_that_it_refuses_is_an_error_that_names_it(running_server: Running, server: ModelServer) -> None:
    with pytest.raises(applies(running_server.server.too_hot), match="temperature"):
        await events_of(server, sampling=Sampling(max_tokens=5, temperature=-1.0))


@pytest.mark.check("unknown model")
async def test_a_model_that_it_has_not_is_an_error_that_names_it(
    running_server: Running, framework: Callable[[ModelServer], ModelServer]
) -> None:
    expected = applies(running_server.server.unknown_model)
    opened = open_model_server(running_server.server.kind, Target("no/such-model", running_server.url))

    async def ask() -> None:
        if isinstance(opened, Loads):
            await opened.load()
        await events_of(framework(opened))

    try:
        with pytest.raises(expected, match="no/such-model"):
            await ask()
    finally:
        await opened.aclose()


@pytest.mark.check("too long")
async def test_a_prompt_over_the_window_is_an_error_before_the_first_event(
    running_server: Running, server: ModelServer
) -> None:
    expected = applies(running_server.server.too_long)
    with pytest.raises(expected) as caught:
        await events_of(server, (Message("user", "word " * 10_000),))
    if issubclass(expected, InvalidRequest):
        assert re.search(r"\d{4}", str(caught.value)), "it says how long is too long"


@pytest.mark.check("cancel")
async def test_closing_an_answer_closes_its_connection(running_server: Running, server: ModelServer) -> None:
    if not running_server.url:
        pytest.skip("there is no connection")
    port = int(running_server.url.rpartition(":")[2])
    async with aclosing(read(server.generate, QUESTION, FOREVER, {})) as events:
        assert isinstance(await anext(events), TextDelta)
        assert connections_to(port) == 1
    await until(lambda: asyncio.to_thread(lambda: connections_to(port) == 0))


@pytest.mark.check("cancel")
async def test_cancelling_a_whole_answer_closes_its_connection(running_server: Running, server: ModelServer) -> None:
    if not (running_server.url and isinstance(server, Completes)):
        pytest.skip("there is no connection, or no whole answer")
    port = int(running_server.url.rpartition(":")[2])
    asking = asyncio.ensure_future(server.complete(QUESTION, FOREVER, {}))
    await until(lambda: asyncio.to_thread(lambda: connections_to(port) == 1))
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: asyncio.to_thread(lambda: connections_to(port) == 0))


@pytest.mark.check("cancel")
@pytest.mark.parametrize("whole", [False, True])
async def test_closing_an_answer_stops_the_server_by_its_own_count(
    running_server: Running, server: ModelServer, whole: bool
) -> None:
    facts = running_server.server
    if not facts.working:
        pytest.skip("this model server does not say what it works on")
    if whole and not isinstance(server, Completes):
        pytest.skip("this model server gives no whole answers")
    before = await asyncio.to_thread(metric, running_server, facts.generated)

    async def leave() -> None:
        if isinstance(server, Completes) and whole:
            asking = asyncio.ensure_future(server.complete(QUESTION, FOREVER, {}))
            await until(lambda: asyncio.to_thread(lambda: metric(running_server, facts.working) > 0 or asking.done()))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            return
        async with aclosing(read(server.generate, QUESTION, FOREVER, {})) as events:
            await anext(events)

    # Several, since this model is so small that it may have said all of one answer before its first word is here.
    await asyncio.gather(*(leave() for _ in range(8)))
    await until(lambda: asyncio.to_thread(lambda: metric(running_server, facts.working) == 0))
    # Greedy, it does not end by itself: a server that went on would have generated all that it was asked for.
    assert FOREVER.max_tokens
    assert await asyncio.to_thread(metric, running_server, facts.generated) - before < 8 * FOREVER.max_tokens


def metric(running_server: Running, name: str) -> float:
    """A number out of the server's own metrics, summed over its labels."""
    with urllib.request.urlopen(f"{running_server.url}/metrics", timeout=PATIENCE) as response:
        text = response.read().decode()
    values = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
    assert values, f"{name} is not among its metrics"
    return sum(float(value) for value in values)


def honoured(info: ModelInfo, field: str) -> None:
    if field not in info.capabilities:
        pytest.skip(f"this model server knows no {field}")


def sampling_with(sampling: Sampling, field: str, value: Any) -> Sampling:
    return replace(sampling, **{field: value})


def connections_to(port: int) -> int:
    """How many connections there are to a port of this machine, as its kernel says (proc(5), /proc/net/tcp)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established = "01"
    return sum(words[2].endswith(f":{port:04X}") and words[3] == established for words in lines)


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what can only be asked for."""

    async def ask() -> None:
        while not await true():  # noqa: ASYNC110  # What is asked is another process.
            await asyncio.sleep(0.01)

    await asyncio.wait_for(ask(), PATIENCE)
