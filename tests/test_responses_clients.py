"""Clients of OpenAI's Responses API, unmodified, against the running service: OpenAI's SDK, and LangChain's over it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, get_args

import httpx
import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

from comps.core.errors import LLMError, Overloaded, Unauthorized, Unreachable
from comps.model_servers import FRAMEWORKS, open_model_server
from comps.model_servers.scripted import Scripted
from comps.model_servers.target import Target
from tests.clients import is_installed, use
from tests.model_servers.replay import Replay, Reply, replaying, sse
from tests.service import PATH, CountingAlone, Service, running

WORDS = ["Deep", " learning", " is", " fun."]
DOCUMENTS = [
    {"text": "Gaudi 2 has 96 GB of memory.", "title": "Gaudi 2", "metadata": {"url": "http://a"}},
    "Bread is made of flour.",
]
CITING = ["Gaudi 2 has 96 GB of memory. ", "Bread is made of flour."]
CITED = {"documents": DOCUMENTS, "citations": "matched"}
ASKED: dict[str, Any] = {"model": "m", "input": "?"}


class Weather(BaseModel):
    """The weather in a city."""

    city: str
    degrees: int


def client(service: Service) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


@cache
def events_by_type() -> dict[str, type[BaseModel]]:
    """The SDK's class of each event."""
    union, _ = get_args(ResponseStreamEvent)
    return {get_args(one.model_fields["type"].annotation)[0]: one for one in get_args(union)}


def checked(event: Any) -> Any:
    """An event, as the SDK's own class reads it without any conversion."""
    return events_by_type()[event["type"]].model_validate(event, strict=True)


@asynccontextmanager
async def in_front_of(
    *replies: Reply, monkeypatch: pytest.MonkeyPatch, framework: str = "native"
) -> AsyncIterator[tuple[Service, Replay]]:
    """A service over a vLLM that gives the replies, one after the other."""
    answers: dict[str, Reply | list[Reply]] = {"/v1/models": Reply([b'{"data": []}']), PATH: list(replies)}
    async with replaying(answers) as replay:
        server = open_model_server("vllm", Target("m", replay.url))
        async with running(server, monkeypatch, {"LLM_NAME": "m", "FRAMEWORK": framework}) as service:
            yield service, replay


def streamed(*deltas: dict[str, Any], reason: str = "stop", **choice: Any) -> Reply:
    """A model server's stream."""
    pieces = [{"choices": [{"index": 0, "delta": delta, **choice}]} for delta in deltas]
    return sse(*pieces, {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})


CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris","degrees":9}'}}
CALLED = streamed({"content": "Wait."}, {"tool_calls": [{"index": 0, **CALL}]}, reason="tool_calls")
FILLED = streamed({"content": '{"city":"Rome",'}, {"content": '"degrees":3}'})
THOUGHT = streamed({"reasoning_content": "Hm"}, {"reasoning_content": "m."}, {"content": "Four."})
REFUSED = streamed({"content": "I"}, {"refusal": "No."})
LOGPROBS = {
    "content": [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "b", "logprob": -2}]}]
}
EVERYTHING: dict[str, Any] = {
    "instructions": "Be brief.",
    "tools": [{"type": "function", "name": "weather"}],
    "tool_choice": {"type": "function", "name": "weather"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "metadata": {"a": "b"},
    "user": "u",
    "top_logprobs": 1,
    "temperature": 0,
    "include_report": True,
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_every_event_and_every_whole_response_is_one_that_openais_types_allow(
    monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    probable = streamed({"content": "a"}, reason="length", logprobs=LOGPROBS)
    broken = Reply(streamed({"content": "a"}).pieces[:1], headers={"Content-Type": "text/event-stream"})
    cited = streamed({"content": "96 GB [1]. Flour [2]. [3]"})
    replies = [CALLED, THOUGHT, THOUGHT, FILLED, REFUSED, probable, cited, broken]
    kinds = set[str]()
    twice = [one for one in replies for _ in range(2)]
    async with in_front_of(*twice, monkeypatch=monkeypatch, framework=framework) as (service, _):
        for number, reply in enumerate(replies):
            body = {**ASKED, **(EVERYTHING if number % 2 else {}), "documents": DOCUMENTS, "citations": "on"}
            whole = await service.post(body, "/v1/responses")
            answer = await service.post({**body, "stream": True}, "/v1/responses")
            lines = [line for line in answer.body.decode().splitlines() if line.startswith("data: ")]
            events = [checked(json.loads(line[6:])) for line in lines]
            kinds.update(event.type for event in events)
            if reply is broken:
                assert whole.status == 502
                continue
            response = Response.model_validate(whole.json, strict=True)
            assert [item.type for item in response.output] == [item.type for item in events[-1].response.output]
            assert response.output_text == events[-1].response.output_text
    families = ("output_item", "content_part", "output_text", "refusal", "reasoning_text", "reasoning_summary")
    assert all(any(f".{family}" in kind for kind in kinds) for family in families), kinds
    ends = {"response.completed", "response.incomplete", "response.failed", "error"}
    assert ends | {"response.output_text.annotation.added", "response.function_call_arguments.done"} <= kinds


async def test_openais_sdk_creates_streams_and_is_told_of_ends_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: list[str | LLMError | asyncio.Event] = ["Deep", Unreachable("gone away")]
    server = Scripted([WORDS, WORDS, WORDS, broken, [Overloaded("full")], [Unauthorized("who")]])
    async with running(server, monkeypatch) as service, client(service) as sdk:
        whole = await sdk.responses.create(model="scripted", input="?")
        stream = await sdk.responses.create(model="scripted", input="?", stream=True, max_output_tokens=3)
        events = [event async for event in stream]
        async with sdk.responses.stream(model="scripted", input="?") as helped:
            snapshots = [event.snapshot async for event in helped if event.type == "response.output_text.delta"]
            final = await helped.get_final_response()
        stream = await sdk.responses.create(model="scripted", input="?", stream=True)
        seen: list[str] = []

        async def listen() -> None:
            async for event in stream:
                seen.append(event.type)

        with pytest.raises(openai.APIError, match="gone away"):
            await listen()
        for kind in (openai.RateLimitError, openai.AuthenticationError):
            with pytest.raises(kind):
                await sdk.responses.create(model="scripted", input="?", stream=kind is openai.AuthenticationError)
        with pytest.raises(openai.BadRequestError, match="not kept here") as kept:
            await sdk.responses.create(model="scripted", input="?", previous_response_id="resp_1")
        for ask in (sdk.responses.retrieve, sdk.responses.delete, sdk.responses.cancel, sdk.responses.input_items.list):
            with pytest.raises(openai.NotFoundError, match=f"no response '{whole.id}': responses are not kept here"):
                await ask(whole.id)
    assert (whole.output_text, whole.status, whole.model) == ("Deep learning is fun.", "completed", "scripted")
    assert whole.usage
    assert (whole.usage.output_tokens, whole.usage.total_tokens) == (4, 5)
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == WORDS[:3]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"
    assert snapshots[-1] == final.output_text == "Deep learning is fun."
    assert seen[-1] == "response.output_text.delta"
    assert kept.value.param == "previous_response_id"


async def test_openais_sdk_counts_the_tokens_of_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    tool: Any = {"type": "function", "name": "look", "parameters": {}, "strict": True}
    async with running(CountingAlone(), monkeypatch) as service, client(service) as sdk:
        plain = await sdk.responses.input_tokens.count(model="scripted", input="?")
        more = await sdk.responses.input_tokens.count(
            model="scripted", input=[{"role": "user", "content": "?"}], instructions="Be brief.", tools=[tool]
        )
        with pytest.raises(openai.BadRequestError, match="not kept here"):
            await sdk.responses.input_tokens.count(model="scripted", input="?", conversation="conv_1")
    assert plain.object == "response.input_tokens"
    assert more.input_tokens > plain.input_tokens + 50


async def test_openais_sdk_parses_has_a_function_called_and_sends_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    tool: Any = openai.pydantic_function_tool(Weather, name="weather")
    function: Any = {"type": "function", **tool["function"]}
    replies = [FILLED, FILLED, CALLED, CALLED, THOUGHT, streamed({"content": "9 degrees."})]
    async with in_front_of(*replies, monkeypatch=monkeypatch) as (service, replay), client(service) as sdk:
        parsed = await sdk.responses.parse(**ASKED, text_format=Weather)
        async with sdk.responses.stream(**ASKED, text_format=Weather) as stream:
            streamed_one = await stream.get_final_response()
        called = await sdk.responses.parse(**ASKED, tools=[tool])
        async with sdk.responses.stream(**ASKED, tools=[tool]) as stream:
            called_in_stream = await stream.get_final_response()
        thought = await sdk.responses.create(**ASKED)
        items: list[Any] = [{"role": "user", "content": "?"}, *thought.output, *called.output]
        items.append({"type": "function_call_output", "call_id": "c", "output": "9"})
        told = await sdk.responses.with_raw_response.create(model="m", input=items, tools=[function])
    assert parsed.output_parsed == streamed_one.output_parsed == Weather(city="Rome", degrees=3)
    for response in (called, called_in_stream):
        message, call = response.output
        assert (message.type, call.type, response.output_text) == ("message", "function_call", "Wait.")
        assert call.parsed_arguments == Weather(city="Paris", degrees=9)  # type: ignore[union-attr]
    asked = [body for path, _, body in replay.asked if path == PATH]
    assert asked[0]["response_format"]["json_schema"]["schema"]["properties"].keys() == {"city", "degrees"}
    assert asked[2]["tools"] == [tool]
    assert asked[-1]["messages"] == [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "Four.", "reasoning": "Hmm.", "reasoning_content": "Hmm."},
        {"role": "assistant", "content": "Wait.", "tool_calls": [CALL]},
        {"role": "tool", "content": "9", "tool_call_id": "c"},
    ]
    assert "x-ignored-params" not in told.headers


async def test_openais_sdk_gets_citations_and_reports_of_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {**CITED, "include_report": True}
    async with running(Scripted([CITING]), monkeypatch) as service, client(service) as sdk:
        whole = await sdk.responses.create(model="scripted", input="?", extra_body=extra)
        async with sdk.responses.stream(model="scripted", input="?", extra_body=extra) as stream:
            added = [event async for event in stream if event.type == "response.output_text.annotation.added"]
            final = await stream.get_final_response()
    for response in (whole, final):
        told = response.to_dict()
        output: Any = told["output"]
        url, file = output[0]["content"][0]["annotations"]
        assert response.output_text[url["start_index"] : url["end_index"]] == CITING[0].strip()
        assert (url["type"], url["url"], url["title"]) == ("url_citation", "http://a", "Gaudi 2")
        assert (file["type"], file["file_id"], file["filename"]) == ("file_citation", "document-2", "document-2")
        report: Any = told["report"]
        assert [one["fate"] for one in report["documents"]] == ["kept", "kept"]
    assert len(added) == 2


async def test_langchains_chat_model_asks_over_the_responses_api(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [streamed({"content": "".join(CITING)}), streamed(*({"content": text} for text in CITING))]
    replies = [*answers, CALLED, CALLED, FILLED, THOUGHT, streamed({"content": "9."})]
    async with in_front_of(*replies, monkeypatch=monkeypatch) as (service, replay), httpx.AsyncClient() as http:
        given: dict[str, Any] = {"base_url": f"{service.url}/v1", "api_key": "none", "http_async_client": http}
        chat = ChatOpenAI(**given, model="m", use_responses_api=True, max_retries=0)
        whole = await chat.ainvoke("?", extra_body=CITED)
        pieces = [piece async for piece in chat.astream("?", extra_body=CITED)]
        with_tools = chat.bind_tools([Weather])
        call = await with_tools.ainvoke("?")
        called: Any = None
        async for piece in with_tools.astream("?"):
            called = piece if called is None else called + piece
        weather = await chat.with_structured_output(Weather).ainvoke("?")
        thought = await chat.ainvoke("?", reasoning={"summary": "auto"})
        assert isinstance(call, AIMessage)
        told = await with_tools.ainvoke([HumanMessage("?"), call, ToolMessage("9", tool_call_id="c")])
        with pytest.raises(openai.BadRequestError, match="max_output_tokens"):
            await chat.ainvoke("?", max_tokens=0)
    assert whole.text == "".join(piece.text for piece in pieces) == "".join(CITING)
    cited = [one for block in whole.content if isinstance(block, dict) for one in block["annotations"]]
    assert [one["type"] for one in cited] == ["url_citation", "file_citation"]
    gathered: Any = sum((piece for piece in pieces[1:] if isinstance(piece, AIMessageChunk)), start=pieces[0])
    (block,) = gathered.content
    assert [one["type"] for one in block["annotations"]] == ["url_citation", "file_citation"]
    for message in (call, called):
        assert [(one["name"], one["args"]) for one in message.tool_calls] == [
            ("weather", {"city": "Paris", "degrees": 9})
        ]
        assert message.text == "Wait."
    assert weather == Weather(city="Rome", degrees=3)
    assert thought.content_blocks[0]["reasoning"] == "Hmm."  # type: ignore[typeddict-item]
    assert told.text == "9."
    roles = [(one["role"], one.get("tool_call_id")) for one in replay.asked[-1][2]["messages"]]
    assert roles == [("user", None), ("assistant", None), ("tool", "c")]


async def test_openais_library_for_node_and_the_ai_sdk_get_all_that_they_ask_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not is_installed("openai_node", "openai"):
        pytest.skip("openai_node is not installed: `make test` does it, where npm is")
    citing = streamed(*({"content": text} for text in CITING))
    broken = Reply(streamed({"content": "Deep"}).pieces[:1], headers={"Content-Type": "text/event-stream"})
    of_openai = [citing, citing, CALLED, FILLED, broken]
    of_the_ai_sdk = [citing, citing, FILLED, CALLED, streamed({"content": "It rains."}), CALLED, THOUGHT]
    of_the_ai_sdk += [CALLED, broken]
    async with in_front_of(*of_openai, *of_the_ai_sdk, monkeypatch=monkeypatch) as (service, replay):
        got = await asyncio.to_thread(use, "openai_node", service.url, json.dumps(CITED))
    cited = ["url_citation", "file_citation"]
    assert got["openai"] == {
        "whole": ["".join(CITING), cited],
        "stream": [CITING, cited],
        "call": ["Wait.", [None, {"city": "Paris", "degrees": 9}]],
        "parsed": {"city": "Rome", "degrees": 3},
        "kept": ["BadRequestError", 400, f"400 {NOT_KEPT}"],
        "broken": ["response.output_text.delta", ["APIError", None, BROKEN]],
    }
    sources = [["url", "http://a"], ["document", "document-2"]]
    name, status, message = got["ai"].pop("referring")
    assert (name, status) == ("APICallError", 400)
    assert "with store: false" in message
    assert got["ai"] == {
        "whole": ["".join(CITING), sources, "stop", None],
        "stream": [CITING, sources, "stop"],
        "object": {"city": "Rome", "degrees": 3},
        "loop": ["It rains.", [["It rains in Paris."], []]],
        "reasoning": ["Hmm.", "Four."],
        "streamedCall": ["Wait.", [{"city": "Paris", "degrees": 9}], "tool-calls"],
        "failures": [BROKEN],
    }
    results = [one for one in replay.asked if any(m["role"] == "tool" for m in (one[2] or {}).get("messages", ()))]
    assert [one[2]["messages"][-1]["content"] for one in results] == ["It rains in Paris."]


NOT_KEPT = "previous_response_id: responses are not kept here: send the items before in input"
BROKEN = "the model server broke off in the middle of the answer"
