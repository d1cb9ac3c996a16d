"""Every kind of model server, through every framework: same events, same errors, and closing stops the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from comps.core.answers import collect, read
from comps.core.errors import InvalidRequest, ModelServerError, Overloaded, PromptTooLong, Unreachable
from comps.core.ports import Loads, ModelServer
from comps.core.types import Message, Sampling, TextDelta, Usage
from comps.model_servers import FRAMEWORKS, MODEL_SERVERS, open_model_server, through_framework
from comps.model_servers.embedded.openvino import OpenVINO
from comps.model_servers.scripted import Scripted
from comps.model_servers.target import Access, Target
from tests.model_servers.contract import GREEDY, ODD_MESSAGES, QUESTION, Contract, Subject, events_of
from tests.model_servers.tgi_stand_in import standing_in
from tests.service import running

ENGINE = pytest.mark.xdist_group("engine")


# Kinds whose engine is an extra are held to the same in tests/live.
KINDS = [kind for kind in MODEL_SERVERS if kind not in ("llama_cpp", "transformers")]


@pytest.fixture(params=[pytest.param(kind, marks=ENGINE) if kind == "openvino" else kind for kind in KINDS])
async def subject(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Subject]:
    """One of each kind, ready to answer; behind those that speak OpenAI's API stands a service of ours."""
    scripted = Scripted([[f" word{n}" for n in range(40)]], name="served", context_window=1000)
    if request.param == "openvino":
        yield Subject(request.getfixturevalue("engine"), 8192)
    elif request.param == "scripted":
        yield Subject(scripted, 1000)
    elif request.param == "tgi":
        async with standing_in() as stand_in:
            server = open_model_server("tgi", Target("tgi", stand_in.url))
            yield Subject(server, 1000)
            await server.aclose()
        assert not stand_in.unknown
    else:
        async with running(scripted, monkeypatch, {"LLM_NAME": "served"}) as service:
            target = Target("served", service.url)
            if request.param == "langchain":
                target = target_of_langchain(f"{service.url}/v1")
            server = await asyncio.to_thread(open_model_server, request.param, target)
            if isinstance(server, Loads):
                await server.load()
            yield Subject(server, 1000, tokenizes=False)
            await server.aclose()


def target_of_langchain(url: str) -> Target:
    """A class of LangChain's own, with OpenAI's SDK, before the server at `url`."""
    engine = {"class": "langchain_openai.chat_models.base:BaseChatOpenAI", "stream_usage": True, "max_retries": 0}
    return Target("served", url, Access(api_key="none"), context_window=1000, engine=engine)


class TestContract(Contract):
    """The contract, held by every kind."""

    async def test_both_frameworks_give_the_same_pieces_of_text(self, kind: ModelServer) -> None:
        native, langchain = [await events_of(through_framework(kind, name)) for name in FRAMEWORKS]
        assert native == langchain


@ENGINE
async def test_text_to_continue_is_continued_the_same_way_by_both_frameworks(engine: OpenVINO) -> None:
    native, langchain = [
        await events_of(through_framework(engine, name), "Once upon a time") for name in ("native", "langchain")
    ]
    assert native == langchain


@pytest.mark.parametrize(
    "error", [InvalidRequest("no", "messages"), PromptTooLong(9, 8), Unreachable("x"), Overloaded("y")]
)
async def test_an_error_before_the_first_token_comes_as_it_is(
    framework: Callable[[ModelServer], ModelServer], error: Exception
) -> None:
    assert isinstance(error, InvalidRequest | Unreachable | Overloaded)
    with pytest.raises(type(error)) as caught:
        await events_of(framework(Scripted([[error]])))
    assert caught.value is error


async def test_an_error_after_the_first_token_comes_behind_what_was_generated(
    framework: Callable[[ModelServer], ModelServer],
) -> None:
    error = ModelServerError("it broke")
    async with aclosing(read(framework(Scripted([["one", error]])).generate, QUESTION, GREEDY, {})) as events:
        assert await anext(events) == TextDelta("one")
        with pytest.raises(ModelServerError) as caught:
            await anext(events)
    assert caught.value is error


async def test_closing_an_answer_closes_it_at_the_model_server(framework: Callable[[ModelServer], ModelServer]) -> None:
    scripted = Scripted([["one", asyncio.Event(), "never"]])
    async with aclosing(read(framework(scripted).generate, QUESTION, GREEDY, {})) as events:
        assert await anext(events) == TextDelta("one")
    await asyncio.wait_for(scripted.closed.wait(), 5)


async def test_cancelling_before_the_first_token_closes_it_at_the_model_server(
    framework: Callable[[ModelServer], ModelServer],
) -> None:
    scripted = Scripted([[asyncio.Event(), "never"]])
    waiting = asyncio.ensure_future(events_of(framework(scripted)))
    await asyncio.wait_for(scripted.reached.wait(), 5)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.wait_for(scripted.closed.wait(), 5)


async def test_every_field_of_sampling_arrives(framework: Callable[[ModelServer], ModelServer]) -> None:
    sampling = Sampling(7, 0.5, 0.9, 40, 0.8, 1.1, 0.2, 0.3, 42, ("a", "b"), 99)
    assert None not in [getattr(sampling, name) for name in Sampling.__dataclass_fields__]
    scripted = Scripted()
    await collect(framework(scripted).generate, QUESTION, sampling, {"user": "x"})
    assert scripted.asked == [(QUESTION, sampling, {"user": "x"})]


async def test_every_role_and_content_arrives_as_it_was_said(framework: Callable[[ModelServer], ModelServer]) -> None:
    parts = [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    conversation = (
        Message("system", "Be brief."),
        Message("developer", "In English."),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("tool", "42"),
        Message("user", parts),
    )
    scripted = Scripted()
    await collect(framework(scripted).generate, conversation, GREEDY, {})
    assert scripted.asked[0][0] == conversation


async def test_what_langchain_would_read_in_its_own_way_arrives_as_it_was_said(
    framework: Callable[[ModelServer], ModelServer],
) -> None:
    scripted = Scripted()
    await collect(framework(scripted).generate, ODD_MESSAGES, GREEDY, {})
    assert scripted.asked[0][0] == ODD_MESSAGES


@ENGINE
async def test_a_prompt_over_the_window_is_refused_with_the_numbers(
    engine: OpenVINO, framework: Callable[[ModelServer], ModelServer]
) -> None:
    with pytest.raises(PromptTooLong) as caught:
        await events_of(framework(engine), (Message("user", "hello world " * 10_000),))
    assert caught.value.context_window == 8192
    assert caught.value.prompt_tokens > 20_000
    assert "8192" in str(caught.value)


@ENGINE
async def test_a_sampling_value_it_cannot_take_is_an_invalid_request_naming_the_field(
    engine: OpenVINO, framework: Callable[[ModelServer], ModelServer]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await events_of(framework(engine), sampling=Sampling(repetition_penalty=-1.0))
    assert caught.value.field == "repetition_penalty"


def test_every_kind_opens_without_loading_anything() -> None:
    for name in KINDS:
        target = Target("any", "" if name in ("openvino", "scripted") else "http://127.0.0.1:9")
        assert open_model_server(name, target_of_langchain("http://127.0.0.1:9") if name == "langchain" else target)


@ENGINE
async def test_usage_is_the_model_servers_own(engine: OpenVINO) -> None:
    usage = (await collect(engine.generate, (Message("user", "Hi"),), Sampling(max_tokens=3), {})).usage
    # The model's own chat template adds a system turn and the marks of the turns: 30 tokens to one.
    assert usage == Usage(31, 3)
