"""Cohere's dialect: what its bodies mean, and the exact bytes of its answers."""

from __future__ import annotations

import json
import struct
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from comps.core.errors import ModelServerError, Timeout
from comps.core.types import (
    CALLS_ON_DEMAND,
    JSON,
    MANY,
    Document,
    Event,
    Finished,
    Generation,
    Message,
    ModelInfo,
    Report,
    Sampling,
    TextDelta,
    Usage,
)
from comps.dialects.cohere.dialect import cohere
from comps.dialects.shared.base import GenerationCall, Switches
from comps.dialects.shared.endpoint import Endpoint
from comps.model_servers.scripted import Scripted
from tests.dialects.written import METADATA, written
from tests.events import gathered, texts
from tests.service import Able, running

ERROR_SHAPES = [{"message", "id"}]
"""The keys of an error."""
CUT = (b"MAX_TOKENS", b"COMPLETE")
"""What a stream has that was cut short, and what only a complete one has."""
FUNCTION = {"name": "look", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "look_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
VALUES: dict[str, list[JSON]] = {
    "embedding_types": [["base64"], ["int8"]],
    "inputs": [[{"content": [{"type": "text", "text": "x"}]}]],
    "thinking": [{"type": "disabled"}],
    "tool_calls": [[CALL]],
}
TOGETHER: dict[str, dict[str, JSON]] = {
    "citation_options.mode": {"documents": ["Deep learning ."]},
    "documents.0.id": {"documents": [{"data": {"text": "Deep learning ."}}]},
    "response_format.json_schema": {"response_format": {"type": "json_object"}},
    "thinking.token_budget": {"thinking": {"type": "enabled"}},
}
SILENT = {"input_type": "the API demands it, and vectors are the same for all"}
ANYWAY: dict[str, list[JSON]] = {
    "k": [0],
    "mode": ["ENABLED", "FAST", "ACCURATE"],
    "output_dimension": [2],
    "priority": [0],
    "safety_mode": ["OFF"],
    "strict_tools": [False],
    "tool_choice": ["NONE"],
    "truncate": ["NONE"],
    "type": ["text", "enabled"],
}

ONLY = {"LLM_DIALECTS": "cohere"}
CHAT, EMBED = "/v2/chat", "/v2/embed"
ASKED = {"role": "user", "content": "Where do penguins live?"}
FACTS = [
    {"id": "100", "data": {"title": "Penguins", "text": "Emperor penguins live in Antarctica."}},
    {"data": {"author": "A. Smith", "snippet": "The tallest are emperor penguins.", "year": 2020}},
    "Paris is the capital of France.",
]
ALL = frozenset(
    (
        *Sampling.__dataclass_fields__,
        *("tools", "tool_choice", "response_format", "logprobs", "priority", "messages.*"),
        *("chat_template_kwargs", "thinking_token_budget"),
    )
)
"""What a model server may honour of all that this dialect asks for."""


def read(**fields: Any) -> GenerationCall:
    call = Endpoint(CHAT, [cohere(Switches())]).read(orjson.dumps({"messages": [ASKED], **fields}), {})
    assert isinstance(call, GenerationCall)
    return call


def events(call: GenerationCall, *given: Event) -> list[dict[str, Any]]:
    """The data of the streamed events, each of which has the name that is its type."""
    stream = b"".join(written(call, *given)).decode()
    *parts, done = stream.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    read = [(part.split("\n")[0], json.loads(part.split("\n")[1].removeprefix("data: "))) for part in parts]
    assert [name for name, _ in read] == [f"event: {data['type']}" for _, data in read]
    return [data for _, data in read]


def kinds(call: GenerationCall, *given: Event) -> list[str]:
    return [data["type"] for data in events(call, *given)]


def replied(call: GenerationCall, *given: Event) -> dict[str, Any]:
    answer: dict[str, Any] = call.reply([gathered(given)], METADATA)
    return answer


def calls(*pieces: Mapping[str, JSON]) -> TextDelta:
    return TextDelta("", extra={"tool_calls": list(pieces)})


# What a body asks of a model.


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([ASKED], [Message("user", "Where do penguins live?")]),
        (
            [{"role": "system", "content": [{"type": "text", "text": "Be"}, "brief."]}, ASKED],
            [Message("system", "Be\nbrief."), Message("user", "Where do penguins live?")],
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}]}],
            [Message("user", [{"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}])],
        ),
        (
            [
                ASKED,
                {"role": "assistant", "tool_plan": "I look.", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "look_1", "content": '{"where": "Antarctica"}'},
                {
                    "role": "tool",
                    "tool_call_id": "look_2",
                    "content": [{"type": "document", "document": {"data": {"where": "ö"}, "id": "9"}}, "More."],
                },
                {"role": "tool", "tool_call_id": "look_3", "content": ""},
            ],
            [
                Message("user", "Where do penguins live?"),
                Message("assistant", "I look.", {"tool_calls": [CALL]}),
                Message("tool", '{"where": "Antarctica"}', {"tool_call_id": "look_1"}),
                Message("tool", '{"where":"ö"}\nMore.', {"tool_call_id": "look_2"}),
                Message("tool", "", {"tool_call_id": "look_3"}),
            ],
        ),
        (
            [
                ASKED,
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "A"}],
                },
                {"role": "assistant", "content": "B", "citations": []},
            ],
            [
                Message("user", "Where do penguins live?"),
                Message("assistant", "A", {"reasoning_content": "Hm."}),
                Message("assistant", "B"),
            ],
        ),
    ],
)
def test_messages_reach_the_model_server_in_openais_form(messages: list[JSON], prompt: list[Message]) -> None:
    (request,) = read(messages=messages).requests()
    assert request.prompt == tuple(prompt)


