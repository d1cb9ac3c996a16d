"""Our LangChain chat model against LangChain's own standard tests, its callbacks, and LangSmith on loopback."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.context import collect_runs
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from comps.core.answers import collect, read
from comps.core.errors import ModelServerError
from comps.core.ports import Answer, ModelServer
from comps.core.types import JSON, Finished, Generation, Message, ModelInfo, Prompt, Sampling, TextDelta, Usage
from comps.model_servers.embedded.openvino import OpenVINO
from comps.model_servers.langchain.chat_model import ChatModelServer
from comps.model_servers.langchain.chunks import chunk_of
from comps.model_servers.langchain.through import ThroughLangChain
from comps.model_servers.scripted import Scripted

ANSWER = ["Hello", " there", ",", " friend", "."]


class TestUnit(ChatModelUnitTests):
    """LangChain's own tests of how a chat model is made."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatModelServer

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"server": Scripted([ANSWER]), "model": "scripted"}


class TestIntegration(ChatModelIntegrationTests):
    """LangChain's own tests of how a chat model answers; tools and structured output are not offered yet."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatModelServer

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"server": Scripted([ANSWER]), "model": "scripted"}


@pytest.mark.xdist_group("engine")
class TestIntegrationWithAModel(ChatModelIntegrationTests):
    """The same with a real model behind."""

    @pytest.fixture(autouse=True)
    def _with_engine(self, engine: OpenVINO) -> None:
        type(self).engine = engine

    engine: OpenVINO

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatModelServer

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"server": self.engine, "model": "SmolLM2-135M-Instruct", "max_tokens": 12, "temperature": 0.0}


class Recorder(AsyncCallbackHandler):
    """Writes down what LangChain reports."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.message: Any = None

    async def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("start")

    async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.seen.append(token)

    async def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.seen.append("end")
        self.message = response.generations[0][0].message

    async def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.seen.append(type(error).__name__)


QUESTION: Prompt = (Message("user", "?"),)


class Manifold:
    """Gives two choices, with reasoning, a tool call, logprobs and what LangChain has no place for."""

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        answer.delta(TextDelta("", 0, {"reasoning_content": "hm", "mood": True}))
        answer.text("a")
        answer.text("x", 1)
        answer.delta(TextDelta("b", 0, {"logprobs": {"content": [{"token": "b", "logprob": -1.5}]}}))
        answer.delta(TextDelta("", 0, {"tool_calls": [call]}))
        answer.delta(TextDelta("", 1, {"tool_calls": [call | {"function": {"arguments": "["}}]}))
        answer.finished(Finished("tool_calls", Usage(3, 4, {"prompt_tokens_details": {"cached_tokens": 2}})))
        answer.finished(Finished("length", choice=1))

    async def describe(self) -> ModelInfo:
        return ModelInfo("manifold")

    async def aclose(self) -> None:
        """Nothing is held."""


class Breaking(Manifold):
    """Gives no end."""

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        answer.text("a")


def through(server: ModelServer, *handlers: AsyncCallbackHandler) -> ThroughLangChain:
    """A model server by way of LangChain, with callback handlers."""
    return ThroughLangChain(ChatModelServer(server=server, model="m", callbacks=list(handlers)), server)


async def test_callbacks_see_the_start_every_token_and_the_end() -> None:
    recorder = Recorder()
    events = read(through(Scripted([["a", "b"]]), recorder).generate, QUESTION, Sampling(), {})
    assert [event.text async for event in events if isinstance(event, TextDelta)] == ["a", "b"]
    assert [token for token in recorder.seen if token] == ["start", "a", "b", "end"]
    assert recorder.message.content == "ab"


async def test_callbacks_see_the_start_and_the_end_of_a_whole_answer() -> None:
    recorder = Recorder()
    whole = await through(Scripted([["a", "b"]]), recorder).complete(QUESTION, Sampling(), {})
    assert whole == Generation("ab", "stop", Usage(1, 2))
    assert recorder.seen == ["start", "end"]
    assert recorder.message.content == "ab"


async def test_callbacks_see_an_error() -> None:
    recorder = Recorder()
    with pytest.raises(ModelServerError):
        await collect(
            through(Scripted([["a", ModelServerError("broken")]]), recorder).generate, QUESTION, Sampling(), {}
        )
    assert recorder.seen == ["start", "a", "ModelServerError"]


async def test_nothing_of_an_answer_is_lost_with_callbacks_or_without() -> None:
    server = Manifold()
    native = [event async for event in read(server.generate, QUESTION, Sampling(), {})]
    whole = await collect(server.generate, QUESTION, Sampling(), {})
    assert whole.further
    recorder = Recorder()
    for seen in (through(server), through(server, recorder)):
        assert [event async for event in read(seen.generate, QUESTION, Sampling(), {})] == native
        assert await seen.complete(QUESTION, Sampling(), {}) == whole
    message = recorder.message
    assert (message.content, message.additional_kwargs) == ("ab", {"reasoning_content": "hm"})
    assert [(call["name"], call["id"]) for call in message.tool_calls] == [("f", "c")]
    assert message.usage_metadata["input_token_details"] == {"cache_read": 2}


