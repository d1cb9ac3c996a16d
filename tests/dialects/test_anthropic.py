"""Anthropic's dialect: what its bodies mean, the exact bytes of its answers, and its citations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from comps.core.errors import InvalidRequest, LLMError, ModelServerError, Overloaded, PromptTooLong, UnknownModel
from comps.core.types import (
    CALLS_ON_DEMAND,
    JSON,
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
from comps.dialects.anthropic.dialect import AnthropicCall, AnthropicCountCall, anthropic
from comps.dialects.anthropic.models import MODELS
from comps.dialects.shared.base import Switches
from comps.dialects.shared.endpoint import Endpoint, RequestError
from comps.model_servers.scripted import Scripted
from tests.dialects.written import METADATA, written
from tests.events import texts
from tests.service import Able, CountingAlone, running

ERROR_SHAPES = [{"type", "error", "request_id"}]
"""The keys of an error."""
CUT = (b'"stop_reason":"max_tokens"', b"end_turn")
VALUES: dict[str, list[JSON]] = {
    "messages": [[{"role": "user", "content": "another"}]],
    "output_config": [{"effort": "low"}, {"format": {"type": "json_schema", "schema": {}}}],
    "thinking": [{"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}, {"type": "adaptive"}],
    "tool_choice": [{"type": "any"}, {"type": "tool", "name": "weather"}],
    "tools": [[{"name": "x", "input_schema": {}}]],
}
ANYWAY: dict[str, list[JSON]] = {
    "service_tier": ["standard_only"],
    "speed": ["standard"],
    "thinking": [{"type": "adaptive"}],
}
ONLY = {"LLM_DIALECTS": "anthropic"}

PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 9}
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object", "properties": {}}}
EVERYTHING = frozenset(
    (
        *("max_tokens", "stop", "temperature", "top_k", "top_p", "messages.*", "tools", "tool_choice"),
        *("parallel_tool_calls", "response_format", "reasoning_effort", "chat_template_kwargs", "service_tier", "user"),
        *("thinking_token_budget", "continue_final_message", "add_generation_prompt"),
    )
)


def read(body: Any) -> AnthropicCall:
    call = Endpoint(PATH, [anthropic(Switches())]).read(orjson.dumps(body), {})
    assert isinstance(call, AnthropicCall)
    return call


def asked(*content: JSON, role: str = "user", **fields: JSON) -> AnthropicCall:
    """A body with one message of these blocks."""
    return read({**QUESTION, "messages": [{"role": role, "content": content}], **fields})


def said(*turns: tuple[str, JSON], **fields: JSON) -> tuple[Message, ...]:
    """What the model is asked of these turns."""
    messages = [{"role": role, "content": content} for role, content in turns]
    prompt = read({**QUESTION, "messages": messages, **fields}).requests()[0].prompt
    assert not isinstance(prompt, str)
    return prompt


def refused(body: Any) -> str:
    """The message of the error of a body."""
    with pytest.raises(RequestError) as caught:
        Endpoint(PATH, [anthropic(Switches())]).read(orjson.dumps(body), {}).requests()  # type: ignore[attr-defined]
    error = caught.value.style.error(caught.value.error)["error"]
    assert error["type"] == "invalid_request_error"
    return str(error["message"])


def text(of: str, **fields: JSON) -> dict[str, JSON]:
    return {"type": "text", "text": of, **fields}


def document(data: str, cites: bool = False, **fields: JSON) -> dict[str, JSON]:
    source = {"type": "text", "media_type": "text/plain", "data": data}
    return {"type": "document", "source": source, **({"citations": {"enabled": True}} if cites else {}), **fields}


def result(*content: JSON, **fields: JSON) -> dict[str, JSON]:
    return {"type": "tool_result", "tool_use_id": "c1", "content": list(content), **fields}


def events(items: list[bytes]) -> list[dict[str, Any]]:
    """The data of the events of a stream, each of which has its own type as its name."""
    found = []
    for event in b"".join(items).decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def streamed(call: AnthropicCall, *of: Event) -> list[dict[str, Any]]:
    return events(written(call, *of))


def accumulated(stream: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content of the message that a stream makes, as Anthropic's SDKs put it together."""
    content: list[dict[str, Any]] = []
    arguments: dict[int, str] = {}
    for event in stream:
        if event["type"] == "content_block_start":
            assert event["index"] == len(content)
            content.append(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, delta = content[event["index"]], event["delta"]
            match delta["type"]:
                case "text_delta":
                    block["text"] += delta["text"]
                case "thinking_delta":
                    block["thinking"] += delta["thinking"]
                case "citations_delta":
                    block.setdefault("citations", []).append(delta["citation"])
                case "input_json_delta":
                    arguments[event["index"]] = arguments.get(event["index"], "") + delta["partial_json"]
    for index, given in arguments.items():
        content[index]["input"] = json.loads(given)
    return content


# What is asked of the model.


def test_a_conversation_becomes_messages_in_openais_shapes() -> None:
    assert said(
        ("user", "How is the weather?"),
        (
            "assistant",
            [
                {"type": "thinking", "thinking": "I look.", "signature": "abc"},
                text("I look", citations=None),
                text(" outside."),
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"where": "北京"}},
            ],
        ),
        ("user", [result(text("rain"), text("wind")), text("And now?"), text("Well?")]),
        ("user", "Tell me."),
        ("system", "Be brief."),
        system=[text("You look."), text("And tell.")],
    ) == (
        Message("system", "You look.\nAnd tell."),
        Message("user", "How is the weather?"),
        Message(
            "assistant",
            "I look outside.",
            {
                "reasoning_content": "I look.",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"where":"北京"}'}}
                ],
            },
        ),
        Message("tool", "rain\nwind", {"tool_call_id": "c1"}),
        Message("user", "And now?\nWell?\nTell me."),
        Message("system", "Be brief."),
    )


