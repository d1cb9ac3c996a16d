"""Clients as people use them, unmodified, against the running service: OpenAI's SDK, and LangChain's over it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from comps.model_servers import open_model_server
from comps.model_servers.scripted import Scripted
from comps.model_servers.target import Target
from tests.model_servers.replay import Reply, replaying, sse
from tests.service import PATH, Able, Service, running

WORDS = ["Deep", " learning", " is", " fun."]


def client(service: Service) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


async def test_openais_sdk_gets_a_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service, client(service) as sdk:
        answer = await sdk.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "?"}])
    assert answer.choices[0].message.content == "Deep learning is fun."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert answer.usage.completion_tokens == 4


async def test_openais_sdk_gets_a_streamed_answer_with_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service, client(service) as sdk:
        stream = await sdk.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": "?"}],
            max_tokens=3,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].delta.content for chunk in chunks[:3]] == WORDS[:3]
    assert chunks[3].choices[0].finish_reason == "length"
    assert chunks[4].usage
    assert chunks[4].usage.completion_tokens == 3


async def test_openais_sdk_understands_our_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service, client(service) as sdk:
        with pytest.raises(openai.BadRequestError) as bad:
            await sdk.chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "?"}], temperature=-1
            )
        with pytest.raises(openai.NotFoundError):
            await sdk.chat.completions.create(model="other", messages=[{"role": "user", "content": "?"}])
    assert bad.value.param == "temperature"


async def test_openais_sdk_lists_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service, client(service) as sdk:
        assert [model.id async for model in sdk.models.list()] == ["scripted"]
        assert (await sdk.models.retrieve("scripted")).id == "scripted"
        with pytest.raises(openai.NotFoundError):
            await sdk.models.retrieve("other")


async def test_openais_sdk_gets_completions_of_several_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([["one"], ["two"]]), monkeypatch) as service, client(service) as sdk:
        answer = await sdk.completions.create(model="scripted", prompt=["a", "b"])
        stream = await sdk.completions.create(model="scripted", prompt=["a", "b"], stream=True)
        pieces = [chunk.choices[0] async for chunk in stream]
    assert [choice.text for choice in answer.choices] == ["one", "two"]
    texts = {n: "".join(piece.text for piece in pieces if piece.index == n) for n in (0, 1)}
    assert texts == {0: "one", 1: "two"}


async def test_openais_sdk_gets_vectors_in_both_encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able(), monkeypatch) as service, client(service) as sdk:
        packed = await sdk.embeddings.create(model="scripted", input=["ab", "c"])
        plain = await sdk.embeddings.create(model="scripted", input="ab", encoding_format="float")
    assert [item.embedding for item in packed.data] == [[1.0, 2.0], [1.0, 1.0]]
    assert plain.data[0].embedding == [1.0, 2.0]
    assert packed.usage.prompt_tokens == 3


@asynccontextmanager
async def in_front_of(reply: Reply, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's SDK, asking a service over a vLLM that gives the reply."""
    replies: dict[str, Reply | list[Reply]] = {"/v1/models": Reply([b'{"data": []}']), PATH: reply}
    async with replaying(replies) as replay:
        server = open_model_server("vllm", Target("m", replay.url))
        async with running(server, monkeypatch, {"LLM_NAME": "m"}) as service, client(service) as sdk:
            yield sdk


class Weather(BaseModel):
    """What the model is asked to fill in."""

    city: str
    degrees: int


async def test_openais_sdk_parses_what_a_response_format_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told = '{"city": "Paris", "degrees": 9}'
    reply = sse({"choices": [{"index": 0, "delta": {"content": told}, "finish_reason": "stop"}]})
    async with in_front_of(reply, monkeypatch) as sdk:
        answer = await sdk.chat.completions.parse(
            model="m", messages=[{"role": "user", "content": "?"}], response_format=Weather
        )
    assert answer.choices[0].message.parsed == Weather(city="Paris", degrees=9)


async def test_openais_sdk_puts_a_streamed_tool_call_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[dict[str, object]] = [
        {"index": 0, "id": "c", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city":'}},
        {"index": 0, "function": {"arguments": ' "Paris"}'}},
    ]
    deltas = [{"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]} for piece in pieces]
    reply = sse(*deltas, {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    async with (
        in_front_of(reply, monkeypatch) as sdk,
        sdk.chat.completions.stream(model="m", messages=[{"role": "user", "content": "?"}]) as stream,
    ):
        answer = await stream.get_final_completion()
    assert answer.choices[0].finish_reason == "tool_calls"
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.arguments == '{"city": "Paris"}'


async def test_langchains_openai_classes_get_answers_and_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able([WORDS]), monkeypatch) as service, httpx.AsyncClient() as http:
        given: dict[str, Any] = {"base_url": f"{service.url}/v1", "api_key": "none", "http_async_client": http}
        chat = ChatOpenAI(**given, model="scripted")
        whole = await chat.ainvoke("?")
        pieces = [piece.text async for piece in chat.astream("?")]
        embeddings = OpenAIEmbeddings(**given, model="scripted", check_embedding_ctx_length=False)
        vectors = await embeddings.aembed_documents(["ab", "c"])
    assert whole.content == "Deep learning is fun."
    assert "".join(pieces) == "Deep learning is fun."
    assert vectors == [[1.0, 2.0], [1.0, 1.0]]
