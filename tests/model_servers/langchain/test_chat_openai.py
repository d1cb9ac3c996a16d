"""langchain-openai over a server that speaks OpenAI's API: the same bytes go out, and the same answers come back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from anyio.from_thread import start_blocking_portal
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import BaseModel

from comps.core.answers import read
from comps.core.errors import LLMError, ModelServerError
from comps.core.ports import Completes, ModelServer
from comps.core.types import JSON, Event, Finished, Generation, Message, Prompt, Sampling, TextDelta, Usage
from comps.model_servers import FRAMEWORKS, through_framework
from comps.model_servers.langchain.chat_openai import ChatOpenAIAPI
from comps.model_servers.langchain.sync import wait_for
from comps.model_servers.langchain.through import ThroughLangChain
from comps.model_servers.remote.openai_api import OpenAIAPI
from comps.model_servers.remote.ray_serve import RayServe
from comps.model_servers.remote.vllm import VLLM
from comps.model_servers.target import Access
from tests.fresh_processes import FreshProcesses
from tests.model_servers.contract import ODD_MESSAGES
from tests.model_servers.replay import Replay, Reply, recorded, replaying, sse

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
QUESTION: Prompt = (Message("user", "Hi"),)
EVERYTHING = Sampling(7, 0.0, 1.0, 40, 0.8, 1.1, 0.2, 0.3, 42, ("a", "b"))


def choice(delta: JSON, reason: str | None = None, index: int = 0, **more: JSON) -> dict[str, JSON]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": reason, **more}]}


def counted(**more: JSON) -> dict[str, JSON]:
    return {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}, **more}


def call(index: int, arguments: str, **more: JSON) -> JSON:
    return {"index": index, "function": {"arguments": arguments, **more}}


def whole(message: JSON, reason: str | None = "stop", usage: JSON = None, **more: JSON) -> Reply:
    chosen = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason, **more}
    return Reply([json.dumps({"choices": [chosen], "usage": usage}).encode()])


def several_whole(*texts: str, usage: JSON) -> Reply:
    choices = [
        {"index": number, "message": {"content": text}, "finish_reason": "stop"} for number, text in enumerate(texts)
    ]
    return Reply([json.dumps({"choices": choices, "usage": usage}).encode()])


async def events_of(
    server: ModelServer, prompt: Prompt = QUESTION, sampling: Sampling | None = None, **options: JSON
) -> tuple[list[Event], str]:
    """The events, and the error behind them as it would be told."""
    seen: list[Event] = []
    try:
        async for event in read(server.generate, prompt, sampling or Sampling(), options):
            seen.append(event)
    except LLMError as error:
        return seen, f"{type(error).__name__}: {error} ({error.retry_after})"
    return seen, ""


async def generation_of(server: ModelServer, prompt: Prompt = QUESTION) -> tuple[Generation | None, str]:
    """The same for a whole answer."""
    assert isinstance(server, Completes)
    try:
        return await server.complete(prompt, Sampling(), {}), ""
    except LLMError as error:
        return None, f"{type(error).__name__}: {error} ({error.retry_after})"


WAYS = (*FRAMEWORKS, "observed")
"""The frameworks, and LangChain with a callback handler that is told of everything."""


def reached(server: OpenAIAPI, way: str, model: str) -> ModelServer:
    """A server, reached in one of `WAYS`."""
    if way != "observed":
        return through_framework(server, way, model)
    chat_model = ChatOpenAIAPI.over(server, model)
    chat_model.callbacks = [Recorder()]
    return ThroughLangChain(chat_model, server)


@asynccontextmanager
async def asking(
    reply: Reply | list[Reply], way: str, kind: type[OpenAIAPI] = VLLM, path: str = CHAT, access: Access | None = None
) -> AsyncIterator[tuple[ModelServer, Replay]]:
    """A server of that kind, reached in one of `WAYS`, before one that gives the reply."""
    async with replaying({path: reply}) as replay:
        server = reached(kind("tiny-llama", replay.url, access), way, "tiny-llama")
        yield server, replay
        await server.aclose()


async def every_way(reply: Reply, prompt: Prompt = QUESTION, path: str = CHAT) -> tuple[list[Event], str]:
    """What comes in each of `WAYS`, which must be the same."""
    seen = []
    for way in WAYS:
        async with asking(reply, way, path=path) as (server, _):
            seen.append(await events_of(server, prompt))
    assert seen[0] == seen[1] == seen[2]
    return seen[0]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a request is sent again; how long they are is tested elsewhere."""
    monkeypatch.setattr("comps.core.retries._FIRST_PAUSE", 0.001)


