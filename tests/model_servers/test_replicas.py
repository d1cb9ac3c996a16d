"""Replicas: who is asked, who is set aside and for how long, what moves to another one, and what never does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest

import comps
from comps.core.errors import (
    InvalidRequest,
    LLMError,
    ModelServerError,
    Overloaded,
    PromptTooLong,
    Refused,
    Timeout,
    Unreachable,
)
from comps.core.generator import collect
from comps.core.ports import CountsTokens, Embeds, Loads
from comps.core.types import JSON, Embeddings, Event, Finished, ModelInfo, Prompt, Sampling, TextDelta
from comps.model_servers.replicas import Replicas
from comps.model_servers.scripted import Script, Scripted
from tests.service import PATH, PATIENCE, Connection, running

ROOT = Path(comps.__file__).parent.parent
FAILURES = [Unreachable("away"), Timeout("slow"), ModelServerError("broke"), Refused(500, "oops"), Refused(503, "no")]


class Clock:
    """Time that goes on when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Replica(Scripted):
    """A model server that says who it is, until it is told to fail."""

    def __init__(self, name: str, *answers: Script) -> None:
        super().__init__(answers or [[name]], name=name)
        self.error: LLMError | None = None
        self.described = 0

    async def describe(self) -> ModelInfo:
        self.described += 1
        if self.error:
            raise self.error
        return await super().describe()

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> AsyncGenerator[Event]:
        if self.error:
            self.asked.append((prompt, sampling, options))
            raise self.error
        async with aclosing(super().generate(prompt, sampling, options)) as events:
            async for event in events:
                yield event

    @property
    def times(self) -> int:
        """How often it was asked."""
        return len(self.asked)


class ServiceStatus:
    """Replicas a, b … and a clock."""

    def __init__(self, number: int, *answers: Script) -> None:
        self.clock = Clock()
        self.each = [Replica("abcdefgh"[i], *answers) for i in range(number)]
        self.all = Replicas(self.each, self.clock)

    async def ask(self) -> str:
        return (await collect(self.all.generate("?", Sampling(), {}))).text

    async def begin(self) -> AsyncGenerator[Event]:
        """An answer of which the first event has come."""
        events = self.all.generate("?", Sampling(), {})
        await anext(events)
        return events


# Who is asked


async def test_with_nothing_to_do_they_are_asked_in_turn() -> None:
    house = ServiceStatus(3)
    assert [await house.ask() for _ in range(7)] == ["a", "b", "c", "a", "b", "c", "a"]


async def test_a_description_changes_no_turn() -> None:
    house = ServiceStatus(2)
    answers = []
    for _ in range(4):
        await house.all.describe()
        answers.append(await house.ask())
    assert answers == ["a", "b", "a", "b"]


async def test_whoever_has_the_fewest_to_answer_is_asked() -> None:
    house = ServiceStatus(2, ["x", asyncio.Event()])
    begun = [await house.begin() for _ in range(4)]
    assert [one.times for one in house.each] == [2, 2]
    await begun[1].aclose()
    await begun[3].aclose()
    begun += [await house.begin(), await house.begin()]
    assert [one.times for one in house.each] == [2, 4]
    for events in begun:
        await events.aclose()


async def test_closing_an_answer_closes_the_replica_s_at_once_and_counts_as_no_failure() -> None:
    house = ServiceStatus(2, ["x", asyncio.Event()])
    events = await house.begin()
    await events.aclose()
    assert house.each[0].closed.is_set()
    for events in [await house.begin(), await house.begin()]:
        await events.aclose()
    assert [one.times for one in house.each] == [2, 1]


async def test_cancelling_before_the_first_event_closes_the_replica_s_and_counts_as_no_failure() -> None:
    house = ServiceStatus(1, [asyncio.Event()], ["x"])
    waiting = asyncio.ensure_future(house.ask())
    await asyncio.wait_for(house.each[0].reached.wait(), PATIENCE)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert house.each[0].closed.is_set()
    assert await house.ask() == "x"


async def test_what_is_asked_arrives_and_what_is_answered_comes_back_as_it_is() -> None:
    house = ServiceStatus(2)
    sampling = Sampling(max_tokens=3)
    events = [event async for event in house.all.generate("Why?", sampling, {"n": 1})]
    assert house.each[0].asked == [("Why?", sampling, {"n": 1})]
    assert events[0] == TextDelta("a")
    assert isinstance(events[-1], Finished)


# What moves to another one


