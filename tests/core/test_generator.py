"""The way of a request through the core, played with answers that are written beforehand."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from comps.core.answers import Forwarding, collect, read
from comps.core.errors import (
    InvalidRequest,
    ModelServerError,
    Refused,
    SettingsError,
    UnknownModel,
    Unreachable,
    no_room,
)
from comps.core.generator import TextGenerator
from comps.core.models import Models
from comps.core.ports import Answer
from comps.core.prompts import INSTRUCTIONS, RAG_TEMPLATES, fill
from comps.core.tasks import at_once
from comps.core.types import (
    JSON,
    Document,
    Embeddings,
    Finished,
    Generation,
    GenerationRequest,
    Message,
    ModelInfo,
    Prompt,
    Sampling,
    TextDelta,
    Usage,
)
from comps.model_servers.scripted import Scripted


async def test_a_request_comes_out_as_events() -> None:
    generator = TextGenerator(Scripted([["Deep", " learning"]]), "m")
    events = [event async for event in read(generator.generate, GenerationRequest("What is it?"))]
    assert events == [TextDelta("Deep"), TextDelta(" learning"), Finished("stop", Usage(3, 2))]


async def test_the_model_server_gets_prompt_sampling_and_options() -> None:
    server = Scripted()
    sampling = Sampling(max_tokens=7, temperature=0.5, stop=("x",))
    request = GenerationRequest("Why?", sampling=sampling, options={"logprobs": True})
    await collect(TextGenerator(server, "m").generate, request)
    assert server.asked == [("Why?", sampling, {"logprobs": True})]


async def test_documents_reach_the_model_server() -> None:
    server = Scripted()
    request = GenerationRequest((Message("user", "Why?"),), (Document("Because."),))
    await collect(TextGenerator(server, "m").generate, request)
    [(prompt, _, _)] = server.asked
    user = Message("user", fill(RAG_TEMPLATES["en"], "Because.", "Why?"))
    assert prompt == (Message("system", INSTRUCTIONS["en"]), user)


async def test_a_request_that_makes_no_prompt_does_not_reach_the_model_server() -> None:
    server = Scripted()
    with pytest.raises(InvalidRequest, match="messages"):
        await collect(TextGenerator(server, "m").generate, GenerationRequest((), (Document("Because."),)))
    assert server.asked == []


@pytest.mark.parametrize("model", [None, "", "m"])
async def test_a_request_that_names_the_model_or_none_is_answered(model: str | None) -> None:
    generator = TextGenerator(Scripted([["yes"]]), "m")
    assert (await collect(generator.generate, GenerationRequest("?", model=model))).text == "yes"


async def test_an_unknown_model_is_refused_with_the_known_one() -> None:
    server = Scripted()
    with pytest.raises(UnknownModel, match="'other' is not served here; known: m") as caught:
        await collect(TextGenerator(server, "m").generate, GenerationRequest("?", model="other"))
    assert caught.value.field == "model"
    assert server.asked == []


async def test_a_request_does_not_wait_for_a_description_that_has_been_given_once() -> None:
    class Counting(Scripted):
        described = 0

        async def describe(self) -> ModelInfo:
            self.described += 1
            return await super().describe()

    server = Counting()
    generator = TextGenerator(server, "m")
    infos = [await generator.info() for _ in range(3)]
    assert (server.described, {info.name for info in infos}) == (1, {"m"})
    await generator.describe()
    assert server.described == 2


async def test_a_description_is_the_model_server_s_under_the_name_that_callers_know() -> None:
    server = Scripted(name="inside", context_window=9)
    info = await TextGenerator(server, "outside").describe()
    assert info == ModelInfo("outside", 9, frozenset({"max_tokens", "stop"}), "outside")


@pytest.mark.parametrize(
    ("told", "public", "base", "has_chat_template"),
    [
        (ModelInfo("tgi", base="meta-llama/Llama-2-7b-chat-hf"), "small", "meta-llama/Llama-2-7b-chat-hf", True),
        (ModelInfo("Llama-2-7b-chat", base="/models/gpt2"), "small", "/models/gpt2", False),
        (ModelInfo("tgi", base="/data"), "SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct", True),
        (ModelInfo("gpt2", has_chat_template=True), "small", "gpt2", True),
        (ModelInfo("SmolLM2-135M-Instruct", has_chat_template=False), "small", "SmolLM2-135M-Instruct", False),
        (ModelInfo("tgi"), "small", "small", None),
    ],
)
async def test_a_description_tells_which_model_it_is_by_the_name_that_says_most_and_whether_it_has_a_chat_template(
    monkeypatch: pytest.MonkeyPatch, told: ModelInfo, public: str, base: str, has_chat_template: bool | None
) -> None:
    server = Scripted()
    monkeypatch.setattr(server, "_info", told)
    info = await TextGenerator(server, public).describe()
    assert (info.name, info.base, info.has_chat_template) == (public, base, has_chat_template)


class Unloadable(Scripted):
    """A model server whose model cannot be loaded."""

    async def load(self) -> None:
        raise SettingsError("no such file: /secret/path")


async def test_a_model_that_could_not_be_loaded_says_so_to_everybody_who_asks() -> None:
    server = Unloadable()
    generator = TextGenerator(server, "m")
    with pytest.raises(SettingsError, match="/secret/path"):
        await generator.load()
    with pytest.raises(ModelServerError, match="the model m could not be loaded") as described:
        await generator.describe()
    with pytest.raises(ModelServerError) as asked:
        await collect(generator.generate, GenerationRequest("?"))
    assert "secret" not in f"{described.value}{asked.value}"
    assert asked.value is not described.value  # One for all would keep the frames of every request, with its body.
    assert server.asked == []


async def test_where_nothing_is_to_be_loaded_loading_does_nothing() -> None:
    generator = TextGenerator(Scripted([["yes"]]), "m")
    await generator.load()
    assert (await collect(generator.generate, GenerationRequest("?"))).text == "yes"


def test_models_are_found_by_name_and_the_first_without_one() -> None:
    first, second = TextGenerator(Scripted(), "a/b"), TextGenerator(Scripted(), "c.d")
    models = Models([first, second])
    assert list(models) == [first, second]
    assert models.named("a/b") is models.named(None) is models.named("") is first
    assert models.named("c.d") is second
    with pytest.raises(UnknownModel, match=re.escape("'e' is not served here; known: a/b, c.d")) as caught:
        models.named("e")
    assert caught.value.field == "model"


async def test_closing_the_events_stops_the_model() -> None:
    server = Scripted([["a", asyncio.Event(), "b"]])
    events = read(TextGenerator(server, "m").generate, GenerationRequest("?"))
    assert await anext(events) == TextDelta("a")
    await events.aclose()
    assert server.closed.is_set()


async def test_an_error_between_events_is_raised_as_it_is() -> None:
    error = Unreachable("gone")
    generator = TextGenerator(Scripted([["half", error]]), "m")
    with pytest.raises(Unreachable) as caught:
        await collect(generator.generate, GenerationRequest("?"))
    assert caught.value is error


async def test_collecting_that_is_cancelled_stops_the_model() -> None:
    reached, server = asyncio.Event(), Scripted([["a", asyncio.Event()]])

    class Watched(Forwarding):
        def text(self, text: str, choice: int = 0) -> None:
            super().text(text, choice)
            reached.set()

    async def ask(answer: Answer) -> None:
        await TextGenerator(server, "m").generate(GenerationRequest("?"), Watched(answer))

    task = asyncio.ensure_future(collect(ask))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.closed.is_set()


class Completing(Scripted):
    """A model server that gives whole answers at once."""

    async def complete(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> Generation:
        return await collect(super().generate, prompt, sampling, options)

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        raise AssertionError("it was to be asked for the whole answer")


@pytest.mark.parametrize("kind", [Scripted, Completing])
async def test_a_whole_answer_is_asked_for_whole_of_a_server_that_completes(kind: type[Scripted]) -> None:
    server = kind([["a", "b"]])
    generator = TextGenerator(server, "m")
    sampling = Sampling(max_tokens=5)
    plan = await generator.plan(GenerationRequest("?", sampling=sampling, options={"user": "x"}))
    assert await generator.complete(plan) == Generation("ab", "stop", Usage(1, 2))
    assert server.asked == [("?", sampling, {"user": "x"})]


@pytest.mark.parametrize("kind", [Scripted, Completing])
async def test_a_whole_answer_that_is_cancelled_stops_the_model(kind: type[Scripted]) -> None:
    server = kind([["a", asyncio.Event()]])
    generator = TextGenerator(server, "m")
    completing = asyncio.ensure_future(generator.complete(await generator.plan(GenerationRequest("?"))))
    await server.reached.wait()
    completing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await completing
    assert server.closed.is_set()


async def test_a_whole_answer_that_breaks_off_is_an_error() -> None:
    class Broken(Scripted):
        async def generate(
            self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer
        ) -> None:
            answer.text("half an")

    generator = TextGenerator(Broken(), "m")
    with pytest.raises(ModelServerError, match="broke off"):
        await generator.complete(await generator.plan(GenerationRequest("?")))


class Counting(Scripted):
    """A model server that counts a word as a token."""

    async def count_tokens(self, text: str) -> int:
        return len(text.split())

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        return Embeddings(tuple([float(len(text))] for text in texts))


@pytest.mark.parametrize(
    ("total", "most", "left"), [(10, None, 7), (10, 5, 5), (4, 5, 1)], ids=["alone", "above", "below"]
)
async def test_what_prompt_and_answer_may_have_together_leaves_the_rest_to_the_answer(
    total: int, most: int | None, left: int
) -> None:
    server = Counting()
    request = GenerationRequest("what is it", sampling=Sampling(most), max_total_tokens=total)
    await collect(TextGenerator(server, "m").generate, request)
    [(_, sampling, _)] = server.asked
    assert sampling.max_tokens == left


async def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers() -> None:
    generator = TextGenerator(Counting(), "m")
    for field in ("max_length", None):
        with pytest.raises(InvalidRequest, match="3 tokens, and 3 are allowed") as caught:
            await collect(generator.generate, GenerationRequest("what is it", max_total_tokens=3, total_field=field))
        assert caught.value.field == field


async def test_a_prompt_that_fills_a_default_is_answered_with_a_token() -> None:
    request = GenerationRequest("what is it", max_total_tokens=3, total_is_default=True)
    answer = await collect(TextGenerator(Counting([["a", "b"]]), "m").generate, request)
    assert (answer.text, answer.reason) == ("a", "length")


class Keeping(Counting):
    """One that itself keeps prompt and answer within a limit, and counts what no text shows."""

    async def describe(self) -> ModelInfo:
        return ModelInfo("m", capabilities=frozenset({"max_total_tokens"}))

    async def count_tokens(self, text: str) -> int:
        raise AssertionError("it counts by itself")

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        if sampling.max_total_tokens and sampling.max_total_tokens <= 7:
            raise no_room(7, sampling.max_total_tokens)
        await super().generate(prompt, sampling, options, answer)


async def test_a_model_server_that_keeps_prompt_and_answer_within_a_limit_is_told_it() -> None:
    server = Keeping([["a", "b"]])
    generator = TextGenerator(server, "m")
    await collect(generator.generate, GenerationRequest("what is it", sampling=Sampling(5), max_total_tokens=8))
    assert [sampling for _, sampling, _ in server.asked] == [Sampling(5, max_total_tokens=8)]
    with pytest.raises(InvalidRequest, match="limit: the prompt alone has 7 tokens"):
        await collect(generator.generate, GenerationRequest("what is it", max_total_tokens=7, total_field="limit"))
    usual = GenerationRequest("what is it", max_total_tokens=7, total_is_default=True)
    assert (await collect(generator.generate, usual)).text == "a"
    assert (await generator.complete(await generator.plan(usual))).text == "a"


class KeepingAll(Counting):
    """One that keeps a limit of prompt and answer together, with what its chat template adds."""

    async def describe(self) -> ModelInfo:
        return ModelInfo("m", capabilities=frozenset({"max_total_tokens"}))


async def test_a_limit_without_the_chat_template_is_not_left_to_a_model_server_that_counts_it() -> None:
    server = KeepingAll([["a", "b"]])
    generator = TextGenerator(server, "m")
    asked = GenerationRequest((Message("user", "what is it"),), max_total_tokens=8, total_without_template=True)
    await collect(generator.generate, asked)
    await generator.complete(await generator.plan(asked))
    preview = await generator.preview(asked)
    assert [sampling for _, sampling, _ in server.asked] == [Sampling(5), Sampling(5)]
    assert preview.sampling == Sampling(5)
    full = replace(asked, max_total_tokens=3, total_field="limit")
    with pytest.raises(InvalidRequest, match="limit: the prompt alone has 3 tokens"):
        await collect(generator.generate, full)
    assert (await generator.plan(replace(full, total_is_default=True))).sampling == Sampling(1)


async def test_whether_prompt_and_answer_can_be_counted_together_is_a_capability() -> None:
    assert "max_total_tokens" in (await TextGenerator(Counting(), "m").describe()).capabilities
    assert "max_total_tokens" not in (await TextGenerator(Scripted(), "m").describe()).capabilities


async def test_abilities_are_the_model_servers() -> None:
    generator = TextGenerator(Counting(), "m")
    assert (await generator.embed(["ab", "c"])).vectors == ([2.0], [1.0])
    assert await generator.embed([]) == Embeddings((), 0)
    assert await generator.count_tokens("a b") == 2


async def test_an_ability_that_the_model_server_lacks_is_an_error_that_names_the_model() -> None:
    generator = TextGenerator(Scripted(), "tiny")
    with pytest.raises(InvalidRequest, match="tiny makes no embeddings"):
        await generator.embed(["a"])
    with pytest.raises(InvalidRequest, match="tiny counts no tokens"):
        await generator.count_tokens("a")


def test_a_name_without_a_tag_is_that_with_the_tag_latest_unless_both_are_served() -> None:
    plain, tagged, both, latest = (TextGenerator(Scripted(), name) for name in ("a", "b:latest", "c", "c:latest"))
    models = Models([plain, tagged, both, latest])
    asked = [models.named(name).model for name in ("a:latest", "b", "c", "c:latest")]
    assert asked == ["a", "b:latest", "c", "c:latest"]
    assert models.named("a:latest", allowed=("a",)) is plain
    with pytest.raises(UnknownModel) as caught:
        models.named("a:7b")
    assert caught.value.name == "a:7b"
    with pytest.raises(UnknownModel, match=r"'x{200}\.\.\.' is not served here"):
        models.named("x" * 1_000_000)


def test_any_name_may_stand_for_the_only_model() -> None:
    one, two = TextGenerator(Scripted(), "one"), TextGenerator(Scripted(), "two")
    assert Models([one]).named("other", any_name=True) is one
    assert Models([one, two]).named("two", any_name=True) is two
    with pytest.raises(UnknownModel):
        Models([one, two]).named("other", any_name=True)


async def test_work_done_at_once_has_stopped_when_one_piece_fails() -> None:
    stopped = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def failing() -> None:
        raise ModelServerError("x")

    with pytest.raises(ModelServerError):
        await at_once([endless(), failing()])
    assert stopped.is_set()


async def test_a_missing_route_that_counts_costs_an_estimate_and_is_asked_once() -> None:
    class Missing(Scripted):
        counted = 0

        async def count_tokens(self, text: str) -> int:
            self.counted += 1
            raise Refused(404, "no such route")

    server = Missing()
    generator = TextGenerator(server, "m")
    for _ in range(2):
        plan = await generator.plan(GenerationRequest("what is it", max_total_tokens=50))
        assert plan.report.counted == "estimate"
        assert plan.report.prompt_tokens
        assert (await generator.complete(plan)).reason == "stop"
        assert server.asked[-1][1].max_tokens == 50 - plan.report.prompt_tokens
    assert server.counted == 1
