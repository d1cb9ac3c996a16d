"""What every kind of model server does through every framework, whether it is the real thing or stands in for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

import pytest

from comps.core.answers import collect, read
from comps.core.ports import Completes, CountsPrompts, CountsTokens, FindsTokens, ModelServer, Renders, Tokenizes
from comps.core.types import JSON, Event, Finished, Message, Prompt, Sampling, TextDelta
from comps.model_servers import FRAMEWORKS, through_framework

QUESTION: Prompt = (Message("user", "What is Deep Learning?"),)
GREEDY = Sampling(max_tokens=12, temperature=0.0)


def _called(arguments: str, **other: JSON) -> Message:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": arguments}}
    return Message("assistant", "", {"tool_calls": [call | other]})


ODD_MESSAGES: Prompt = (
    _called("[1]"),
    _called("{"),
    _called('{"a":' * 5000),
    _called("{}", id=5),
    _called("{}", function={"name": 5, "arguments": "{}"}),
    Message(
        "user",
        [
            {"type": "image", "base64": "AA=="},
            {"type": "video", "url": "x"},
            {"type": "audio", "base64": "AA"},
            {"type": "text-plain", "url": "u"},
            {"type": "file", "file": {"file_id": "x"}, "base64": "AA=="},
        ],
    ),
)
"""What LangChain's own messages have no place for, or fail at."""


@dataclass(frozen=True)
class Subject:
    """A model server that is held to the contract, and what is true of it and of no other."""

    server: ModelServer
    window: int | None
    """The context window that it says it has."""
    counts: bool = True
    """Whether it says how many tokens a streamed answer has."""
    tokenizes: bool = True
    """Whether it has the routes by which its kind counts tokens."""
    shows_stop: bool = False
    """Whether it shows the stop string that it ends at."""


async def events_of(server: ModelServer, prompt: Prompt = QUESTION, sampling: Sampling = GREEDY) -> list[Event]:
    return [event async for event in read(server.generate, prompt, sampling, {})]


def joined(events: list[Event]) -> list[Event]:
    """The events, with pieces of text that follow each other made one: a server that is busy makes fewer of them."""
    whole: list[Event] = []
    for event in events:
        last = whole[-1] if whole else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta) and not (event.extra or last.extra):
            whole[-1] = TextDelta(last.text + event.text, last.choice)
        else:
            whole.append(event)
    return whole


def uncached(event: Event) -> Event:
    """The event without the details of its usage: how much of a prompt is cached depends on what was asked before."""
    if isinstance(event, Finished) and event.usage:
        return replace(event, usage=replace(event.usage, details={}))
    return event


async def text_of(server: ModelServer, sampling: Sampling) -> str:
    return (await collect(server.generate, QUESTION, sampling, {})).text