@pytest.mark.parametrize("handlers", [[], [Recorder()]])
async def test_an_answer_without_an_end_is_none(handlers: list[AsyncCallbackHandler]) -> None:
    with pytest.raises(ModelServerError, match="broke off"):
        await collect(through(Breaking(), *handlers).generate, QUESTION, Sampling(), {})
    with pytest.raises(ModelServerError, match="broke off"):
        await through(Breaking(), *handlers).complete(QUESTION, Sampling(), {})


@pytest.mark.parametrize("handlers", [[], [Recorder()]])
@pytest.mark.parametrize("whole", [False, True])
async def test_cancelling_stops_the_model_with_callbacks_or_without(
    handlers: list[AsyncCallbackHandler], whole: bool
) -> None:
    scripted = Scripted([["one", asyncio.Event(), "never"]])
    server = through(scripted, *handlers)
    asked = server.complete(QUESTION, Sampling(), {}) if whole else collect(server.generate, QUESTION, Sampling(), {})
    task = asyncio.ensure_future(asked)
    await asyncio.wait_for(scripted.reached.wait(), 5)
    task.cancel()
    await asyncio.wait_for(scripted.closed.wait(), 0.1)
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)


@pytest.mark.parametrize("handlers", [[], [Recorder()]])
async def test_a_reader_that_does_not_keep_up_holds_the_model_up(handlers: list[AsyncCallbackHandler]) -> None:
    scripted = Scripted([["word"] * 1000])
    async with aclosing(read(through(scripted, *handlers).generate, QUESTION, Sampling(), {})) as events:
        await anext(events)
        await asyncio.sleep(0.05)
    assert scripted.closed.is_set()


async def test_there_are_no_callbacks_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("LangChain's whole way, without anybody to see it")

    monkeypatch.setattr(BaseChatModel, "astream", never)
    monkeypatch.setattr(BaseChatModel, "ainvoke", never)
    server = through(Scripted([["a"]]))
    assert (await collect(server.generate, QUESTION, Sampling(), {})).text == "a"
    assert (await server.complete(QUESTION, Sampling(), {})).text == "a"


def test_a_chunk_shares_nothing_that_a_callback_might_change_with_the_next() -> None:
    first, second = (vars(chunk_of(TextDelta("a"), lambda _: {}).message) for _ in range(2))
    shared = [name for name, value in first.items() if value is second[name] and isinstance(value, list | dict)]
    assert shared == []
    assert {"additional_kwargs", "response_metadata", "tool_calls"} <= first.keys()


async def test_a_collector_of_runs_around_a_request_gets_it() -> None:
    server = through(Scripted([["a"]]))
    with collect_runs() as collected:
        await collect(server.generate, QUESTION, Sampling(), {})
        await server.complete(QUESTION, Sampling(), {})
    assert [run.outputs["generations"][0][0]["text"] for run in collected.traced_runs if run.outputs] == ["a", "a"]


async def test_the_callbacks_of_a_runnable_around_a_request_see_it() -> None:
    recorder = Recorder()
    server = through(Scripted([["a"]]))

    async def ask(_: Any) -> Generation:
        return await collect(server.generate, QUESTION, Sampling(), {})

    assert (await RunnableLambda(ask).ainvoke("?", {"callbacks": [recorder]})).text == "a"
    assert [token for token in recorder.seen if token] == ["start", "a", "end"]


async def test_debug_output_shows_a_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = through(Scripted([["an answer"]]))
    monkeypatch.setattr("langchain_core.globals._debug", True)
    await collect(server.generate, QUESTION, Sampling(), {})
    assert "an answer" in capsys.readouterr().out


async def test_langchains_cache_keeps_whole_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langchain_core.globals._llm_cache", InMemoryCache())
    scripted = Scripted([["first"], ["second"]])
    server = through(scripted)
    answers = [await server.complete((Message("user", text),), Sampling(), {}) for text in ("?", "?", "!")]
    assert [answer.text for answer in answers] == ["first", "first", "second"]
    assert len(scripted.asked) == 2


async def test_a_rate_limiter_of_langchains_is_asked() -> None:
    scripted = Scripted([["a"]])
    limiter = InMemoryRateLimiter(requests_per_second=1000)
    limiter.available_tokens = 0
    asked = asyncio.Event()

    async def acquire(*, blocking: bool = True) -> bool:
        asked.set()
        return True

    object.__setattr__(limiter, "aacquire", acquire)
    server = ThroughLangChain(ChatModelServer(server=scripted, rate_limiter=limiter), scripted)
    await collect(server.generate, QUESTION, Sampling(), {})
    assert asked.is_set()