def test_a_text_is_the_same_as_one_block_and_a_result_may_be_a_text_or_nothing() -> None:
    assert said(("user", "x"), system="y") == said(("user", [text("x")]), system=[text("y")])
    whole = {**result(), "content": "rain"}
    assert said(("user", [whole]))[0].content == "rain"
    assert said(("user", [{"type": "tool_result", "tool_use_id": "c1"}]))[0].content == ""


def test_the_result_of_a_tool_that_failed_says_so() -> None:
    picture = {"type": "image", "source": {"type": "url", "url": "http://a/b.png"}}
    assert said(("user", [result(text("no such city"), is_error=True)]))[0].content == "Error: no such city"
    (message,) = said(("user", [result(picture, is_error=True)]))
    assert message.content == [
        {"type": "text", "text": "Error:"},
        {"type": "image_url", "image_url": {"url": "http://a/b.png"}},
    ]


def test_pictures_are_sent_on_as_model_servers_take_them() -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUI="}}
    (message,) = said(("user", [text("What is this?"), picture]))
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUI="}}
    assert message.content == [{"type": "text", "text": "What is this?"}, url]


def test_sampling_tools_and_output_become_openais_options() -> None:
    wishes = {
        "temperature": 0.5,
        "top_k": 0,
        "top_p": 0.9,
        "stop_sequences": ["END", ""],
        "tools": [{**TOOL, "strict": True, "type": "custom"}],
        "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
        "output_config": {"effort": "max", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "metadata": {"user_id": "u"},
        "service_tier": "standard_only",
    }
    call = read({**QUESTION, **wishes})
    (request,) = call.requests()
    assert request.sampling == Sampling(max_tokens=9, temperature=0.5, top_k=2**31 - 1, top_p=0.9, stop=("END",))
    function = {"name": "look", "description": "Looks.", "parameters": TOOL["input_schema"], "strict": True}
    schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert request.options == {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": schema},
        "reasoning_effort": "high",
        "chat_template_kwargs": {"enable_thinking": True, "thinking": True},
        "thinking_token_budget": 2000,
        "user": "u",
        "service_tier": "default",
    }
    assert call.ignored(EVERYTHING) == []
    assert set(call.ignored(frozenset())) == {
        *("max_tokens", "temperature", "top_p", "stop_sequences", "tools", "tool_choice", "thinking"),
        *("tool_choice.disable_parallel_tool_use", "output_config.format", "output_config.effort", "metadata.user_id"),
        "thinking.budget_tokens",
    }


@pytest.mark.parametrize(
    ("choice", "expected"), [("auto", "auto"), ("any", "required"), ("none", "none"), (None, None)], ids=str
)
def test_a_choice_of_tools_has_openais_name(choice: str | None, expected: str | None) -> None:
    call = read({**QUESTION, "tools": [TOOL], "tool_choice": choice and {"type": choice}})
    assert call.options().get("tool_choice") == expected
    lost = call.ignored(EVERYTHING | {CALLS_ON_DEMAND})
    assert lost == (["tools"] if choice in ("auto", None) else [])


def test_a_last_message_of_the_model_is_continued_where_the_model_server_can() -> None:
    call = read({**QUESTION, "messages": [*QUESTION["messages"], {"role": "assistant", "content": "It is"}]})
    assert call.options() == {"continue_final_message": True, "add_generation_prompt": False}
    assert call.ignored(EVERYTHING) == []
    with pytest.raises(InvalidRequest, match="continues no message"):
        call.ignored(EVERYTHING - {"continue_final_message"})


def test_documents_and_search_results_are_documents_of_ours_with_numbers_and_those_of_tools_stay_there() -> None:
    found = {"type": "search_result", "source": "http://a", "title": "Found", "content": [text("three"), text("four")]}
    content = {"type": "document", "source": {"type": "content", "content": [text("five"), text("six")]}}
    (request,) = asked(
        result(document("one", title="A", context="of 2024"), found),
        document("two", title="T"),
        found,
        content,
        {"type": "document", "source": {"type": "content", "content": "seven"}, "context": "C"},
        text("Why?"),
    ).requests()
    assert request.prompt == (
        Message("tool", "A (of 2024): one\nFound (http://a): three\nfour", {"tool_call_id": "c1"}),
        Message("user", "Why?"),
    )
    assert request.documents == (
        Document("two", "T", {"citation_id": 3}),
        Document("three\nfour", "Found (http://a)", {"citation_id": 4}),
        Document("five\nsix", "", {"citation_id": 5}),
        Document("seven", "C", {"citation_id": 6}),
    )
    assert (request.citations, request.passages, request.quoted) == ("off", False, ())


def test_a_turn_of_documents_alone_has_their_titles_as_its_text() -> None:
    found = {"type": "search_result", "source": "http://a", "title": "Found", "content": [text("two")]}
    picture = {"type": "image", "source": {"type": "url", "url": "http://a/b.png"}}
    turns = (
        ("user", [document("one", title="A", context="of 2024"), found]),
        ("assistant", "I read it."),
        ("user", [picture, document("three")]),
        ("assistant", "I see."),
        ("user", [result(document("four", title="D")), document("five"), text("")]),
    )
    shown = {"type": "image_url", "image_url": {"url": "http://a/b.png"}}
    assert [message.content for message in said(*turns)] == [
        "A\nFound",
        "I read it.",
        [shown],
        "I see.",
        "D: four",
        "Document",
    ]


def test_citations_are_found_by_passage_where_they_are_enabled() -> None:
    (request,) = asked(result(document("one", cites=True)), document("two", cites=True), text("?")).requests()
    assert (request.citations, request.passages) == ("matched", True)
    assert request.documents == (Document("two", "", {"citation_id": 2}),)
    assert request.quoted == (Document("one", "", {"citation_id": 1}),)


# What is refused, and what is reported.

PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": None}, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than 0"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": "?"}, "messages: Input should be a valid list"),
        ({"messages": [{"role": "system", "content": "?"}]}, "messages: the first one does not have the role system"),
        ({"content": ""}, "messages.0: the content of a message of the role user must not be empty"),
        ({"content": [text(" ")]}, "messages.0: the content of a message of the role user must not be empty"),
        ({"content": None}, "messages.0.content: Input should be a valid list"),
        ({"content": [5]}, "messages.0.content.0: Input should be an object"),
        ({"content": [text("?"), {"type": "text"}]}, "messages.0.content.1: a block of type 'text' needs its text"),
        ({"content": [{"type": "video"}]}, "a block of type 'video' is not read here; known: text, image"),
        ({"content": [{"type": ["text"]}]}, "a block of type '...' is not read here"),
        ({"content": [{"type": "web_search_tool_result"}]}, "tools that Anthropic's servers run are not here"),
        ({"content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}, "the role user has no block of"),
        ({"content": [{"type": "document", "source": PDF}]}, "such as a PDF, is not read here"),
        ({"content": [{"type": "document", "source": {"type": "url", "url": "x"}}]}, "by its url is not fetched here"),
        ({"content": [{"type": "document", "source": {"type": "file"}}]}, "by its file is not fetched here"),
        ({"content": [{"type": "document", "source": {"type": "text"}}]}, "needs its data, a string"),
        ({"content": [{"type": "document", "source": {"type": "content", "content": [{"type": "image"}]}}]}, "is text"),
        ({"content": [document("x", title=5)]}, "needs its title, a string"),
        ({"content": [document("x", citations={"enabled": "yes"})]}, "citations.enabled is true or false"),
        ({"content": [document("x", True), document("y"), text("?")]}, "messages: citations are enabled for all"),
        ({"content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}, "files are not kept here"),
        ({"content": [{"type": "image", "source": {"type": "base64"}}]}, "needs its media_type, a string"),
        ({"content": [{"type": "search_result", "source": "a", "title": "b"}]}, "needs its content, a list of text"),
        ({"content": [{"type": "tool_result", "content": "x"}]}, "needs its tool_use_id, a string"),
        ({"content": [{"type": "tool_result", "tool_use_id": "x", "content": 5}]}, "needs its content, a string or"),
        ({"content": [result({"type": "thinking", "thinking": "x"})]}, "the result of a tool has no block of type"),
        ({"system": [{"type": "image", "source": {"type": "url", "url": "x"}}]}, "system: the system prompt has no"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0: tools of type 'web_search_20"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0: a tool needs a name"),
        ({"tools": [{"name": "a"}]}, "tools.0: a tool needs its input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: its type any needs tools"),
        ({"tool_choice": {"type": "some"}}, "tool_choice: its type is auto, any, tool or none"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "b"}}, "tool_choice.name: there is no tool 'b'"),
        ({"thinking": {"type": "enabled"}}, "thinking: the type enabled needs budget_tokens"),
        ({"output_config": {"format": {"type": "json"}}}, "output_config: format is an object"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers: MCP servers are not called here"),
        (
            {"content": [document("x", True)], "output_config": {"format": {"type": "json_schema", "schema": {}}}},
            "output_config.format: there are no citations in JSON",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_refused_with_the_name_of_the_field(fields: dict[str, JSON], expected: str) -> None:
    if "content" in fields:
        fields = {"messages": [{"role": "user", "content": fields["content"]}], **fields}
        del fields["content"]
    call = {**QUESTION, **fields}
    try:
        message = refused(call)
    except InvalidRequest as error:
        message = str(error)
    assert expected in message


RICH: dict[str, Any] = {
    "system": [text("x", cache_control={"type": "ephemeral"})],
    "tools": [{**TOOL, "strict": True}],
    "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 3, "display": "omitted"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    "max_tokens": 5,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUI="}},
                document("x", title="T", context="C"),
                {"type": "document", "source": {"type": "content", "content": [text("a"), text("b")]}},
                {"type": "search_result", "source": "s", "title": "t", "content": [text("c")]},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "x", "signature": ""},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"a": 1}},
            ],
        },
        {"role": "user", "content": [result(document("y"), text("z"), is_error=True)]},
    ],
}