def test_every_key_of_a_document_reaches_the_model() -> None:
    (request,) = read(
        documents=[
            *FACTS,
            {"data": {"text": "T", "title": 7, "of": {"a": ["b"]}}},
            {"data": {"temperature": "20C"}},
            {"data": {}},
        ]
    ).requests()
    assert request.documents == (
        Document("Emperor penguins live in Antarctica.", "Penguins"),
        Document("The tallest are emperor penguins.\nauthor: A. Smith\nyear: 2020"),
        Document("Paris is the capital of France."),
        Document('T\ntitle: 7\nof: {"a":["b"]}'),
        Document("temperature: 20C"),
        Document(""),
    )
    assert request.citations == "matched"
    assert read().requests()[0].documents is None
    assert read(documents=[]).requests()[0].documents == ()


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("fields", "sampling", "options"),
    [
        (
            {
                **{"max_tokens": 5, "temperature": 0, "seed": 1, "frequency_penalty": 0.5, "presence_penalty": 0.25},
                **{"k": 3, "p": 0.5, "stop_sequences": ["a", "", "b"]},
            },
            Sampling(5, 0, 0.5, 3, None, None, 0.5, 0.25, 1, ("a", "b")),
            {},
        ),
        ({"k": 0, "seed": 2**64 - 1}, Sampling(top_k=MANY, seed=2**63 - 1), {}),
        ({"tools": [TOOL], "tool_choice": "REQUIRED"}, Sampling(), {"tools": [TOOL], "tool_choice": "required"}),
        ({"tools": [TOOL], "tool_choice": "none"}, Sampling(), {"tools": [TOOL], "tool_choice": "none"}),
        (
            {"tools": [TOOL, {"type": "other"}], "strict_tools": True},
            Sampling(),
            {"tools": [{"type": "function", "function": {**FUNCTION, "strict": True}}, {"type": "other"}]},
        ),
        ({"response_format": {"type": "text"}, "logprobs": False, "priority": 0}, Sampling(), {}),
        ({"response_format": {"type": "json_object"}}, Sampling(), {"response_format": {"type": "json_object"}}),
        ({"response_format": {"type": "json_object", "json_schema": SCHEMA}}, Sampling(), {"response_format": FORM}),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Sampling(), {"response_format": FORM}),
        ({"logprobs": True, "priority": 7}, Sampling(), {"logprobs": True, "priority": 7}),
        ({"thinking": {"type": "disabled"}}, Sampling(), {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"thinking": {"type": "enabled", "token_budget": 9}}, Sampling(), {"thinking_token_budget": 9}),
    ],
)
def test_options_reach_the_model_server_by_the_names_that_it_knows(
    fields: dict[str, Any], sampling: Sampling, options: dict[str, Any]
) -> None:
    call = read(**fields)
    (request,) = call.requests()
    assert (request.sampling, request.options) == (sampling, options)
    assert call.ignored(ALL) == []
    lost = {name.partition(".")[0] for name in call.ignored(frozenset())}
    neutral = {"k"} if fields.get("k") == 0 else {"tool_choice"} if fields.get("tool_choice") == "none" else set()
    assert lost == (set(fields) - neutral if (options or sampling != Sampling()) else set())


