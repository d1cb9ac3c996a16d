"""Deadlines of model servers that keep none themselves: engines, LangChain classes, prepared answers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, ClassVar

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from comps.core.answers import Collector, Forwarding, collect
from comps.core.errors import BrokenOff, Timeout
from comps.core.ports import ABILITIES, Answer, CountsTokens, Embeds, Loads
from comps.core.tallies import TIMEOUTS
from comps.core.types import JSON, Finished, Prompt, Sampling
from comps.model_servers import FRAMEWORKS, open_model_server, through_framework, with_deadlines
from comps.model_servers.embedded.openvino import OpenVINO
from comps.model_servers.langchain import through
from comps.model_servers.scripted import Script, Scripted
from comps.model_servers.target import Access, Target
from tests.faults.outcomes import Outcome, both
from tests.hanging import metric
from tests.model_servers.embedded.word_engine import Words
from tests.service import PATIENCE, Able, running

DEADLINES = ("first_token", "between_tokens", "total")
BEGIN, GO_ON = "the model server did not begin in time", "the model server did not go on in time"
ENDLESS = "round and"
SECONDS = {"first_token": 0.15, "between_tokens": 0.15, "total": 0.5}
"""The total is long enough for the first token of a server that has one, also on a busy machine."""


def access_with(deadline: str) -> Access:
    changed: dict[str, Any] = {f"{deadline}_seconds": SECONDS[deadline]}
    return Access(**changed)


def settings_with(deadline: str, framework: str) -> dict[str, str]:
    return {f"LLM_{deadline.upper()}_SECONDS": str(SECONDS[deadline]), "FRAMEWORK": framework}


@pytest.fixture(autouse=True)
def no_timeouts_before() -> Iterator[None]:
    TIMEOUTS.clear()
    yield
    TIMEOUTS.clear()


def script_for(deadline: str) -> Script:
    """An answer that misses a deadline."""
    scripts: dict[str, Script] = {
        "first_token": [asyncio.Event()],
        "between_tokens": ["word ", asyncio.Event()],
        "total": ["word "] * 10_000,
    }
    return scripts[deadline]


class Counted(Scripted):
    """Counts the answers that were cancelled."""

    def __init__(self, script: Script) -> None:
        super().__init__([script], delay=0.01)
        self.cancelled = 0

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        try:
            await super().generate(prompt, sampling, options, answer)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Halting(BaseChatModel):
    """A LangChain class whose answers are scripts. A whole one never comes."""

    script: ClassVar[Script]
    cancelled: ClassVar[list[str]]
    """The calls that were cancelled."""

    @property
    def _llm_type(self) -> str:
        return "test"

    def _generate(self, *asked: Any, **given: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(self, *asked: Any, **given: Any) -> ChatResult:
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            self.cancelled.append("whole")
            raise
        return ChatResult(generations=[ChatGeneration(message=AIMessage("late"))])

    async def _astream(self, messages: list[BaseMessage], *asked: Any, **given: Any) -> AsyncIterator[Any]:
        try:
            for item in self.script:
                await asyncio.sleep(0.01)
                if isinstance(item, asyncio.Event):
                    await item.wait()
                yield ChatGenerationChunk(message=AIMessageChunk(content=str(item)))
        except asyncio.CancelledError:
            self.cancelled.append("stream")
            raise


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("deadline", DEADLINES)
async def test_a_missed_deadline_is_an_error_counted_and_stops_the_model(
    monkeypatch: pytest.MonkeyPatch, deadline: str, framework: str
) -> None:
    server = Counted(script_for(deadline))
    async with running(server, monkeypatch, settings_with(deadline, framework)) as service:
        streamed, whole = await both(service, "scripted")
        assert await metric(service, "opea_llm_timeouts_total") == {deadline: 2}
    if deadline == "first_token":
        assert (streamed, whole) == (Outcome(504, "", BEGIN, False),) * 2
    else:
        assert streamed.text.startswith("word ")
        assert (streamed.status, streamed.error, streamed.ended) == (200, GO_ON, False)
        assert whole == Outcome(504, "", GO_ON, False)
    assert server.cancelled == 2


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("deadline", ["first_token", "total"])
async def test_a_langchain_class_has_the_deadlines_as_well(
    monkeypatch: pytest.MonkeyPatch, deadline: str, framework: str
) -> None:
    Halting.script, Halting.cancelled = script_for(deadline), []
    monkeypatch.setattr(through, "ThroughLangChain", None)  # It is LangChain's in any case.
    of_class = {"MODEL_SERVER": "langchain", "LLM_NAME": "m", "LLM_ENGINE_CLASS": f"{__name__}:Halting"}
    async with running({}, monkeypatch, {**of_class, **settings_with(deadline, framework)}) as service:
        streamed, whole = await both(service, "m")
        assert await metric(service, "opea_llm_timeouts_total") == {deadline: 2}
    assert (streamed.status, streamed.error) == ((200, GO_ON) if deadline == "total" else (504, BEGIN))
    assert whole == Outcome(504, "", BEGIN, False)
    assert sorted(Halting.cancelled) == ["stream", "whole"]


async def test_a_stream_of_a_langchain_class_that_does_not_go_on_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    Halting.script, Halting.cancelled = script_for("between_tokens"), []
    server = open_model_server("langchain", Target("m", engine={"class": f"{__name__}:Halting"}))
    assert isinstance(server, Loads)
    await server.load()
    with pytest.raises(Timeout, match=GO_ON):
        await collect(with_deadlines(server, access_with("between_tokens")).generate, ENDLESS, Sampling(), {})
    assert Halting.cancelled == ["stream"]
    assert TIMEOUTS == {"between_tokens": 1}


class StopsAtText(Forwarding):
    """An answer that stops an engine's process at its first text."""

    def __init__(self, answer: Answer, pid: int) -> None:
        super().__init__(answer)
        self._pid = pid

    def text(self, text: str, choice: int = 0) -> None:
        os.kill(self._pid, signal.SIGSTOP)
        super().text(text, choice)


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_requests_of_an_engine_whose_process_is_stopped_end_at_the_deadline_and_it_goes_on_afterwards(
    framework: str,
) -> None:
    words = Words("words", context_window=100_000_000)
    await words.load()
    assert words.pid
    for deadline, said in (("first_token", BEGIN), ("between_tokens", GO_ON), ("total", GO_ON)):
        server = through_framework(with_deadlines(words, access_with(deadline)), framework)
        answer: Answer = Collector()
        if deadline == "first_token":
            os.kill(words.pid, signal.SIGSTOP)
        else:
            answer = StopsAtText(answer, words.pid)
        with pytest.raises(Timeout, match=said):
            await server.generate(ENDLESS, Sampling(), {}, answer)
        os.kill(words.pid, signal.SIGCONT)
        assert (await collect(words.generate, "a .", Sampling(), {})).text == " a"
    assert dict.fromkeys(DEADLINES, 1) == TIMEOUTS
    await words.aclose()


