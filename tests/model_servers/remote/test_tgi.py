"""TGI against its stand-in: what is asked of it, what comes of it, natively and through LangChain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from comps.core.answers import Collector, collect, read
from comps.core.errors import (
    InvalidRequest,
    LLMError,
    ModelServerError,
    Overloaded,
    PromptTooLong,
    Refused,
    Unreachable,
)
from comps.core.instructions import takes_system_messages
from comps.core.planning import Planner
from comps.core.ports import CountsTokens, Embeds, ModelServer
from comps.core.stop_strings import Stopped
from comps.core.types import Event, Finished, Generation, Message, Prompt, Sampling, TextDelta, Usage
from comps.model_servers.langchain.chat_tgi import ChatTGI
from comps.model_servers.langchain.through import ThroughLangChain
from comps.model_servers.remote.chunks import ChunkReader
from comps.model_servers.remote.exchange import GO_ON, NO_TOKEN, STOP
from comps.model_servers.remote.tgi import TGI
from comps.model_servers.remote.tgi_answers import MessagesReader, TokenReader
from comps.model_servers.target import Target
from tests.events import gathered
from tests.model_servers.replay import Reply, replaying, sse
from tests.model_servers.tgi_stand_in import ANSWER, BOS, EOS, Model, StandIn, encode, standing_in

QUESTION: Prompt = (Message("system", "Be brief."), Message("user", "Hi"))
RENDERED = "[system]\nBe brief.\n[user]\nHi\n[assistant]\n"
GREEDY = Sampling(temperature=0.0)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
Framework = Callable[[TGI], ModelServer]


@pytest.fixture(params=["native", "langchain"])
def framework(request: pytest.FixtureRequest) -> Framework:
    if request.param == "native":
        return lambda server: server
    return lambda server: ThroughLangChain(ChatTGI.over(server, "tgi"), server)


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    async with standing_in() as stand_in:
        yield stand_in
    assert not stand_in.unknown


async def events_of(
    stand_in: StandIn,
    framework: Framework,
    sampling: Sampling = GREEDY,
    prompt: Prompt = QUESTION,
    options: dict[str, Any] | None = None,
) -> list[Event]:
    server = TGI("tgi", stand_in.url)
    try:
        async with aclosing(read(framework(server).generate, prompt, sampling, options or {})) as events:
            return [event async for event in events]
    finally:
        await server.aclose()


async def answer(*args: Any, **kwargs: Any) -> Generation:
    return gathered(await asyncio.wait_for(events_of(*args, **kwargs), 20))


async def test_an_answer_is_the_models_text_its_true_end_and_its_usage(stand_in: StandIn, framework: Framework) -> None:
    whole = await answer(stand_in, framework)
    tokens = encode(ANSWER, specials=False).ids
    assert whole == Generation(ANSWER, "stop", Usage(len(encode(RENDERED).ids), len(tokens) + 1))
    assert EOS not in whole.text


@pytest.mark.parametrize("double", [True, False])
async def test_the_model_reads_one_bos_whether_or_not_its_chat_template_has_one(
    framework: Framework, double: bool
) -> None:
    async with standing_in(Model(double=double)) as stand_in:
        await answer(stand_in, framework)
    (body,) = stand_in.bodies("/generate_stream")
    assert body["inputs"] == RENDERED
    (read,) = stand_in.inputs
    assert read.count(BOS) == 1
    assert read.startswith(BOS)


async def test_text_is_continued_as_it_stands(stand_in: StandIn, framework: Framework) -> None:
    await answer(stand_in, framework, prompt="Once upon a time")
    ((path, body),) = stand_in.asked
    assert (path, body["inputs"]) == ("/generate_stream", "Once upon a time")


@pytest.mark.parametrize(
    ("sampling", "sent"),
    [
        (Sampling(), {"do_sample": True}),
        (
            Sampling(7, 0.5, 0.9, 40, 0.8, 1.1, 0.2, None, 42, ("a", "")),
            {
                "max_new_tokens": 7,
                "temperature": 0.5,
                "top_p": 0.9,
                "top_k": 40,
                "typical_p": 0.8,
                "repetition_penalty": 1.1,
                "frequency_penalty": 0.2,
                "seed": 42,
                "stop": ["a"],
                "do_sample": True,
            },
        ),
        (Sampling(temperature=1.0, top_p=1.0, typical_p=1.0), {"temperature": 1.0, "do_sample": True}),
        (Sampling(temperature=0.0, top_p=0.5, top_k=4, typical_p=0.5), {"do_sample": False}),
        (
            Sampling(temperature=0.0, repetition_penalty=1.2, frequency_penalty=0.0, seed=0),
            {"repetition_penalty": 1.2, "frequency_penalty": 0.0, "seed": 0, "do_sample": False},
        ),
        (Sampling(temperature=0.0, stop=tuple("123456")), {"stop": ["1", "2", "3", "4"], "do_sample": False}),
    ],
)
async def test_every_sampling_field_arrives_in_tgis_own_words(
    stand_in: StandIn, framework: Framework, sampling: Sampling, sent: dict[str, Any]
) -> None:
    await answer(stand_in, framework, sampling)
    (body,) = stand_in.bodies("/generate_stream")
    assert body == {"inputs": RENDERED, "parameters": {**sent, "details": True}}


async def test_a_seed_repeats_an_answer_and_another_does_not(stand_in: StandIn, framework: Framework) -> None:
    texts = [(await answer(stand_in, framework, Sampling(seed=seed))).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(("name", "adapter"), [("tgi", None), ("stand-in/tiny", None), ("my-adapter", "my-adapter")])
async def test_a_name_that_is_not_the_models_own_is_an_adapters(
    name: str, adapter: str | None, stand_in: StandIn
) -> None:
    server = TGI(name, stand_in.url)
    await server.describe()
    await collect(server.generate, "Hi", GREEDY, {})
    await collect(server.generate, QUESTION, GREEDY, {"logprobs": True})
    await server.aclose()
    assert stand_in.bodies("/generate_stream")[0]["parameters"].get("adapter_id") == adapter
    assert stand_in.bodies("/v1/chat/completions")[0]["model"] == (adapter or "tgi")


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(typical_p=0.0), "typical_p"),
        (Sampling(top_p=0.0), "top_p"),
        (Sampling(top_k=-1), "top_k"),
        (Sampling(repetition_penalty=0.0), "repetition_penalty"),
        (Sampling(frequency_penalty=3.0), "frequency_penalty"),
        (Sampling(max_tokens=0), "max_tokens"),
        (Sampling(max_tokens=995), "max_tokens"),
        (Sampling(seed=-1), "seed"),
    ],
)
async def test_a_value_that_tgi_refuses_is_an_invalid_request_naming_the_field(
    framework: Framework, sampling: Sampling, field: str
) -> None:
    async with standing_in() as stand_in:
        with pytest.raises(InvalidRequest) as caught:
            await answer(stand_in, framework, sampling)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("model", "window"),
    [(Model(), 1000), (Model(max_total_tokens=20, max_input_tokens=19), 20), (Model(max_input_tokens=50), 51)],
)
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(max_tokens=5)])
async def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(
    framework: Framework, model: Model, window: int, sampling: Sampling
) -> None:
    text = "What is Deep Learning? " * 300
    async with standing_in(model) as stand_in:
        with pytest.raises(PromptTooLong) as caught:
            await answer(stand_in, framework, sampling, prompt=text)
    tokens = len(encode(text).ids)
    expected = model.max_total_tokens if tokens >= model.max_total_tokens else window
    assert (caught.value.prompt_tokens, caught.value.context_window) == (tokens, expected)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (Model(busy=True), {}, Overloaded, "Model is overloaded"),
        (Model(fails_at=0), {}, ModelServerError, "CUDA out of memory"),
        (Model(ends_at=0), {}, ModelServerError, "Incomplete generation stream"),
        (Model(template=False), {}, InvalidRequest, "messages: .*template not found"),
        (Model(busy=True), {"logprobs": True}, Overloaded, "Model is overloaded"),
        (Model(fails_at=0), {"logprobs": True}, ModelServerError, "CUDA out of memory"),
        (Model(), {"tools": TOOLS, "response_format": {"type": "regex", "value": "a"}}, InvalidRequest, "exclusive"),
        (Model(), {"response_format": {"type": "json_object"}}, InvalidRequest, "response_format"),
    ],
)
async def test_a_failure_is_an_error_of_ours_with_tgis_own_words(
    framework: Framework, model: Model, options: dict[str, Any], error: type[LLMError], message: str
) -> None:
    async with standing_in(model) as stand_in:
        with pytest.raises(error, match=message):
            await answer(stand_in, framework, options=options)


async def test_a_conversation_that_the_template_refuses_is_an_invalid_request(
    stand_in: StandIn, framework: Framework
) -> None:
    with pytest.raises(InvalidRequest, match="The system message comes first") as caught:
        await answer(stand_in, framework, prompt=(Message("user", "Hi"), Message("system", "Be brief.")))
    assert caught.value.field == "messages"


@pytest.mark.parametrize("options", [{}, {"logprobs": True}])
@pytest.mark.parametrize("model", [Model(fails_at=3), Model(ends_at=3)])
async def test_a_failure_in_the_middle_comes_behind_what_was_generated(
    framework: Framework, model: Model, options: dict[str, Any]
) -> None:
    text = ""

    async def read_on(server: ModelServer) -> None:
        nonlocal text
        async for event in read(server.generate, QUESTION, GREEDY, options):
            text += event.text if isinstance(event, TextDelta) else "no end was expected"

    async with standing_in(model) as stand_in:
        server = TGI("tgi", stand_in.url)
        with pytest.raises(ModelServerError):
            await read_on(framework(server))
        await server.aclose()
    assert text
    assert ANSWER.startswith(text)


@pytest.mark.parametrize("options", [{}, {"response_format": {"type": "json_object", "value": {}}}])
async def test_closing_an_answer_closes_the_connection(framework: Framework, options: dict[str, Any]) -> None:
    async with standing_in(Model(hangs_at=3)) as stand_in:
        server = TGI("tgi", stand_in.url)
        async with aclosing(read(framework(server).generate, QUESTION, GREEDY, options)) as events:
            await anext(events)
        await asyncio.wait_for(stand_in.left.wait(), 5)
        await server.aclose()


async def test_cancelling_before_the_first_token_closes_the_connection(framework: Framework) -> None:
    async with standing_in(Model(hangs_at=0)) as stand_in:
        asking = asyncio.ensure_future(answer(stand_in, framework))
        await asyncio.wait_for(stand_in.reached.wait(), 5)
        asking.cancel()
        await asyncio.wait_for(stand_in.left.wait(), 5)
        await asyncio.gather(asking, return_exceptions=True)


@pytest.mark.parametrize("stop", [" word3", "word3", "d3 wo", "rd3", "3 word4 w"])
@pytest.mark.parametrize("options", [{}, {"top_logprobs": 1}])
async def test_a_stop_string_is_never_shown_wherever_it_begins_and_ends(
    stand_in: StandIn, framework: Framework, stop: str, options: dict[str, Any]
) -> None:
    whole = await answer(stand_in, framework, Sampling(temperature=0.0, stop=(stop,)), options=options)
    assert (whole.text, whole.reason, whole.stop_string) == (ANSWER[: ANSWER.index(stop)], "stop", stop)


async def test_stop_strings_over_tgis_limit_are_looked_for_here_and_end_the_answer_there(framework: Framework) -> None:
    async with standing_in(Model(hangs_at=20, max_stop_sequences=2)) as stand_in:
        server = TGI("tgi", stand_in.url)
        await server.describe()
        sampling = Sampling(temperature=0.0, stop=("x", "y", "z", "v", " word5"))
        whole = await asyncio.wait_for(collect(framework(server).generate, QUESTION, sampling, {}), 20)
        await asyncio.wait_for(stand_in.left.wait(), 5)
        await server.aclose()
    assert (whole.text, whole.reason) == (" word0 word1 word2 word3 word4", "stop")
    tokens = encode(" word0 word1 word2 word3 word4 word5", specials=False).ids
    assert whole.usage == Usage(len(encode(RENDERED).ids), len(tokens))
    assert stand_in.bodies("/generate_stream")[0]["parameters"]["stop"] == ["x", "y"]


async def test_a_stop_string_that_only_begins_is_shown_at_the_end(stand_in: StandIn, framework: Framework) -> None:
    whole = await answer(stand_in, framework, Sampling(temperature=0.0, stop=("word24!",)))
    assert (whole.text, whole.reason) == (ANSWER, "stop")


async def test_characters_of_several_tokens_come_whole(framework: Framework) -> None:
    async with standing_in(Model(answer=" Grüße, 深度学习 🙂")) as stand_in:
        events = await events_of(stand_in, framework)
    deltas = [event.text for event in events if isinstance(event, TextDelta)]
    assert "".join(deltas) == " Grüße, 深度学习 🙂"
    assert len(encode(" Grüße, 深度学习 🙂", specials=False).ids) > len(deltas) > 10
    assert all(deltas)


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_an_answer_is_read_however_its_bytes_are_cut(size: int) -> None:
    token = {"id": 5, "text": " né", "logprob": None, "special": False}
    details = {"finish_reason": "length", "generated_tokens": 2, "seed": None, "input_length": 4}
    # axum before 0.7 wrote no space behind the colon, and its sign of life is a comment.
    reply = sse(b":\n\n", *({"index": n, "token": token, "details": details if n == 2 else None} for n in (1, 2)))
    whole = b"".join(reply.pieces).replace(b"data: ", b"data:").replace(b"\\u00e9", "é".encode())
    cut = Reply([whole[at : at + size] for at in range(0, len(whole), size)], headers=reply.headers)
    async with replaying({"/generate_stream": cut}) as replay:
        server = TGI("tgi", replay.url)
        assert await collect(server.generate, "x", GREEDY, {}) == Generation(" né né", "length", Usage(4, 2))
        await server.aclose()


async def test_the_prompt_is_counted_where_an_older_tgi_does_not_say_its_length() -> None:
    token = {"id": 5, "text": " a", "logprob": None, "special": False}
    details = {"finish_reason": "length", "generated_tokens": 2, "seed": None}
    stream = sse(*({"index": n, "token": token, "details": details if n == 2 else None} for n in (1, 2)))
    tokens = [{"id": n, "text": "x", "start": n, "stop": n + 1} for n in range(3)]
    async with replaying({"/generate_stream": stream, "/tokenize": Reply([json.dumps(tokens).encode()])}) as replay:
        server = TGI("tgi", replay.url)
        assert await collect(server.generate, "xxx", GREEDY, {}) == Generation(" a a", "length", Usage(3, 2))
        await server.aclose()


@pytest.mark.parametrize(
    "reply",
    [
        sse({"index": 1, "token": {"id": 5, "text": "a", "logprob": None, "special": False}}),
        sse({"index": 1}),
        sse(b"data: nonsense\n\n"),
        sse([]),
        sse(),
        Reply([b'{"generated_text": null}']),
    ],
)
async def test_an_answer_that_is_none_or_has_no_end_is_an_error(reply: Reply) -> None:
    async with replaying({"/generate_stream": reply}) as replay:
        server = TGI("tgi", replay.url)
        with pytest.raises(ModelServerError):
            await collect(server.generate, "x", GREEDY, {})
        await server.aclose()


async def test_a_busy_gateway_before_it_says_when_to_come_back() -> None:
    reply = Reply([b"busy"], 429, {"Retry-After": "7"})
    async with replaying({"/generate_stream": reply}) as replay:
        server = TGI("tgi", replay.url)
        with pytest.raises(Overloaded) as caught:
            await collect(server.generate, "x", GREEDY, {})
        await server.aclose()
    assert caught.value.retry_after == 7


async def test_text_about_an_error_is_no_error(framework: Framework) -> None:
    async with standing_in(Model(answer=' {"error": "x", "error_type": "y"}')) as stand_in:
        for options in ({}, {"logprobs": True}):
            assert (await answer(stand_in, framework, options=options)).text == stand_in.model.answer


# Over the Messages API.


async def test_tools_go_over_the_messages_api(stand_in: StandIn, framework: Framework) -> None:
    sampling = Sampling(200, 0.5, 1.0, None, None, 1.0, 0.1, 0.3, 7, ("Z",))
    events = await events_of(stand_in, framework, sampling, options={"tools": TOOLS, "tool_choice": "auto", "n": 2})
    (body,) = stand_in.bodies("/v1/chat/completions")
    assert body == {
        "model": "tgi",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "max_tokens": 200,
        "temperature": 0.5,
        "frequency_penalty": 0.1,
        "seed": 7,
        "stop": ["Z"],
        "tools": TOOLS,
        "tool_choice": "auto",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    *deltas, end = events
    calls = [delta.extra["tool_calls"][0] for delta in deltas if isinstance(delta, TextDelta) and delta.extra]
    assert calls[0]["function"]["name"] == "weather"
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Paris"}
    assert isinstance(end, Finished)


async def test_an_answer_with_tool_calls_ends_so(stand_in: StandIn, framework: Framework) -> None:
    *_, end = await events_of(stand_in, framework, options={"tools": TOOLS})
    assert isinstance(end, Finished)
    assert end.reason == "tool_calls"
    assert end.usage
    assert end.usage.completion_tokens > 10


async def test_tool_calls_that_are_cut_off_end_so(stand_in: StandIn, framework: Framework) -> None:
    for tokens in (3, 30):
        *_, end = await events_of(stand_in, framework, Sampling(tokens, 0.0), options={"tools": TOOLS})
        assert isinstance(end, Finished)
        assert (end.reason, end.usage and end.usage.completion_tokens) == ("length", tokens)


async def test_a_temperature_of_zero_is_greedy_there_too(stand_in: StandIn, framework: Framework) -> None:
    sampling = Sampling(temperature=0.0, top_p=0.5, top_k=3)
    assert (await answer(stand_in, framework, sampling, options={"logprobs": True})).text == ANSWER
    (body,) = stand_in.bodies("/v1/chat/completions")
    assert body["temperature"] == 0
    assert "top_p" not in body


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"type": "json_schema", "json_schema": {"name": "c", "schema": {"properties": {}}}}, "json_schema"),
        ({"type": "json_schema", "value": {"name": "c", "schema": {"properties": {}}}}, "json_schema"),
        ({"type": "text"}, None),
    ],
)
async def test_a_response_format_is_said_in_tgis_words(
    stand_in: StandIn, framework: Framework, given: dict[str, Any], sent: str | None
) -> None:
    await answer(stand_in, framework, options={"response_format": given})
    bodies = stand_in.bodies("/v1/chat/completions")
    value = {"name": "c", "schema": {"properties": {}}}
    assert [body["response_format"] for body in bodies] == ([{"type": sent, "value": value}] if sent else [])


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(top_k=2), "top_k"),
        (Sampling(typical_p=0.5), "typical_p"),
        (Sampling(repetition_penalty=1.1), "repetition_penalty"),
    ],
)
async def test_a_sampling_field_that_is_unknown_there_is_refused_and_not_lost(
    stand_in: StandIn, framework: Framework, sampling: Sampling, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await answer(stand_in, framework, sampling, options={"tools": TOOLS})
    assert caught.value.field == field


async def test_tools_with_text_to_continue_are_refused(stand_in: StandIn, framework: Framework) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await answer(stand_in, framework, prompt="Once", options={"tools": TOOLS})
    assert caught.value.field == "tools"


async def test_images_go_over_the_messages_api_and_parts_of_text_do_not(
    stand_in: StandIn, framework: Framework
) -> None:
    text = {"type": "text", "text": "Look"}
    await answer(stand_in, framework, prompt=(Message("user", [text]),))
    assert not stand_in.bodies("/v1/chat/completions")
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    await answer(stand_in, framework, prompt=(Message("user", [text, image]),))
    (body,) = stand_in.bodies("/v1/chat/completions")
    assert body["messages"] == [{"role": "user", "content": [text, image]}]


@pytest.mark.parametrize("options", [{}, {"tools": TOOLS}])
async def test_a_developer_is_the_system_to_its_template(
    stand_in: StandIn, framework: Framework, options: dict[str, Any]
) -> None:
    await answer(stand_in, framework, prompt=(Message("developer", "Short."), QUESTION[1]), options=options)
    assert stand_in.inputs[0].startswith(f"{BOS}[system]ĊShort.")


@pytest.mark.parametrize("model", [Model(missing=frozenset({"/chat_tokenize"})), Model(offsets=False)])
async def test_without_a_rendered_template_a_conversation_goes_over_the_messages_api(
    framework: Framework, model: Model
) -> None:
    async with standing_in(model) as stand_in:
        assert (await answer(stand_in, framework)).text == ANSWER
        assert len(stand_in.bodies("/v1/chat/completions")) == 1
        with pytest.raises(InvalidRequest, match="top_k"):
            await answer(stand_in, framework, Sampling(top_k=3))


# What it says of itself.


async def test_it_is_described_by_its_own_limits() -> None:
    async with standing_in(Model(max_total_tokens=2048)) as stand_in:
        server = TGI.open(Target("tgi", stand_in.url + "/v1/"))
        told = TGI.open(Target("tgi", stand_in.url, context_window=512))
        info = await server.describe()
        assert (info.name, info.base, info.context_window) == ("tgi", "stand-in/tiny", 2048)
        assert {"top_k", "typical_p", "repetition_penalty", "tools", "response_format"} <= info.capabilities
        assert not {"presence_penalty", "n"} & info.capabilities
        assert (await told.describe()).context_window == 512
        await server.aclose()
        await told.aclose()
    assert not stand_in.asked


async def test_while_it_is_loading_it_is_unreachable() -> None:
    async with standing_in(Model(healthy=False)) as stand_in:
        server = TGI("tgi", stand_in.url)
        with pytest.raises(Unreachable, match="unhealthy"):
            await server.describe()
        stand_in.model.healthy = True
        assert (await server.describe()).context_window
        await server.aclose()


async def test_it_counts_with_its_own_tokenizer_and_without_special_tokens(stand_in: StandIn) -> None:
    server = TGI("tgi", stand_in.url)
    assert isinstance(server, CountsTokens)
    for text in ("", "What is Deep Learning?"):
        assert await server.count_tokens(text) == len(encode(text, specials=False).ids)
    await server.aclose()


async def test_its_special_tokens_are_asked_for_once(stand_in: StandIn) -> None:
    server = TGI("tgi", stand_in.url)
    for _ in range(3):
        await collect(server.generate, QUESTION, GREEDY, {})
    await server.aclose()
    assert stand_in.bodies("/tokenize") == [{"inputs": ""}]


@pytest.mark.parametrize("double", [True, False])
async def test_a_conversation_is_counted_in_one_round_trip_as_the_model_reads_it(double: bool) -> None:
    async with standing_in(Model(double=double)) as stand_in:
        server = TGI("tgi", stand_in.url)
        await server.count_tokens("")  # Which asks for the special tokens, once.
        stand_in.asked.clear()
        counted = await server.count_prompt(QUESTION, {})
        assert [path for path, _ in stand_in.asked] == ["/chat_tokenize"]
        usage = (await collect(server.generate, QUESTION, GREEDY, {})).usage
        await server.aclose()
    assert usage
    assert counted == usage.prompt_tokens


def test_it_makes_no_embeddings() -> None:
    assert not isinstance(TGI("tgi", "http://127.0.0.1:9"), Embeds)


@pytest.mark.parametrize("options", [{}, {"tools": TOOLS}])
async def test_both_frameworks_give_the_same_events(stand_in: StandIn, options: dict[str, Any]) -> None:
    native = await events_of(stand_in, lambda server: server, options=options)
    langchain = await events_of(
        stand_in, lambda server: ThroughLangChain(ChatTGI.over(server, "tgi"), server), options=options
    )
    assert native == langchain


async def test_a_conversation_renders_as_what_the_server_is_sent(stand_in: StandIn) -> None:
    server = TGI("tgi", stand_in.url)
    rendered = await server.render(QUESTION, {})
    await collect(server.generate, QUESTION, GREEDY, {})
    await server.aclose()
    assert stand_in.bodies("/generate_stream")[0]["inputs"] == rendered


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
OLDER = Model(missing=frozenset({"/chat_tokenize"}))


@pytest.mark.parametrize(
    ("model", "prompt", "sampling", "options"),
    [
        (Model(), "Once", Sampling(), {"logprobs": 1}),
        (Model(), QUESTION, Sampling(top_k=3), {"tools": TOOLS}),
        (Model(), (Message("user", [IMAGE]),), Sampling(typical_p=0.5), {}),
        (OLDER, QUESTION, Sampling(repetition_penalty=1.1), {}),
    ],
)
async def test_what_it_would_be_asked_is_refused_as_an_answer_would_be(
    model: Model, prompt: Prompt, sampling: Sampling, options: dict[str, Any]
) -> None:
    async with standing_in(model) as stand_in:
        server = TGI("tgi", stand_in.url)
        with pytest.raises(InvalidRequest) as previewed:
            await server.translated(prompt, sampling, options)
        with pytest.raises(InvalidRequest) as answered:
            await collect(server.generate, prompt, sampling, options)
        await server.aclose()
    assert str(previewed.value) == str(answered.value)


async def test_what_it_would_be_asked_over_the_messages_api_is_what_it_is_asked(stand_in: StandIn) -> None:
    server = TGI("tgi", stand_in.url)
    asked = (QUESTION, Sampling(max_tokens=5, temperature=0.0, top_p=0.5, stop=("§",)), {"tools": TOOLS})
    _, sampling, options = await server.translated(*asked)
    await collect(server.generate, *asked)
    await server.aclose()
    (body,) = stand_in.bodies("/v1/chat/completions")
    assert sampling == Sampling(max_tokens=body["max_tokens"], temperature=body["temperature"], stop=(*body["stop"],))
    assert "top_p" not in body
    assert options == {"tools": body["tools"]}


async def test_an_older_server_renders_no_conversation() -> None:
    async with standing_in(Model(missing=frozenset({"/chat_tokenize"}))) as older:
        server = TGI("tgi", older.url)
        with pytest.raises(Refused) as caught:
            await server.render(QUESTION, {})
        await server.aclose()
    assert caught.value.status == 404


@pytest.mark.parametrize("path", ["/tokenize", "/chat_tokenize"])
async def test_a_route_that_fails_once_is_there_the_next_time(path: str) -> None:
    async with standing_in(Model()) as stand_in:
        server = TGI("tgi", stand_in.url)
        planner = Planner(server)
        for _ in range(2):  # A conversation is answered all the same, and its tokens are estimated for once.
            stand_in.model.failing.append(path)
            assert (await collect(server.generate, QUESTION, GREEDY, {})).text == ANSWER
            stand_in.model.failing[:] = [path]
            count = planner.counter.count()
            await count.prompt(QUESTION, {})
            assert not count.exact
        usage = (await collect(server.generate, QUESTION, GREEDY, {})).usage
        count = planner.counter.count()
        assert (await count.prompt(QUESTION, {}), count.exact) == (usage and usage.prompt_tokens, True)
        assert await server.count_tokens("Deep") == len(encode("Deep", specials=False).ids)
        assert await takes_system_messages(server.count_prompt, server.render)
        await server.aclose()


def test_an_answer_that_has_begun_is_not_refused_any_more() -> None:
    token, chunk = b'{"token":{"id":1,"text":"Deep"}}', b'{"choices":[{"index":0,"delta":{"content":"Deep"}}]}'
    error = b'{"error":"Input validation error: `top_k` is wrong","error_type":"validation"}'
    for reader, begun in ((TokenReader, token), (MessagesReader, chunk)):
        with pytest.raises(InvalidRequest, match="top_k"):
            reader(Stopped(Collector(), ())).event(error)
        late = reader(Stopped(Collector(), ()))
        late.event(begun)
        with pytest.raises(ModelServerError, match="top_k"):
            late.event(error)


def test_an_event_is_a_sign_of_the_model_if_it_has_a_token_its_details_or_an_end() -> None:
    choices: list[dict[str, Any]] = [
        *({"delta": delta} for delta in ({"reasoning": "Hm"}, {"tool_calls": [{"id": "a"}]}, {"content": " "})),
        {"delta": {}, "logprobs": {"content": [{"token": "", "logprob": -1.0}]}},
        {"delta": {}, "finish_reason": "stop"},
        {"text": "Deep"},
    ]
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, **choice}]} for choice in choices]
    chunks += [{"choices": [{"index": 0, "delta": {}}, one["choices"][0]]} for one in chunks]
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    for kind in (ChunkReader, MessagesReader):
        assert [kind(Stopped(Collector(), ())).event(json.dumps(one).encode()) for one in [*chunks, usage]] == [
            GO_ON
        ] * 13
    token, special = {"token": {"id": 1, "text": "Deep"}}, {"token": {"id": 2, "text": "", "special": True}}
    reader = TokenReader(Stopped(Collector(), ()))
    said = [reader.event(json.dumps(one).encode()) for one in (special, {"type": "ping"}, token, {})]
    assert said == [GO_ON, NO_TOKEN, GO_ON, NO_TOKEN]
    assert reader.event(json.dumps({**token, "generated_text": "DeepDeep"}).encode()) == STOP
