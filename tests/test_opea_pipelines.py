"""OPEA's orchestrator, unmodified and in an environment of its own, with the pipelines of its examples in front of the
running service, natively and through LangChain, for both generations of the wire."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import pytest

from tests.clients import is_installed, use
from tests.service import Able, running

pytestmark = pytest.mark.xdist_group("opea_pipelines")

WORDS = ["Deep", " learning", " isn't", ' "magic".\n', "深度学习"]
ANSWER = "".join(WORDS)
WIRES: dict[str, dict[str, str]] = {
    "earlier": {"LLM_OPEA_STREAM": "bytes", "LLM_STRING_MESSAGES": "messages"},
    "later": {"LLM_OPEA_STREAM": "text_completion", "LLM_STRING_MESSAGES": "query"},
    "chunks": {"LLM_OPEA_STREAM": "openai", "LLM_STRING_MESSAGES": "query"},
}
"""Settings: the defaults, those for GenAIComps 1.3 and later, and those for DocSum in front of this service."""


class Got(NamedTuple):
    """What the pipelines got of one service, and what its model server was asked."""

    answers: dict[str, Any]
    prompts: list[str]


@pytest.fixture(scope="module")
def got() -> dict[tuple[str, str], Got]:
    """By framework and wire."""
    if not is_installed("opea_comps", "comps"):
        version = ".".join(map(str, sys.version_info[:2]))
        pytest.skip(
            f"opea_comps is not installed: `make test` does it, unless it is not to be had for Python {version}"
        )
    with pytest.MonkeyPatch.context() as monkeypatch:
        return asyncio.run(collected(monkeypatch))


async def collected(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], Got]:
    served = {}
    async with AsyncExitStack() as stack:
        for framework in ("native", "langchain"):
            for wire, settings in WIRES.items():
                server = Able([WORDS])
                settings = {"FRAMEWORK": framework, **settings}
                service = await stack.enter_async_context(running(server, monkeypatch, settings))
                served[framework, wire] = service.url, server
        answers = await asyncio.to_thread(use, "opea_comps", *(url for url, _ in served.values()))
    return {key: Got(answers[url], list(map(asked, server.asked))) for key, (url, server) in served.items()}


def asked(call: Any) -> str:
    prompt, _, _ = call
    return str(prompt[-1].content)


# What user interfaces read of a stream.


def data_of(pieces: Sequence[str]) -> Iterator[str]:
    """The data of each event, up to the mark of the end, which must be there."""
    *events, end = ["".join(line[6:] for line in event.splitlines()) for event in "".join(pieces).split("\n\n")[:-1]]
    assert end == "[DONE]"
    return iter(events)


def read_by_chatqna(pieces: Sequence[str]) -> str:
    """ChatQnA's and DocSum's user interfaces, and all of the first generation: bytes as Python writes them."""
    text = ""
    for data in data_of(pieces):
        assert data.startswith("b")
        piece = data[2:-1]
        if re.search(r"\\x[0-9A-Fa-f]{2}", piece):
            piece = bytes(int(byte, 16) for byte in piece.split("\\x")[1:]).decode()
        text += piece.replace("\\n", "\n")
    return text


def read_by_searchqna(pieces: Sequence[str]) -> str:
    """SearchQnA's, Translation's and CodeTrans's user interfaces: each event has a choice with a text."""
    return "".join(json.loads(data)["choices"][0]["text"] for data in data_of(pieces))


def read_by_codegen(pieces: Sequence[str]) -> str:
    """CodeGen's user interface, which takes either generation's chunks."""
    choices = [json.loads(data)["choices"][0] for data in data_of(pieces)]
    return "".join(choice.get("delta", {}).get("content") or choice.get("text") or "" for choice in choices)


READ = {
    "chatqna": (WIRES, read_by_chatqna),
    "chatqna_without_rerank": (WIRES, read_by_chatqna),
    "codegen": (WIRES, read_by_codegen),
    "searchqna": ("later", read_by_searchqna),
    "translation": ("later", read_by_searchqna),
    "objects": ("later", read_by_searchqna),
    "docsum": ("chunks", read_by_chatqna),
}
"""By pipeline: the wires that it works with, and how its user interface reads a stream."""
EACH = [
    pytest.param(pipeline, wire, id=f"{pipeline}-{wire}")
    for pipeline, (wires, _) in READ.items()
    for wire in ([wires] if isinstance(wires, str) else wires)
]
FRAMEWORKS = pytest.mark.parametrize("framework", ["native", "langchain"])


@FRAMEWORKS
@pytest.mark.parametrize(("pipeline", "wire"), EACH)
def test_a_pipeline_gets_the_answer_streamed_and_whole(
    got: Mapping[tuple[str, str], Got], framework: str, pipeline: str, wire: str
) -> None:
    answers = got[framework, wire].answers
    whole = answers[f"{pipeline} whole"]
    assert (whole["text"] if pipeline == "objects" else whole) == ANSWER
    assert READ[pipeline][1](answers[f"{pipeline} streamed"]) == ANSWER


@FRAMEWORKS
@pytest.mark.parametrize("pipeline", ["searchqna", "translation"])
def test_user_interfaces_of_the_first_generation_read_the_stream_as_ever(
    got: Mapping[tuple[str, str], Got], framework: str, pipeline: str
) -> None:
    answers = got[framework, "earlier"].answers
    assert read_by_chatqna(answers[f"{pipeline} streamed"]) == ANSWER
    assert answers[f"{pipeline} whole"] == ANSWER


@FRAMEWORKS
@pytest.mark.parametrize("wire", WIRES)
def test_each_document_is_in_the_prompt_once_however_often_a_pipeline_sends_it(
    got: Mapping[tuple[str, str], Got], framework: str, wire: str
) -> None:
    prompts = got[framework, wire].prompts
    found = ["Bread is made of flour.", "Deep learning is fun.", "Gaudi 2 has 96 GB."]
    counts = [tuple(prompt.count(text) for text in found) for prompt in prompts]
    reranked, retrieved, none = (0, 1, 0), (1, 1, 1), (0, 0, 0)
    # Of ChatQnA, ChatQnA without a reranker, SearchQnA, Translation, CodeGen, DocSum and the objects: whole, streamed.
    expected = [reranked, retrieved, reranked, none, none, none, reranked]
    assert counts == [count for count in expected for _ in range(2)]