@pytest.mark.parametrize(
    ("fields", "capabilities", "ignored"),
    [
        ({"safety_mode": "STRICT", "n": 2, "raw_prompting": None}, ALL, ["safety_mode", "n"]),
        ({"safety_mode": "OFF"}, ALL, []),
        ({"strict_tools": True}, ALL, ["strict_tools"]),
        ({"tools": [TOOL]}, {"tools", CALLS_ON_DEMAND}, ["tools"]),
        ({"tools": [TOOL], "tool_choice": "REQUIRED"}, {"tools", "tool_choice", CALLS_ON_DEMAND}, []),
        ({"citation_options": {"mode": "fast", "x": 1}}, ALL, ["citation_options.x"]),
        ({"thinking": {"type": "enabled", "x": 1}}, ALL, ["thinking.x"]),
        ({"documents": [{"data": {}, "x": 1}, {"data": {}, "x": 2}]}, ALL, ["documents.x"]),
        (
            {
                "messages": [
                    {**ASKED, "tool_plan": "a", "name": "b"},
                    {"role": "assistant", "content": [{"type": "text", "text": "a", "y": 1}], "citations": [{}]},
                    {
                        **{"role": "tool", "tool_call_id": "1"},
                        "content": [{"type": "document", "document": {"data": {}, "z": 1}}],
                    },
                ]
            },
            ALL,
            [
                *("messages.citations", "messages.content.document.z", "messages.content.y", "messages.name"),
                "messages.tool_plan",
            ],
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "thinking", "thinking": "a"}], "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "1", "content": "a"},
                ]
            },
            {"messages.tool_calls"},
            ["messages.content.thinking", "messages.tool_call_id"],
        ),
    ],
)
def test_what_has_no_effect_is_named(fields: dict[str, Any], capabilities: set[str], ignored: list[str]) -> None:
    assert read(**fields).ignored(capabilities) == ignored


# How it is answered.


async def test_an_answer_cites_the_callers_documents_by_their_own_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Ünder: emperor penguins live in Antarctica. Paris is the capital of France. Maybe."
    async with running(Scripted([[text[:20], text[20:]]]), monkeypatch, ONLY) as service:
        answer = await service.post({"messages": [ASKED], "documents": FACTS}, CHAT)
        streamed = await service.post({"messages": [ASKED], "documents": FACTS, "stream": True}, CHAT)
        without = [
            await service.post({"messages": [ASKED], "documents": FACTS, "citation_options": {"mode": mode}}, CHAT)
            for mode in ("OFF", "DISABLED")
        ]
    first = {"id": "100", "title": "Penguins", "text": "Emperor penguins live in Antarctica."}
    cited = [
        {
            "start": 0,
            "end": 43,
            "text": "Ünder: emperor penguins live in Antarctica.",
            "sources": [{"type": "document", "id": "100", "document": first}],
            "content_index": 0,
            "type": "TEXT_CONTENT",
        },
        {
            "start": 44,
            "end": 75,
            "text": "Paris is the capital of France.",
            "sources": [{"type": "document", "id": "doc:2", "document": {"id": "doc:2", "text": FACTS[2]}}],
            "content_index": 0,
            "type": "TEXT_CONTENT",
        },
    ]
    said = answer.json
    assert len(said.pop("id")) == 32
    usage = said.pop("usage")
    assert usage["billed_units"] == usage["tokens"] == {"input_tokens": 39, "output_tokens": 2}
    content = [{"type": "text", "text": text}]
    assert said == {
        "finish_reason": "COMPLETE",
        "message": {"role": "assistant", "content": content, "citations": cited},
    }
    assert answer.headers["x-documents-used"] == streamed.headers["x-documents-used"] == "1,2,3"
    started = [json.loads(part.partition(b"data: ")[2]) for part in streamed.chunks if b"citation-start" in part]
    assert [one["delta"]["message"]["citations"] for one in started] == cited
    assert [one["index"] for one in started] == [0, 1]
    assert all("citations" not in one.json["message"] for one in without)


async def test_a_stream_is_these_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([["Hel", "lö\n"], []]), monkeypatch, ONLY) as service:
        answer = await service.post({"messages": [ASKED], "stream": True}, CHAT)
        empty = await service.post({"messages": [ASKED], "stream": True}, CHAT)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    identity = answer.chunks[0].partition(b'"id":"')[2][:32]
    start = (
        b'event: message-start\ndata: {"type":"message-start","id":"%s","delta":{"message":{"role":"assistant"}}}\n\n'
    )
    begun = (
        b'event: content-start\ndata: {"type":"content-start","index":0,"delta":{"message":{"content":'
        b'{"type":"text","text":""}}}}\n\n'
    )
    piece = (
        b'event: content-delta\ndata: {"type":"content-delta","index":0,"delta":{"message":{"content":{"text":'
        b"%s}}}}\n\n"
    )
    end = (
        b'event: message-end\ndata: {"type":"message-end","id":"%s","delta":{"finish_reason":"COMPLETE","usage":'
        b'{"billed_units":{"input_tokens":4,"output_tokens":%d},"tokens":{"input_tokens":4,"output_tokens":%d}}}}\n\n'
    )
    ended = b'event: content-end\ndata: {"type":"content-end","index":0}\n\n'
    assert answer.chunks == [
        start % identity + begun + piece % b'"Hel"',
        piece % '"lö\\n"'.encode(),
        ended,
        end % (identity, 2, 2),
        b"data: [DONE]\n\n",
    ]
    identity = empty.chunks[0].partition(b'"id":"')[2][:32]
    assert empty.body == start % identity + begun + ended + end % (identity, 0, 0) + b"data: [DONE]\n\n"