CALLS = [{"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}]


class TestUnit(ChatModelUnitTests):
    """LangChain's own tests of how a chat model is made."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAIAPI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"server": VLLM("tiny-llama", "http://127.0.0.1:9"), "model": "tiny-llama"}


@pytest.mark.parametrize("kind", [OpenAIAPI, VLLM, RayServe])
@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param(ODD_MESSAGES, id="messages that LangChain would read in its own way"),
        pytest.param(
            (
                Message("system", "Be brief."),
                Message("developer", "In English."),
                Message("user", "Hi"),
                Message("assistant", "Hello"),
                Message("tool", "42"),
                Message("user", "Hi", {"name": "Ann"}),
                Message("assistant", "", {"tool_calls": CALLS}),
                Message("assistant", "Wait", {"tool_calls": [{"odd": 1}], "reasoning_content": "Hm."}),
                Message("tool", "42", {"tool_call_id": "c"}),
                Message("critic", "Hm."),
                Message("assistant", [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "y"}]),
                Message(
                    "user",
                    [
                        {"type": "text", "text": "Look:", "extras": {"prompt_cache_breakpoint": True}},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                        {"type": "image", "source_type": "base64", "data": "AA==", "mime_type": "image/png"},
                        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
                        {"type": "file", "file": {"file_id": "f-1"}},
                        {"type": "video_url", "video_url": {"url": "http://127.0.0.1/v.mp4"}},
                    ],
                ),
            ),
            id="conversation",
        ),
        pytest.param("Once upon a time", id="text"),
    ],
)
async def test_the_body_on_the_wire_is_the_same_as_without_langchain(kind: type[OpenAIAPI], prompt: Prompt) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    options: Mapping[str, JSON] = {
        "tools": [tool, {"type": "web_search"}],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        "user": "x",
        "logit_bias": {"5": 1},
        "reasoning_effort": "low",
        # Names that something between here and the wire might take for its own.
        "config": {"callbacks": [1]},
        "input": "x",
        "self": "x",
        "run_manager": "x",
        "stream": False,
        "stream_usage": False,
        "timeout": 1,
        "extra_body": {"x": 1},
        "extra_headers": {"x": "y"},
        "max_completion_tokens": 3,
        "metadata": {"a": "b"},
        "include": ["x"],
        "reasoning": {"effort": "low"},
        "continue_text": True,
    }
    path = TEXT if isinstance(prompt, str) else CHAT
    replies = [sse(choice({"content": "a"}, "stop")), whole({"content": "a"})]
    bodies = []
    for way in WAYS:
        async with asking(list(replies), way, kind, path, Access(whole_answers="whole")) as (server, replay):
            events = [event async for event in read(server.generate, prompt, EVERYTHING, options)]
            assert events == [TextDelta("a"), Finished("stop")]
            assert isinstance(server, Completes)
            assert await server.complete(prompt, EVERYTHING, options) == Generation("a", "stop")
            (_, _, streamed), (_, _, unstreamed) = replay.asked
            assert streamed == unstreamed | {"stream": True, "stream_options": {"include_usage": True}}
            bodies.append(unstreamed)
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0]["max_tokens"] == 7
    assert ("top_k" in bodies[0], "repetition_penalty" in bodies[0]) == (kind is not OpenAIAPI,) * 2


@pytest.mark.parametrize("field", EVERYTHING.__slots__)
async def test_each_sampling_field_alone_makes_the_same_body(field: str) -> None:
    bodies = []
    for way in WAYS:
        async with asking(sse(choice({"content": "a"}, "stop")), way) as (server, replay):
            await events_of(server, sampling=Sampling(**{field: getattr(EVERYTHING, field)}))
            bodies.append(replay.asked[0][2])
    assert bodies[0] == bodies[1] == bodies[2]


@pytest.mark.parametrize("model", ["o1-mini", "gpt-5", "gpt-5-pro", "gpt-6"])
async def test_a_models_name_changes_nothing_but_the_name(model: str) -> None:
    async with replaying({CHAT: sse(choice({"content": "a"}, "stop"))}) as replay:
        for way in WAYS:
            server = reached(OpenAIAPI(model, replay.url), way, model)
            await events_of(server, (Message("system", "x"), *QUESTION), Sampling(5, 0.3), tools=[])
            await server.aclose()
    (_, _, first), (_, _, second), (_, _, third) = replay.asked
    assert first == second == third


async def test_no_variable_of_openai_or_langsmith_leads_a_request_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = "http://127.0.0.1:9/v1"
    for name, value in {
        "OPENAI_API_BASE": elsewhere,
        "OPENAI_BASE_URL": elsewhere,
        "OPENAI_API_KEY": "lsv2_x",
        "OPENAI_PROXY": elsewhere,
        "OPENAI_ORG_ID": "org",
        "LANGSMITH_GATEWAY": "true",
        "LANGSMITH_API_KEY": "lsv2_x",
        "LANGCHAIN_OPENAI_STREAM_CHUNK_TIMEOUT_S": "0.001",
    }.items():
        monkeypatch.setenv(name, value)
    async with asking(sse(choice({"content": "a"}, "stop")), "langchain", access=Access(api_key="ours")) as (
        it,
        replay,
    ):
        assert await events_of(it) == ([TextDelta("a"), Finished("stop")], "")
    ((_, headers, _),) = replay.asked
    assert headers["authorization"] == "Bearer ours"
    assert not [name for name in headers if "openai" in name or "stainless" in name]


STREAMS = {
    "reasoning": sse(
        choice({"reasoning": "h", "content": None}), choice({"reasoning": "m"}), choice({"content": "a"}, "stop")
    ),
    "reasoning_content": sse(choice({"reasoning_content": "hm", "content": "a"}, "stop")),
    "tool calls": sse(
        choice(
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{**call(0, "", name="f"), "id": "1", "type": "function"}],
            }
        ),
        choice({"tool_calls": [call(0, '{"a":')]}),
        choice({"tool_calls": [call(0, "1}"), {**call(1, "{}", name="g"), "id": "2"}]}),
        choice({}, "tool_calls"),
        counted(),
    ),
    "odd tool calls": sse(
        choice({"tool_calls": [{"index": 0, "function": None}]}),
        choice({"tool_calls": [{"function": {"arguments": {"a": 1}}}]}),
        choice({"tool_calls": "f()"}),
        choice({"tool_calls": ["f()"]}, "tool_calls"),
    ),
    "function_call": sse(choice({"function_call": {"name": "f", "arguments": "{}"}}, "function_call")),
    "logprobs": sse(
        choice({"content": "a"}, logprobs={"content": [{"token": "a", "logprob": -0.1, "top_logprobs": []}]}),
        choice({"content": "b"}, "stop", logprobs={"content": [{"token": "b", "logprob": -0.2}], "refusal": None}),
    ),
    "odd logprobs": sse(choice({"content": "a"}, logprobs=[1]), choice({"content": "b"}, "stop", logprobs={"x": 1.5})),
    "several choices": sse(
        choice({"content": "a"}),
        choice({"content": "x"}, index=1),
        choice({"content": "b"}, "stop"),
        choice({"content": "y"}, "length", index=1),
        counted(),
    ),
    "several choices in a chunk": sse(
        {
            "choices": [
                choice({"content": "a"}, "stop")["choices"][0],
                choice({"content": "x"}, "length", 1)["choices"][0],
            ]
        }
    ),
    "only the second choice": sse(choice({"content": "x"}, "stop", index=1), counted()),
    "usage beside choices": sse(choice({"content": "a"}, "stop") | {"usage": counted()["usage"]}),
    "usage with details": sse(
        choice({"content": "a"}, "stop"),
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"x": None}}},
    ),
    "no usage": sse(choice({"content": "a"}, "stop")),
    "usage and choices null": sse(choice({"content": "a"}, "stop"), {"choices": None, "usage": None}),
    "null content": sse(choice({"content": None}), choice({"role": "assistant"}), choice({"content": "a"}, "stop")),
    "no text at all": sse(choice({"role": "assistant", "content": ""}), choice({}, "stop")),
    "unknown fields": sse(
        choice({"content": "a", "mood": True, "weight": 1.5, "ids": [1], "x": {"y": 1}}),
        choice({"content": "b", "mood": False, "weight": 2.5, "ids": ["z"], "x": "y", "refusal": "no"}, "stop"),
    ),
    "a role of its own": sse(
        choice({"role": "tool", "content": "a"}), choice({"role": "user", "content": "b"}, "stop")
    ),
    "a reason of its own": sse(choice({"content": "a"}, "EOS token!")),
    "two reasons": sse(choice({"content": "a"}, "stop"), choice({}, "length")),
    "text of completions": sse(
        {"choices": [{"index": 0, "text": "a", "logprobs": {"tokens": ["a"]}, "finish_reason": "stop"}]}
    ),
    "an error object": sse(choice({"content": "a"}), {"error": {"message": "out of memory", "code": 500}}),
    "an error string": sse(choice({"content": "a"}), {"error": "out of memory"}),
    "an error first": sse({"error": {"message": "no"}}),
    "no JSON": sse(choice({"content": "a"}), b"data: nonsense\n\n"),
    "no chunk": sse(b"data: [1]\n\n"),
    "nonsense": sse({"choices": "none"}),
    "nonsense in a choice": sse({"choices": [{"delta": "text"}]}),
    "content that is none": sse(choice({"content": ["a"]}, "stop")),
    "broken off": sse(choice({"content": "a"})),
    "empty": Reply([], headers={}),
    "done at once": sse(b"data: [DONE]\n\n"),
    "cut": Reply([b"data: "], headers={}, break_off=True),
    "vLLM": recorded("vllm", "chat_stream_usage", 7),
    "transformers serve": recorded("transformers_serve", "chat_stream"),
    "too long": recorded("vllm", "err_too_long"),
    "unknown model": recorded("vllm", "err_unknown_model"),
    "wrong key": Reply([b'{"error":"wrong key sk-123"}'], 401),
    "busy": Reply([b"busy"], 429, {"Retry-After": "7"}),
    "not ready": Reply([b"loading"], 503, {"Retry-After": "0"}),
    "context_length_exceeded": Reply([b'{"error":{"message":"context_length_exceeded: prompt is too long"}}'], 400),
    "HTML": Reply([b"<html>x</html>"], 500, {"Content-Type": "text/html"}),
}


@pytest.mark.parametrize("reply", STREAMS.values(), ids=STREAMS)
async def test_both_frameworks_say_the_same_of_a_stream(reply: Reply) -> None:
    events, error = await every_way(reply)
    assert events or error


FAILURES = ("too long", "unknown model", "wrong key", "busy", "not ready", "context_length_exceeded", "HTML")
WHOLE = {
    "text": whole({"content": "a"}, usage=counted()["usage"]),
    "reasoning": whole({"content": "a", "reasoning_content": "hm", "refusal": None}),
    "tool calls": whole({"content": None, "tool_calls": CALLS}, "tool_calls"),
    "odd tool calls": whole({"content": "", "tool_calls": [call(0, "[1]", name="f"), {"index": 1}]}, "tool_calls"),
    "tool calls that are none": whole({"content": "", "tool_calls": ["f()"]}, "tool_calls"),
    "logprobs": whole({"content": "a"}, logprobs={"content": [{"token": "a", "logprob": -0.1}]}),
    "odd logprobs": whole({"content": "a"}, logprobs=[1]),
    "unknown fields": whole({"content": "a", "mood": True, "weight": 1.5, "ids": [1], "x": {"y": 1}}),
    "several choices": several_whole("a", "b", usage=counted()["usage"]),
    "no end": whole({"content": "a"}, None),
    "an error": Reply([b'{"error": {"message": "out of memory"}}']),
    "nonsense": Reply([b'{"choices": "none"}']),
    "vLLM": recorded("vllm", "chat"),
    "transformers serve": recorded("transformers_serve", "chat"),
    **{name: STREAMS[name] for name in FAILURES},
}


@pytest.mark.parametrize("reply", WHOLE.values(), ids=WHOLE)
async def test_both_frameworks_say_the_same_of_a_whole_answer(reply: Reply) -> None:
    seen = []
    for way in WAYS:
        async with asking(reply, way) as (server, replay):
            seen.append(await generation_of(server))
            assert "stream" not in replay.asked[0][2]
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][0] or seen[0][1]


async def test_continued_text_is_the_same_through_both() -> None:
    events, error = await every_way(recorded("vllm", "completions_stream"), "What is Deep Learning?", TEXT)
    assert len(events) > 3
    assert not error


async def test_tool_calls_come_through_in_openais_own_form() -> None:
    events, _ = await every_way(STREAMS["tool calls"])
    first, second, third, end = events
    assert first == TextDelta("", 0, {"tool_calls": [{**call(0, "", name="f"), "id": "1", "type": "function"}]})
    assert second == TextDelta("", 0, {"tool_calls": [call(0, '{"a":')]})
    assert isinstance(third, TextDelta)
    assert end == Finished("tool_calls", Usage(5, 2))


async def test_tool_calls_that_all_have_the_same_index_or_none_come_through_with_one_each() -> None:
    first, second = {**call(0, "{}", name="f"), "id": "a"}, {**call(0, "{}", name="g"), "id": "b"}
    for index in ({"index": 0}, {"index": None}):
        events, _ = await every_way(sse(choice({"tool_calls": [first | index, second | index]}, "tool_calls")))
        assert events[0] == TextDelta("", 0, {"tool_calls": [first, second | {"index": 1}]})


async def test_every_choice_has_its_own_text_and_reason() -> None:
    events, _ = await every_way(STREAMS["several choices"])
    texts = ["".join(one.text for one in events if isinstance(one, TextDelta) and one.choice == n) for n in (0, 1)]
    assert texts == ["ab", "xy"]
    assert events[-2:] == [Finished("stop", Usage(5, 2)), Finished("length", choice=1)]


class Recorder(AsyncCallbackHandler):
    """Writes down what LangChain reports."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.errors: list[BaseException] = []
        self.ended: Any = None

    async def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.seen.append([message.content for message in messages[0]])

    async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.seen.append(token)

    async def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.ended = response.generations[0][0].message

    async def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


async def recorded_by_langchain(reply: Reply) -> Recorder:
    """What LangChain reports of a streamed answer, or of a whole one, as the reply is."""
    recorder = Recorder()
    async with replaying({CHAT: reply}) as replay:
        server = VLLM("tiny-llama", replay.url)
        model = ChatOpenAIAPI.over(server)
        model.callbacks = [recorder]
        with suppress(ModelServerError):
            if "event-stream" in reply.headers["Content-Type"]:
                _ = [piece async for piece in model.astream("Hi")]
            else:
                await model.ainvoke("Hi")
        await server.aclose()
    return recorder


async def test_callbacks_see_the_question_the_tokens_and_the_whole_answer() -> None:
    recorder = await recorded_by_langchain(
        sse(choice({"content": "a", "reasoning": "h"}), choice({"content": "b", "reasoning": "m"}, "stop"), counted())
    )
    assert recorder.seen[:3] == [["Hi"], "a", "b"]
    message = recorder.ended
    assert (message.content, message.additional_kwargs) == ("ab", {"reasoning": "hm"})
    assert message.response_metadata["finish_reason"] == "stop"
    assert (message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"]) == (5, 2)


async def test_callbacks_see_the_question_and_the_answer_that_was_asked_for_whole() -> None:
    reply = whole({"content": "ab", "reasoning": "hm"}, usage=counted()["usage"], logprobs={"content": [{"x": 1}]})
    recorder = await recorded_by_langchain(reply)
    assert recorder.seen == [["Hi"]]
    message = recorder.ended
    assert (message.content, message.additional_kwargs) == ("ab", {"reasoning": "hm"})
    told = {"finish_reason": "stop", "model_name": "tiny-llama", "model_provider": "openai"}
    assert message.response_metadata == told | {"logprobs": {"content": [{"x": 1}]}}
    assert (message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"]) == (5, 2)


@pytest.mark.parametrize(
    "reply", [STREAMS["tool calls"], whole({"tool_calls": [call(0, '{"a":1}', name="f"), call(1, "{}", name="g")]})]
)
async def test_callbacks_see_tool_calls_put_together(reply: Reply) -> None:
    message = (await recorded_by_langchain(reply)).ended
    assert [(one["name"], one["args"]) for one in message.tool_calls] == [("f", {"a": 1}), ("g", {})]


@pytest.mark.parametrize(("reply", "text"), [(STREAMS["several choices"], "ab"), (WHOLE["several choices"], "a")])
async def test_callbacks_see_the_first_of_several_choices_and_not_a_mixture(reply: Reply, text: str) -> None:
    assert (await recorded_by_langchain(reply)).ended.content == text


@pytest.mark.parametrize("reply", [STREAMS["an error object"], WHOLE["an error"]])
async def test_callbacks_see_an_error_as_it_is_raised(reply: Reply) -> None:
    recorder = await recorded_by_langchain(reply)
    assert [str(error) for error in recorder.errors] == ["the model server failed: out of memory"]


def hanging(*documents: object) -> Reply:
    reply = sse(*documents)
    reply.hang = True
    return reply


@pytest.mark.parametrize("way", WAYS)
async def test_closing_an_answer_closes_the_connection_within_a_tenth_of_a_second(way: str) -> None:
    async with asking(hanging(choice({"content": "a"})), way) as (server, replay):
        async with aclosing(read(server.generate, QUESTION, Sampling(), {})) as events:
            assert await anext(events) == TextDelta("a")
        await asyncio.wait_for(replay.left.wait(), 0.1)


@pytest.mark.parametrize("ask", [events_of, generation_of])
@pytest.mark.parametrize("way", WAYS)
async def test_cancelling_before_the_first_event_closes_the_connection_as_fast(
    way: str, ask: Callable[[ModelServer], Coroutine[Any, Any, Any]]
) -> None:
    async with asking(hanging(b": wait\n\n"), way) as (server, replay):
        waiting = asyncio.ensure_future(ask(server))
        await asyncio.wait_for(replay.reached.wait(), 5)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.wait_for(replay.left.wait(), 0.1)


async def test_a_conversation_with_tools_keeps_what_openai_has_for_it() -> None:
    async with replaying({CHAT: whole({"content": "a"})}) as replay:
        server = VLLM("tiny-llama", replay.url)
        asked = AIMessage("", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "1"}])
        await ChatOpenAIAPI.over(server).ainvoke(
            [HumanMessage("?"), asked, ToolMessage("42", tool_call_id="1")], temperature=0.5
        )
        await server.aclose()
    body = replay.asked[0][2]
    assert body["temperature"] == 0.5
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert body["messages"][2] == {"role": "tool", "tool_call_id": "1", "content": "42"}


def test_it_can_be_called_without_an_event_loop_around_it_again_and_again() -> None:
    with start_blocking_portal() as portal:
        streamed = sse(choice({"content": "a"}), choice({"content": "b"}, "stop"))
        replies: dict[str, Reply | list[Reply]] = {CHAT: [*[whole({"content": "ab"})] * 3, streamed]}
        with portal.wrap_async_context_manager(replaying(replies)) as replay:
            server = VLLM("m", replay.url)
            model = ChatOpenAIAPI.over(server)
            assert [model.invoke("?").content for _ in range(3)] == ["ab", "ab", "ab"]
            assert [chunk.content for chunk in model.stream("?") if chunk.content] == ["a", "b"]
            wait_for(server.aclose())


class Place(BaseModel):
    """A place."""

    at: int


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_object_of_a_class_comes_of_an_answer_in_every_way_that_langchain_has(
    method: Literal["json_schema", "json_mode", "function_calling"], streamed: bool
) -> None:
    made_by_a_call = {**call(0, '{"at": 1}', name="Place"), "id": "c", "type": "function"}
    message: JSON = {"content": None, "tool_calls": [made_by_a_call]}
    if method != "function_calling":
        message = {"content": '{"at": 1}'}
    reply = sse(choice(message, "stop"), b"data: [DONE]\n\n") if streamed else whole(message)
    async with replaying({CHAT: reply}) as replay:
        server = VLLM("m", replay.url)
        model = ChatOpenAIAPI.over(server).with_structured_output(Place, method=method)
        made = [one async for one in model.astream("?")][-1] if streamed else await model.ainvoke("?")
        await server.aclose()
    assert made == Place(at=1)
    sent = replay.asked[0][2]
    form = sent.get("response_format", {})
    asked = {
        "json_schema": form.get("json_schema", {}).get("name"),
        "json_mode": form.get("type") == "json_object" and "Place",
        "function_calling": sent.get("tools", [{}])[0].get("function", {}).get("name"),
    }
    assert asked[method] == "Place"


async def test_an_object_that_was_cut_is_told_as_an_error_with_the_answer() -> None:
    async with replaying({CHAT: whole({"content": '{"at": '}, "length")}) as replay:
        server = VLLM("m", replay.url)
        model = ChatOpenAIAPI.over(server).with_structured_output(Place, method="json_schema", include_raw=True)
        made: Any = await model.ainvoke("?")
        await server.aclose()
    assert (made["parsed"], made["raw"].content) == (None, '{"at": ')
    assert made["parsing_error"]


OPENED = """
import json, sys
from comps.model_servers import open_model_server, through_framework
from comps.model_servers.target import Target
kind, endpoint, framework = sys.argv[1:]
through_framework(open_model_server(kind, Target("m", endpoint)), framework, "m")
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
SERVER = "http://127.0.0.1:9"
OPENAI, HUGGINGFACE = {"langchain_openai", "openai"}, {"langchain_huggingface"}


@pytest.mark.parametrize(
    ("before", "opened"),
    [
        ("comps.model_servers", {("vllm", SERVER, "native"): set()}),
        (
            "langchain_core.language_models",
            {
                ("vllm", SERVER, "langchain"): OPENAI,
                ("tgi", SERVER, "langchain"): HUGGINGFACE,
                ("scripted", "", "langchain"): set(),
            },
        ),
    ],
    ids=["native", "langchain"],
)
def test_of_langchains_classes_only_the_one_that_is_needed_is_loaded_and_natively_no_langchain(
    tmp_path: Path, before: str, opened: dict[tuple[str, str, str], set[str]]
) -> None:
    processes = FreshProcesses(tmp_path, before)
    for arguments, needed in opened.items():
        done = processes.run(OPENED, *arguments, environment={})
        assert done.returncode == 0, done.stderr
        loaded = set(json.loads(done.stdout.splitlines()[-1]))
        assert loaded & (OPENAI | HUGGINGFACE) == needed
        assert bool(loaded & {"langchain_core", "langsmith"}) == ("langchain" in arguments)
    processes.close()