@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_a_request_moves_on_while_nothing_of_its_answer_has_come(error: LLMError) -> None:
    house = ServiceStatus(2)
    house.each[0].error = error
    assert [await house.ask() for _ in range(3)] == ["b", "b", "b"]
    assert [one.times for one in house.each] == [1, 3]


async def test_an_answer_that_broke_off_is_an_error_and_its_replica_is_set_aside() -> None:
    error = ModelServerError("it broke off")
    house = ServiceStatus(2, ["half", error])
    events = await house.begin()
    with pytest.raises(ModelServerError) as caught:
        await anext(events)
    assert caught.value is error
    assert [one.times for one in house.each] == [1, 0]
    await house.begin()
    await house.begin()
    assert [one.times for one in house.each] == [1, 2]


@pytest.mark.parametrize(
    "error", [InvalidRequest("no", "top_k"), PromptTooLong(9, 8), Refused(401, "key"), Refused(404, "model")], ids=repr
)
async def test_a_refusal_moves_nowhere_and_sets_nobody_aside(error: LLMError) -> None:
    house = ServiceStatus(2)
    house.each[0].error = error
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            await house.ask()
        assert caught.value is error
        assert await house.ask() == "b"
    assert [one.times for one in house.each] == [2, 2]


async def test_who_has_too_much_to_do_is_not_set_aside() -> None:
    house = ServiceStatus(2)
    house.each[0].error = Overloaded("busy", 5)
    assert [await house.ask() for _ in range(3)] == ["b", "b", "b"]
    assert [one.times for one in house.each] == [3, 3]


async def test_if_all_have_too_much_to_do_the_shortest_wait_is_passed_on() -> None:
    house = ServiceStatus(3)
    for replica, seconds in zip(house.each, (5, 2, 9), strict=True):
        replica.error = Overloaded("busy", seconds)
    with pytest.raises(Overloaded) as caught:
        await house.ask()
    assert caught.value.retry_after == 2


async def test_one_that_is_only_busy_counts_for_more_than_one_that_fails() -> None:
    house = ServiceStatus(2)
    house.each[0].error, house.each[1].error = Overloaded("busy", 5), Unreachable("away")
    for _ in range(2):
        with pytest.raises(Overloaded):
            await house.ask()


async def test_a_fault_of_ours_is_no_failure_of_the_replica() -> None:
    class Faulty(Scripted):
        def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> AsyncGenerator[Event]:
            raise RuntimeError("ours")

    replicas = Replicas([Faulty(), Scripted()])
    with pytest.raises(RuntimeError):
        await collect(replicas.generate("?", Sampling(), {}))


# Who is set aside, and for how long


async def test_a_replica_that_failed_is_tried_again_after_ever_longer_pauses() -> None:
    house = ServiceStatus(2)
    house.each[0].error = Unreachable("away")
    await house.ask()
    pauses = []
    for _ in range(8):
        since, asked = house.clock.now, house.each[0].times
        while house.each[0].times == asked:
            house.clock.now += 0.5
            assert await house.ask() == "b"
        pauses.append(house.clock.now - since)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


async def test_a_replica_that_answers_again_is_in_use_again_and_its_pauses_are_short_again() -> None:
    house = ServiceStatus(2)
    a, _ = house.each
    for _ in range(3):
        a.error = Unreachable("away")
        house.clock.now += 60
        await house.ask()
    a.error = None
    house.clock.now += 60
    assert sorted([await house.ask() for _ in range(4)]) == ["a", "a", "b", "b"]
    a.error = Unreachable("away")
    await house.ask()
    await house.ask()
    asked = a.times
    house.clock.now += 1
    await house.ask()
    assert a.times == asked + 1


async def test_the_log_says_which_replica_of_which_model_is_set_aside(caplog: pytest.LogCaptureFixture) -> None:
    replicas = Replicas([Replica("a"), Replica("b")], model="vicuna")
    replicas.servers[0].error = Unreachable("away")  # type: ignore[attr-defined]
    await collect(replicas.generate("?", Sampling(), {}))
    assert "replica 1 of 2 of vicuna is set aside for 1 s: away" in caplog.text


async def test_a_replica_that_may_be_tried_again_goes_before_those_with_less_to_answer() -> None:
    house = ServiceStatus(2)
    a, _ = house.each
    async with aclosing(await house.begin()):  # This one is a's.
        a.error = Unreachable("away")
        async with aclosing(await house.begin()):  # And this one b's.
            assert await house.ask() == "b"
        a.error = None
        assert a.times == 2
        house.clock.now += 60
        assert await house.ask() == "a"


