"""Clients of Cohere's API, unmodified and in environments of their own, against the running service."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from comps.core.errors import ModelServerError
from comps.core.ports import Answer
from comps.core.types import JSON, Finished, ModelInfo, Prompt, Sampling, TextDelta, Usage
from tests.service import Able
from tests.test_pinned_clients import used

WORDS = ["Emperor penguins", " live in", " Antarctica."]
ANSWER = "".join(WORDS)
LOGPROBS: JSON = {"content": [{"token": word, "logprob": -0.5, "bytes": None, "top_logprobs": []} for word in WORDS]}
CALL = (
    {"index": 0, "id": "find_1", "type": "function", "function": {"name": "find", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"bird": '}},
    {"index": 0, "function": {"arguments": '"penguin"}'}},
)
EVERYTHING = ModelInfo(
    "scripted",
    4096,
    frozenset((*Sampling.__dataclass_fields__, "tools", "tool_choice", "response_format", "logprobs", "messages.*")),
)


class Versatile(Able):
    """A model server that calls a tool, makes JSON, breaks off, does not count or answers, by what it is asked."""

    async def describe(self) -> ModelInfo:
        return EVERYTHING

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        self.asked.append((prompt, sampling, options))
        last = prompt[-1]
        assert not isinstance(last, str)
        reason = "stop"
        if options.get("tools") and last.role != "tool":
            answer.delta(TextDelta("", extra={"reasoning_content": "I look."}))
            for piece in CALL:
                answer.delta(TextDelta("", extra={"tool_calls": [piece]}))
            reason = "tool_calls"
        elif "response_format" in options:
            answer.text('{"city": "Paris"}')
        else:
            for word in WORDS:
                answer.text(word)
                if last.content == "break":
                    raise ModelServerError("it broke")
            if options.get("logprobs"):
                answer.delta(TextDelta("", extra={"logprobs": LOGPROBS}))
        answer.finished(Finished(reason, None if last.content == "uncounted" else Usage(7, 3)))


ONLY = {"LLM_DIALECTS": "cohere"}
CITED = "Emperor penguins live in Antarctica."
BEGUN, ENDED = ["message-start", "content-start", "content-delta"], ["content-end", "message-end"]


async def test_coheres_sdk_gets_all_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    got = await used(monkeypatch, "cohere_7_3_1", "cohere", Versatile(), ONLY)
    assert got["chat"] == ["assistant", [["text", ANSWER]], "COMPLETE", [7, 3]]
    assert got["chat_stream"] == [BEGUN + ENDED, WORDS, "COMPLETE", [7, 3]]
    document = {"id": "100", "title": "Penguins", "snippet": CITED}
    cited = [[0, 36, ANSWER, "TEXT_CONTENT", [{"type": "document", "id": "100", "document": document}]]]
    assert got["documents"] == cited
    assert got["documents_stream"] == [[*BEGUN, "citation-start", "citation-end", *ENDED], cited]
    source = {"type": "tool", "id": "find_1:0", "tool_output": {"text": CITED}}
    from_tool = [[0, 36, ANSWER, "TEXT_CONTENT", [source]]]
    assert got["tools"] == ["TOOL_CALL", [["thinking", "I look."]], "find", '{"bird": "penguin"}', from_tool]
    kinds = [*BEGUN, "content-end", "tool-call-start", "tool-call-delta", "tool-call-end", "message-end"]
    assert got["tools_stream"] == [kinds, "find", "find_1", '{"bird": "penguin"}', "TOOL_CALL"]
    assert got["structured"] == [["text", '{"city": "Paris"}']]
    assert got["logprobs"] == [[word, [-0.5]] for word in WORDS]
    assert got["embed"] == [[[1, 1], [1, 3]], ["AACAPwAAgD8=", "AACAPwAAQEA="], ["a", "bcd"], 4, [[1, 1]]]
    assert got["tokenize"] == [[0xE9, 0x20, 0x62], ["é", " ", "b"], "1"]
    assert got["documented"] == [[ANSWER], [ANSWER, ["birds"]]]
    assert got["models"] == ["scripted", ["chat"], "scripted"]
    assert got["errors"] == {
        "model": ["NotFoundError", 404, "model", True],
        "temperature": ["UnprocessableEntityError", 422, "temperature", True],
        "messages": ["UnprocessableEntityError", 422, "messages", True],
        "tool_choice": ["BadRequestError", 400, "tool_choice", True],
    }
    assert got["broken_stream"] == [[*BEGUN, "message-end"], "ERROR", "it broke"]
    several = [*BEGUN, "citation-start", "citation-end", *ENDED]
    assert got["from_several_tasks"] == [[["text", ANSWER]], 1, several, [[1, 1]]]


async def test_langchains_client_of_cohere_gets_all_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Versatile()
    got = await used(monkeypatch, "langchain_cohere_0_6_0", "langchain_cohere", server, ONLY)
    usage = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
    assert got["invoke"] == ["scripted", ANSWER, "COMPLETE", usage]
    assert got["stream"] == [WORDS, "COMPLETE"]
    assert got["uncounted"] == [ANSWER, None, [WORDS, "COMPLETE"]]
    assert got["documents"] == [[ANSWER, ["100"]]]
    assert got["tools"] == ["find", {"bird": "penguin"}, ANSWER, 1]
    assert got["structured"] == {"city": "Paris"}
    assert got["concurrently"] == [ANSWER, [WORDS, "COMPLETE"]]
    assert got["embeddings"] == [[[1, 1], [1, 3]], [1, 1]]
    assert got["errors"] == ["NotFoundError", 404]
    assert (server.asked[0][1].temperature, server.asked[0][1].stop) == (0.3, ("END",))


async def test_coheres_sdk_for_javascript_gets_all_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    got = await used(monkeypatch, "cohere_ai", "cohere-ai", Versatile(), ONLY)
    cited = [[0, 36, ANSWER, ["100"]]]
    assert got["whole"] == [
        [{"type": "text", "text": ANSWER}],
        "COMPLETE",
        {"inputTokens": 7, "outputTokens": 3},
        cited,
    ]
    assert got["streamed"] == [[*BEGUN, "citation-start", "citation-end", *ENDED], WORDS, cited, "COMPLETE"]
    function = {"name": "find", "arguments": '{"bird": "penguin"}'}
    called = [{"id": "find_1", "type": "function", "function": function}]
    assert got["called"] == [[{"type": "thinking", "thinking": "I look."}], called, "TOOL_CALL"]
    assert got["calling"] == ["find", '{"bird": "penguin"}', "TOOL_CALL"]
    assert got["broken"] == [[*BEGUN, "message-end"], "ERROR", "it broke"]
    assert got["embedded"] == [[1, 1]]
    assert got["error"] == ["NotFoundError", 404, "model: 'command-a-03-2025' is not served here; known: scripted"]
