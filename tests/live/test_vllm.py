"""What only a real vLLM shows: its prefix cache, and documents in the chat template of its model."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from comps.core.types import JSON, Message
from comps.model_servers import open_model_server
from comps.model_servers.remote.vllm import VLLM
from comps.model_servers.target import Target
from tests.live.conftest import Running
from tests.live.servers import NAME
from tests.service import Service, running

pytestmark = [pytest.mark.live, pytest.mark.xdist_group("live")]

DOCUMENTS = [
    {
        "title": f"Lighthouse {number}",
        "text": f"Keeper {number} wrote down every ship that came by night." + " And by day." * 10,
    }
    for number in range(1, 7)
]


@asynccontextmanager
async def service_over(
    vllm: Running, monkeypatch: pytest.MonkeyPatch, framework: str, **environment: str
) -> AsyncIterator[Service]:
    usual = {"MODEL_SERVER": "vllm", "LLM_MODEL_SERVER_ENDPOINT": vllm.url, "LLM_NAME": NAME, "FRAMEWORK": framework}
    server = await asyncio.to_thread(open_model_server, "vllm", Target(NAME, vllm.url))
    async with running(server, monkeypatch, {**usual, **environment}) as service:
        yield service


async def asked(service: Service, question: str, **more: JSON) -> Any:
    body = {"messages": question, "documents": DOCUMENTS, "max_tokens": 2, "include_report": True, **more}
    answer = await service.post(body)
    assert answer.status == 200, answer.body
    return answer.json


def counter(vllm: Running, name: str) -> float:
    """A counter of vLLM's, over all that it has done."""
    with urllib.request.urlopen(f"{vllm.url}/metrics", timeout=20) as said:
        return sum(map(float, re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", said.read().decode(), re.MULTILINE)))


async def test_a_second_question_over_the_same_documents_finds_them_in_the_prefix_cache(
    running_server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service_over(running_server, monkeypatch, "native") as service:
        await asked(service, "Which ship came first?")
        before = counter(running_server, "prefix_cache_hits_total")
        second = await asked(service, "Who kept the third one?")
        hits = counter(running_server, "prefix_cache_hits_total") - before
    tokens = second["usage"]["prompt_tokens"]
    print(f"\n{hits:.0f} of {tokens} tokens of the second prompt were in vLLM's prefix cache")
    # It keeps whole blocks.
    assert tokens - hits < 2 * 128


@pytest.mark.parametrize("framework", ["native", "langchain"])
async def test_documents_are_written_down_by_the_models_own_chat_template(
    running_server: Running, monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    async with service_over(running_server, monkeypatch, framework, LLM_NATIVE_DOCUMENTS="true") as service:
        said = await asked(service, "Who kept the third one?")
        long = await asked(service, "Who kept the third one?", documents=DOCUMENTS * 10, max_tokens=200)
    assert said["report"]["native"]
    vllm = VLLM(NAME, running_server.url)
    beside = [{"doc_id": str(number), **document} for number, document in enumerate(DOCUMENTS, 1)]
    prompt = (Message("user", "Who kept the third one?"),)
    assert said["usage"]["prompt_tokens"] == await vllm.count_prompt(prompt, {"documents": beside})
    await vllm.aclose()
    report = long["report"]
    assert long["usage"]["prompt_tokens"] == report["prompt_tokens"]
    assert report["prompt_tokens"] + report["max_tokens"] <= running_server.server.window
    assert {use["fate"] for use in report["documents"]} >= {"kept", "dropped"}
