"""The service on a host of its own, between its client and two model servers on theirs: links that are slow, lossy and
cut. Real services with the bundled model are the model servers.

`make hosts-test` runs it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.hosts.network import Host, missing, network
from tests.process import PATIENCE, serving
from tests.service import PATH, Answer, Connection

PORT = 9000
CONNECT, BETWEEN = 4.0, 5.0
"""The front's patience with connections and between tokens, in seconds; with a first token it has its usual one."""
VANISHED = 20.0
"""Seconds after which a host that was cut off counts as gone."""
SLACK = 10.0
"""Seconds that all else may take."""
QUESTION: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Write the numbers from 1 to 20."}],
    "max_tokens": 24,
    "temperature": 0,
}
"""Its answer is the same alone and beside others, whose sums are rounded in another order."""
STORY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Count from one to ten thousand, in words."}],
    "max_tokens": 6000,
    "temperature": 0,
    "repetition_penalty": 1.3,
    "stream": True,
}

pytestmark = [
    pytest.mark.live,
    pytest.mark.xdist_group("hosts"),
    pytest.mark.allow_hosts(["10.77.0.1", "10.77.0.2", "10.77.0.3", "10.77.0.4"]),
    pytest.mark.skipif(bool(missing()), reason=missing() or ""),
]


@dataclass
class Site:
    """The hosts."""

    client: Host
    front: Host
    one: Host
    two: Host

    @property
    def hosts(self) -> tuple[Host, ...]:
        return (self.client, self.front, self.one, self.two)

    @asynccontextmanager
    async def connect(self, to: Host, of: Host | None = None) -> AsyncIterator[Connection]:
        """A connection of the client's, or of another host's."""
        card = (of or self.client).socket()
        card.setblocking(False)
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(card, (to.address, PORT)), PATIENCE)
        connection = Connection(*await asyncio.open_connection(sock=card))
        try:
            yield connection
        finally:
            connection.close()

    async def ask(self, body: dict[str, Any]) -> Answer:
        async with self.connect(self.front) as connection:
            await connection.send("POST", PATH, json.dumps(body).encode())
            return await asyncio.wait_for(connection.answer(), PATIENCE)

    async def get(self, path: str, of: Host) -> Answer:
        """Asked by the host itself, whose cable may be cut."""
        async with self.connect(of, of) as connection:
            await connection.send("GET", path)
            return await asyncio.wait_for(connection.answer(), PATIENCE)

    async def metric(self, start: str, of: Host) -> int:
        """The sum of a service's metrics whose lines begin like that."""
        lines = (await self.get("/metrics", of)).body.decode().splitlines()
        return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(start))

    async def in_flight(self, host: Host) -> int:
        """How many requests a service is answering."""
        return await self.metric("opea_llm_requests_in_flight ", host)

    async def answers(self, host: Host) -> int:
        """How many requests a service has answered, or tried to."""
        return await self.metric("opea_llm_requests_total{", host)

    async def until_idle(self, host: Host) -> None:
        async def look() -> None:
            while await self.in_flight(host):
                pass

        await asyncio.wait_for(look(), PATIENCE)

    def mend(self) -> None:
        for host in self.hosts:
            host.cut, host.delay, host.loss = False, 0.0, 0.0


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    with network("client", "front", "one", "two") as hosts, ExitStack() as started:
        site = Site(**hosts)
        here = {"USVC_HOST": "0.0.0.0", "USVC_PORT": str(PORT), "LOG_LEVEL": "WARNING"}
        for host in (site.one, site.two):
            started.enter_context(serving(within=host.within, FRAMEWORK="native", **here))
        started.enter_context(
            serving(
                within=site.front.within,
                MODEL_SERVER="vllm",
                LLM_MODEL_SERVER_ENDPOINT=f"http://{site.one.address}:{PORT},http://{site.two.address}:{PORT}",
                USVC_STALLED_CLIENT_SECONDS=str(int(VANISHED)),
                LLM_CONNECT_SECONDS=str(CONNECT),
                LLM_BETWEEN_TOKENS_SECONDS=str(BETWEEN),
                **here,
            )
        )
        yield site


@pytest.fixture
async def site(running: Site) -> AsyncIterator[Site]:
    """The hosts, with all cables whole and both model servers in use."""
    yield running
    running.mend()
    for host in (running.one, running.two, running.front):
        await running.until_idle(host)
    for host in (running.one, running.two):
        await asyncio.wait_for(until_used(running, host), PATIENCE)


async def until_used(site: Site, host: Host) -> None:
    """Ask until a model server that was set aside is in use again."""
    before = await site.answers(host)
    while await site.answers(host) == before:
        text_of(await site.ask({**QUESTION, "max_tokens": 1}))


def text_of(answer: Answer) -> str:
    """What a whole chat says."""
    assert answer.status == 200, answer.body
    text: str = answer.json["choices"][0]["message"]["content"]
    return text