def places(value: JSON, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """All places in a JSON value."""
    yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, one in inner:
        yield from places(one, (*place, step))


def test_no_value_within_a_field_is_the_services_fault() -> None:
    refused = 0
    for *around, last in [place for place in places(RICH) if place]:
        for wrong in (None, -1, "x", [None], [{"type": "text", "text": "x"}], {}, {"type": ["a"]}, ...):
            body = deepcopy(RICH)
            inside: Any = body
            for step in around:
                inside = inside[step]
            if wrong is not ...:
                inside[last] = wrong
            elif isinstance(inside, dict):  # A field where there is none.
                inside.setdefault("content", [None])
            try:
                call = read(body)
                call.ignored(EVERYTHING)
                (request,) = call.requests()
                call.reply([Generation("x", "stop")], METADATA)
            except (RequestError, InvalidRequest):
                refused += 1
            else:
                assert request.prompt
    assert refused > 300


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"cache_control": {"type": "ephemeral"}}, ["cache_control"]),
        ({"container": "c", "inference_geo": "us", "speed": "fast"}, ["container", "inference_geo", "speed"]),
        ({"diagnostics": {"previous_message_id": "m"}}, ["diagnostics"]),
        ({"metadata": {"user_id": "u", "team": "t"}}, ["metadata.team"]),
        ({"thinking": {"type": "between_tools"}}, ["thinking"]),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, []),
        ({"system": [text("x", cache_control={"type": "ephemeral"})]}, ["system.cache_control"]),
        ({"tools": [{**TOOL, "defer_loading": True, "cache_control": None}]}, ["tools.defer_loading"]),
        ({"output_config": {"task_budget": 5}}, ["output_config.task_budget"]),
        ({"tools": [TOOL], "tool_choice": {"type": "auto", "few": True}}, ["tool_choice.few"]),
        ({"top_secret": 1, "fallbacks": None}, ["top_secret"]),
        (
            {
                "messages": [
                    {"role": "user", "content": [result(text("x", cache_control={"type": "ephemeral"}))], "name": "n"},
                    {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "d"}, text("x")]},
                    {"role": "user", "content": [document("x", cache_control={"type": "ephemeral"}), text("?")]},
                ]
            },
            ["messages.cache_control", "messages.name", "messages.redacted_thinking"],
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "document", "source": {"type": "text", "data": "x", "content": [text("y")]}},
                            {"type": "image", "source": {"type": "url", "url": "u", "detail": "low"}, "content": [1]},
                            text("?", data="d"),
                        ],
                    }
                ]
            },
            ["messages.content", "messages.data", "messages.source.content", "messages.source.detail"],
        ),
    ],
    ids=str,
)
def test_what_has_no_effect_is_named(fields: dict[str, JSON], expected: list[str]) -> None:
    assert read({**QUESTION, **fields}).ignored(EVERYTHING) == expected