async def test_it_answers_whole_if_a_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, {**ONLY, "LLM_DISABLE_STREAMING": "true"}) as service:
        answer = await service.post({"messages": [ASKED], "stream": True}, CHAT)
    assert answer.json["finish_reason"] == "COMPLETE"


THOUGHT = TextDelta("", extra={"reasoning_content": "Hm."})
END = Finished("tool_calls", Usage(3, 4, {"prompt_tokens_details": {"cached_tokens": 2}}))
PIECES = (
    calls({"index": 0, "id": "look_1", "type": "function", "function": {"name": "look", "arguments": ""}}),
    calls({"index": 0, "function": {"arguments": '{"a":'}}),
    calls({"index": 0, "function": {"arguments": "1}"}}, {"index": 1, "function": {"name": "go", "arguments": "{}"}}),
)


def test_thinking_a_text_and_tool_calls_in_pieces_are_events_in_their_order() -> None:
    call = read(tools=[TOOL], stream=True)
    got = events(call, THOUGHT, THOUGHT, TextDelta("I look."), *PIECES, END)
    thinking = {"message": {"content": {"thinking": "Hm."}}}
    assert got[1:] == [
        {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "thinking", "thinking": ""}}}},
        {"type": "content-delta", "index": 0, "delta": thinking},
        {"type": "content-delta", "index": 0, "delta": thinking},
        {"type": "content-end", "index": 0},
        {"type": "content-start", "index": 1, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
        {"type": "content-delta", "index": 1, "delta": {"message": {"content": {"text": "I look."}}}},
        {"type": "content-end", "index": 1},
        begun(0, "look_1", "look"),
        argued(0, '{"a":'),
        argued(0, "1}"),
        {"type": "tool-call-end", "index": 0},
        begun(1, "go_0123456789ab1", "go"),
        argued(1, "{}"),
        {"type": "tool-call-end", "index": 1},
        {
            "type": "message-end",
            "id": METADATA.id,
            "delta": {
                "finish_reason": "TOOL_CALL",
                "usage": {
                    "billed_units": {"input_tokens": 3, "output_tokens": 4},
                    "tokens": {"input_tokens": 3, "output_tokens": 4},
                    "cached_tokens": 2,
                },
            },
        },
    ]
    whole = replied(call, THOUGHT, TextDelta("I look."), *PIECES, END)
    assert whole["message"] == {
        "role": "assistant",
        "tool_plan": "I look.",
        "tool_calls": [
            {"id": "look_1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}},
            {"id": "go_0123456789ab1", "type": "function", "function": {"name": "go", "arguments": "{}"}},
        ],
        "content": [{"type": "thinking", "thinking": "Hm."}],
    }
    assert (whole["finish_reason"], whole["usage"]["cached_tokens"]) == ("TOOL_CALL", 2)


def piece(index: int, arguments: str, name: str | None = None) -> JSON:
    return {"index": index, "function": {"arguments": arguments, **({"name": name} if name else {})}}


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (  # The next one waits until the one before it has all arguments.
            ([(0, '{"a":', "look"), (1, '{"b":', "go")], [(0, "1}")], [(1, "2}")]),
            "start 0, 0 {'a':, 0 1}, end 0, start 1, 1 {'b':, 1 2}, end 1",
        ),
        (  # The names of all come first.
            ([(0, "", "look"), (1, "", "go"), (2, "", "see")], [(2, "{}")], [(1, "{}"), (0, "{}")]),
            "start 0, 0 {}, end 0, start 1, 1 {}, end 1, start 2, 2 {}, end 2",
        ),
        (  # Without all arguments, it waits for the end.
            ([(0, "{", "look"), (1, "{}", "go")], [(2, "{}", "see")]),
            "start 0, 0 {, end 0, start 1, 1 {}, end 1, start 2, 2 {}, end 2",
        ),
        (  # A text ends no call.
            ([(0, '{"a":', "look")], "Hm.", [(0, "1}")]),
            "start 0, 0 {'a':, content, 0 1}, end 0",
        ),
        ([[(0, "{}", "look")], [(1, "{}", "go")], [(0, " ")]], "start 0, 0 {}, end 0, start 1, 1 {}, end 1"),
    ],
    ids=["waits", "names_first", "never_whole", "text_between", "late_blank"],
)
def test_no_event_of_a_call_follows_its_end_however_calls_are_interleaved(pieces: Any, expected: str) -> None:
    given = [
        TextDelta(one) if isinstance(one, str) else calls(*(piece(*arguments) for arguments in one)) for one in pieces
    ]
    told = []
    for event in events(read(tools=[TOOL], stream=True), *given, Finished("tool_calls")):
        kind = event["type"].removeprefix("tool-call-")
        if kind == "delta":
            arguments = event["delta"]["message"]["tool_calls"]["function"]["arguments"]
            told.append(f"{event['index']} {arguments}".replace('"', "'"))
        elif kind in ("start", "end"):
            told.append(f"{kind} {event['index']}")
        elif kind == "content-delta":
            told.append("content")
    assert ", ".join(told) == expected