def events_of(answer: Answer) -> list[Any]:
    """The data of a stream's events, each read as JSON, but for the end's."""
    lines = [line for line in answer.body.decode().split("\n\n") if line.startswith("data: ")]
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def text_in(events: list[Any]) -> str:
    """What a streamed chat says."""
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events[:-1] if event["choices"])


async def begun(site: Site, connection: Connection) -> Host:
    """Begin the long story, and tell which model server tells it."""
    await connection.send("POST", PATH, json.dumps(STORY).encode())
    assert (await connection.head()).status == 200
    for _ in range(3):
        assert await connection.chunk()
    (telling,) = [host for host in (site.one, site.two) if await site.in_flight(host)]
    return telling


async def test_answers_cross_the_network_whole_and_streamed_from_both_model_servers(site: Site) -> None:
    before = [await site.answers(host) for host in (site.one, site.two)]
    whole, other = await site.ask(QUESTION), await site.ask(QUESTION)
    events = events_of(await site.ask({**QUESTION, "stream": True}))
    assert text_of(whole) == text_of(other) == text_in(events)
    assert events[-1] == "[DONE]"
    after = [await site.answers(host) for host in (site.one, site.two)]
    assert all(later > earlier for earlier, later in zip(before, after, strict=True))


async def test_a_slow_link_makes_answers_late_and_no_different(site: Site) -> None:
    usual = text_of(await site.ask(QUESTION))
    site.one.delay = site.two.delay = 0.2
    async with site.connect(site.front) as connection:
        started = time.monotonic()
        await connection.send("POST", PATH, json.dumps({**QUESTION, "stream": True}).encode())
        answer = await connection.head()
        first_after = time.monotonic() - started
        while chunk := await connection.chunk():
            answer.chunks.append(chunk)
    assert first_after >= 0.4, "there and back"
    assert text_in(events_of(answer)) == usual
    assert len(answer.chunks) > QUESTION["max_tokens"], "an event is a chunk still"


async def test_on_links_that_lose_a_twentieth_every_answer_is_right(site: Site) -> None:
    usual = text_of(await site.ask(QUESTION))
    for host in site.hosts:
        host.loss, host.lost = 0.05, 0
    for _ in range(5):
        asked = [site.ask({**QUESTION, "stream": bool(number % 2)}) for number in range(4)]
        answers = await asyncio.gather(*asked)
        assert [text_of(answer) for answer in answers[::2]] == [usual] * 2
        assert [text_in(events_of(answer)) for answer in answers[1::2]] == [usual] * 2
    assert sum(host.lost for host in site.hosts) > 10


async def test_what_a_model_server_behind_a_cut_link_had_not_begun_goes_to_the_other(site: Site) -> None:
    usual = text_of(await site.ask(QUESTION))
    site.one.cut = True
    for _ in range(4):
        started = time.monotonic()
        assert text_of(await site.ask(QUESTION)) == usual
        assert time.monotonic() - started < VANISHED + CONNECT + SLACK
    assert site.one.lost


async def test_a_stream_whose_link_is_cut_ends_with_an_error_and_the_next_question_is_answered(site: Site) -> None:
    async with site.connect(site.front) as connection:
        telling = await begun(site, connection)
        telling.cut = True
        cut_at = time.monotonic()
        rest = Answer(200, {})
        while chunk := await connection.chunk():
            rest.chunks.append(chunk)
        ended_after = time.monotonic() - cut_at
    last = events_of(rest)[-1]
    assert last["error"]["message"] == "the model server did not go on in time"
    assert b"[DONE]" not in rest.body
    assert BETWEEN - 0.5 < ended_after < BETWEEN + SLACK
    text_of(await site.ask(QUESTION))


async def test_with_both_links_cut_it_says_so_and_recovers_by_itself(site: Site) -> None:
    site.one.cut = site.two.cut = True
    refused = await site.ask(QUESTION)
    ready, alive = await site.get("/ready", site.front), await site.get("/health", site.front)
    assert refused.status in (502, 503, 504)  # 502: an idle connection was used, and broke.
    assert refused.json["error"]["message"]
    assert (ready.status, alive.status) == (503, 200)
    site.mend()

    async def until_ready() -> None:
        while (await site.get("/ready", site.front)).status != 200:
            pass

    await asyncio.wait_for(until_ready(), PATIENCE)
    await asyncio.wait_for(until_used(site, site.one), PATIENCE)


async def test_an_answer_for_a_client_whose_link_is_cut_is_given_up_by_all(site: Site) -> None:
    async with site.connect(site.front) as connection:
        telling = await begun(site, connection)
        site.client.cut = True
        cut_at = time.monotonic()
        await site.until_idle(site.front)
        await site.until_idle(telling)
        given_up_after = time.monotonic() - cut_at
    assert given_up_after < 1.5 * VANISHED + SLACK
    for host in (site.front, telling):
        assert await site.metric("opea_llm_cancelled_requests_total{", host)