def test_what_a_model_server_takes_of_no_message_is_named() -> None:
    blocks = [
        {"type": "thinking", "thinking": "x", "signature": ""},
        {"type": "tool_use", "id": "c1", "name": "look", "input": {}},
    ]
    turns = [{"role": "assistant", "content": blocks}, {"role": "user", "content": [result(text("x"))]}]
    call = read({**QUESTION, "messages": [*QUESTION["messages"], *turns]})
    assert call.ignored((EVERYTHING - {"messages.*"}) | {"messages.tool_calls"}) == [
        "messages.thinking",
        "messages.tool_use_id",
    ]


# What is answered.

DETAILS = {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}}
USAGE = Usage(10, 5, DETAILS)
COUNTED = {
    "input_tokens": 6,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 4,
    "output_tokens": 5,
    "output_tokens_details": {"thinking_tokens": 2},
}


def test_a_whole_answer_is_a_message() -> None:
    assert read(QUESTION).reply([Generation("Hi 🙂", "stop", USAGE)], METADATA) == {
        "id": f"msg_{METADATA.id}",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": "Hi 🙂"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": COUNTED,
    }


def test_a_stream_has_the_bytes_of_its_events_and_the_first_piece_is_one_item_with_those_before_it() -> None:
    items = written(read(QUESTION), TextDelta("Hi"), TextDelta(' "you" 🙂\n'), Finished("length", Usage(3, 2)))
    begun = (
        f'{{"id":"msg_{METADATA.id}","type":"message","role":"assistant","model":"tiny","content":[],'
        '"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":0,"output_tokens":0}}'
    )
    assert [item.decode() for item in items] == [
        f'event: message_start\ndata: {{"type":"message_start","message":{begun}}}\n\n'
        'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        '"content_block":{"type":"text","text":""}}\n\n'
        'event: ping\ndata: {"type":"ping"}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":"Hi"}}\n\n',
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":" \\"you\\" 🙂\\n"}}\n\n',
        'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"max_tokens","stop_sequence":null},'
        '"usage":{"input_tokens":3,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":2}}\n\n'
        'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ]


