"""Clients as people use them, unmodified, against the running service: OpenAI's SDK, and LangChain's over it."""

from __future__ import annotations

import openai
import pytest

from comps.model_servers.scripted import Scripted
from tests.service import Service, running

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