@pytest.mark.parametrize(
    "pieces",
    [
        (
            calls({"index": 0, "id": "look_1", "function": {"arguments": '{"a":'}}),
            calls({"index": 0, "function": {"name": "look"}}, {"index": 0}),
            calls({"index": 0, "function": {"arguments": "1}"}}),
        ),
        (TextDelta("", extra={"function_call": {"name": "look", "arguments": '{"a":1}'}}),),
    ],
    ids=["whose_name_comes_late", "in_the_older_form"],
)
def test_a_call_has_its_name_and_arguments_streamed_and_whole(pieces: tuple[TextDelta, ...]) -> None:
    call = read(tools=[TOOL], stream=True)
    given: tuple[Event, ...] = (*pieces, Finished("function_call"))
    _, start, *arguments, _, end = events(call, *given)
    whole = replied(call, *given)
    begun = start["delta"]["message"]["tool_calls"]["function"]
    said = "".join(one["delta"]["message"]["tool_calls"]["function"]["arguments"] for one in arguments)
    (told,) = whole["message"]["tool_calls"]
    assert (start["type"], begun["name"], said) == ("tool-call-start", "look", '{"a":1}')
    assert told["function"] == {"name": "look", "arguments": '{"a":1}'}
    assert end["delta"]["finish_reason"] == whole["finish_reason"] == "TOOL_CALL"


def test_a_call_without_any_name_is_told_all_the_same() -> None:
    given = (calls({"index": 0, "function": {"arguments": "{}"}}), Finished("tool_calls"))
    told = kinds(read(stream=True), *given)
    assert told[1:] == ["tool-call-start", "tool-call-delta", "tool-call-end", "message-end"]


def citing(start: int, end: int, number: int) -> TextDelta:
    """The annotation of a place in the text, which cites a document."""
    annotation = {"type": "x", "x": {"number": number, "start_index": start, "end_index": end}}
    return TextDelta("", extra={"annotations": [annotation]})


def cited(*given: TextDelta, **fields: Any) -> list[dict[str, Any]]:
    """The citations of a stream."""
    said = events(read(stream=True, **fields), *given, Finished("stop"))
    return [one["delta"]["message"]["citations"] for one in said if one["type"] == "citation-start"]


def test_a_citation_has_its_place_in_the_content_block_that_has_the_text() -> None:
    given = (TextDelta("One."), THOUGHT, TextDelta("Two"), TextDelta("."), citing(0, 4, 1), citing(4, 8, 2), THOUGHT)
    found = cited(*given, documents=FACTS)
    assert [(one["content_index"], one["start"], one["end"], one["text"]) for one in found] == [
        (0, 0, 4, "One."),
        (2, 0, 4, "Two."),
    ]


def test_a_long_document_is_written_once_and_then_named() -> None:
    data = {"text": "Bread is baked. " * 1000}
    given = (TextDelta("One. Two."), citing(0, 4, 1), citing(4, 9, 1), citing(4, 9, 2), citing(0, 4, 2))
    first, second, *short = [
        one["sources"] for one in cited(*given, documents=[{"id": "long", "data": data}, "Bread."])
    ]
    assert first == [{"type": "document", "id": "long", "document": {"id": "long", **data}}]
    assert second == [{"type": "document", "id": "long"}]
    assert short == 2 * [[{"type": "document", "id": "doc:1", "document": {"id": "doc:1", "text": "Bread."}}]]


def begun(index: int, identity: str, name: str) -> JSON:
    call = {"id": identity, "type": "function", "function": {"name": name, "arguments": ""}}
    return {"type": "tool-call-start", "index": index, "delta": {"message": {"tool_calls": call}}}


def argued(index: int, arguments: str) -> JSON:
    piece = {"function": {"arguments": arguments}}
    return {"type": "tool-call-delta", "index": index, "delta": {"message": {"tool_calls": piece}}}


