"""Clients of some years ago, unmodified and in environments of their own, against the running service."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from comps.core.errors import ModelServerError
from comps.core.ports import Answer
from comps.core.types import JSON, Prompt, Sampling
from tests.clients import is_installed, use
from tests.service import Able, running

WORDS = ["Deep", " learning", " is", " fun."]
ANSWER = "".join(WORDS)


class Breaking(Able):
    """A model server that breaks off if it is asked to."""

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        if not isinstance(prompt, str) and prompt[-1].content == "break":
            answer.text("Deep")
            raise ModelServerError("it broke")
        await super().generate(prompt, sampling, options, answer)


async def used(
    monkeypatch: pytest.MonkeyPatch,
    client: str,
    package: str,
    server: Able,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a client gets from the service."""
    if not is_installed(client, package):
        version = ".".join(map(str, sys.version_info[:2]))
        pytest.skip(f"{client} is not installed: `make test` does it, unless it is not to be had for Python {version}")
    async with running(server, monkeypatch, environment) as service:
        return await asyncio.to_thread(use, client, service.url)


async def test_openais_sdk_of_2024_gets_all_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    got = await used(monkeypatch, "openai_1_57_4", "openai", Breaking([WORDS]), {"LLM_DIALECTS": "openai"})
    usage = {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}
    assert got["chat"] == ["assistant", ANSWER, "stop", usage]
    assert got["streamed_chat"] == [WORDS[:2], ["length"], 2]
    assert got["completions"] == [[0, ANSWER, "stop"], [1, ANSWER, "stop"]]
    assert "".join(got["streamed_completion"]) == ANSWER
    assert got["embeddings"] == [[[1.0, 1.0], [1.0, 3.0]], [1.0, 1.0], 4]
    assert got["models"] == ["scripted", "scripted"]
    kind = "invalid_request_error"
    assert got["errors"] == {
        "model": ["NotFoundError", 404, kind, "model", "model_not_found"],
        "temperature": ["BadRequestError", 400, kind, "temperature", None],
        "messages": ["BadRequestError", 400, kind, "messages", None],
    }
    assert got["broken_stream"] == [["Deep"], "it broke"]


async def test_llm_apis_client_for_langchain_gets_all_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Able([WORDS])
    got = await used(monkeypatch, "langchain_llm_api_0_0_1", "langchain_llm_api", server)
    # It takes the answer as it is: a JSON string, with its quotes.
    assert got["plain"] == f'"{ANSWER}"'
    assert got["stopped"] == '"Deep learning is"'
    assert got["streamed"] == [ANSWER, WORDS]
    assert got["embeddings"] == [[1.0, 1.0], [[1.0, 1.0], [1.0, 3.0]]]
    assert [prompt for prompt, _, _ in server.asked] == ["What is the capital of France?"] * 3
    assert {(sampling.max_tokens, sampling.temperature) for _, sampling, _ in server.asked} == {(300, 0.2)}
