"""Ollama's clients, unmodified, against the running service: its libraries, LangChain's classes, and Open WebUI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest

from comps.core.errors import ModelServerError
from comps.core.ports import Answer
from comps.core.types import JSON, Finished, ModelInfo, Prompt, Sampling, TextDelta, Usage
from tests.service import Able, running
from tests.test_pinned_clients import used

WORDS = ["Deep", " learning", " is", " fun."]
ANSWER = "".join(WORDS)
ONLY = {"LLM_DIALECTS": "ollama"}
CALL = {"index": 0, "id": "call_0", "type": "function", "function": {"name": "weather", "arguments": '{"city":'}}
CAPABILITIES = ("max_tokens", "stop", "tools", "response_format", "chat_template_kwargs", "messages.*")


class Playing(Able):
    """A model server that calls a tool, fills in a schema or breaks off if it is asked to."""

    async def describe(self) -> ModelInfo:
        return ModelInfo("scripted", 4096, frozenset(CAPABILITIES))

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        last = "" if isinstance(prompt, str) else prompt[-1].content
        if last == "call" and options.get("tools"):
            answer.delta(TextDelta("", extra={"reasoning_content": "Look."}))
            answer.delta(TextDelta("", extra={"tool_calls": [CALL]}))
            answer.delta(TextDelta("", extra={"tool_calls": [{"index": 0, "function": {"arguments": ' "Paris"}'}}]}))
            answer.finished(Finished("tool_calls", Usage(3, 4)))
        elif last == "call":
            answer.delta(TextDelta("", extra={"reasoning_content": "Look."}))
            await super().generate(prompt, sampling, options, answer)
        elif last == "person":
            assert "json_schema" in options["response_format"]
            answer.text('{"name": "Jason", "age": 25}')
            answer.finished(Finished("stop", Usage(3, 4)))
        elif last == "break":
            answer.text("Deep")
            raise ModelServerError("it broke")
        else:
            await super().generate(prompt, sampling, options, answer)


async def test_ollamas_library_for_python_and_langchain_get_all_that_they_ask_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Playing([WORDS])
    got = await used(monkeypatch, "ollama_0_6_3", "langchain_ollama", server, ONLY)
    model = "scripted:latest"
    end = [model, "stop", 6, 4, True]
    assert got["chat"] == ["assistant", ANSWER, end, [*WORDS[:2], ""], [model, "length", 6, 2, True]]
    assert got["generate"] == [ANSWER, [model, "stop", 3, 4, True], [*WORDS, ""], ["load", "unload"]]
    assert got["asynchronous"] == [ANSWER, [*WORDS, ""], [pytest.approx([2**-0.5, 2**-0.5])]]
    assert got["images"] == ANSWER
    assert got["tools"] == ["Look.", [{"city": "Paris"}], "stop", ANSWER]
    assert got["schemas"] == {"name": "Jason", "age": 25}
    units = [pytest.approx([2**-0.5, 2**-0.5]), pytest.approx([0.1**0.5, 0.9**0.5])]
    assert got["embeddings"] == [units, 4, [1.0, 3.0]]
    assert got["models"] == [model, ["completion", "tools"], model, True]
    unknown = [404, "model 'other' not found: 'other' is not served here; known: scripted"]
    refused = [403, "models are not pulled, made or deleted here: the settings [Model] and [Model.<name>] choose them"]
    assert got["errors"] == {
        **dict.fromkeys(("model", "streamed", "show"), unknown),
        "options": [400, "options.temperature: Input should be greater than or equal to 0"],
        **dict.fromkeys(("pull", "delete", "create"), refused),
    }
    assert got["broken_stream"] == [["Deep"], "it broke"]
    assert got["documented"] == f"{ANSWER}\n"
    assert got["langchain"] == {
        "whole": ["Deep learning is", "length", 3],
        "streamed": [*WORDS[:3], "", ""],  # LangChain adds one of its own.
        "tools": [["weather", {"city": "Paris"}]],
        "after": "Deep learning is",
        "structured": {"name": "Jason", "age": 25},
        "thoughts": "Look.",
        "completed": [ANSWER, [*WORDS, ""]],
        "embedded": [units, units[1]],
    }
    assert got["langchain_errors"] == [unknown, [-1, "it broke"]]


async def test_ollamas_library_for_javascript_gets_all_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    got = await used(monkeypatch, "ollama_js", "ollama", Playing([WORDS]), ONLY)
    call = {"id": "call_0", "function": {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}}
    cited = {"start_index": 0, "end_index": len(ANSWER), "title": "", "number": 1, "matched_by": "words", "score": 1.0}
    assert got["chat"] == [ANSWER, "stop", 4, True]
    assert got["streamed"] == [*WORDS[:2], ""]
    assert got["cited"] == [[{"type": "document_citation", "document_citation": cited}]] * 2
    assert got["tools"] == [[call]] * 2
    assert got["generate"] == [*WORDS, ""]
    assert got["embed"][1] == 4
    assert got["models"] == ["scripted:latest", ["completion", "tools"], "scripted:latest"]
    assert got["errors"]["model"][:2] == ["ResponseError", 404]
    assert got["errors"]["pull"][:2] == ["ResponseError", 403]
    assert got["errors"]["broken"] == ["Error", None, "it broke"]


async def test_open_webui_lists_describes_asks_embeds_and_unloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests of its backend, and what it reads of the answers: `routers/ollama.py`, `utils/payload.py` and
    `utils/response.py` in https://github.com/open-webui/open-webui/tree/main/backend/open_webui."""
    call = {"index": 0, "id": "call_7", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    asked: dict[str, Any] = {
        "model": "scripted:latest",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is this?", "images": ["iVBORw0KGgo="]},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "It rains.", "tool_call_id": "call_7"},
        ],
        "stream": True,
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
        "num_predict": 7,
        "options": {"temperature": 0.5, "num_ctx": 2048, "mirostat": 1, "stop": ["\n\n"]},
        "keep_alive": "5m",
        "think": False,
    }
    server = Playing([WORDS])
    async with running(server, monkeypatch, ONLY) as service:
        version = (await service.get("/api/version")).json["version"]
        (listed,) = (await service.get("/api/tags")).json["models"]
        (loaded,) = (await service.get("/api/ps")).json["models"]
        shown = await service.post({"model": listed["model"], "name": listed["model"]}, "/api/show")
        stream = await service.post(asked, "/api/chat")
        whole = await service.post({**asked, "stream": False}, "/api/chat")
        embedded = await service.post(
            {"model": "scripted:latest", "input": ["a", "bcd"], "truncate": True}, "/api/embed"
        )
        unloaded = await service.post({"model": "scripted:latest", "keep_alive": 0, "prompt": ""}, "/api/generate")
    assert all(part.isdigit() for part in version.split("."))
    assert listed["model"] == loaded["name"] == "scripted:latest"
    assert datetime.fromisoformat(loaded["expires_at"].replace("Z", "+00:00")).timestamp() > 0
    assert shown.json["model_info"]["unknown.context_length"] == loaded["context_length"] == 4096
    assert stream.headers["content-type"] == "application/x-ndjson"
    *pieces, last = [json.loads(line) for line in stream.body.splitlines()]
    assert [piece["message"]["content"] for piece in pieces] == WORDS
    for end in (last, whole.json):
        assert (end["done"], end["prompt_eval_count"], end["eval_count"]) == (True, 7, 4)
        assert end["total_duration"] > end["eval_duration"] > 0
    assert whole.json["message"]["content"] == ANSWER
    ignored = ["num_predict", "options.temperature", "options.mirostat"]
    assert sorted(stream.headers["x-ignored-params"].split(", ")) == sorted(ignored)
    prompt, sampling, options = server.asked[0]
    assert not isinstance(prompt, str)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    assert prompt[1].content == [{"type": "text", "text": "What is this?"}, image]
    called = {"id": "call_7", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
    assert prompt[2].extra == {"tool_calls": [called]}
    assert prompt[3].extra == {"tool_call_id": "call_7"}
    assert sampling.stop == ("\n\n",)
    assert options == {"tools": asked["tools"], "chat_template_kwargs": {"enable_thinking": False}}
    assert len(embedded.json["embeddings"]) == 2
    assert embedded.headers["x-ignored-params"] == "truncate"
    assert unloaded.json["done_reason"] == "unload"