def test_a_text_before_a_demanded_call_is_streamed_as_the_plan_for_it() -> None:
    call = read(tools=[TOOL], tool_choice="REQUIRED", stream=True)
    given = (TextDelta("I "), THOUGHT, TextDelta("look."), PIECES[0], Finished("stop"))
    call.answered_by(ModelInfo("x", capabilities=ALL))
    got = events(call, *given)
    plan = [data for data in got if data["type"] == "tool-plan-delta"]
    assert plan == [{"type": "tool-plan-delta", "delta": {"message": {"tool_plan": text}}} for text in ("I ", "look.")]
    assert [data["type"] for data in got] == [
        *("message-start", "tool-plan-delta", "content-start", "content-delta", "content-end", "tool-plan-delta"),
        *("tool-call-start", "tool-call-end", "message-end"),
    ]
    not_counted = {"billed_units": {"input_tokens": 0, "output_tokens": 0}}
    assert got[-1]["delta"] == {"finish_reason": "TOOL_CALL", "usage": not_counted}
    assert "usage" not in replied(call, *given)
    assert kinds(call, TextDelta("I"), Finished("stop")) == ["message-start", "tool-plan-delta", "message-end"]
    call.answered_by(ModelInfo("x", capabilities=frozenset({"tools"})))  # It demands none.
    assert "tool-plan-delta" not in kinds(call, *given)


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (Finished("stop"), "COMPLETE"),
        (Finished("stop", stop_string="###"), "STOP_SEQUENCE"),
        (Finished("length"), "MAX_TOKENS"),
        (Finished("content_filter"), "ERROR"),
        (Finished("abort"), "ERROR"),
    ],
)
def test_finish_reasons(end: Finished, told: str) -> None:
    given = (TextDelta("a"), end)
    assert replied(read(), *given)["finish_reason"] == told
    error = {"error": f"the model server says: {end.reason}"} if told == "ERROR" else {}
    delta = events(read(stream=True), *given)[-1]["delta"]
    assert delta.pop("usage")
    assert delta == {"finish_reason": told, **error}


def test_log_probabilities_are_beside_their_text() -> None:
    def logprobs(*tokens: str) -> JSON:
        return {"content": [{"token": token, "logprob": -0.5, "top_logprobs": []} for token in tokens]}

    given = (
        TextDelta("ab", extra={"logprobs": logprobs("a", "b")}),
        TextDelta("c", extra={"logprobs": logprobs("c")}),
        Finished("stop"),
    )
    items = [{"text": text, "token_ids": [], "logprobs": [-0.5]} for text in "abc"]
    whole = replied(read(logprobs=True), *given)
    assert (whole["logprobs"], whole["message"]["content"]) == (items, [{"type": "text", "text": "abc"}])
    deltas = [data for data in events(read(logprobs=True, stream=True), *given) if data["type"] == "content-delta"]
    assert [data["logprobs"] for data in deltas] == [
        {"text": "ab", "token_ids": [], "logprobs": [-0.5, -0.5]},
        items[2],
    ]


def test_a_refusal_is_shown_and_what_has_no_place_is_left_out() -> None:
    foreign: list[JSON] = [None, {"type": "url_citation", "url_citation": {}}, {"type": "x", "x": {"number": 1}}]
    odd = {"refusal": "No.", "audio": {"id": "x"}, "annotations": foreign}
    call = read(documents=FACTS, stream=True)
    given = (TextDelta("", extra=odd), Finished("stop"))
    assert replied(call, *given)["message"] == {"role": "assistant", "content": [{"type": "text", "text": "No."}]}
    assert events(call, *given)[2]["delta"]["message"]["content"] == {"text": "No."}
    both = (TextDelta("Well. ", extra={"refusal": "No."}), Finished("stop"))
    assert replied(call, *both)["message"]["content"] == [{"type": "text", "text": "Well. No."}]
    assert events(call, *both)[2]["delta"]["message"]["content"] == {"text": "Well. No."}
    alone = (THOUGHT, Finished("length"))
    assert replied(call, *alone)["message"]["content"] == [{"type": "thinking", "thinking": "Hm."}]
    assert kinds(call, *alone)[1:4] == ["content-start", "content-delta", "content-end"]
    tokens = {"content": [None, {}, {"token": "a", "logprob": None}, {"token": "a", "logprob": -1.0}]}
    wrong = TextDelta("", extra={"tool_calls": [None, {}], "logprobs": tokens, "reasoning": 5})
    assert kinds(call, wrong, Finished("stop")) == ["message-start", "tool-call-start", "tool-call-end", "message-end"]