@pytest.mark.parametrize("error", [InvalidRequest("no"), Overloaded("busy"), Refused(404, "no")])
async def test_a_replica_that_refuses_what_tries_it_has_short_pauses_again(error: LLMError) -> None:
    house = ServiceStatus(2)
    a, _ = house.each
    a.error = Unreachable("away")
    assert [await house.ask() for _ in range(2)] == ["b", "b"]
    house.clock.now += 60
    a.error = error
    with suppress(InvalidRequest, Refused):
        await house.ask()
    a.error = Unreachable("away")
    assert [await house.ask() for _ in range(2)] == ["b", "b"]
    asked = a.times
    house.clock.now += 1
    await house.ask()
    assert a.times == asked + 1


async def test_one_call_alone_tries_a_replica_that_was_set_aside() -> None:
    gate = asyncio.Event()
    house = ServiceStatus(2, [gate, "x"])
    a, b = house.each
    a.error = Unreachable("away")
    waiting = [asyncio.ensure_future(house.ask())]
    await asyncio.wait_for(b.reached.wait(), PATIENCE)
    a.error = None
    house.clock.now += 1
    waiting += [asyncio.ensure_future(house.ask()) for _ in range(5)]
    await asyncio.wait_for(a.reached.wait(), PATIENCE)
    for _ in range(5):
        await asyncio.sleep(0)
    assert (a.times, b.times) == (2, 5)
    gate.set()
    assert await asyncio.gather(*waiting) == ["x"] * 6
    assert [await house.ask(), await house.ask()] == ["x", "x"]
    assert (a.times, b.times) == (3, 6)


async def test_many_answers_that_break_off_together_are_one_failure() -> None:
    gate = asyncio.Event()
    house = ServiceStatus(2, ["x", gate, Unreachable("away")])
    a, b = house.each
    begun = [await house.begin() for _ in range(20)]
    gate.set()
    for events in begun:
        with pytest.raises(Unreachable):
            await anext(events)
    assert (a.times, b.times) == (10, 10)
    house.clock.now += 1
    await house.begin()
    await house.begin()
    assert (a.times, b.times) == (11, 11)


async def test_if_all_are_set_aside_the_one_whose_time_comes_first_is_tried() -> None:
    house = ServiceStatus(3)
    for replica in (house.each[1], house.each[2], house.each[0]):
        replica.error = Unreachable(f"{replica} away")
    with pytest.raises(Unreachable):
        await house.ask()
    assert [one.times for one in house.each] == [1, 1, 1]
    house.clock.now += 1
    house.each[2].error = None
    assert await house.ask() == "c"
    house.each[2].error = Unreachable("away")
    with pytest.raises(Unreachable):
        await house.ask()
    before = [one.times for one in house.each]
    house.each[0].error = house.each[1].error = None  # Set aside for two seconds; c for one.
    house.each[2].error = None
    assert await house.ask() == "c"
    assert [one.times for one in house.each] == [before[0], before[1], before[2] + 1]


async def test_a_replica_is_tried_again_though_the_answer_that_tried_it_last_time_goes_on() -> None:
    house = ServiceStatus(2, ["x", asyncio.Event()])
    a, b = house.each
    a.error = Unreachable("away")
    begun = [await house.begin()]
    house.clock.now += 1
    a.error = None
    begun.append(await house.begin())
    assert (a.times, b.times) == (2, 1)
    a.error = Unreachable("away")
    begun += [await house.begin(), await house.begin()]
    assert (a.times, b.times) == (3, 3)
    house.clock.now += 1
    a.error = None
    begun.append(await house.begin())
    assert (a.times, b.times) == (4, 3)
    for events in begun:
        await events.aclose()


async def test_failing_before_its_time_sets_nobody_aside_for_longer() -> None:
    house = ServiceStatus(2)
    house.each[0].error = house.each[1].error = Unreachable("away")
    for _ in range(10):
        with pytest.raises(Unreachable):
            await house.ask()
        with pytest.raises(Unreachable):
            await house.all.describe()
    house.each[0].error = house.each[1].error = None
    house.clock.now += 1
    assert sorted([await house.ask(), await house.ask()]) == ["a", "b"]


async def test_a_request_tries_no_more_than_one_that_is_set_aside() -> None:
    house = ServiceStatus(4)
    for replica in house.each:
        replica.error = Unreachable("away")
    with pytest.raises(Unreachable):
        await house.ask()
    with pytest.raises(Unreachable):
        await house.ask()
    assert sum(one.times for one in house.each) == 5