CALLS: list[JSON] = [
    {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}},
    {"id": "c2", "type": "function", "function": {"name": "go", "arguments": ""}},
]
USES = [
    {"type": "tool_use", "id": "c1", "name": "look", "input": {"a": 1}},
    {"type": "tool_use", "id": "c2", "name": "go", "input": {}},
]
THOUGHT = {"type": "thinking", "thinking": "hm so", "signature": ""}


def pieces(*of: tuple[int, dict[str, JSON]]) -> list[Event]:
    return [TextDelta("", extra={"tool_calls": [{"index": index, **piece}]}) for index, piece in of]


@pytest.mark.parametrize(
    ("generation", "deltas", "content", "ending"),
    [
        (Generation("", "stop"), [], [text("")], ("end_turn", None)),
        (
            Generation("Hi", "stop", extra={"reasoning_content": "hm so", "reasoning": "hm so"}),
            [
                TextDelta("", extra={"reasoning_content": "hm", "reasoning": "hm"}),
                TextDelta("", extra={"reasoning": " so"}),
                TextDelta("Hi"),
            ],
            [THOUGHT, text("Hi")],
            ("end_turn", None),
        ),
        (
            Generation("I look.", "tool_calls", extra={"tool_calls": CALLS}),
            [
                TextDelta("I look."),
                *pieces(
                    (0, {"id": "c1", "function": {"name": "look", "arguments": ""}}),
                    (0, {"function": {"arguments": '{"a"'}}),
                    (0, {"function": {"arguments": ":1}"}}),
                    (1, {"id": "c2", "function": {"name": "go", "arguments": None}}),
                ),
            ],
            [text("I look."), *USES],
            ("tool_use", None),
        ),
        (
            # The name comes late, two calls come in turns, and the server says `stop` after a call that was demanded.
            Generation("", "stop", extra={"tool_calls": CALLS}),
            pieces(
                (0, {"id": "c1", "function": {"arguments": '{"a"'}}),
                (0, {"function": {"name": "look"}}),
                (1, {"id": "c2", "function": {"name": "go"}}),
                (1, {}),
                (0, {"function": {"arguments": ":1}"}}),
            ),
            USES,
            ("tool_use", None),
        ),
        (
            Generation("", "stop", extra={"function_call": {"name": "look", "arguments": '{"a":1}'}}),
            [TextDelta("", extra={"function_call": {"name": "look", "arguments": '{"a":1}'}})],
            [{**USES[0], "id": f"toolu_{METADATA.id}_0"}],
            ("tool_use", None),
        ),
        (
            Generation("", "stop", extra={"refusal": "I will not."}),
            [TextDelta("", extra={"refusal": "I will"}), TextDelta("", extra={"refusal": " not."})],
            [text("I will not.")],
            ("refusal", None),
        ),
        (
            Generation("Well. ", "stop", extra={"refusal": "No."}),
            [TextDelta("Well. ", extra={"refusal": "No."})],
            [text("Well. No.")],
            ("refusal", None),
        ),
        (Generation("Hi", "content_filter"), [TextDelta("Hi")], [text("Hi")], ("refusal", None)),
        (Generation("Hi", "abort"), [TextDelta("Hi")], [text("Hi")], ("abort", None)),
        (Generation("Hi", "stop", stop_string="END"), [TextDelta("Hi")], [text("Hi")], ("stop_sequence", "END")),
        (Generation("Hi", "stop", stop_string="</s>"), [TextDelta("Hi")], [text("Hi")], ("end_turn", None)),
    ],
    ids=[
        "empty",
        "thinking",
        "calls",
        "calls_in_turns",
        "function",
        "refusal",
        "text_and_refusal",
        "filter",
        "unknown",
        "stop",
        "own_stop",
    ],
)
def test_an_answer_has_the_same_content_and_stop_reason_whole_and_streamed(
    generation: Generation, deltas: list[Event], content: list[JSON], ending: tuple[str, str | None]
) -> None:
    call = read({**QUESTION, "stop_sequences": ["STOP", "END"]})
    whole = call.reply([generation], METADATA)
    stream = streamed(call, *deltas, Finished(generation.reason, USAGE, stop_string=generation.stop_string))
    assert whole["content"] == accumulated(stream) == content
    (last,) = [event for event in stream if event["type"] == "message_delta"]
    assert (whole["stop_reason"], whole["stop_sequence"]) == tuple(last["delta"].values()) == ending
    assert last["usage"] == COUNTED
    assert [event["type"] for event in stream].count("ping") == 1
    assert stream[-1] == {"type": "message_stop"}


def test_no_piece_of_a_call_follows_the_end_of_its_block_where_calls_are_interleaved() -> None:
    def called(index: int, arguments: str, **named: str) -> TextDelta:
        call = {"index": index, "function": {"arguments": arguments, **named}}
        return TextDelta("", extra={"tool_calls": [call]})

    pieces = (called(0, "", name="look"), called(1, '{"b":', name="go"), called(0, '{"a":1}'), called(1, "2}"))
    stream = streamed(asked(text("?"), tools=[TOOL]), *pieces, Finished("tool_calls"))
    told = [(event["type"].removeprefix("content_block_"), event["index"]) for event in stream if "index" in event]
    assert told == [("start", 0), ("delta", 0), ("stop", 0), ("start", 1), ("delta", 1), ("delta", 1), ("stop", 1)]
    assert [block["input"] for block in accumulated(stream)] == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("thinking", [{"type": "disabled"}, {"type": "adaptive", "display": "omitted"}], ids=str)
