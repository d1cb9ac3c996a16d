"""OpenAI's Responses API: what its bodies mean, its events, and what it refuses."""

from __future__ import annotations

import json
from time import process_time
from typing import Any

import orjson
import pytest

from comps.core.deltas import join_extra
from comps.core.errors import InvalidRequest, LLMError, ModelServerError, Overloaded
from comps.core.types import (
    CALLS_ON_DEMAND,
    Document,
    DocumentUse,
    Event,
    Finished,
    Generation,
    Message,
    Report,
    Sampling,
    TextDelta,
    Usage,
)
from comps.dialects.responses.dialect import responses
from comps.dialects.responses.items import Conversation
from comps.dialects.shared.base import GenerationCall, Switches
from comps.dialects.shared.endpoint import Endpoint, RequestError
from comps.model_servers.scripted import Scripted
from tests.dialects.written import METADATA, written
from tests.service import Answer, CountingAlone, Service, running

ERROR_SHAPES = [{"error"}]
"""The keys of an error."""
CUT = (b'"incomplete_details":{"reason":"max_output_tokens"}', b"response.completed")
VALUES: dict[str, list[Any]] = {"format": [{"type": "json_object"}]}
ANYWAY = {"background": [False], "include_obfuscation": [False], "truncation": ["auto"]}

SILENT = {"/v1/responses/input_tokens truncation": "says what becomes of a prompt that is too long"}
REFUSED = dict.fromkeys(
    (
        *("GET /v1/responses/{response}", "DELETE /v1/responses/{response}"),
        *("GET /v1/responses/{response}/input_items", "POST /v1/responses/{response}/cancel"),
    ),
    404,
)

PATH, COUNT = "/v1/responses", "/v1/responses/input_tokens"
ASKED: dict[str, Any] = {"input": "?"}
USER = {"role": "user", "content": "?"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "9"}
BARE = {"type": "function", "name": "f"}
BARE_CHAT = {"tools": [{"type": "function", "function": {"name": "f"}}]}
CHAT_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "name": "f", "description": "F.", "parameters": {"type": "object"}, "strict": True}
REASONS = ("reasoning", "reasoning_content")
IDS = {name: f"{name}_{METADATA.id}" for name in ("resp", "msg", "rs", "fc")}


def read(body: Any, **switches: bool) -> GenerationCall:
    call = Endpoint(PATH, [responses(Switches(**switches))]).read(orjson.dumps(body), {})
    assert isinstance(call, GenerationCall)
    return call


def prompt_of(body: dict[str, Any]) -> Any:
    (request,) = read(body).requests()
    return request.prompt


def refused(body: Any) -> tuple[str, str]:
    """The field that is wrong, and why."""
    try:
        read(body).requests()
    except RequestError as caught:
        error: LLMError = caught.error
    except InvalidRequest as caught:
        error = caught
    else:
        pytest.fail("it was not refused")
    told = responses(None).style.error(error)["error"]
    return told["param"], told["message"]


def events_in(items: list[bytes]) -> list[dict[str, Any]]:
    """The events of a stream; their numbers have no gaps, and the names of the lines are theirs."""
    lines = b"".join(items).decode().removesuffix("\n\n").split("\n\n")
    events = [(name.removeprefix("event: "), json.loads(data[6:])) for name, data in (one.split("\n") for one in lines)]
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
    assert all(name == event["type"] for name, event in events)
    return [event for _, event in events]


def streamed(body: dict[str, Any], *events: Event) -> list[dict[str, Any]]:
    return events_in(written(read({**body, "stream": True}), *events))