async def test_results_of_tools_are_cited_where_the_conversation_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"title": "Penguins", "text": "Emperor penguins live in Antarctica."}
    results: list[JSON] = [
        {"type": "document", "document": {"data": {"text": "Paris is the capital of France."}, "id": "p"}},
        {"type": "document", "document": {"data": data}},
    ]
    messages = [
        ASKED,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "look_1", "content": results},
        {"role": "tool", "tool_call_id": "look_2", "content": '{"who": "The tallest bird is the ostrich"}'},
    ]
    text = (
        "Penguins live in Antarctica. The tallest bird is the ostrich. Paris is the capital of France. Bread is good."
    )
    server = Scripted([[text]])
    async with running(server, monkeypatch, ONLY) as service:
        answer = await service.post({"messages": messages, "documents": ["Bread is good."]}, CHAT)
        alone = await service.post({"messages": messages}, CHAT)
    cited = answer.json["message"]["citations"]
    assert [one["sources"][0] for one in cited] == [
        {"type": "tool", "id": "look_1:1", "tool_output": data},
        {"type": "tool", "id": "look_2:0", "tool_output": {"who": "The tallest bird is the ostrich"}},
        {"type": "tool", "id": "p", "tool_output": {"text": "Paris is the capital of France."}},
        {"type": "document", "id": "doc:0", "document": {"id": "doc:0", "text": "Bread is good."}},
    ]
    assert alone.json["message"]["citations"] == cited[:3]
    (prompt, _, _), _ = server.asked
    assert "Bread is good." in texts(prompt[:-3])  # With the question, before the results.


def test_a_report_comes_if_it_is_asked_for_or_the_prompt_was_counted() -> None:
    counted, plain = Report(100, "model"), Report(100)
    call, asking = read(stream=True), read(stream=True, include_report=True)
    for report in (counted, plain):
        end = b"".join(written(asking, Finished("stop"), reports={0: report}))
        assert b'"report":{"context_window":100' in end
        assert b"report" not in b"".join(written(call, Finished("stop"), reports={0: report}))
        metadata = type(METADATA)(METADATA.id, METADATA.created, METADATA.model, {0: report})
        generation = [Generation("a", "stop")]
        assert asking.reply(generation, metadata)["report"]["counted"] == report.counted
        assert ("report" in call.reply(generation, metadata)) is (report is counted)


# How it fails.