def test_thinking_that_is_not_wanted_is_not_shown(thinking: JSON) -> None:
    call, extra = read({**QUESTION, "thinking": thinking}), {"reasoning": "hm"}
    assert call.reply([Generation("Hi", "stop", extra=extra)], METADATA)["content"] == [text("Hi")]
    stream = streamed(call, TextDelta("", extra=extra), TextDelta("Hi", extra=extra), Finished("stop"))
    assert accumulated(stream) == [text("Hi")]


def test_arguments_that_are_no_object_are_wrapped_as_anthropic_does() -> None:
    cut: JSON = [{"id": "c1", "function": {"name": "look", "arguments": '{"a": 1'}}]
    whole = read(QUESTION).reply([Generation("", "length", extra={"tool_calls": cut})], METADATA)
    assert whole["content"][0]["input"] == {"INVALID_JSON": '{"a": 1'}
    assert whole["stop_reason"] == "max_tokens"


def test_a_report_is_in_a_whole_answer_and_in_the_last_delta_of_a_stream_and_the_first_has_what_was_counted() -> None:
    report = Report(100, "model", prompt_tokens=7)
    call = read({**QUESTION, "include_report": True})
    begun, *_, last, _ = events(written(call, TextDelta("Hi"), Finished("stop"), reports={0: report}))
    assert begun["message"]["usage"] == last["usage"] == {"input_tokens": 7, "output_tokens": 0}
    assert last["report"]["prompt_tokens"] == 7
    told, counted = (
        replace(METADATA, reports={0: report}),
        replace(METADATA, reports={0: replace(report, counted="not")}),
    )
    assert call.reply([Generation("Hi", "stop")], told)["report"]["prompt_tokens"] == 7
    assert ["report" in read(QUESTION).reply([Generation("Hi", "stop")], one) for one in (told, counted)] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("no", "top_k"), "invalid_request_error"),
        (PromptTooLong(9, 8), "invalid_request_error"),
        (UnknownModel("a", "b"), "not_found_error"),
        (Overloaded("full"), "rate_limit_error"),
        (ModelServerError("broke"), "api_error"),
        (LLMError("what"), "api_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_has_anthropics_type_and_is_an_event_in_a_stream(error: LLMError, kind: str) -> None:
    expected = {"type": "error", "error": {"type": kind, "message": str(error)}, "request_id": None}
    assert read(QUESTION).style.error(error) == expected
    assert events([read(QUESTION).error_item(error)]) == [expected]


# What is cited.

GRASS, SKY = "The grass is green. ", "The sky\n\n  is blue, as a rule."
DOCUMENTS = [
    document(f"Of colours 🙂\n\n\n{GRASS}{SKY}", True, title="Colours"),
    {
        "type": "document",
        "source": {"type": "content", "content": [text("Bread is baked."), text("Herring is sold on Fridays.")]},
        "citations": {"enabled": True},
    },
    {
        "type": "search_result",
        "source": "http://a",
        "title": "Velmora",
        "content": [text("A town."), text("Its harbour bridge was opened in 1931.")],
        "citations": {"enabled": True},
    },
]
ANSWER = ["Well", ". The grass", " is", " green. ", "The sky is blue.", "\n", "\nHerring is sold on Fridays. ", "The"]
ANSWER += [" bridge was opened in 1931", ".", " Who knows?", "\n"]
CITED = [
    ("Well.", None),
    (
        " The grass is green.",
        {
            "type": "char_location",
            "cited_text": "The grass is green.",
            "document_index": 0,
            "document_title": "Colours",
            "start_char_index": 15,
            "end_char_index": 34,
        },
    ),
    (
        " The sky is blue.",
        {
            "type": "char_location",
            "cited_text": SKY,
            "document_index": 0,
            "document_title": "Colours",
            "start_char_index": 35,
            "end_char_index": 65,
        },
    ),
    (
        "\n\nHerring is sold on Fridays.",
        {
            "type": "content_block_location",
            "cited_text": "Herring is sold on Fridays.",
            "document_index": 1,
            "document_title": None,
            "start_block_index": 1,
            "end_block_index": 2,
        },
    ),
    (
        " The bridge was opened in 1931.",
        {
            "type": "search_result_location",
            "cited_text": "Its harbour bridge was opened in 1931.",
            "search_result_index": 0,
            "source": "http://a",
            "title": "Velmora",
            "start_block_index": 1,
            "end_block_index": 2,
        },
    ),
    (" Who knows?\n", None),
]


@pytest.mark.parametrize("in_tool", [False, True], ids=["of_the_user", "in_the_result_of_a_tool"])
async def test_each_sentence_that_cites_is_a_text_block_with_its_citation_whole_and_streamed(
    monkeypatch: pytest.MonkeyPatch, in_tool: bool
) -> None:
    content = [result(*DOCUMENTS), text("Why?")] if in_tool else [*DOCUMENTS, text("Why?")]
    body = {**QUESTION, "max_tokens": 99, "messages": [{"role": "user", "content": content}]}
    server = Scripted([ANSWER])
    async with running(server, monkeypatch, ONLY) as service:
        whole = await service.post(body, PATH)
        stream = await service.post({**body, "stream": True}, PATH)
    expected = [(said, citation and [citation]) for said, citation in CITED]
    assert [(block["text"], block.get("citations")) for block in whole.json["content"]] == expected
    blocks = accumulated(events(stream.chunks))
    assert [block.get("citations") for block in blocks] == [citations for _, citations in expected]
    assert [block["text"].strip() for block in blocks] == [said.strip() for said, _ in expected]
    assert "".join(block["text"] for block in blocks) == "".join(ANSWER)
    assert stream.headers.get("x-documents-used") == (None if in_tool else "1,2,3")
    (prompt, _, _), _ = server.asked
    assert "Herring is sold on Fridays." in texts(prompt)


async def test_a_sentence_from_several_blocks_cites_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"type": "content", "content": [text("Gaudi 2 has 96 GB."), text("Intel made it in 2022."), text("So?")]}
    content = [{"type": "document", "source": source, "citations": {"enabled": True}}, text("?")]
    said = "Intel made Gaudi 2 with 96 GB in 2022."
    async with running(Scripted([[said]]), monkeypatch, ONLY) as service:
        answer = await service.post({**QUESTION, "messages": [{"role": "user", "content": content}]}, PATH)
    (block,) = answer.json["content"]
    (citation,) = block["citations"]
    assert (block["text"], citation["cited_text"]) == (said, "Gaudi 2 has 96 GB.Intel made it in 2022.")
    assert (citation["start_block_index"], citation["end_block_index"]) == (0, 2)