def short(events: list[dict[str, Any]]) -> list[str]:
    """The types of events, without what they all begin with, each of several alike once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for before, name in zip(["", *names], names, strict=False) if name != before]


# What a body means.


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        ({"input": "Hällo 🙂"}, [("user", "Hällo 🙂", {})]),
        (
            {"instructions": "Be brief.", "input": [USER, {"role": "developer", "content": "x", "type": "message"}]},
            [("system", "Be brief.", {}), ("user", "?", {}), ("developer", "x", {})],
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": t} for t in "ab"]}]},
            [("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], {})],
        ),
        (
            {
                "input": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_image", "image_url": "data:,", "detail": "low"},
                            {"type": "input_file", "file_data": "data:,", "filename": "a.pdf"},
                            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
                        ],
                    }
                ]
            },
            [
                (
                    "user",
                    [
                        {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}},
                        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:,"}},
                        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
                    ],
                    {},
                )
            ],
        ),
        # What an answer of ours had comes back as one message, before the output of its call.
        (
            {
                "input": [
                    USER,
                    {"type": "reasoning", "id": "rs_0", "summary": [{"type": "x", "text": "Well."}]},
                    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "x", "text": "Hm."}]},
                    {
                        **{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"},
                        "content": [{"type": "output_text", "text": "Wait.", "annotations": [], "logprobs": []}],
                    },
                    {**CALL, "id": "fc_1", "status": "completed"},
                    {**CALL, "call_id": "d"},
                    OUTPUT,
                    {**OUTPUT, "call_id": "d", "output": [{"type": "input_text", "text": "10"}]},
                ]
            },
            [
                ("user", "?", {}),
                (
                    *("assistant", "Wait."),
                    {"reasoning_content": "Well.\nHm.", "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "d"}]},
                ),
                ("tool", "9", {"tool_call_id": "c"}),
                ("tool", "10", {"tool_call_id": "d"}),
            ],
        ),
        (
            {"input": [CALL, {"role": "assistant", "content": "Wait."}, OUTPUT]},
            [("assistant", "Wait.", {"tool_calls": [CHAT_CALL]}), ("tool", "9", {"tool_call_id": "c"})],
        ),
        (
            {"input": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, USER]},
            [("assistant", [{"type": "refusal", "refusal": "No."}], {}), ("user", "?", {})],
        ),
    ],
)
def test_items_become_messages_of_the_chat_api(body: dict[str, Any], messages: list[tuple[str, Any, Any]]) -> None:
    assert prompt_of(body) == tuple(Message(*one) for one in messages)
    assert read(body).ignored(frozenset(("messages.*",))) == []


def test_reasoning_is_read_in_time_in_proportion_to_its_items() -> None:
    def seconds(count: int) -> float:
        items = [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "x" * 1000}]}] * count
        began = process_time()
        Conversation("", items)
        return process_time() - began

    assert seconds(4000) < 30 * min(seconds(500) for _ in range(2))


def test_a_body_is_sampled_as_it_says_with_the_smaller_limit_and_its_documents() -> None:
    body = {**ASKED, "max_output_tokens": 5, "max_tokens": 7, "temperature": 0, "top_p": 0.5, "documents": ["one"]}
    (request,) = read(body).requests()
    assert request.sampling == Sampling(max_tokens=5, temperature=0, top_p=0.5)
    assert request.documents == (Document("one"),)
    assert read(ASKED).requests()[0].sampling == Sampling()
    drops = [read({**ASKED, "truncation": one}).requests()[0].drops_turns for one in (None, "auto", "disabled")]
    assert drops == [True, True, False]
    assert read({**ASKED, "stream": True}).streamed
    assert not read({**ASKED, "stream": True}, disable_streaming=True).streamed


@pytest.mark.parametrize(
    ("wish", "options", "names"),
    [
        (
            {"tools": [TOOL, {"type": "function", "function": {"name": "g"}}]},
            {
                "tools": [
                    {"type": "function", "function": {name: TOOL[name] for name in TOOL if name != "type"}},
                    {"type": "function", "function": {"name": "g"}},
                ]
            },
            ["tools"],
        ),
        (
            {"tools": [BARE], "tool_choice": "required"},
            {**BARE_CHAT, "tool_choice": "required"},
            ["tools", "tool_choice"],
        ),
        ({"tools": [BARE], "tool_choice": "auto"}, {**BARE_CHAT, "tool_choice": "auto"}, ["tools"]),
        (
            {"tools": [BARE], "tool_choice": BARE},
            {**BARE_CHAT, "tool_choice": BARE_CHAT["tools"][0]},
            ["tools", "tool_choice"],
        ),
        (
            {"tools": [BARE], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [BARE]}},
            {
                **BARE_CHAT,
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": BARE_CHAT["tools"]},
                },
            },
            ["tools", "tool_choice"],
        ),
        (
            {"tools": [BARE], "parallel_tool_calls": False},
            {"parallel_tool_calls": False, **BARE_CHAT},
            ["parallel_tool_calls", "tools"],
        ),
        ({"tool_choice": "auto", "parallel_tool_calls": True}, {}, []),
        ({"tool_choice": "none", "tools": []}, {}, []),
        ({"text": {"format": {"type": "text"}}}, {"response_format": {"type": "text"}}, []),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}, ["text.format"]),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"a": 1}, "strict": True}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"a": 1}, "strict": True},
                }
            },
            ["text.format"],
        ),
        ({"text": {"verbosity": "low"}}, {"verbosity": "low"}, ["text.verbosity"]),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}, ["reasoning.effort"]),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}, ["top_logprobs"]),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}, ["include.message.output_text.logprobs"]),
        (
            {"user": "u", "safety_identifier": "s", "service_tier": "flex", "prompt_cache_key": "k"},
            {"user": "u", "safety_identifier": "s", "service_tier": "flex", "prompt_cache_key": "k"},
            ["user", "safety_identifier", "service_tier", "prompt_cache_key"],
        ),
        ({"min_p": 0.1}, {"min_p": 0.1}, ["min_p"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_only_some_model_servers_know_is_an_option_of_the_chat_api(
    wish: dict[str, Any], options: dict[str, Any], names: list[str]
) -> None:
    call = read({**ASKED, **wish})
    assert json.dumps(call.requests()[0].options) == json.dumps(options)  # In the same order: models read it.
    assert call.ignored(frozenset(options)) == []
    assert call.ignored(frozenset()) == names


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        ({"store": True}, ["store"]),
        ({"store": False, "background": False, "previous_response_id": None, "metadata": {"a": "b"}}, []),
        (
            {"max_tool_calls": 3, "context_management": [{"type": "compaction"}]},
            ["context_management", "max_tool_calls"],
        ),
        ({"include": ["reasoning.encrypted_content"]}, ["include.reasoning.encrypted_content"]),
        ({"truncation": "auto", "stream_options": {"include_obfuscation": False}}, []),
        ({"stream_options": {"include_obfuscation": True}}, ["stream_options.include_obfuscation"]),
        ({"reasoning": {"context": "all_turns", "mode": "pro"}}, ["reasoning.context", "reasoning.mode"]),
        ({"text": {"tone": "warm"}}, ["text.tone"]),
        ({"tools": [{**TOOL, "defer_loading": True, "async": False}]}, ["tools.defer_loading", "tools.async"]),
        # The chat API's names of what this one has elsewhere, and what would make several answers.
        ({"response_format": {"type": "json_object"}, "n": 2, "logprobs": True}, ["response_format", "n", "logprobs"]),
        ({"input": [{**USER, "phase": "commentary", "name": "Ann"}]}, ["input.phase", "input.name"]),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "?", "cached": 1}]}]},
            ["input.content.cached"],
        ),
        ({"input": [{"type": "reasoning", "summary": [{"text": "Hm."}]}, USER]}, ["input.reasoning"]),
        (
            {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}, USER]},
            ["input.reasoning.encrypted_content"],
        ),
        ({"parallel_tool_calls": False, "tool_choice": "auto"}, ["parallel_tool_calls"]),
    ],
    ids=str,
)
def test_what_has_no_effect_is_named(wish: dict[str, Any], names: list[str]) -> None:
    every = frozenset(
        ("messages.*", "tools", "n", "logprobs", "response_format", "store", *Sampling.__dataclass_fields__)
    )
    assert read({**ASKED, **wish}).ignored(every) == names


def test_what_a_model_server_does_not_take_of_the_items_is_named() -> None:
    reasoning = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    call = read({"input": [USER, reasoning, CALL, OUTPUT], "max_output_tokens": 5, "max_new_tokens": 5})
    parts = ["input.function_call", "input.function_call_output", "input.reasoning"]
    assert call.ignored(frozenset()) == ["max_new_tokens", *parts, "max_output_tokens"]
    able = frozenset(("messages.tool_calls", "messages.tool_call_id", "max_tokens"))
    assert call.ignored(able) == ["input.reasoning"]


def test_a_model_that_calls_functions_only_on_demand_ignores_them_if_it_may_choose() -> None:
    able = frozenset(("tools", "tool_choice", CALLS_ON_DEMAND))
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    for choice, names in ((None, ["tools"]), ("auto", ["tools"]), ("required", []), (allowed, [])):
        assert read({**ASKED, "tools": [TOOL], "tool_choice": choice}).ignored(able) == names


@pytest.mark.parametrize(
    ("wrong", "param", "said"),
    [
        ({"input": None}, "input", "required"),
        ({"input": []}, "input", "at least 1"),
        ({"input": ["x"]}, "input", "input.0: Input should be an object"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "not kept here"),
        ({"conversation": {"id": "conv_1"}}, "conversation", "not kept here"),
        ({"background": True}, "background", "not kept here"),
        ({"prompt": {"id": "pmpt_1"}, "input": None}, "prompt", "not kept here"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type", "store: false"),
        ({"input": [{"id": "msg_1"}]}, "input[0].type", "not kept here"),
        ({"input": [{"type": ["message"]}]}, "input[0].type", "types that are read"),
        ({"input": [USER, {"type": "web_search_call"}]}, "input[1].type", "'web_search_call'"),
        ({"input": [OUTPUT]}, "input[0].call_id", "no function_call"),
        ({"input": [{**CALL, "arguments": {}}]}, "input[0].arguments", "text"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].name", "required"),
        ({"input": [{"role": "tool", "content": "9"}]}, "input[0].role", "user, assistant, system, developer"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content", "text or a list of parts"),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "input[0].content[0].type", "input_text"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
            "image_url with a data URL",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://a"}]}]},
            "input[0].content[0].file_url",
            "file_data with a data URL",
        ),
        ({"input": [{"type": "reasoning", "summary": "x"}]}, "input[0].summary", "list of parts"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search' is a tool that OpenAI runs"),
        ({"tools": [{"type": "file_search"}]}, "tools[0].type", "`documents`"),
        ({"tools": [{"name": "f"}]}, "tools[0].type", "needs a type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "needs a name"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice", "only functions"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "name a function"),
        ({"tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice", "mode"),
        ({"tool_choice": "maybe"}, "tool_choice", "'required'"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tool_choice": BARE, "tools": []}, "tool_choice", "no tools"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "json_schema"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "schema"),
        ({"text": {"verbosity": "loud"}}, "text.verbosity", "'low'"),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than 0"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "16"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_served_is_refused_by_the_name_of_the_field(
    wrong: dict[str, Any], param: str, said: str
) -> None:
    field, message = refused({**ASKED, **wrong})
    assert field == param
    assert said in message


# What an answer is.

OPENING = (
    'event: response.created\ndata: {{"type":"response.created","response":{0},"sequence_number":0}}\n\n'
    'event: response.in_progress\ndata: {{"type":"response.in_progress","response":{0},"sequence_number":1}}\n\n'
    "event: response.output_item.added\n"
    'data: {{"type":"response.output_item.added","output_index":0,"item":{{"id":"{1}","type":"message",'
    '"role":"assistant","content":[],"status":"in_progress"}},"sequence_number":2}}\n\n'
    "event: response.content_part.added\n"
    'data: {{"type":"response.content_part.added","item_id":"{1}","output_index":0,"content_index":0,'
    '"part":{{"type":"output_text","text":"","annotations":[],"logprobs":[]}},"sequence_number":3}}\n\n'
)
DELTA = (
    "event: response.output_text.delta\n"
    'data: {{"type":"response.output_text.delta","item_id":"{}","output_index":0,"content_index":0,"delta":"{}",'
    '"logprobs":[],"sequence_number":{}}}\n\n'
)
BEGUN = (
    f'{{"id":"{IDS["resp"]}","object":"response","created_at":1700000000,"status":"in_progress","background":false,'
    '"error":null,"incomplete_details":null,"instructions":"Be brief.","max_output_tokens":9,"metadata":{"a":"b"},'
    '"model":"tiny","output":[],"parallel_tool_calls":true,"previous_response_id":null,'
    '"reasoning":{"effort":null,"summary":null},"store":false,"temperature":0.5,"text":{"format":{"type":"text"}},'
    '"tool_choice":"auto","tools":[],"top_logprobs":0,"top_p":null,"truncation":"auto","usage":null,"user":null}'
)


def test_a_stream_has_exactly_these_bytes_and_ends_with_the_whole_response() -> None:
    body = {
        **{"input": "?", "instructions": "Be brief.", "max_output_tokens": 9, "metadata": {"a": "b"}},
        **{"temperature": 0.5, "stream": True},
    }
    usage = Usage(5, 3, {"prompt_tokens_details": {"cached_tokens": 4}})
    first, second, third, last = written(
        read(body), *(TextDelta(text) for text in ("Dé", '"p\n', " 🙂")), Finished("stop", usage)
    )
    message = f"{IDS['msg']}00"
    assert first.decode() == OPENING.format(BEGUN, message) + DELTA.format(message, "Dé", 4)
    assert second.decode() == DELTA.format(message, '\\"p\\n', 5)
    assert third.decode() == DELTA.format(message, " 🙂", 6)
    events = events_in([first, second, third, last])[7:]
    assert short(events) == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    whole = read(body).reply([Generation('Dé"p\n 🙂', "stop", usage)], METADATA)
    part = {"type": "output_text", "text": 'Dé"p\n 🙂', "annotations": [], "logprobs": []}
    item = {"id": message, "type": "message", "role": "assistant", "content": [part], "status": "completed"}
    assert (
        events[-1]["response"]
        == whole
        == {
            **json.loads(BEGUN),
            "status": "completed",
            "output": [item],
            "usage": {
                "input_tokens": 5,
                "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
                "output_tokens": 3,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 8,
            },
        }
    )


def piece(index: int, arguments: str = "", **first: str) -> TextDelta:
    function = {"arguments": arguments, **({"name": first.pop("name")} if first else {})}
    return TextDelta("", 0, {"tool_calls": [{"index": index, **first, "function": function}]})


MESSAGE = ["output_item.added", "content_part.added"]
TEXT_DONE = ["output_text.done", "content_part.done", "output_item.done"]
LOGPROBS = {
    "content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "é", "logprob": -1}]}]
}
TOKENS = [
    {
        **{"token": "a", "logprob": -0.5, "bytes": [97]},
        "top_logprobs": [{"token": "é", "logprob": -1, "bytes": [195, 169]}],
    }
]


@pytest.mark.parametrize(
    ("body", "deltas", "reason", "names", "output"),
    [
        pytest.param(
            {},
            [TextDelta("", 0, {"reasoning_content": "H"}), TextDelta("", 0, {"reasoning": "m"}), TextDelta("x")],
            "stop",
            [
                *(*MESSAGE, "reasoning_text.delta", "reasoning_text.done", "content_part.done", "output_item.done"),
                *(*MESSAGE, "output_text.delta", *TEXT_DONE),
            ],
            [("reasoning", [{"type": "reasoning_text", "text": "Hm"}]), ("message", ["x"])],
            id="reasoning",
        ),
        pytest.param(
            {"reasoning": {"summary": "auto"}},
            [TextDelta("x", 0, {"reasoning": "Hm", "reasoning_content": "Hm"})],
            "stop",
            [
                *("output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta"),
                *("reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"),
                *(*MESSAGE, "output_text.delta", *TEXT_DONE),
            ],
            [("reasoning", [{"type": "summary_text", "text": "Hm"}]), ("message", ["x"])],
            id="summary",
        ),
        pytest.param(
            {},
            [
                *(TextDelta("Wait."), piece(0, id="c", name="f"), piece(0, '{"a":'), piece(1, "{", id="d", name="g")),
                *(piece(0, "1}"), piece(1, "}")),
            ],
            "tool_calls",
            [
                *(*MESSAGE, "output_text.delta", *TEXT_DONE, "output_item.added", "function_call_arguments.delta"),
                *("output_item.added", "function_call_arguments.delta"),
                *("function_call_arguments.done", "output_item.done") * 2,
            ],
            [("message", ["Wait."]), ("c", "f", '{"a":1}'), ("d", "g", "{}")],
            id="calls in pieces",
        ),
        pytest.param(
            {},
            [TextDelta("", 0, {"function_call": {"name": "f", "arguments": "{}"}})],
            "function_call",
            ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"],
            [(f"call_{METADATA.id}00", "f", "{}")],
            id="an older call",
        ),
        pytest.param(
            {},
            [
                TextDelta("", 0, {"tool_calls": [{"index": 0, "id": "c", "function": {"arguments": '{"a":'}}]}),
                TextDelta("", 0, {"tool_calls": [{"index": 0, "function": {"name": "f"}}, {"index": 0}]}),
                piece(0, "1}"),
                TextDelta("", 0, {"tool_calls": [{"index": 1, "id": "d", "function": {"arguments": "{}"}}]}),
            ],
            "tool_calls",
            [
                *("output_item.added", "function_call_arguments.delta") * 2,
                *("function_call_arguments.done", "output_item.done") * 2,
            ],
            [("c", "f", '{"a":1}'), ("d", "", "{}")],
            id="names that come late or never",
        ),
        pytest.param(
            {},
            [TextDelta("x"), TextDelta("", 0, {"refusal": "N"}), TextDelta("", 0, {"refusal": "o"})],
            "stop",
            [
                *(*MESSAGE, "output_text.delta", "output_text.done", "content_part.done", "content_part.added"),
                *("refusal.delta", "refusal.done", "content_part.done", "output_item.done"),
            ],
            [("message", ["x", "No"])],
            id="refusal",
        ),
        pytest.param({}, [], "stop", [*MESSAGE, *TEXT_DONE], [("message", [""])], id="nothing"),
        pytest.param(
            {"audio": 1},
            [TextDelta("a", 0, {"logprobs": LOGPROBS, "audio": {"id": "x"}}), TextDelta("b")],
            "stop",
            [*MESSAGE, "output_text.delta", *TEXT_DONE],
            [("message", ["ab"])],
            id="logprobs",
        ),
    ],
)
def test_an_answer_is_the_same_as_events_and_whole(
    body: dict[str, Any], deltas: list[TextDelta], reason: str, names: list[str], output: list[Any]
) -> None:
    events = streamed({**ASKED, **body}, *deltas, Finished(reason, Usage(1, 2)))
    assert short(events) == ["created", "in_progress", *names, "completed"]
    response = events[-1]["response"]
    assert [seen(item) for item in response["output"]] == output
    assert {item["status"] for item in response["output"]} == {"completed"}
    assert response["output"] == [event["item"] for event in events if event["type"].endswith("output_item.done")]
    whole = read({**ASKED, **body}).reply([collected(deltas, reason)], METADATA)
    assert whole == response
    if any("logprobs" in (delta.extra or ()) for delta in deltas):
        assert [event["logprobs"] for event in events if event["type"].endswith("text.delta")] == [TOKENS, []]
        assert response["output"][0]["content"][0]["logprobs"] == TOKENS


def seen(item: dict[str, Any]) -> Any:
    """What a client sees of an item."""
    if item["type"] == "function_call":
        return item["call_id"], item["name"], item["arguments"]
    if item["type"] == "reasoning":
        return "reasoning", item.get("content") or item["summary"]
    return item["type"], [part.get("text", part.get("refusal")) for part in item["content"]]


def collected(deltas: list[TextDelta], reason: str) -> Generation:
    """The whole answer that these deltas are pieces of."""
    extra: dict[str, Any] = {}
    for delta in deltas:
        under_one_name = {("reasoning" if name in REASONS else name): one for name, one in (delta.extra or {}).items()}
        extra = join_extra(extra, under_one_name)
    return Generation("".join(delta.text for delta in deltas), reason, Usage(1, 2), extra)


@pytest.mark.parametrize(("reason", "cause"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_was_cut_is_incomplete_and_so_is_its_last_item(reason: str, cause: str) -> None:
    deltas = [TextDelta("Wait."), piece(0, id="c", name="f"), piece(1, '{"a', id="d", name="g")]
    events = streamed(ASKED, *deltas, Finished(reason))
    response = events[-1]["response"]
    assert (events[-1]["type"], response["status"]) == ("response.incomplete", "incomplete")
    assert response["incomplete_details"] == {"reason": cause}
    assert [item["status"] for item in response["output"]] == ["completed", "completed", "incomplete"]
    assert response["usage"] is None
    thinking = streamed(ASKED, TextDelta("", 0, {"reasoning": "Hm"}), Finished(reason))
    assert [item["type"] for item in thinking[-1]["response"]["output"]] == ["reasoning"]
    assert thinking[-1]["response"]["output"][0]["status"] == "incomplete"


def test_text_behind_a_call_is_another_message_and_a_citation_of_it_counts_from_its_beginning() -> None:
    cited = {
        "type": "url_citation",
        "url_citation": {"url": "http://a", "title": "A", "start_index": 4, "end_index": 6},
    }
    late = TextDelta("", 0, {"annotations": [cited], "unknown_citations": [7]})
    events = streamed(ASKED, TextDelta("abc"), piece(0, id="c", name="f"), TextDelta("defg"), late, Finished("stop"))
    first, _, second = events[-1]["response"]["output"]
    assert (seen(first), seen(second)) == (("message", ["abc"]), ("message", ["defg"]))
    annotation = {"type": "url_citation", "url": "http://a", "title": "A", "start_index": 1, "end_index": 3}
    assert second["content"][0]["annotations"] == [annotation]
    assert second["content"][0]["unknown_citations"] == [7]
    assert first["content"][0]["annotations"] == []
    (added,) = [event for event in events if event["type"] == "response.output_text.annotation.added"]
    assert (added["item_id"], added["annotation_index"], added["annotation"]) == (second["id"], 0, annotation)


def test_a_citation_for_which_this_api_has_no_place_is_left_out() -> None:
    strange: list[Any] = [
        *({"type": "x"}, {"type": "url_citation", "url_citation": {"url": "http://a"}}, "x"),
        {"type": "file_citation", "file_id": "f", "filename": "a.txt", "index": 2},
    ]
    whole: Any = read(ASKED).reply([Generation("abc", "stop", None, {"annotations": strange})], METADATA)
    assert whole["output"][0]["content"][0]["annotations"] == strange[-1:]


def test_the_report_comes_with_the_response_if_it_is_asked_for() -> None:
    report = Report(100, documents=(DocumentUse(1, "kept"),))
    for wanted in (True, False):
        call = read({**ASKED, "documents": ["one"], "include_report": wanted})
        end = events_in(written(call, TextDelta("x"), Finished("stop"), reports={0: report}))[-1]
        assert ("report" in end["response"]) is wanted
        if wanted:
            assert end["response"]["report"]["documents"][0]["fate"] == "kept"


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (ModelServerError("it broke"), "server_error", "server_error"),
        (Overloaded("full"), "rate_limit_exceeded", "rate_limit_error"),
        (InvalidRequest("no good", "input"), "invalid_prompt", "invalid_request_error"),
    ],
    ids=str,
)
def test_a_stream_that_fails_says_so_in_two_events_and_keeps_what_came_before(
    error: LLMError, code: str, kind: str
) -> None:
    call, items = read({**ASKED, "stream": True}), list[bytes]()
    assert events_in([call.error_item(error)])[0]["message"] == str(error)  # Before the response has begun.
    writer = call.writer(METADATA, items.append)
    writer.text("Deep")
    writer.delta(piece(0, "{", id="c", name="f"))
    *_, told, failed = events_in([*items, call.error_item(error)])
    inner = told.pop("error")
    assert told == {
        "type": "error",
        "code": code,
        "message": str(error),
        "param": inner["param"],
        "sequence_number": 10,
    }
    assert (inner["message"], inner["type"]) == (str(error), kind)
    response = failed["response"]
    assert (failed["type"], response["status"]) == ("response.failed", "failed")
    assert response["id"] == IDS["resp"]
    assert response["error"] == {"code": code, "message": str(error)}
    assert [(seen(item), item["status"]) for item in response["output"]] == [
        (("message", ["Deep"]), "completed"),
        (("c", "f", "{"), "incomplete"),
    ]


# Over sockets.

DOCUMENTS = [
    {"text": "Gaudi 2 has 96 GB of memory.", "title": "Gaudi 2", "metadata": {"url": "http://a"}},
    {"text": "Bread is made of flour.", "metadata": {"bucket_name": "b", "object_name": "o.txt"}},
    "Paris lies on the Seine.",
]
ANSWER = ["Gaudi 2 has 96 GB of memory. ", "Bread is made of flour. ", "Paris lies on the Seine."]


async def asked(service: Service, **fields: Any) -> tuple[Answer, dict[str, Any]]:
    """The answer to a body, and the response in it."""
    answer = await service.post({"input": "?", **fields}, PATH)
    return answer, events_in(answer.chunks)[-1]["response"] if fields.get("stream") else answer.json


@pytest.mark.parametrize("stream", [False, True])
async def test_documents_are_packed_and_cited_with_places_in_the_text(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    server = Scripted([ANSWER, ["96 GB [1][9]."]])
    async with running(server, monkeypatch, {"LLM_DIALECTS": "responses"}) as service:
        given = {"documents": DOCUMENTS, "include_report": True, "stream": stream}
        answer, response = await asked(service, **given, citations="matched")
        _, marked = await asked(service, **given, citations="on")
    assert answer.headers["x-documents-used"] == "1,2,3"
    assert "x-ignored-params" not in answer.headers
    prompt = server.asked[0][0]
    assert not isinstance(prompt, str)
    assert "Gaudi 2: Gaudi 2 has 96 GB" in str(prompt[-1].content)
    assert [one["fate"] for one in response["report"]["documents"]] == ["kept"] * 3
    (part,) = response["output"][0]["content"]
    assert part["text"] == "".join(ANSWER)
    url, file, plain = part["annotations"]
    assert [part["text"][one["start_index"] : one["end_index"]] for one in (url, file, plain)] == [
        one.strip() for one in ANSWER
    ]
    assert (url["type"], url["url"], url["title"]) == ("url_citation", "http://a", "Gaudi 2")
    assert (file["type"], file["file_id"], file["filename"]) == ("file_citation", "b/o.txt", "b/o.txt")
    assert (plain["type"], plain["file_id"], plain["index"]) == ("file_citation", "document-3", plain["end_index"])
    (part,) = marked["output"][0]["content"]
    (mark,) = part["annotations"]
    assert part["text"][mark["start_index"] : mark["end_index"]] == "[1]"
    assert part["unknown_citations"] == [9]


async def test_what_is_refused_and_what_is_ignored_is_told_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([["x"]]), monkeypatch) as service:
        kept, _ = await asked(service, previous_response_id="resp_1", stream=False)
        ignored, _ = await asked(service, store=True, reasoning={"effort": "low"}, stream=True)
        unknown = await service.post({"input": "?", "model": "other"}, PATH)
        stored = await service.get(f"{PATH}/resp_1")
    assert (kept.status, kept.json["error"]["param"]) == (400, "previous_response_id")
    assert ignored.headers["x-ignored-params"] == "reasoning.effort, store"
    assert (unknown.status, unknown.json["error"]["code"]) == (404, "model_not_found")
    assert stored.status == 404


async def test_tokens_of_a_whole_prompt_are_counted_and_nothing_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    more: list[dict[str, Any]] = [
        {"instructions": "Be brief, and kind."},
        {"tools": [{**TOOL, "description": "x" * 50}]},
        {"documents": ["x" * 100]},
        {"input": [USER, CALL, OUTPUT, USER]},
    ]
    async with running(CountingAlone(), monkeypatch) as service:
        plain = await service.post(ASKED, COUNT)
        counts = [(await service.post({**ASKED, **one}, COUNT)).json["input_tokens"] for one in more]
        wishes = {
            "reasoning": {"effort": "low"},
            "text": {"verbosity": "low"},
            "max_output_tokens": 9,
            "include_report": True,
        }
        lost = await service.post({**ASKED, **wishes}, COUNT)
        kept = await service.post({**ASKED, "previous_response_id": "resp_1"}, COUNT)
        missing = await service.post({}, COUNT)
    assert plain.json == {"object": "response.input_tokens", "input_tokens": plain.json["input_tokens"]}
    assert all(count > plain.json["input_tokens"] + 10 for count in counts)
    assert counts[2] > 100
    assert set(lost.headers["x-ignored-params"].split(", ")) == {
        *("reasoning.effort", "text.verbosity", "max_output_tokens", "include_report"),
    }
    assert lost.json == plain.json
    assert (kept.status, kept.json["error"]["param"]) == (400, "previous_response_id")
    assert (missing.status, missing.json["error"]["param"]) == (400, "input")
