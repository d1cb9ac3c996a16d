"""The model server that plays back what it is given ends, stops and fails as a real one does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from comps.core.answers import collect, read
from comps.core.errors import ModelServerError, SettingsError
from comps.core.types import Event, Finished, Generation, Message, ModelInfo, Sampling, TextDelta, Usage
from comps.model_servers import open_model_server
from comps.model_servers.scripted import Script, Scripted
from comps.model_servers.target import Target


async def events_of(script: Script, sampling: Sampling | None = None) -> list[Event]:
    return [event async for event in read(Scripted([script]).generate, "a prompt", sampling or Sampling(), {})]


def answers_file(folder: Path, content: str | bytes) -> Target:
    file = folder / "answers.json"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return Target("m", str(file))


async def test_an_answer_comes_a_piece_at_a_time() -> None:
    assert await events_of(["Deep", " learning"]) == [
        TextDelta("Deep"),
        TextDelta(" learning"),
        Finished("stop", Usage(2, 2)),
    ]


async def test_answers_are_played_one_after_the_other_over_and_over() -> None:
    server = Scripted([["one"], ["two"]])
    texts = [(await collect(server.generate, "?", Sampling(), {})).text for _ in range(5)]
    assert texts == ["one", "two", "one", "two", "one"]


async def test_an_empty_answer_has_an_end_all_the_same() -> None:
    assert await events_of([]) == [Finished("stop", Usage(2, 0))]


async def test_every_call_is_kept_as_it_came() -> None:
    server = Scripted()
    prompt, sampling = (Message("user", "Why?"),), Sampling(temperature=0.5)
    await collect(server.generate, prompt, sampling, {"n": 1})
    assert server.asked == [(prompt, sampling, {"n": 1})]


async def test_it_says_when_an_answer_was_asked_for() -> None:
    server = Scripted()
    events = read(server.generate, "?", Sampling(), {})
    assert not server.reached.is_set()
    await anext(events)
    assert server.reached.is_set()
    await events.aclose()


async def test_words_of_a_conversation_are_counted() -> None:
    prompt = (Message("system", "Be kind."), Message("user", [{"type": "text", "text": "Why is it so?"}]))
    generation = await collect(Scripted([["x"]]).generate, prompt, Sampling(), {})
    assert generation.usage == Usage(6, 1)


async def test_an_answer_over_max_tokens_ends_with_length() -> None:
    assert await events_of(["a", "b", "c"], Sampling(max_tokens=2)) == [
        TextDelta("a"),
        TextDelta("b"),
        Finished("length", Usage(2, 2)),
    ]


@pytest.mark.parametrize("max_tokens", [3, 4])
async def test_an_answer_within_max_tokens_ends_with_stop(max_tokens: int) -> None:
    assert (await events_of(["a", "b", "c"], Sampling(max_tokens=max_tokens)))[-1] == Finished("stop", Usage(2, 3))


async def test_a_stop_string_ends_the_answer_and_is_not_shown() -> None:
    events = await events_of(["one ", "E", "ND", " two"], Sampling(stop=("END",)))
    assert events == [TextDelta("one "), Finished("stop", Usage(2, 3), stop_string="END")]


async def test_what_looked_like_a_stop_string_is_shown_at_the_end() -> None:
    events = await events_of(["one ", "EN"], Sampling(stop=("END",)))
    assert events == [TextDelta("one "), TextDelta("EN"), Finished("stop", Usage(2, 2))]


async def test_what_looked_like_a_stop_string_is_shown_when_the_answer_is_cut() -> None:
    events = await events_of(["one ", "EN", "D"], Sampling(max_tokens=2, stop=("END",)))
    assert events == [TextDelta("one "), TextDelta("EN"), Finished("length", Usage(2, 2))]


async def test_an_error_is_raised_where_it_stands() -> None:
    error = ModelServerError("broken")
    server = Scripted([["half", error, "never"]])
    events = read(server.generate, "?", Sampling(), {})
    assert await anext(events) == TextDelta("half")
    with pytest.raises(ModelServerError) as caught:
        await anext(events)
    assert caught.value is error
    assert not server.closed.is_set()


async def test_an_event_is_waited_for() -> None:
    gate = asyncio.Event()
    events = read(Scripted([["a", gate, "b"]]).generate, "?", Sampling(), {})
    assert await anext(events) == TextDelta("a")
    second = asyncio.ensure_future(anext(events))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not second.done()
    gate.set()
    assert [await second, await anext(events)] == [TextDelta("b"), Finished("stop", Usage(1, 2))]


async def test_closing_an_answer_before_its_end_sets_closed() -> None:
    server = Scripted([["a", asyncio.Event()]])
    events = read(server.generate, "?", Sampling(), {})
    await anext(events)
    assert not server.closed.is_set()
    await events.aclose()
    assert server.closed.is_set()


async def test_cancelling_an_answer_sets_closed() -> None:
    server = Scripted([["a", asyncio.Event()]])
    task = asyncio.ensure_future(collect(server.generate, "?", Sampling(), {}))
    await server.reached.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert server.closed.is_set()


async def test_an_answer_read_to_its_end_was_not_closed() -> None:
    server = Scripted([["a"]])
    await collect(server.generate, "?", Sampling(), {})
    assert not server.closed.is_set()


async def test_answers_at_the_same_time_do_not_mix() -> None:
    server = Scripted([["a", "b"], ["c", "d"]], delay=0.001)
    answers = await asyncio.gather(*(collect(server.generate, "?", Sampling(), {}) for _ in range(2)))
    assert [answer.text for answer in answers] == ["ab", "cd"]


async def test_it_says_what_it_is() -> None:
    server = Scripted(name="parrot", context_window=12)
    assert await server.describe() == ModelInfo("parrot", 12, frozenset({"max_tokens", "stop"}))


async def test_closing_it_twice_does_nothing() -> None:
    server = Scripted()
    await server.aclose()
    await server.aclose()


# open


def test_answers_are_read_from_a_file(tmp_path: Path) -> None:
    server = Scripted.open(answers_file(tmp_path, json.dumps([["Grüße", " 👋"], []])))

    async def twice() -> list[Generation]:
        return [await collect(server.generate, "?", Sampling(), {}) for _ in range(2)]

    assert asyncio.run(twice()) == [Generation("Grüße 👋", "stop", Usage(1, 2)), Generation("", "stop", Usage(1, 0))]


async def test_without_a_file_there_is_a_demonstration() -> None:
    server = open_model_server("scripted", Target("m"))
    assert (await server.describe()).name == "m"
    assert (await collect(server.generate, "?", Sampling(), {})).text


@pytest.mark.parametrize(
    "content",
    ["", "{", b"\xff\xfe", '"text"', "{}", "[]", '["text"]', "[[1]]", '[["a"], [null]]', '[{"text": "a"}]', "null"],
)
def test_a_file_of_something_else_is_a_wrong_setting(tmp_path: Path, content: str | bytes) -> None:
    target = answers_file(tmp_path, content)
    with pytest.raises(SettingsError, match="model_server_endpoint") as caught:
        Scripted.open(target)
    assert target.endpoint in str(caught.value)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_file_that_cannot_be_read_is_a_wrong_setting(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"model_server_endpoint = .*: not a file of answers"):
        Scripted.open(Target("m", str(tmp_path / name)))
