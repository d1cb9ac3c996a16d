"""Any LangChain chat model as a model server: classes of this file, and LangChain's own before servers that fail."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import cache, cached_property
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from huggingface_hub.errors import InferenceTimeoutError
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ToolMessage,
    message_chunk_to_message,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from multidict import CIMultiDict, CIMultiDictProxy
from pydantic import ConfigDict, Field, SecretStr
from yarl import URL

from comps.core.answers import collect, read
from comps.core.errors import (
    InvalidRequest,
    LLMError,
    ModelServerError,
    Overloaded,
    Refused,
    SettingsError,
    Timeout,
    Unreachable,
    for_operator,
)
from comps.core.ports import Completes
from comps.core.types import JSON, Event, Finished, Generation, Message, Prompt, Sampling, TextDelta, Usage
from comps.model_servers import open_model_server, through_framework
from comps.model_servers.langchain.langchain_model import LangChainModel
from comps.model_servers.langchain.messages import FOR_MESSAGES, to_langchain, usage_metadata
from comps.model_servers.target import Access, Target
from tests.model_servers.replay import Reply, replaying, sse
from tests.service import running

HERE = __name__
QUESTION: Prompt = (Message("user", "Hi"),)
FAKE = "langchain_core.language_models.fake_chat_models:FakeListChatModel"


class Model(BaseChatModel):
    """What the classes of this file have in common."""

    @property
    def _llm_type(self) -> str:
        return "test"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.answer(messages, stop, kwargs))])

    def answer(self, messages: list[BaseMessage], stop: Any, kwargs: dict[str, Any]) -> AIMessage:
        raise NotImplementedError(f"{type(self).__name__} has no answer")


class Telling(Model):
    """Tells how it was asked."""

    model_config = ConfigDict(populate_by_name=False)

    name_of_model: str = Field("", alias="model")
    openai_api_key: SecretStr = Field(SecretStr(""), alias="api_key")
    base_url: str = ""
    temperature: float | None = None
    max_output_tokens: int | None = Field(None, alias="max_tokens")
    repeat_penalty: float | None = None

    def answer(self, messages: list[BaseMessage], stop: Any, kwargs: dict[str, Any]) -> AIMessage:
        said = [
            self.temperature,
            self.max_output_tokens,
            self.repeat_penalty,
            [one.upper() for one in stop or ()],
            sorted(kwargs.items()),
        ]
        return AIMessage(repr([self.name_of_model, self.openai_api_key.get_secret_value(), self.base_url, *said]))


RELEASED = threading.Event()


class Blocking(Model):
    """Stands still until it is released."""

    def answer(self, messages: list[BaseMessage], stop: Any, kwargs: dict[str, Any]) -> AIMessage:
        return AIMessage("released" if RELEASED.wait(20) else "never released")


FAILURES: dict[str, BaseException] = {}


class Failing(Model):
    """Fails with what the test laid down."""

    failure: str = ""
    api_key: str = ""

    def answer(self, messages: list[BaseMessage], stop: Any, kwargs: dict[str, Any]) -> AIMessage:
        raise FAILURES[self.failure]


ANSWERS: dict[str, list[Any]] = {}


class Streaming(Model):
    """Gives the pieces that the test laid down, or their sum."""

    answer_of: str = ""
    max_tokens: int | None = None

    def answer(self, messages: list[BaseMessage], stop: Any, kwargs: dict[str, Any]) -> AIMessage:
        first, *others = ANSWERS[self.answer_of]
        whole = message_chunk_to_message(first + others)
        assert isinstance(whole, AIMessage)
        return whole

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in ANSWERS[self.answer_of]:
            if isinstance(chunk, Exception):
                raise chunk
            yield ChatGenerationChunk(message=chunk)


class Whole(Model):
    """Answers at once, with a tool call."""

    def answer(self, messages: list[BaseMessage], stop: Any, kwargs: dict[str, Any]) -> AIMessage:
        return AIMessage("", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "1"}])


@cache
def shared_client() -> httpx.AsyncClient:
    return httpx.AsyncClient()


class Sharing(Model):
    """Keeps outside its fields an HTTP client that others have as well, as `langchain_anthropic` does."""

    @cached_property
    def client(self) -> httpx.AsyncClient:
        return shared_client()

    def answer(self, messages: list[BaseMessage], stop: Any, kwargs: dict[str, Any]) -> AIMessage:
        return AIMessage("closed" if self.client.is_closed else "open")


class NeedsDriver(Model):
    """Looks for a package when it is made, as many do."""

    def __init__(self, **given: Any) -> None:
        raise ImportError("Could not import driver. Please install it with `pip install driver`.")


def target(
    kind: str, endpoint: str = "", access: Access | None = None, window: int | None = None, **engine: JSON
) -> Target:
    path = kind if ":" in kind else f"{HERE}:{kind}"
    return Target("tiny", endpoint, access or Access(), window, engine={"class": path, **engine})


OPENED: list[LangChainModel] = []


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    """Whatever a test opens is closed in its event loop."""
    yield
    while OPENED:
        await OPENED.pop().aclose()


async def loaded(one: Target) -> LangChainModel:
    server = await asyncio.to_thread(open_model_server, "langchain", one)  # It imports, as before a service runs.
    assert isinstance(server, LangChainModel)
    OPENED.append(server)
    await server.load()
    return server


async def events_of(
    server: LangChainModel, sampling: Sampling | None = None, prompt: Prompt = QUESTION, **options: JSON
) -> list[Event]:
    return [event async for event in read(server.generate, prompt, sampling or Sampling(), options)]


async def text_of(server: LangChainModel, sampling: Sampling | None = None, **options: JSON) -> str:
    return "".join(event.text for event in await events_of(server, sampling, **options) if isinstance(event, TextDelta))


async def test_name_url_and_key_become_arguments_of_the_class() -> None:
    server = await loaded(target("Telling", "http://127.0.0.1:9", Access(api_key="secret")))
    assert (await text_of(server)).startswith("['tiny', 'secret', 'http://127.0.0.1:9', ")


async def test_arguments_in_the_settings_go_before_those() -> None:
    given: dict[str, Any] = {"model": "other", "base_url": "http://127.0.0.1:8", "api_key": "mine", "temperature": 0.2}
    server = await loaded(target("Telling", "http://127.0.0.1:9", Access(api_key="secret"), **given))
    assert (await text_of(server)).startswith("['other', 'mine', 'http://127.0.0.1:8', 0.2, ")


async def test_sampling_reaches_the_fields_of_the_class_for_one_request() -> None:
    server = await loaded(target("Telling", temperature=0.2))
    sampling = Sampling(7, 0.5, top_p=0.9, repetition_penalty=1.1, stop=("halt",))
    assert (await text_of(server, sampling, user="x")).endswith(" 0.5, 7, 1.1, ['HALT'], []]")
    assert (await text_of(server)).endswith(" 0.2, None, None, [], []]")


async def test_what_honours_names_is_an_argument_of_the_call() -> None:
    server = await loaded(target("Telling", honours="top_p, temperature,user"))
    told = await text_of(server, Sampling(temperature=0.5, top_p=0.9, seed=1), user="x", tools=[])
    assert told.endswith(" None, None, None, [], [('temperature', 0.5), ('top_p', 0.9), ('user', 'x')]]")


async def test_it_tells_truly_what_it_honours() -> None:
    telling = await (await loaded(target("Telling", honours=["top_p"]))).describe()
    always = FOR_MESSAGES | {"stop"}
    assert telling.capabilities == always | {"max_tokens", "temperature", "repetition_penalty", "top_p"}
    assert (await (await loaded(target(FAKE, responses=["a"]))).describe()).capabilities == always


async def test_names_and_tool_calls_are_where_langchains_messages_have_them() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    user, assistant, tool = to_langchain(
        (
            Message("user", "?", {"name": "Ann"}),
            Message("assistant", "", {"tool_calls": [call]}),
            Message("tool", "42", {"tool_call_id": "c"}),
        )
    )
    assert user.name == "Ann"
    assert isinstance(assistant, AIMessage)
    assert isinstance(tool, ToolMessage)
    assert [(one["name"], one["args"], one["id"]) for one in assistant.tool_calls] == [("f", {"a": 1}, "c")]
    assert tool.tool_call_id == "c"


async def test_the_service_names_what_comes_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    server = open_model_server("langchain", target(FAKE, responses=["An answer."]))
    async with running(server, monkeypatch) as service:
        body = {"messages": "Hi", "temperature": 0.5, "max_tokens": 9, "stream": False}
        answer = await service.post(body)
    assert answer.status == 200
    assert b"An answer." in answer.body
    assert {"temperature", "max_tokens"} <= {name.strip() for name in answer.headers["x-ignored-params"].split(",")}


async def test_a_class_that_blocks_does_not_stop_the_service() -> None:
    RELEASED.clear()
    server = await loaded(target("Blocking"))
    asked = asyncio.ensure_future(text_of(server))
    await asyncio.sleep(0)
    RELEASED.set()  # Would never be reached if the loop stood still.
    assert await asked == "released"


async def test_before_it_is_made_it_is_not_ready() -> None:
    server = open_model_server("langchain", target(FAKE, responses=["a"]))
    with pytest.raises(Unreachable):
        await server.describe()
    with pytest.raises(Unreachable):
        await collect(server.generate, QUESTION, Sampling(), {})
    assert isinstance(server, Completes)
    with pytest.raises(Unreachable):
        await server.complete(QUESTION, Sampling(), {})


async def test_langchain_is_in_between_once_whatever_the_framework() -> None:
    server = await loaded(target(FAKE, responses=["a"]))
    assert through_framework(server, "langchain") is through_framework(server, "native") is server


async def test_text_to_continue_is_asked_as_a_question() -> None:
    assert await events_of(await loaded(target(FAKE, responses=["a"])), prompt="Once") == [
        TextDelta("a"),
        Finished("stop"),
    ]


@pytest.mark.parametrize(("window", "expected"), [(None, 4096), (2048, 2048)])
async def test_the_context_window_is_the_settings_or_the_profiles(window: int | None, expected: int) -> None:
    server = await loaded(target(FAKE, window=window, responses=["a"], profile={"max_input_tokens": 4096}))
    info = await server.describe()
    assert (info.context_window, info.has_chat_template) == (expected, True)


def chunk(text: str, usage: tuple[int, int] | None = None, **metadata: Any) -> AIMessageChunk:
    counted: Any = usage and {"input_tokens": usage[0], "output_tokens": usage[1], "total_tokens": sum(usage)}
    return AIMessageChunk(content=text, usage_metadata=counted, response_metadata=metadata)


@pytest.mark.parametrize(
    ("chunks", "end"),
    [
        ([chunk("a")], Finished("stop")),
        ([chunk("a"), chunk("", (3, 4))], Finished("stop", Usage(3, 4))),
        ([chunk("a"), chunk("", (3, 5))], Finished("length", Usage(3, 5))),
        ([chunk("a", (3, 5), finish_reason="stop")], Finished("stop", Usage(3, 5))),
        ([chunk("a", stop_reason="max_tokens")], Finished("length")),
        ([chunk("a", done_reason="length")], Finished("length")),
        ([chunk("a", finish_reason="STOP")], Finished("stop")),
        ([chunk("a", stop_reason="tool_use")], Finished("tool_calls")),
        ([chunk("a", finish_reason="x\r\ny")], Finished("unknown")),
    ],
)
async def test_why_an_answer_ended(chunks: list[AIMessageChunk], end: Finished) -> None:
    ANSWERS["ends"] = chunks
    server = await loaded(target("Streaming", answer_of="ends"))
    assert await events_of(server, Sampling(max_tokens=5)) == [TextDelta("a"), end]
    assert await server.complete(QUESTION, Sampling(max_tokens=5), {}) == Generation("a", end.reason, end.usage)


async def test_tokens_that_are_told_piece_by_piece_are_added_up() -> None:
    ANSWERS["counted"] = [chunk("a", (3, 0)), chunk("b", (0, 1)), chunk("", (0, 1), finish_reason="stop")]
    server = await loaded(target("Streaming", answer_of="counted"))
    *_, end = await events_of(server)
    assert end == Finished("stop", Usage(3, 2))
    assert await server.complete(QUESTION, Sampling(), {}) == Generation("ab", "stop", Usage(3, 2))


async def test_tokens_that_were_cached_or_thought_are_told_in_openais_words() -> None:
    counted: Any = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    counted |= {"input_token_details": {"cache_read": 2}, "output_token_details": {"reasoning": 1}}
    ANSWERS["cached"] = [AIMessageChunk(content="a", usage_metadata=counted)]
    *_, end = await events_of(await loaded(target("Streaming", answer_of="cached")))
    details = {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}
    assert end == Finished("stop", Usage(3, 4, details))
    metadata: Any = usage_metadata(Usage(3, 4, details))
    assert metadata == counted


async def test_a_stop_string_ends_the_answer_of_a_class_that_knows_none() -> None:
    server = await loaded(target(FAKE, responses=["one two three"]))
    *deltas, end = await events_of(server, Sampling(stop=("two",)))
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == "one "
    assert end == Finished("stop", stop_string="two")
    whole = await server.complete(QUESTION, Sampling(stop=("two",)), {})
    assert whole == Generation("one ", "stop", stop_string="two")


async def test_reasoning_and_tool_calls_come_in_openais_form() -> None:
    thought: Any = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]
    call: Any = [{"name": "f", "args": '{"a":', "id": "1", "index": 0}]
    ANSWERS["thinks"] = [AIMessageChunk(content=thought), AIMessageChunk(content="", tool_call_chunks=call)]
    first, second, _ = await events_of(await loaded(target("Streaming", answer_of="thinks")))
    assert first == TextDelta("a", extra={"reasoning_content": "hm"})
    function = {"name": "f", "arguments": '{"a":'}
    assert second == TextDelta(
        "", extra={"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": function}]}
    )
    server = await loaded(target("Whole"))
    whole, _ = await events_of(server)
    assert isinstance(whole, TextDelta)
    completed = await server.complete(QUESTION, Sampling(), {})
    for extra in (whole.extra, completed.extra):
        assert extra
        assert extra["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


async def test_a_whole_answer_keeps_reasoning_and_tool_calls_that_are_no_json() -> None:
    thought: Any = [{"type": "thinking", "thinking": "hm", "index": 0}, {"type": "text", "text": "a", "index": 1}]
    call: Any = {"name": "f", "args": "[1]", "id": "1", "index": 0}
    ANSWERS["odd call"] = [AIMessageChunk(content=thought), AIMessageChunk(content="", tool_call_chunks=[call])]
    whole = await (await loaded(target("Streaming", answer_of="odd call"))).complete(QUESTION, Sampling(), {})
    assert whole.text == "a"
    assert whole.extra
    assert whole.extra["reasoning_content"] == "hm"
    assert whole.extra["tool_calls"][0]["function"] == {"name": "f", "arguments": "[1]"}


async def test_tool_calls_that_a_class_does_not_number_are_kept_apart() -> None:
    calls: Any = [{"name": name, "args": "{}", "id": name, "index": None} for name in "fg"]
    ANSWERS["calls"] = [AIMessageChunk(content="", tool_call_chunks=[one]) for one in calls]
    *deltas, _ = await events_of(await loaded(target("Streaming", answer_of="calls")))
    assert [
        delta.extra["tool_calls"][0]["index"] for delta in deltas if isinstance(delta, TextDelta) and delta.extra
    ] == [0, 1]


REQUEST = aiohttp.RequestInfo(URL("http://127.0.0.1/"), "POST", CIMultiDictProxy(CIMultiDict()), URL())


def http_error() -> requests.HTTPError:
    response = requests.Response()
    response.status_code = 503
    return requests.HTTPError("loading", response=response)


def caused(by: BaseException) -> RuntimeError:
    error = RuntimeError("wrapped")
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (TimeoutError(), Timeout),
        (asyncio.TimeoutError(), Timeout),
        (httpx.ReadTimeout("x"), Timeout),
        (requests.ReadTimeout(), Timeout),
        (aiohttp.ServerTimeoutError(), Timeout),
        (InferenceTimeoutError("x", response=None), Timeout),
        (httpx.ConnectTimeout("x"), Unreachable),
        (aiohttp.ConnectionTimeoutError(), Unreachable),
        (ConnectionRefusedError(), Unreachable),
        (httpx.ConnectError("x"), Unreachable),
        (requests.ConnectionError(), Unreachable),
        (http_error(), Unreachable),
        (aiohttp.ClientResponseError(REQUEST, (), status=400, message="no"), InvalidRequest),
        (caused(ConnectionRefusedError()), Unreachable),
        (caused(InvalidRequest("no", "messages")), InvalidRequest),
        (Overloaded("x", 9), Overloaded),
        (ValueError("odd"), ModelServerError),
        (KeyError("choices"), ModelServerError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.__name__,
)
async def test_an_error_of_whatever_package_is_one_of_ours(failure: BaseException, expected: type[LLMError]) -> None:
    FAILURES["this"] = failure
    server = await loaded(target("Failing", failure="this"))
    for asked in (events_of(server), server.complete(QUESTION, Sampling(), {})):
        with pytest.raises(LLMError) as caught:
            await asked
        assert type(caught.value) is expected


async def test_an_answer_that_has_begun_is_not_refused_any_more() -> None:
    refusal = aiohttp.ClientResponseError(REQUEST, (), status=400, message="no")
    ANSWERS["begun"] = [AIMessageChunk(content="Deep"), refusal]
    server = await loaded(target("Streaming", answer_of="begun"))
    with pytest.raises(ModelServerError, match="no"):
        await events_of(server)


async def test_an_error_that_is_none_of_those_names_the_class_and_shows_no_secret() -> None:
    FAILURES["told"] = ValueError("bad key sk-hunter2 for http://me:pw@127.0.0.1/")
    server = await loaded(target("Failing", failure="told", access=Access(api_key="sk-hunter2")))
    with pytest.raises(ModelServerError, match=r"Failing failed: ValueError: bad key \*\*\* for \*\*\*$") as caught:
        await events_of(server)
    assert "hunter2" not in str(caught.value)


def refusing(status: int, **headers: str) -> Reply:
    body = b'{"error":{"message":"it says no to sk-hunter2","type":"x","code":null}}'
    return Reply([body], status, {"Content-Type": "application/json", **headers})


@pytest.mark.parametrize(
    ("reply", "expected", "told"),
    [
        (refusing(400), InvalidRequest, "says no"),
        (refusing(401), Refused, "does not accept this service's key"),
        (refusing(404), Refused, "404"),
        (refusing(429, **{"Retry-After": "7"}), Overloaded, "busy"),
        (refusing(503, **{"Retry-After": "7"}), Unreachable, "not ready"),
        (refusing(500), Refused, "500"),
        (sse({"choices": [], "error": {"message": "out of memory"}}), ModelServerError, "out of memory"),
    ],
)
async def test_langchains_own_class_before_a_server_that_fails(
    reply: Reply, expected: type[LLMError], told: str
) -> None:
    async with replaying({"/v1/chat/completions": reply}) as replay:
        one = target("langchain_openai:ChatOpenAI", f"{replay.url}/v1", Access(api_key="sk-hunter2"), max_retries=0)
        with pytest.raises(expected, match=told) as caught:
            await events_of(await loaded(one))
    assert "hunter2" not in str(caught.value)
    assert caught.value.retry_after == {Overloaded: 7, Unreachable: 7}.get(expected)


async def test_langchains_own_class_at_a_closed_port_is_unreachable() -> None:
    one = target(
        "langchain_openai:ChatOpenAI", "http://me:pw@127.0.0.1:9/v1?key=pw", Access(api_key="k"), max_retries=0
    )
    with pytest.raises(Unreachable) as caught:
        await events_of(await loaded(one))
    cannot = "the model server cannot be reached: "
    assert str(caught.value) == f"{cannot}connection refused"
    at = "langchain_openai:ChatOpenAI at http://127.0.0.1:9/v1"
    assert for_operator(caught.value) == f"{cannot}{at}: connection refused"


async def test_closing_an_answer_closes_the_connection_of_langchains_own_class() -> None:
    reply = sse({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]})
    reply.hang = True
    async with replaying({"/v1/chat/completions": reply}) as replay:
        server = await loaded(target("langchain_openai:ChatOpenAI", f"{replay.url}/v1", Access(api_key="k")))
        async with aclosing(read(server.generate, QUESTION, Sampling(), {})) as events:
            assert await anext(events) == TextDelta("a")
        await asyncio.wait_for(replay.left.wait(), 5)
        replay.reached.clear()
        replay.left.clear()
        asked = asyncio.ensure_future(server.complete(QUESTION, Sampling(), {}))
        await asyncio.wait_for(replay.reached.wait(), 5)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await asyncio.wait_for(replay.left.wait(), 5)


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (Target("m", engine={}), "class .*a LangChain chat model is needed"),
        (target("langchain_openai:"), "a LangChain chat model is needed"),
        (target("langchain_openai:ChatNobody"), "langchain_openai has no ChatNobody"),
        (target("langchain_nobody.chat:Chat"), "pip install langchain-nobody"),
        (target("langchain_openai.nowhere:Chat"), "no module langchain_openai.nowhere"),
        (target("pathlib:Path"), "no LangChain chat model"),
        (target("langchain_core.messages:AIMessage"), "no LangChain chat model"),
        (target("Telling", tempreature=1), "has no argument tempreature; did you mean temperature"),
        (target("Telling", honours=5), "honours = 5"),
        (target(FAKE, "http://127.0.0.1:9", responses=[]), "no argument for a URL"),
        (target("Telling", access=Access(ca_file="ca.pem")), "ca_file: not known"),
        (target("Telling", access=Access(connect_seconds=5, total_seconds=5)), "^connect_seconds: not known"),
    ],
)
def test_settings_that_make_no_sense_are_told_at_the_start(one: Target, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        open_model_server("langchain", one)


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (target(FAKE), "responses: Field required"),
        (target("Telling", temperature="warm"), "temperature: Input should be a valid number"),
        (target("NeedsDriver"), "cannot be made: ImportError: .*pip install driver"),
    ],
)
async def test_a_class_that_cannot_be_made_is_an_error_of_the_settings(one: Target, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        await loaded(one)


async def test_closed_it_holds_no_connection_can_be_closed_again_and_another_at_its_address_answers() -> None:
    reply = sse({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]})
    async with replaying({"/v1/chat/completions": reply}) as replay:
        one = target("langchain_openai:ChatOpenAI", f"{replay.url}/v1", Access(api_key="k"))
        first = await loaded(one)
        await events_of(first)
        await first.aclose()
        await first.aclose()
        await asyncio.wait_for(asyncio.gather(*replay.serving), 5)
        assert await events_of(await loaded(one))


async def test_a_client_that_a_class_shares_is_left_open() -> None:
    first, second = await loaded(target("Sharing")), await loaded(target("Sharing"))
    assert await text_of(first) == "open"
    await first.aclose()
    assert await text_of(second) == "open"
    await shared_client().aclose()


@pytest.mark.parametrize("variable", ["OPENAI_API_BASE", "OPENAI_BASE_URL"])
async def test_a_key_of_the_environment_is_not_sent_to_another_host_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    async with replaying({"/v1/chat/completions": refusing(500)}) as replay:
        monkeypatch.setenv(variable, f"{replay.url}/v1")
        with pytest.raises(Refused):
            await events_of(await loaded(target("langchain_openai:ChatOpenAI", max_retries=0)))
    assert replay.asked[0][1]["authorization"] == "Bearer none"


@pytest.mark.parametrize("by", ["endpoint", "argument"])
async def test_a_key_of_the_environment_is_not_sent_to_a_server_that_the_settings_name(
    monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    path = "langchain_openai:ChatOpenAI"
    async with replaying({"/v1/chat/completions": refusing(500)}) as replay:
        url = f"{replay.url}/v1"
        endpoint = url if by == "endpoint" else ""
        arguments: dict[str, Any] = {"max_retries": 0} if endpoint else {"max_retries": 0, "base_url": url}
        for access, sent in ((Access(), "none"), (Access(api_key="own"), "own")):
            with pytest.raises(Refused):
                await events_of(await loaded(target(path, endpoint, access, **arguments)))
            assert replay.asked[-1][1]["authorization"] == f"Bearer {sent}"


@pytest.mark.parametrize(
    ("url", "goes"),
    [
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("http://api.openai.com/v1", False),
        ("https://api.openai.com.evil.example/v1", False),
        ("https://notapi.openai.com.example/v1", False),
        ("https://openai.example/v1", False),
    ],
)
async def test_a_key_of_the_environment_goes_to_its_vendor_s_own_hosts(
    monkeypatch: pytest.MonkeyPatch, url: str, goes: bool
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    server = await loaded(target("langchain_openai:ChatOpenAI", url))
    assert server._model
    assert server._model.openai_api_key.get_secret_value() == ("sk-hunter2" if goes else "none")  # type: ignore[attr-defined]


async def test_a_key_is_in_no_representation() -> None:
    server = await loaded(target("langchain_openai:ChatOpenAI", access=Access(api_key="sk-hunter2")))
    assert "hunter2" not in repr(vars(server))