def test_of_a_long_block_only_the_passage_is_quoted() -> None:
    blocks = [text("Bread is baked. " * 1000), text("Herring is sold.")]
    content = [{"type": "document", "source": {"type": "content", "content": blocks}, "citations": {"enabled": True}}]
    call = read({**QUESTION, "messages": [{"role": "user", "content": [*content, text("?")]}]})
    cited = {"number": 1, "start_index": 0, "end_index": 2}
    spans = [[16, 31], [16_001, 16_017], None, [0], ["0", 1]]
    annotations: list[JSON] = [{"type": "x", "x": {**cited, "passage": span}} for span in spans]
    reply: Any = call.reply([Generation("Ah", "stop", extra={"annotations": annotations})], METADATA)
    found = [citation for block in reply["content"] for citation in block.get("citations", ())]
    assert [(one["cited_text"], one["start_block_index"], one["end_block_index"]) for one in found] == [
        ("Bread is baked.", 0, 1),
        ("Herring is sold.", 1, 2),
    ]


async def test_an_answer_without_wanted_citations_is_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {**QUESTION, "messages": [{"role": "user", "content": [document(GRASS), text("Why [1]?")]}]}
    async with running(Scripted([["The grass is green [1]. ", "Yes."]]), monkeypatch, ONLY) as service:
        whole = await service.post(body, PATH)
        stream = await service.post({**body, "stream": True}, PATH)
    assert whole.json["content"] == accumulated(events(stream.chunks)) == [text("The grass is green [1]. Yes.")]


async def test_the_citations_of_a_large_request_come_at_the_end_of_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    content = [document(GRASS * 6000, True), text("Why?")]
    body = {**QUESTION, "messages": [{"role": "user", "content": content}], "stream": True}
    async with running(Scripted([["Well. The grass is green. ", "Yes."]]), monkeypatch, ONLY) as service:
        (block,) = accumulated(events((await service.post(body, PATH)).chunks))
    assert block["text"] == "Well. The grass is green. Yes."
    assert [(one["start_char_index"], one["cited_text"]) for one in block["citations"]] == [(0, GRASS.strip())]


def test_citations_that_come_behind_a_call_have_a_block_of_their_own() -> None:
    call = asked(document(GRASS, True), text("Why?"), tools=[TOOL])
    place = {"number": 1, "start_index": 0, "end_index": 19, "passage": [0, 19]}
    called = {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": "{}"}}]}
    given = (
        TextDelta("The grass is green."),
        TextDelta("", extra=called),
        TextDelta("", extra={"annotations": [{"type": "document_citation", "document_citation": place}]}),
        Finished("tool_calls"),
    )
    first, use, cited = accumulated(streamed(call, *given))
    assert (first, use["type"], cited["text"]) == (text("The grass is green."), "tool_use", "")
    assert [one["cited_text"] for one in cited["citations"]] == [GRASS[:19]]


# What goes with it.


async def test_tokens_of_a_whole_prompt_are_counted_and_nothing_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"messages": QUESTION["messages"], "model": "scripted"}
    content = [document("x" * 100), text("?")]
    async with running(CountingAlone(), monkeypatch, ONLY) as service:
        plain = await service.post(body, COUNT)
        more = [
            {**body, "system": "Be brief, and kind."},
            {**body, "tools": [TOOL]},
            {**body, "messages": [{"role": "user", "content": content}]},
        ]
        counts = [(await service.post(one, COUNT)).json["input_tokens"] for one in more]
        wishes = await service.post({**body, "thinking": {"type": "enabled", "budget_tokens": 1024}}, COUNT)
    assert plain.json.keys() == {"input_tokens"}
    assert all(count > plain.json["input_tokens"] + 15 for count in counts)
    assert counts[2] > 100
    assert wishes.headers["x-ignored-params"] == "thinking, thinking.budget_tokens"
    assert wishes.headers["request-id"] == wishes.headers["x-request-id"]