# What they say of themselves


async def test_a_description_comes_from_whoever_answers() -> None:
    house = ServiceStatus(3)
    house.each[0].error, house.each[1].error = Unreachable("away"), Timeout("slow")
    assert (await house.all.describe()).name == "c"


async def test_if_none_answers_all_are_unreachable() -> None:
    house = ServiceStatus(2)
    house.each[0].error, house.each[1].error = Unreachable("away"), Refused(500, "oops")
    for _ in range(2):
        with pytest.raises(Unreachable, match="none of the 2 replicas answers"):
            await house.all.describe()
    house.each[0].error = None
    assert (await house.all.describe()).name == "a"


async def test_a_description_may_be_what_tries_a_replica_again() -> None:
    house = ServiceStatus(2)
    a, _ = house.each
    a.error = Unreachable("away")
    await house.ask()
    house.clock.now += 1
    assert (await house.all.describe()).name == "b"
    assert a.described == 1
    a.error = None
    house.clock.now += 1
    assert (await house.all.describe()).name == "b"  # Set aside for two seconds now.
    house.clock.now += 1
    assert (await house.all.describe()).name == "a"
    assert a.described == 2
    assert sorted([await house.ask(), await house.ask()]) == ["a", "b"]


class Loading(Scripted):
    def __init__(self, error: LLMError | None = None) -> None:
        super().__init__()
        self.error = error
        self.loaded = False

    async def load(self) -> None:
        if self.error:
            raise self.error
        self.loaded = True


class Counting(Scripted):
    error: LLMError | None = None

    async def count_tokens(self, text: str) -> int:
        if self.error:
            raise self.error
        return len(text)


class Embedding(Scripted):
    async def embed(self, texts: Sequence[str]) -> Embeddings:
        return Embeddings(tuple([1.0] for _ in texts))


@pytest.mark.parametrize("ability", [Loads, CountsTokens, Embeds])
def test_they_can_do_what_one_of_them_can(ability: type) -> None:
    able = next(kind() for kind in (Loading, Counting, Embedding) if issubclass(kind, ability))
    assert isinstance(Replicas([Scripted(), able]), ability)
    assert not isinstance(Replicas([Scripted(), Scripted()]), Loads | CountsTokens | Embeds)


async def test_tokens_are_counted_by_one_that_can() -> None:
    failing = Counting()
    failing.error = Unreachable("away")
    replicas = Replicas([Scripted(), failing, Counting()])
    assert isinstance(replicas, CountsTokens)
    assert [await replicas.count_tokens("abc") for _ in range(2)] == [3, 3]
    alone = Replicas([Scripted(), failing])
    assert isinstance(alone, CountsTokens)
    with pytest.raises(Unreachable):
        await alone.count_tokens("abc")


async def test_a_replica_that_counts_tokens_again_is_in_use_again() -> None:
    clock = Clock()
    counting = Counting()
    replicas = Replicas([counting, Scripted([["b"]])], clock)
    assert isinstance(replicas, CountsTokens)
    counting.error = Unreachable("away")
    with pytest.raises(Unreachable):
        await replicas.count_tokens("abc")
    clock.now += 60
    counting.error = None
    assert await replicas.count_tokens("abc") == 3
    assert (await collect(replicas.generate("?", Sampling(), {}))).text == "b"  # Whose turn it is.


@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_counting_that_fails_costs_no_replica_its_answers_unless_it_is_away(error: LLMError) -> None:
    each = [Counting([["a"]]), Counting([["b"]])]
    replicas = Replicas(each, Clock())
    assert isinstance(replicas, CountsTokens)
    each[0].error = error
    assert [await replicas.count_tokens("abc") for _ in range(2)] == [3, 3]
    answers = {(await collect(replicas.generate("?", Sampling(), {}))).text for _ in range(2)}
    assert answers == ({"b"} if isinstance(error, Unreachable) else {"a", "b"})


async def test_counting_that_fails_does_not_bring_back_who_was_set_aside() -> None:
    clock, counting = Clock(), Counting([[Unreachable("away")], ["a"]])
    replicas = Replicas([counting, Scripted([["b"]])], clock)
    assert isinstance(replicas, CountsTokens)
    assert (await collect(replicas.generate("?", Sampling(), {}))).text == "b"
    counting.error = ModelServerError("broke")
    with pytest.raises(ModelServerError):
        await replicas.count_tokens("abc")
    assert [(await collect(replicas.generate("?", Sampling(), {}))).text for _ in range(2)] == ["b", "b"]