@pytest.mark.xdist_group("engine")
async def test_the_bundled_model_has_the_deadlines_and_answers_again(engine: OpenVINO) -> None:
    server = with_deadlines(engine, access_with("first_token"))
    pid = engine.pid
    assert pid
    assert isinstance(server, CountsTokens)
    assert isinstance(server, Embeds)
    os.kill(pid, signal.SIGSTOP)
    try:
        asked = (
            collect(server.generate, ENDLESS, Sampling(), {}),
            server.count_tokens(ENDLESS),
            server.embed([ENDLESS]),
        )
        failures = await asyncio.gather(*asked, return_exceptions=True)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [(type(one), str(one)) for one in failures] == [(Timeout, BEGIN)] * 3
    assert TIMEOUTS == {"first_token": 3}
    assert (await collect(engine.generate, ENDLESS, Sampling(max_tokens=1), {})).usage
    assert engine.pid == pid


class Reader(Collector):
    """A reader that has to be waited for, by each writer in turn."""

    full = True

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[asyncio.Event] = []
        self.waiting = asyncio.Event()
        """Set when there are as many writers as turns."""
        self.expected = 1

    async def drain(self) -> None:
        turn = asyncio.Event()
        self.turns.append(turn)
        if len(self.turns) == self.expected:
            self.waiting.set()
        await turn.wait()


class TwoChoices(Scripted):
    """Writes two choices at the same time, each as soon as it may."""

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        async def write(choice: int) -> None:
            await answer.drain()
            answer.text("word", choice)
            answer.finished(Finished("stop", choice=choice))

        await asyncio.gather(*map(write, range(2)))


@pytest.mark.parametrize("deadline", ["first_token", "between_tokens"])
async def test_waiting_for_the_reader_does_not_count_however_many_wait(deadline: str) -> None:
    reader = Reader()
    reader.expected = 2
    server = with_deadlines(TwoChoices(), access_with(deadline))
    writing = asyncio.ensure_future(server.generate("?", Sampling(), {}, reader))
    await asyncio.wait_for(reader.waiting.wait(), PATIENCE)
    for turn in reader.turns:
        await asyncio.wait((writing,), timeout=2 * SECONDS[deadline])  # In which nothing shall happen.
        assert not writing.done()
        turn.set()
    await writing
    assert [choice.text for choice in reader.generation().choices] == ["word", "word"]
    assert not TIMEOUTS


async def test_the_total_counts_also_while_the_reader_is_waited_for() -> None:
    with pytest.raises(Timeout, match="in time"):
        await with_deadlines(TwoChoices(), access_with("total")).generate("?", Sampling(), {}, Reader())
    assert TIMEOUTS == {"total": 1}


async def test_a_caller_that_leaves_cancels_the_model_and_no_deadline_is_missed() -> None:
    server = Counted(script_for("first_token"))
    asked = asyncio.ensure_future(
        collect(with_deadlines(server, Access(total_seconds=60)).generate, "?", Sampling(), {})
    )
    await asyncio.wait_for(server.reached.wait(), PATIENCE)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert server.cancelled == 1
    assert not TIMEOUTS


async def test_errors_and_answers_in_time_are_as_without_deadlines() -> None:
    access = Access(first_token_seconds=60, between_tokens_seconds=60, total_seconds=60)
    error = BrokenOff("away")
    server = with_deadlines(Scripted([["a", "b"], ["a", error]]), access)
    assert (await collect(server.generate, "?", Sampling(), {})).text == "ab"
    with pytest.raises(BrokenOff) as caught:
        await collect(server.generate, "?", Sampling(), {})
    assert caught.value is error


def test_a_server_that_keeps_its_deadlines_and_one_without_any_is_left_as_it_is() -> None:
    access = access_with("total")
    for kind in ("vllm", "tgi", "ray_serve", "openai_api"):
        server = open_model_server(kind, Target("m", "http://127.0.0.1:9", access))
        assert with_deadlines(server, access) is server
    scripted = Able()
    assert with_deadlines(scripted, Access()) is scripted  # The defaults are meant for model servers over HTTP.
    wrapped = with_deadlines(scripted, access)
    assert wrapped is not scripted
    assert [hasattr(wrapped, one) for one in ABILITIES] == [hasattr(scripted, one) for one in ABILITIES]
