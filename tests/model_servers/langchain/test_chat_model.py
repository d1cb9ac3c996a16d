"""Our LangChain chat model against LangChain's own standard tests, its callbacks, and LangSmith on loopback."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from comps.core.errors import ModelServerError
from comps.core.types import Message, Sampling, TextDelta
from comps.model_servers.embedded.openvino import OpenVINO
from comps.model_servers.langchain.chat_model import ChatModelServer
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

    async def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("start")

    async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.seen.append(token)

    async def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("end")

    async def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.seen.append(type(error).__name__)


async def test_callbacks_see_the_start_every_token_and_the_end() -> None:
    recorder = Recorder()
    model = ChatModelServer(server=Scripted([["a", "b"]]), callbacks=[recorder])
    events = ThroughLangChain(model, model.server).generate((Message("user", "?"),), Sampling(), {})
    assert [event.text async for event in events if isinstance(event, TextDelta)] == ["a", "b"]
    assert [token for token in recorder.seen if token] == ["start", "a", "b", "end"]


async def test_callbacks_see_an_error() -> None:
    recorder = Recorder()
    model = ChatModelServer(server=Scripted([["a", ModelServerError("broken")]]), callbacks=[recorder])
    with pytest.raises(ModelServerError):
        async for _ in ThroughLangChain(model, model.server).generate((Message("user", "?"),), Sampling(), {}):
            pass
    assert recorder.seen == ["start", "a", "ModelServerError"]


async def test_it_stands_in_a_langchain_chain() -> None:
    scripted = Scripted([["Paris"]])
    chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{question}")]) | ChatModelServer(
        server=scripted
    )
    answer = await chain.ainvoke({"question": "Capital of France?"})
    assert answer.content == "Paris"
    assert scripted.asked[0][0] == (Message("system", "Be brief."), Message("user", "Capital of France?"))


def test_a_streamed_answer_given_up_half_way_is_closed_without_an_event_loop_around_it() -> None:
    scripted = Scripted([["one", "two", "three"]])
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
from langchain_core.tracers.langchain import wait_for_all_tracers
from comps.model_servers.langchain.chat_model import ChatModelServer
from comps.model_servers.scripted import Scripted
print(ChatModelServer(server=Scripted([["the ", "answer"]])).invoke("the question").content)
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
