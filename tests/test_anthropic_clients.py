"""Anthropic's SDKs and LangChain's ChatAnthropic, unmodified and in environments of their own, against the service."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import pytest

from comps.core.errors import ModelServerError
from comps.core.ports import Answer
from comps.core.types import JSON, Finished, ModelInfo, Prompt, Sampling, TextDelta, Usage
from tests.clients import is_installed, use
from tests.process import ROOT
from tests.service import Able, running

MOVING = ROOT / "docs" / "moving.md"
WORDS = ["Deep", " learning", " is", " fun."]
ANSWER = "".join(WORDS)
GREEN = "The grass is green."
CALL = [
    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city"'}},
    {"index": 0, "function": {"arguments": ': "Paris"}'}},
]


class Answering(Able):
    """A model server that breaks off, thinks, calls a tool or answers from documents, by what it is asked."""

    async def describe(self) -> ModelInfo:
        fields = ("max_tokens", "stop", "temperature", "tools", "tool_choice", "messages.*")
        return ModelInfo("scripted", None, frozenset(fields))

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        assert not isinstance(prompt, str)
        role, question = prompt[-1].role, str(prompt[-1].content)
        if question == "break":
            answer.text("Deep")
            raise ModelServerError("it broke")
        if question == "think":
            answer.delta(TextDelta("", extra={"reasoning_content": "Hm."}))
        if role == "user" and "tools" in options:
            for piece in CALL:
                answer.delta(TextDelta("", extra={"tool_calls": [piece]}))
            answer.finished(Finished("tool_calls", Usage(7, 2)))
            return
        if role == "tool":
            answer.text(f"It is {question}.")
        elif "Of colours." in question:
            for text in ("Well. The", " grass is", " green.", " Yes"):
                answer.text(text)
        else:
            await super().generate(prompt, sampling, options, answer)
            return
        answer.finished(Finished("stop", Usage(7, 4)))


async def used(monkeypatch: pytest.MonkeyPatch, client: str, package: str, example: str = "") -> dict[str, Any]:
    """What a client gets from the service, and what it prints in an example."""
    if not is_installed(client, package):
        pytest.skip(f"{client} is not installed: `make test` does it, where it can be had")
    environment = {"LLM_DIALECTS": "anthropic,openai", "USVC_API_KEYS": "web=s3cret"}
    async with running(Answering([WORDS]), monkeypatch, environment) as service:
        ours = example.replace("http://localhost:9000", service.url).replace("none", "s3cret")
        return await asyncio.to_thread(use, client, service.url, ours)


def text(said: str, **fields: JSON) -> JSON:
    return {"type": "text", "text": said, **fields}


USE = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}}
CITATION = {
    "type": "char_location",
    "cited_text": GREEN,
    "document_index": 0,
    "document_title": "Colours",
    "start_char_index": 12,
    "end_char_index": 31,
}
CITED = [text("Well."), text(f" {GREEN}", citations=[CITATION]), text(" Yes")]
THOUGHT = [{"type": "thinking", "thinking": "Hm.", "signature": ""}, text(ANSWER)]


async def test_anthropics_sdk_and_langchain_get_all_that_they_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"^```py\n(import anthropic\n.*?)^```", MOVING.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    got = await used(monkeypatch, "anthropic_clients", "anthropic", example)
    kind, role, content, reason, usage, length = got["whole"]
    assert (kind, role, content, reason, length) == ("message", "assistant", [text(ANSWER)], "end_turn", 32)
    assert (usage["input_tokens"], usage["output_tokens"]) == (3, 4)
    assert got["stopped"] == [[text("Deep learning")], "stop_sequence", " is"]
    assert got["streamed"] == [WORDS, [text(ANSWER)], "end_turn", 4, 32]
    assert got["thought"] == [THOUGHT, True, THOUGHT]
    assert got["tools"] == ["tool_use", [USE], [USE], [text("It is rain.")], "end_turn"]
    assert got["citations"] == [CITED, CITED, 1]
    unknown = "model: 'other' is not served here; known: scripted"
    assert got["errors"]["model"] == ["NotFoundError", 404, "not_found_error", unknown, True]
    assert got["errors"]["body"][:3] == ["BadRequestError", 400, "invalid_request_error"]
    assert got["errors"]["key"][:3] == ["AuthenticationError", 401, "authentication_error"]
    assert got["errors"]["server"] == ["InternalServerError", 502, "api_error", "it broke", True]
    assert got["errors"]["stream"] == ["APIStatusError", 200, "api_error", "it broke", True]
    assert got["errors"]["unknown"] == ["NotFoundError", 404, "not_found_error", unknown, True]
    assert got["errors"]["no_key"][:3] == ["AuthenticationError", 401, "authentication_error"]
    assert got["models"] == [["scripted"], "scripted", "scripted", 1970, None]
    assert got["counted"][0]
    langchain = got["langchain"]
    assert langchain["whole"][0] == ANSWER
    assert langchain["whole"][1]["total_tokens"] == 5
    assert langchain["streamed"] == [ANSWER, len(WORDS)]
    assert langchain["calls"] == [[["weather", {"city": "Paris"}]]] * 2
    assert langchain["told"] == "It is rain."
    for blocks in langchain["citations"]:
        assert [block["text"] for block in blocks] == [block["text"] for block in CITED]
        assert [block["citations"][0]["cited_text"] for block in blocks if block.get("citations")] == [GREEN]
    assert langchain["error"][1:4] == [502, "api_error", "it broke"]
    assert langchain["tokens"] == got["counted"][1] > 0
    assert got["documented"] == f"{ANSWER} []\n"


async def test_anthropics_sdk_for_javascript_gets_all_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    got = await used(monkeypatch, "anthropic_sdk", "@anthropic-ai")
    assert got["whole"] == [[text(ANSWER)], "end_turn", 32]
    assert got["streamed"] == [WORDS, [text(ANSWER)], "end_turn"]
    assert got["thought"] == THOUGHT
    assert got["calls"] == [[USE], [USE]]
    assert got["citations"] == [CITED, CITED]
    assert got["errors"][0] == ["NotFoundError", 404, "not_found_error"]
    assert got["errors"][1][2] == "api_error"
    assert got["counted"] > 0
    assert got["models"] == [["scripted"], "scripted"]