async def test_an_answer_of_ours_in_a_conversation_is_the_assistants() -> None:
    scripted = Scripted([["Hello"]])
    model = ChatModelServer(server=scripted)
    whole = await model.ainvoke("Hi")
    pieces = [piece async for piece in model.astream("Hi")]
    await model.ainvoke([HumanMessage("Hi"), whole, HumanMessage("And?"), pieces[0] + pieces[1:]])
    roles = [message.role for message in scripted.asked[-1][0] if isinstance(message, Message)]
    assert roles == ["user", "assistant", "user", "assistant"]


async def test_it_stands_in_a_langchain_chain() -> None:
    scripted = Scripted([["Paris"]])
    chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{question}")]) | ChatModelServer(
        server=scripted
    )
    answer = await chain.ainvoke({"question": "Capital of France?"})
    assert answer.content == "Paris"
    assert scripted.asked[0][0] == (Message("system", "Be brief."), Message("user", "Capital of France?"))


def test_a_streamed_answer_given_up_half_way_is_closed_without_an_event_loop_around_it() -> None:
    scripted = Scripted([["one", asyncio.Event(), "two"]])
    stream = ChatModelServer(server=scripted).stream("?")
    assert next(stream).content == "one"
    stream.close()  # type: ignore[attr-defined]  # A generator, though declared an iterator.
    assert scripted.closed.is_set()


async def test_it_can_be_invoked_synchronously_from_within_a_running_loop() -> None:
    model = ChatModelServer(server=Scripted([["ok"]]))
    assert (await asyncio.to_thread(model.invoke, [HumanMessage("?")])).content == "ok"


class LangSmith:
    """What LangSmith's service is to its client: something that takes runs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.arrived: list[tuple[str, bytes]] = []


@pytest.fixture
def langsmith() -> Iterator[LangSmith]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(json.dumps({"version": "0.10.0"}).encode())

        def do_POST(self) -> None:
            service.arrived.append((self.path, self.rfile.read(int(self.headers.get("content-length", 0)))))
            self._answer(b"{}")

        do_PATCH = do_POST  # noqa: N815  # The name that http.server looks for.

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service = LangSmith(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield service
    server.shutdown()
    thread.join()
    server.server_close()


TRACED = """
import asyncio
from functools import partial
from comps.core.answers import collect
from comps.core.types import Message, Sampling
from comps.model_servers import through_framework
from langchain_core.tracers.langchain import wait_for_all_tracers
from comps.model_servers.langchain.chat_model import ChatModelServer
from comps.model_servers.scripted import Scripted
print(ChatModelServer(server=Scripted([["the ", "answer"]])).invoke("the question").content)
served = through_framework(Scripted([["an", "answer"]]), "langchain", "m")
for ask in (served.complete, partial(collect, served.generate)):
    asyncio.run(ask((Message("user", "asked of the service"),), Sampling(), {}))
wait_for_all_tracers()
"""


@pytest.mark.parametrize("tracing", [True, False])
def test_langsmith_gets_runs_if_the_environment_says_so_and_nothing_else(langsmith: LangSmith, tracing: bool) -> None:
    environment = {"LANGSMITH_ENDPOINT": langsmith.url, "LANGSMITH_API_KEY": "key", "LANGSMITH_COMPRESSION": "false"}
    if tracing:
        environment["LANGSMITH_TRACING"] = "true"
    done = subprocess.run(
        [sys.executable, "-c", TRACED], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "the answer"
    sent = b"".join(body for _, body in langsmith.arrived)
    assert bool(langsmith.arrived) is tracing
    assert (b"the question" in sent) is tracing
    assert sent.count(b'"asked of the service"') >= (2 if tracing else 0)
    assert (b"asked of the service" in sent) is tracing


TRACED_OVER_HTTP = """
from langchain_core.tracers.langchain import wait_for_all_tracers
from comps.model_servers.langchain.chat_openai import ChatOpenAIAPI
from comps.model_servers.remote.vllm import VLLM
from comps.model_servers.target import Access
try:
    server = VLLM("m", "http://127.0.0.1:9", Access(api_key="sk-hunter2"))
    ChatOpenAIAPI.over(server).invoke("the question", temperature=0.5)
except Exception as error:
    print(type(error).__name__)
wait_for_all_tracers()
"""


def test_a_trace_of_a_request_over_http_has_the_question_and_the_error_and_no_key(langsmith: LangSmith) -> None:
    environment = {"LANGSMITH_ENDPOINT": langsmith.url, "LANGSMITH_API_KEY": "key", "LANGSMITH_COMPRESSION": "false"}
    done = subprocess.run(
        [sys.executable, "-c", TRACED_OVER_HTTP],
        env={**environment, "LANGSMITH_TRACING": "true"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "Unreachable"
    sent = b"".join(body for _, body in langsmith.arrived)
    assert b"the question" in sent
    assert b"cannot be reached" in sent
    assert b"hunter2" not in sent