def test_a_count_needs_no_limit_of_the_answer() -> None:
    call = Endpoint(COUNT, [anthropic(Switches())]).read(orjson.dumps({"messages": QUESTION["messages"]}), {})
    assert isinstance(call, AnthropicCountCall)
    assert call.request().prompt == (Message("user", "?"),)
    assert call.reply(5) == {"input_tokens": 5}


async def test_every_response_has_the_id_of_its_request_and_an_error_has_it_in_its_body_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {**ONLY, "USVC_API_KEYS": "web=s3cret", "USVC_CORS_ORIGINS": "*"}
    key = {"x-api-key": "s3cret", "anthropic-version": "1999-01-01", "anthropic-beta": "x"}
    async with running(Scripted([["Hi"]]), monkeypatch, environment) as service:
        ways: list[tuple[JSON, dict[str, str], int]] = [
            (QUESTION, key, 200),
            ({**QUESTION, "stream": True}, key, 200),
            (QUESTION, {**key, "Origin": "http://a"}, 200),
            ({**QUESTION, "top_p": 5}, key, 400),
            ({**QUESTION, "model": "other"}, key, 404),
            (QUESTION, {}, 401),
            (b"{}", {**key, "Content-Length": "99000000"}, 413),
        ]
        for number, (body, headers, status) in enumerate(ways):
            answer = await service.post(body, PATH, **headers, **{"X-Request-Id": f"id-{number}"})
            assert (answer.status, answer.headers["request-id"]) == (status, f"id-{number}"), status
            if status != 200:
                assert answer.json["request_id"] in (f"id-{number}", None)
        other = await service.get("/health")
    assert "request-id" not in other.headers


# What it tells of models.


@pytest.mark.parametrize(
    ("query", "names", "has_more"),
    [
        ({}, "abcde", False),
        ({"limit": "2"}, "ab", True),
        ({"limit": "2", "after_id": "b"}, "cd", True),
        ({"limit": "2", "after_id": "c"}, "de", False),
        ({"after_id": "e"}, "", False),
        ({"limit": "2", "before_id": "d"}, "bc", True),
        ({"limit": "2", "before_id": "c"}, "ab", False),
        ({"before_id": "a"}, "", False),
    ],
    ids=str,
)
def test_models_are_listed_in_pages(query: dict[str, str], names: str, has_more: bool) -> None:
    status: Any = SimpleNamespace(models=[ModelInfo(name, 9) for name in "abcde"], query=query)
    page: Any = MODELS["GET /v1/models"].respond(status)
    assert "".join(model["id"] for model in page.pop("data")) == names
    first, last = (names[0], names[-1]) if names else (None, None)
    assert page == {"has_more": has_more, "first_id": first, "last_id": last}


async def test_the_header_of_its_clients_chooses_its_form_where_others_have_the_same_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {"LLM_DIALECTS": "anthropic,openai,cohere", "USVC_API_KEYS": "web=s3cret"}
    version = {"anthropic-version": "2023-06-01"}
    key = {**version, "x-api-key": "s3cret"}
    async with running(Able(), monkeypatch, environment) as service:
        found = await service.get("/v1/models/scripted", **key)
        for path, headers, status, kind, told in (
            ("/v1/models?limit=0", key, 400, "invalid_request_error", "limit: it must be a number from 1 to 1000"),
            ("/v1/models?limit=9999", key, 400, "invalid_request_error", "limit: "),
            (f"/v1/models?after_id={'x' * 999}", key, 400, "invalid_request_error", f"'{'x' * 200}...' is not"),
            ("/v1/models?after_id=x", key, 400, "invalid_request_error", "after_id: 'x' is not served here"),
            ("/v1/models?after_id=scripted&before_id=scripted", key, 400, "invalid_request_error", "before_id: only"),
            ("/v1/models/x", key, 404, "not_found_error", "model: 'x' is not served here; known: scripted"),
            ("/v1/models", version, 401, "authentication_error", "an API key is needed"),
        ):
            answer = await service.get(path, **headers)
            assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (status, "error", kind), path
            assert told in answer.json["error"]["message"]
            assert answer.json["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
        wrong = await service.post({}, "/v1/models", **key)
        others = [
            await service.get("/v1/models/scripted", authorization="Bearer s3cret"),
            await service.get("/v1/models"),
        ]
    assert found.headers["request-id"] == found.headers["x-request-id"]
    assert found.json == {
        "type": "model",
        "id": "scripted",
        "display_name": "scripted",
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": None,
    }
    assert (wrong.status, wrong.json["type"]) == (405, "error")
    assert (others[0].json["object"], others[1].json["error"]["code"]) == ("model", "invalid_api_key")
    assert not any("request-id" in other.headers for other in others)