WRONG: list[tuple[str, dict[str, Any], int, str]] = [
    (CHAT, {"messages": None}, 422, "messages: "),
    (CHAT, {"messages": []}, 422, "messages: "),
    (CHAT, {"messages": [{"role": "developer", "content": "a"}]}, 422, "messages.0.role: "),
    (CHAT, {"messages": [{"role": "user"}]}, 422, "messages.0: a message of role 'user' needs a content"),
    (CHAT, {"messages": [{"role": "tool", "content": "a"}]}, 422, "messages.0: a message of role 'tool' needs a to"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "document", "document": {}}]}]},
        422,
        "messages.0: a part of a message of role 'user' has the type text or image_url",
    ),
    (
        CHAT,
        {"messages": [{"role": "system", "content": [{"type": "text"}]}]},
        422,
        "messages.0: a part of type 'text' needs its text, a string",
    ),
    (
        CHAT,
        {"messages": [{"role": "tool", "tool_call_id": "1", "content": [{"type": "document", "document": {}}]}]},
        422,
        "messages.0: a document needs its data, an object",
    ),
    (
        CHAT,
        {
            "messages": [
                {
                    **{"role": "tool", "tool_call_id": "1"},
                    "content": [{"type": "document", "document": {"data": {}, "id": 5}}],
                }
            ]
        },
        422,
        "messages.0: the id of a document is a string",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        422,
        "messages.0: a picture needs its url, a string",
    ),
    (
        CHAT,
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": {}}}]}]},
        422,
        "messages.0.tool_calls: the arguments of a tool call are JSON as a string",
    ),
    (CHAT, {"documents": [{"id": "a"}]}, 422, "documents.0.data: Field required"),
    (CHAT, {"documents": [{"data": {}, "id": 5}]}, 422, "documents.0.id: "),
    (CHAT, {"citation_options": {"mode": "some"}}, 422, "citation_options.mode: "),
    (CHAT, {"tools": [{"type": "function"}]}, 422, "tools.0: a function needs a name"),
    (CHAT, {"tool_choice": "REQUIRED"}, 400, "tool_choice: it demands a call, and there are no tools"),
    (CHAT, {"tool_choice": "look"}, 422, "tool_choice: "),
    (CHAT, {"thinking": {"type": "enabled", "token_budget": 0}}, 422, "thinking.token_budget: "),
    (CHAT, {"response_format": {"type": "json_schema"}}, 422, "response_format.type: "),
    (
        CHAT,
        {"response_format": {"type": "text", "json_schema": {}}},
        400,
        "response_format.json_schema: it needs the type json_object",
    ),
    (CHAT, {"seed": 2**64}, 422, "seed: "),
    (CHAT, {"seed": -1}, 422, "seed: "),
    (CHAT, {"model": "command-a"}, 404, "model: 'command-a' is not served here; known: scripted"),
    (EMBED, {"texts": None}, 400, "texts: there is nothing to embed; texts or inputs are needed"),
    (EMBED, {"texts": []}, 400, "texts: there is nothing to embed; texts or inputs are needed"),
    (EMBED, {"texts": [""]}, 422, "texts.0: "),
    (EMBED, {"inputs": [{"content": [{"type": "text", "text": "a"}]}]}, 400, "inputs: there are texts as well"),
    (
        EMBED,
        {"inputs": [{"content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        422,
        "inputs.0: a part needs the type 'text' and a text; pictures cannot be embedded here",
    ),
    (EMBED, {"images": ["data:,"]}, 400, "images: pictures cannot be embedded here"),
    (EMBED, {"embedding_types": ["float", "int8"]}, 400, "embedding_types: 'int8' is not made here; known: float,"),
    (EMBED, {"embedding_types": ["float16"]}, 422, "embedding_types.0: "),
    (EMBED, {"output_dimension": 256}, 400, "output_dimension: the vectors of scripted have 2 dimensions"),
    (EMBED, {"input_type": "query"}, 422, "input_type: "),
]


async def test_what_is_wrong_with_a_body_is_told_by_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able(), monkeypatch, ONLY) as service:
        for path, fields, status, said in WRONG:
            usual: dict[str, Any] = {"messages": [ASKED]} if path == CHAT else {"texts": ["a"]}
            answer = await service.post({**usual, **fields}, path)
            assert (answer.status, answer.json["message"][: len(said)]) == (status, said), answer.body
            assert answer.json["id"] == answer.headers["x-request-id"]


async def test_an_error_in_the_middle_of_a_stream_ends_the_message_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scripted([["Deep", ModelServerError("it bröke")], ["Deep", Timeout("too slow")]])
    async with running(server, monkeypatch, ONLY) as service:
        answer = await service.post({"messages": [ASKED], "stream": True}, CHAT)
        late = await service.post({"messages": [ASKED], "stream": True}, CHAT)
    assert len(answer.chunks) == 2
    assert b'"delta":{"error":"too slow","finish_reason":"TIMEOUT"}' in late.chunks[-1]
    assert (
        answer.chunks[-1]
        == (
            'event: message-end\ndata: {"type":"message-end","delta":{"error":"it bröke","finish_reason":"ERROR"}}\n\n'
        ).encode()
    )


# Embeddings and models.


async def test_embeddings_are_by_type_and_in_the_order_of_their_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able(), monkeypatch, ONLY) as service:
        body = {"texts": ["a", "bcd"], "input_type": "search_query", "truncate": "END", "priority": 1, "max_tokens": 9}
        answer = await service.post({**body, "embedding_types": ["base64", "float"]}, EMBED)
        plain = await service.post({"texts": ["a"], "truncate": "NONE", "output_dimension": 2}, EMBED)
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "bc", "x": 1}]
        older = await service.post({"texts": ["a"], "input_type": "search_query"}, "/v1/embed")
        typed = await service.post({"texts": ["a"], "embedding_types": ["float"]}, "/v1/embed")
        inputs = await service.post({"inputs": [{"content": parts, "y": 1}], "input_type": "clustering"}, EMBED)
    said = answer.json
    assert len(said.pop("id")) == 32
    encoded = said["embeddings"].pop("base64")
    assert [struct.unpack("<2f", b64decode(one)) for one in encoded] == [(1.0, 1.0), (1.0, 3.0)]
    assert said == {
        "response_type": "embeddings_by_type",
        "embeddings": {"float": [[1.0, 1.0], [1.0, 3.0]]},
        "texts": ["a", "bcd"],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 4}},
    }
    assert answer.headers["x-ignored-params"] == "max_tokens, priority, truncate"
    assert plain.json["embeddings"] == {"float": [[1.0, 1.0]]}
    assert "x-ignored-params" not in plain.headers
    assert (older.json["response_type"], older.json["embeddings"]) == ("embeddings_floats", [[1.0, 1.0]])
    assert (typed.json["response_type"], typed.json["embeddings"]) == ("embeddings_by_type", {"float": [[1.0, 1.0]]})
    assert typed.json["meta"]["api_version"] == {"version": "1"}
    assert (inputs.json["texts"], inputs.json["embeddings"]["float"]) == (["a\nbc"], [[1.0, 4.0]])
    assert inputs.headers["x-ignored-params"] == "inputs.content.x, inputs.y"


async def test_models_are_listed_with_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able(), monkeypatch, ONLY) as service:
        model = {
            "name": "scripted",
            "is_deprecated": False,
            "endpoints": ["chat"],
            "finetuned": False,
            "context_length": None,
            "default_endpoints": ["chat"],
        }
        assert (await service.get("/v1/models?endpoint=chat&default_only=true")).json == {"models": [model]}
        assert (await service.get("/v1/models/scripted")).json == model
        missing = await service.get("/v1/models/command-a")
    assert (missing.status, missing.json["message"]) == (404, "model: 'command-a' is not served here; known: scripted")