class Contract:
    """The contract of all model servers. A subclass provides the fixture `subject`."""

    @pytest.fixture
    def kind(self, subject: Subject) -> ModelServer:
        return subject.server

    @pytest.fixture
    def server(self, kind: ModelServer, framework: Callable[[ModelServer], ModelServer]) -> ModelServer:
        return framework(kind)

    @pytest.mark.check("ready")
    async def test_says_who_it_is_without_generating(self, subject: Subject, server: ModelServer) -> None:
        info = await server.describe()
        assert info.name
        assert info.context_window == subject.window
        assert {"max_tokens", "stop"} <= info.capabilities

    @pytest.mark.check("streamed")
    async def test_yields_pieces_of_text_and_then_one_end(self, server: ModelServer) -> None:
        *deltas, end = await events_of(server)
        assert len(deltas) > 1
        assert all(isinstance(delta, TextDelta) and delta.text for delta in deltas)
        assert isinstance(end, Finished)

    @pytest.mark.check("same")
    async def test_a_whole_answer_is_what_the_pieces_make_together(self, server: ModelServer, subject: Subject) -> None:
        if not isinstance(server, Completes):
            pytest.skip("this model server gives no whole answers")
        whole = await server.complete(QUESTION, GREEDY, {})
        collected = await collect(server.generate, QUESTION, GREEDY, {})
        assert (whole.text, whole.reason) == (collected.text, collected.reason)
        if subject.counts:
            assert whole.usage == collected.usage

    @pytest.mark.check("length")
    async def test_an_answer_cut_at_max_tokens_says_length(self, server: ModelServer) -> None:
        *deltas, end = await events_of(server)
        assert isinstance(end, Finished)
        assert end.reason == "length"
        assert len(deltas) <= 12

    @pytest.mark.check("usage")
    async def test_the_tokens_are_those_that_the_model_server_counted(
        self, subject: Subject, server: ModelServer
    ) -> None:
        *_, end = await events_of(server)
        assert isinstance(end, Finished)
        if not subject.counts:
            assert end.usage is None
            pytest.skip("this model server counts nothing when it streams")
        assert end.usage
        assert end.usage.completion_tokens == 12
        assert end.usage.prompt_tokens > 0

    @pytest.mark.check("tokens")
    async def test_a_prompt_is_counted_as_the_model_reads_it(self, server: ModelServer, subject: Subject) -> None:
        if not (subject.tokenizes and isinstance(subject.server, CountsPrompts)):
            pytest.skip("this model server counts no prompts")
        turns = (("user", "Hi"), ("assistant", "Yes?"), ("user", "What is rain?"))
        conversation = tuple(Message(role, text) for role, text in turns)
        prompts: tuple[Prompt, ...] = (QUESTION, conversation, "Once upon a time")
        for prompt in prompts:
            usage = (await collect(server.generate, prompt, GREEDY, {})).usage
            assert usage
            assert await subject.server.count_prompt(prompt, {}) == usage.prompt_tokens

    @pytest.mark.check("tokens")
    async def test_a_conversation_renders_as_the_text_that_the_model_reads(
        self, server: ModelServer, subject: Subject
    ) -> None:
        if not (subject.tokenizes and isinstance(server, Renders) and isinstance(server, CountsTokens)):
            pytest.skip("this model server renders no prompts")
        turns = (("user", "Hi"), ("assistant", "Yes?"), ("user", "What is rain?"))
        conversation = tuple(Message(role, text) for role, text in turns)
        rendered = await server.render(conversation, {})
        assert [text for _, text in turns] == sorted((text for _, text in turns), key=rendered.index)
        usage = (await collect(server.generate, conversation, GREEDY, {})).usage
        assert usage
        # What the tokenizer lays before every text is not in it.
        assert usage.prompt_tokens - await server.count_tokens(rendered) in (0, 1)
        assert await server.render("Once upon a time", {}) == "Once upon a time"

    @pytest.mark.check("tokens")
    async def test_it_tells_where_in_a_text_its_tokens_are(self, server: ModelServer, subject: Subject) -> None:
        if not (subject.tokenizes and isinstance(subject.server, FindsTokens)):
            pytest.skip("this model server does not tell where tokens are")
        text = "What is Deep Learning? Ça, c'est 深度学习 🌊.\n\nAnd more."
        ends = await subject.server.token_ends(text)
        assert len(ends) == await subject.server.count_tokens(text)
        assert list(ends) == sorted(ends)
        assert ends[-1] == len(text)
        before = text[: ends[4]]
        assert list(await subject.server.token_ends(before)) == list(ends[:5])

    @pytest.mark.check("tokens")
    async def test_it_tells_the_tokens_of_a_text_as_the_model_reads_it(
        self, server: ModelServer, subject: Subject
    ) -> None:
        if not (subject.tokenizes and isinstance(server, Tokenizes) and isinstance(server, CountsPrompts)):
            pytest.skip("this model server tells no tokens")
        text = "What is Deep Learning? Ça, c'est 深度学习 🌊.\n\nAnd more."
        tokens = await server.tokenize(text)
        assert len(tokens) == await server.count_prompt(text, {})
        ends = [token.end or 0 for token in tokens]
        assert ends == sorted(ends)
        assert ends[-1] == len(text)
        assert await server.tokenize(text[: ends[4]]) == tokens[:5]

    @pytest.mark.check("stop")
    async def test_an_answer_that_ends_by_itself_says_stop(self, server: ModelServer) -> None:
        question = (Message("user", "What is the capital of France?"),)
        for seed in range(50):  # A trained model ends at once, a random one one time in a few hundred tokens.
            temperature = 1.0 if seed else 0.0
            *deltas, end = await events_of(
                server, question, Sampling(max_tokens=200, temperature=temperature, seed=seed)
            )
            assert isinstance(end, Finished)
            if (end.usage.completion_tokens if end.usage else len(deltas)) < 200:
                assert end.reason == "stop"
                return
        pytest.fail("none of 50 answers ended by itself")

    @pytest.mark.check("same")
    async def test_both_frameworks_give_the_same_events(self, kind: ModelServer) -> None:
        native, langchain = [joined(await events_of(through_framework(kind, name))) for name in FRAMEWORKS]
        assert [uncached(event) for event in native] == [uncached(event) for event in langchain]

    @pytest.mark.check("stop string")
    async def test_a_stop_string_ends_the_answer_and_is_never_shown(
        self, subject: Subject, server: ModelServer
    ) -> None:
        whole = await text_of(server, GREEDY)
        stop = whole[9:14]  # Begins and ends within a token.
        cut = await collect(server.generate, QUESTION, Sampling(max_tokens=12, temperature=0.0, stop=("§", stop)), {})
        before, shown, _ = whole.partition(stop)
        assert cut.text == (before + shown if subject.shows_stop else before)
        assert cut.reason == "stop"
        assert cut.stop_string in (stop, None)

    @pytest.mark.check("several")
    async def test_an_answer_can_be_had_while_another_is_open(self, server: ModelServer) -> None:
        async with aclosing(read(server.generate, QUESTION, GREEDY, {})) as first:
            await anext(first)
            assert isinstance((await events_of(server))[-1], Finished)
            assert isinstance([event async for event in first][-1], Finished)

    @pytest.mark.check("cancel")
    async def test_can_be_asked_again_after_an_answer_was_closed(self, server: ModelServer) -> None:
        async with aclosing(read(server.generate, QUESTION, Sampling(max_tokens=500, temperature=0.0), {})) as events:
            await anext(events)
        assert len(await events_of(server)) > 1
