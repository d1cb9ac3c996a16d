"""More documents than the model can read: the bundled model answers, and the report adds up to the token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from comps.core.ports import Answer
from comps.core.types import JSON, ModelInfo, Prompt, Sampling
from comps.model_servers.embedded.openvino import OpenVINO
from tests.service import running

pytestmark = pytest.mark.xdist_group("engine")

WINDOW = 1536


class Narrow:
    """The bundled model, as one with a small window: nothing longer ever reaches it."""

    def __init__(self, engine: OpenVINO) -> None:
        self._engine = engine
        self.asked: list[tuple[Prompt, Sampling]] = []
        self.count_tokens = engine.count_tokens
        self.count_prompt = engine.count_prompt

    async def describe(self) -> ModelInfo:
        return replace(await self._engine.describe(), context_window=WINDOW)

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        self.asked.append((prompt, sampling))
        await self._engine.generate(prompt, replace(sampling, max_tokens=2), options, answer)

    async def aclose(self) -> None:
        pass


def document(number: int) -> str:
    """300 words, in sentences of ten."""
    sentence = f"In the harbour {number} sailors counted the ships before dawn."
    return " ".join([sentence] * 30)


def added_up(report: dict[str, Any], prompt_tokens: int) -> None:
    parts = (report["documents_tokens"], report["history_tokens"], report["question_tokens"])
    assert sum(parts) == report["prompt_tokens"] == prompt_tokens
    assert sum(use["tokens_used"] for use in report["documents"]) == report["documents_tokens"]
    assert report["prompt_tokens"] + report["max_tokens"] + report["headroom"] == WINDOW == report["context_window"]
    assert report["headroom"] >= 0


async def test_forty_documents_of_300_words_get_an_answer_and_a_report_that_adds_up_to_the_token(
    engine: OpenVINO, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Narrow(engine)
    said = [{"role": role, "content": "We spoke of ships."} for role in ("user", "assistant")] * 3
    body = {
        "messages": [*said, {"role": "user", "content": "Who counted the ships?"}],
        "documents": [document(number) for number in range(1, 41)],
        "max_tokens": 1024,
        "include_report": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with running(server, monkeypatch) as service:
        answer = await service.post(body)
    assert answer.status == 200
    chunks = [json.loads(line[6:]) for line in answer.body.decode().splitlines() if line.startswith("data: {")]
    (report,) = [chunk["report"] for chunk in chunks if "report" in chunk]
    added_up(report, next(chunk["usage"]["prompt_tokens"] for chunk in chunks if chunk.get("usage")))
    fates = [use["fate"] for use in report["documents"]]
    assert len(fates) == 40
    assert fates == sorted(fates, key=["kept", "cut", "dropped"].index)
    assert fates.count("kept") >= 3
    used = [str(use["number"]) for use in report["documents"] if use["fate"] != "dropped"]
    assert answer.headers["x-documents-used"] == ",".join(used)
    assert server.asked[0][1].max_tokens == report["max_tokens"] >= 256