async def test_embeddings_come_from_one_that_makes_them() -> None:
    replicas = Replicas([Scripted(), Embedding()])
    assert isinstance(replicas, Embeds)
    assert (await replicas.embed(["a", "b"])).vectors == ([1.0], [1.0])


async def test_loading_loads_all_and_one_that_can_answer_is_enough() -> None:
    good, bad = Loading(), Loading(ModelServerError("broken"))
    replicas = Replicas([bad, good])
    assert isinstance(replicas, Loads)
    await replicas.load()
    assert good.loaded
    await collect(replicas.generate("?", Sampling(), {}))
    assert (len(bad.asked), len(good.asked)) == (0, 1)
    none = Replicas([bad, Loading(Unreachable("away"))])
    assert isinstance(none, Loads)
    with pytest.raises(ModelServerError, match="broken"):
        await none.load()


async def test_closing_closes_all() -> None:
    closed: list[str] = []

    class Closing(Scripted):
        async def aclose(self) -> None:
            closed.append((await self.describe()).name)

    await Replicas([Closing(name="a"), Closing(name="b")]).aclose()
    assert closed == ["a", "b"]


# Over real sockets


@asynccontextmanager
async def process() -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A replica in a process of its own, and its URL."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.model_servers.replica",
        cwd=ROOT,
        env={**os.environ, "LLM_NAME": "served", "MODEL_SERVER": "scripted", "FRAMEWORK": "native"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout
    try:
        port = int(await asyncio.wait_for(child.stdout.readline(), PATIENCE))
        yield child, f"http://127.0.0.1:{port}"
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def in_flight(url: str, number: int) -> None:
    """Ask a replica's metrics until it is answering that many requests."""
    line = f"opea_llm_requests_in_flight {float(number)}\n"
    for _ in range(10_000):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        connection = Connection(reader, writer)
        await connection.send("GET", "/metrics")
        metrics = (await connection.answer()).body.decode()
        connection.close()
        if line in metrics:
            return
    pytest.fail(f"{number} requests never came")


@pytest.mark.parametrize("framework", ["native", "langchain"])
async def test_a_replica_that_is_killed_takes_no_more_than_what_it_had_begun(
    monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    body = json.dumps({"messages": "?", "stream": True}).encode()
    begun: asyncio.Queue[None] = asyncio.Queue()

    async with process() as (doomed, first), process() as (survivor, second):
        environment = {
            "FRAMEWORK": framework,
            "LLM_NAME": "served",
            "MODEL_SERVER": "openai_api",
            "LLM_MODEL_SERVER_ENDPOINT": f"{first}, {second}/v1",
        }
        async with running({}, monkeypatch, environment) as service:

            async def stream() -> tuple[bytes, bool]:
                """All that one stream says, and whether it had begun before the other one was killed."""
                async with service.connect() as client:
                    await client.send("POST", PATH, body)
                    head = await client.head()
                    assert head.status == 200
                    chunks = [await client.chunk()]
                    early = not killed.is_set()
                    begun.put_nowait(None)
                    while chunk := await client.chunk():
                        chunks.append(chunk)
                    return b"".join(chunks), early

            killed = asyncio.Event()
            streams = [asyncio.ensure_future(stream()) for _ in range(64)]
            for _ in range(32):
                await asyncio.wait_for(begun.get(), PATIENCE)
            for url in (first, second):
                await asyncio.wait_for(in_flight(url, 32), PATIENCE)
            os.kill(doomed.pid, signal.SIGKILL)
            killed.set()
            await asyncio.wait_for(in_flight(second, 48), PATIENCE)
            assert survivor.stdin
            survivor.stdin.write(b"go on\n")
            answers = await asyncio.wait_for(asyncio.gather(*streams), PATIENCE)
            ready = await service.get("/v1/health_check")
            after, _ = await asyncio.wait_for(stream(), PATIENCE)

    broken = [(answer, early) for answer, early in answers if b"[DONE]" not in answer]
    whole = [answer for answer, _ in answers if b"[DONE]" in answer]
    assert (len(broken), len(whole)) == (16, 48)
    for answer, early in broken:
        assert early
        assert b'"one"' in answer
        *_, last = answer.strip().split(b"\n\n")
        assert "error" in json.loads(last.removeprefix(b"data: "))
    for answer in [*whole, after]:
        assert (answer.count(b'"one"'), answer.count(b'" two"'), b"error" in answer) == (1, 1, False)
    assert ready.status == 200
