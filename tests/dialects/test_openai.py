"""OpenAI's dialect: what its bodies mean, and the exact bytes of its answers."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from comps.core.errors import InvalidRequest, LLMError, ModelServerError, Overloaded, PromptTooLong, UnknownModel
from comps.core.types import (
    JSON,
    Document,
    Embeddings,
    Event,
    Finished,
    Generation,
    Message,
    Sampling,
    TextDelta,
    Usage,
)
from comps.dialects.openai import CHAT, openai
from comps.dialects.shared.base import EmbeddingCall, GenerationCall, Switches
from comps.dialects.shared.endpoint import Endpoint, RequestError
from comps.model_servers import FRAMEWORKS, open_model_server
from comps.model_servers.scripted import Scripted
from comps.model_servers.target import Access, Target
from tests.dialects.written import METADATA, written
from tests.model_servers.replay import Reply, replaying, sse
from tests.model_servers.tgi_stand_in import standing_in
from tests.service import Able, running

ERROR_SHAPES = [{"error"}]
"""The keys of an error."""

TEXT, EMBEDDINGS = "/v1/completions", "/v1/embeddings"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
ALL = frozenset(("n", "tools", "tool_choice", "logprobs", "messages.*", *Sampling.__dataclass_fields__))


def read(body: Any, path: str = CHAT) -> GenerationCall:
    call = Endpoint(path, [openai(Switches())]).read(orjson.dumps(body), {})
    assert isinstance(call, GenerationCall)
    return call


def embedding(body: Any) -> EmbeddingCall:
    call = Endpoint(EMBEDDINGS, [openai(Switches())]).read(orjson.dumps(body), {})
    assert isinstance(call, EmbeddingCall)
    return call


def refused(body: Any, path: str = CHAT) -> dict[str, Any]:
    with pytest.raises(RequestError) as caught:
        Endpoint(path, [openai(Switches())]).read(orjson.dumps(body), {})
    error: dict[str, Any] = caught.value.style.error(caught.value.error)["error"]
    return error


def streamed(body: Any, *events: Event, path: str = CHAT) -> list[str]:
    return [item.decode() for item in written(read(body, path), *events)]


def reply(stream: bool, streamed: Sequence[JSON], whole: JSON) -> Reply:
    """A model server's answer, in chunks or whole."""
    return sse(*streamed) if stream else Reply([json.dumps(whole).encode()])


def choices(items: list[str]) -> list[Any]:
    """The only choice of each chunk."""
    return [json.loads(item.removeprefix("data: "))["choices"][0] for item in items if "[DONE]" not in item]


def test_a_conversation_is_sampled_as_it_says_and_not_otherwise() -> None:
    (request,) = read({**QUESTION, "max_completion_tokens": 5, "temperature": 0, "seed": 3, "stop": "x"}).requests()
    assert request.prompt == (Message("user", "?"),)
    assert request.sampling == Sampling(max_tokens=5, temperature=0, seed=3, stop=("x",))
    (silent,) = read(QUESTION).requests()
    assert silent.sampling == Sampling()


def test_documents_go_with_a_conversation() -> None:
    (request,) = read({**QUESTION, "documents": ["one", {"text": "two", "title": "T"}]}).requests()
    assert request.documents == (Document("one"), Document("two", "T"))


def test_what_only_some_model_servers_know_is_an_option() -> None:
    wishes = {
        "tools": [TOOL],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "response_format": {"type": "json_object"},
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        "logit_bias": {"5": -100},
        "reasoning_effort": "low",
        "metadata": {"a": "b"},
        "min_p": 0.1,
    }
    (request,) = read({**QUESTION, **wishes, "functions": None}).requests()
    assert request.options == wishes
    assert set(read({**QUESTION, **wishes}).ignored(ALL)) == wishes.keys() - ALL


@pytest.mark.parametrize(
    "neutral",
    [{"n": 1}, {"logprobs": False}, {"tools": []}, {"tool_choice": "auto"}, {"response_format": {"type": "text"}}],
    ids=str,
)
def test_a_value_that_changes_nothing_is_not_lost(neutral: dict[str, Any]) -> None:
    assert read({**QUESTION, **neutral}).ignored(frozenset()) == []


def test_logprobs_of_0_are_a_wish_of_a_text_that_is_continued() -> None:
    body = {"prompt": "a", "logprobs": 0}
    assert read(body, TEXT).requests()[0].options == {"logprobs": 0}
    assert read(body, TEXT).ignored(frozenset()) == ["logprobs"]


def test_logprobs_of_false_are_none_of_a_text_that_is_continued() -> None:
    assert read({"prompt": "a", "logprobs": False}, TEXT).requests()[0].options == {}


@pytest.mark.parametrize(("number", "lost"), [(0, []), (1, ["logprobs"]), (20, ["logprobs"])])
def test_logprobs_from_1_on_ask_of_a_text_for_alternatives(number: int, lost: list[str]) -> None:
    call = read({"prompt": "a", "logprobs": number}, TEXT)
    assert call.ignored(frozenset(("logprobs",))) == lost
    assert call.ignored(frozenset(("logprobs", "top_logprobs"))) == []


@pytest.mark.parametrize(
    ("path", "body", "wish"),
    [
        (TEXT, {"prompt": "a"}, {"tools": [TOOL]}),
        (TEXT, {"prompt": "a"}, {"reasoning_effort": "low"}),
        (TEXT, {"prompt": "a"}, {"top_logprobs": 2}),
        (CHAT, QUESTION, {"suffix": "x"}),
        (CHAT, QUESTION, {"messages.*": 1}),
        (CHAT, QUESTION, {"max_total_tokens": 9}),
    ],
    ids=str,
)
def test_what_only_the_other_path_or_this_service_knows_is_no_option(
    path: str, body: dict[str, Any], wish: dict[str, Any]
) -> None:
    call = read({**body, **wish}, path)
    assert call.requests()[0].options == {}
    assert call.ignored(ALL.union(wish)) == list(wish)


def test_turns_keep_their_further_fields() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}], "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "42", "tool_call_id": "c"},
    ]
    (request,) = read({"messages": messages}).requests()
    assert request.prompt == (
        Message("developer", "Be brief."),
        Message("user", [{"type": "image_url", "image_url": {"url": "data:,"}}], {"name": "Ann"}),
        Message("assistant", "", {"tool_calls": calls}),
        Message("tool", "42", {"tool_call_id": "c"}),
    )
    assert read({"messages": messages}).ignored(ALL) == []
    assert read({"messages": messages}).ignored(ALL - {"messages.*"}) == [
        "messages.name",
        "messages.tool_call_id",
        "messages.tool_calls",
    ]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"role": "wizard", "content": "?"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": [{"text": "?"}]}]}, "messages[0].content"),
        (CHAT, {**QUESTION, "n": 0}, "n"),
        (CHAT, {**QUESTION, "n": 129}, "n"),
        (CHAT, {**QUESTION, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {**QUESTION, "presence_penalty": 3}, "presence_penalty"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        (CHAT, {**QUESTION, "tools": "look"}, "tools"),
        (CHAT, {**QUESTION, "tools": [{"function": {"name": "look"}}]}, "tools[0]"),
        (CHAT, {**QUESTION, "tools": [{"type": "function", "function": {}}]}, "tools[0]"),
        (CHAT, {**QUESTION, "functions": [{"name": "two words"}]}, "functions[0]"),
        (CHAT, {**QUESTION, "response_format": {"type": "json_schema"}}, "response_format"),
        (CHAT, {**QUESTION, "response_format": {"schema": {}}}, "response_format"),
        (CHAT, {**QUESTION, "logit_bias": {"5": 101}}, "logit_bias"),
        (CHAT, {**QUESTION, "metadata": "a"}, "metadata"),
        (CHAT, {**QUESTION, "verbosity": "loud"}, "verbosity"),
        (CHAT, {**QUESTION, "stream_options": {"include_usage": "perhaps"}}, "stream_options.include_usage"),
        (CHAT, {**QUESTION, "stream": "perhaps"}, "stream"),
        (TEXT, {"prompt": ""}, "prompt[0]"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": [1, "a"]}, "prompt[0]"),
        (TEXT, {"prompt": "a", "max_tokens": -1}, "max_tokens"),
        (TEXT, {"prompt": "a", "logprobs": -1}, "logprobs"),
        (EMBEDDINGS, {"input": [[1, 2]]}, "input"),
        (EMBEDDINGS, {"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(path: str, body: Any, param: str) -> None:
    error = refused(body, path)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {**QUESTION, "top_logprobs": 2}, "top_logprobs"),
        (CHAT, {**QUESTION, "top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        (TEXT, {"prompt": "a", "n": 3, "best_of": 2}, "best_of"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(path: str, body: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(body, path).requests()
    assert caught.value.field == field


def test_of_a_streams_options_what_is_not_known_is_named() -> None:
    options = {"include_usage": True, "include_obfuscation": True, "chunk_size": None}
    assert read({**QUESTION, "stream_options": options}).ignored(ALL) == ["stream_options.include_obfuscation"]


def test_token_ids_are_refused_with_what_to_do_instead() -> None:
    assert "check_embedding_ctx_length" in refused({"input": [1, 2]}, EMBEDDINGS)["message"]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (InvalidRequest("x", "n"), "invalid_request_error", None),
        (PromptTooLong(9, 8), "invalid_request_error", "context_length_exceeded"),
        (UnknownModel("a", "b"), "invalid_request_error", "model_not_found"),
        (Overloaded("x"), "rate_limit_error", "rate_limit_exceeded"),
        (ModelServerError("x"), "server_error", None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_has_openais_type_and_code(error: LLMError, kind: str, code: str | None) -> None:
    spelled = read(QUESTION).style.error(error)["error"]
    assert (spelled["type"], spelled["code"]) == (kind, code)


def test_a_whole_answer_has_all_that_came_with_it() -> None:
    calls = [{"index": 0, "id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    first = Generation("", "tool_calls", Usage(5, 2), {"tool_calls": calls, "reasoning_content": "Hm."})
    second = Generation("Deep.", "length", extra={"logprobs": {"content": [1]}})
    whole = Generation(first.text, first.reason, first.usage, first.extra, (second,))
    assert read(QUESTION).reply([whole], METADATA) == {
        "id": f"chatcmpl-{METADATA.id}",
        "object": "chat.completion",
        "created": METADATA.created,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
                    "reasoning_content": "Hm.",
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "Deep."},
                "logprobs": {"content": [1]},
                "finish_reason": "length",
            },
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


HEAD = f'data: {{"id":"chatcmpl-{METADATA.id}","object":"chat.completion.chunk","created":1700000000,"model":"tiny"'


def test_a_streamed_answer_byte_for_byte() -> None:
    items = streamed(
        {**QUESTION, "stream_options": {"include_usage": True}},
        TextDelta(" Deep"),
        TextDelta('"ü'),
        Finished("stop", Usage(5, 2)),
    )
    nothing, no_usage = '"logprobs":null,"finish_reason":', '"usage":null}\n\n'
    assert items == [
        f'{HEAD},"choices":[{{"index":0,"delta":{{"role":"assistant","content":" Deep"}},{nothing}null}}],{no_usage}',
        f'{HEAD},"choices":[{{"index":0,"delta":{{"content":"\\"ü"}},{nothing}null}}],{no_usage}',
        f'{HEAD},"choices":[{{"index":0,"delta":{{}},{nothing}"stop"}}],{no_usage}',
        f'{HEAD},"choices":[],"usage":{{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}}}\n\n',
        "data: [DONE]\n\n",
    ]


def test_what_comes_with_a_piece_is_where_openai_has_it() -> None:
    call = {"index": 0, "function": {"arguments": "{"}}
    items = streamed(
        QUESTION,
        TextDelta("", extra={"reasoning_content": "Hm."}),
        TextDelta("a", extra={"logprobs": {"content": [1]}}),
        TextDelta("", extra={"tool_calls": [call]}),
        TextDelta("", extra={"logprobs": {"content": [2]}}),
        Finished("tool_calls"),
    )
    assert choices(items) == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": None, "reasoning_content": "Hm."},
            "logprobs": None,
            "finish_reason": None,
        },
        {"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [1]}, "finish_reason": None},
        {"index": 0, "delta": {"tool_calls": [call]}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {}, "logprobs": {"content": [2]}, "finish_reason": None},
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"},
    ]


def test_each_choice_begins_and_ends_on_its_own() -> None:
    items = streamed(
        {**QUESTION, "n": 2},
        TextDelta("a"),
        TextDelta("x", choice=1),
        TextDelta("b"),
        Finished("stop", Usage(1, 2)),
        Finished("length", choice=1),
    )
    assert [(one["index"], one["delta"].get("role"), one["finish_reason"]) for one in choices(items)] == [
        (0, "assistant", None),
        (1, "assistant", None),
        (0, None, None),
        (0, None, "stop"),
        (1, None, "length"),
    ]


def test_a_choice_that_says_nothing_is_the_assistants_all_the_same() -> None:
    (only,) = choices(streamed(QUESTION, Finished("stop")))
    assert only == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_a_streamed_completion_byte_for_byte() -> None:
    head = f'data: {{"id":"cmpl-{METADATA.id}","object":"text_completion","created":1700000000,"model":"tiny"'
    items = streamed({"prompt": "a"}, TextDelta(" b"), Finished("length", Usage(1, 1)), path=TEXT)
    assert items == [
        f'{head},"choices":[{{"index":0,"text":" b","logprobs":null,"finish_reason":null}}]}}\n\n',
        f'{head},"choices":[{{"index":0,"text":"","logprobs":null,"finish_reason":"length"}}]}}\n\n',
        "data: [DONE]\n\n",
    ]


async def test_several_texts_are_continued_at_once_whole_and_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"prompt": ["a", "b"], "stream_options": {"include_usage": True}}
    async with running(Scripted([["one"], ["two"]]), monkeypatch) as service:
        whole = (await service.post(body, TEXT)).json
        pieces = await service.post({**body, "stream": True}, TEXT)
    assert [(choice["index"], choice["text"]) for choice in whole["choices"]] == [(0, "one"), (1, "two")]
    assert whole["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    chunks = [json.loads(chunk.removeprefix(b"data: ")) for chunk in pieces.chunks[:-1]]
    assert chunks.pop()["usage"] == whole["usage"]
    texts = {n: "".join(c["choices"][0]["text"] for c in chunks if c["choices"][0]["index"] == n) for n in (0, 1)}
    assert texts == {0: "one", 1: "two"}


def test_documents_go_with_text_too() -> None:
    requests = read({"prompt": ["a", "b"], "documents": ["one"], "chat_template": "{context}!"}, TEXT).requests()
    assert [(one.prompt, one.documents, one.template) for one in requests] == [
        ("a", (Document("one"),), "{context}!"),
        ("b", (Document("one"),), "{context}!"),
    ]


def test_completions_are_short_unless_told_otherwise_as_openais() -> None:
    (request,) = read({"prompt": "a"}, TEXT).requests()
    assert request.sampling == Sampling(max_tokens=16)


def test_vectors_are_numbers_or_little_endian_floats() -> None:
    vectors = Embeddings(([0.5, -2.0], [1.0, 0.0]), 7)
    plain = embedding({"input": ["a", "b"]}).reply(vectors, METADATA)
    assert plain == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -2.0]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 0.0]},
        ],
        "model": "tiny",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    packed = embedding({"input": ["a", "b"], "encoding_format": "base64"}).reply(vectors, METADATA)
    decoded = [struct.unpack("<2f", base64.b64decode(item["embedding"])) for item in packed["data"]]
    assert decoded == [(0.5, -2.0), (1.0, 0.0)]


def test_other_dimensions_than_the_models_are_refused() -> None:
    call = embedding({"input": "a", "dimensions": 3})
    with pytest.raises(InvalidRequest, match="dimensions: the vectors of tiny have 2"):
        call.reply(Embeddings(([1.0, 2.0],)), METADATA)
    assert call.reply(Embeddings(([1.0, 2.0, 3.0],)), METADATA)["data"]


async def test_models_are_listed_and_told_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = {"a/b.c": Able(name="x", context_window=512)}
    async with running(servers, monkeypatch, {"LLM_NAME": "a/b.c"}) as service:
        listed = (await service.get("/v1/models")).json
        one = (await service.get("/v1/models/a/b.c")).json
        none = await service.get("/v1/models/d")
    assert listed["data"] == [one]
    assert (one["id"], one["max_model_len"]) == ("a/b.c", 512)
    assert none.status == 404
    assert none.json["error"]["code"] == "model_not_found"
    assert none.json["error"]["message"] == "model: 'd' is not served here; known: a/b.c"


TOOL_CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
LOGPROBS = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]}


def tool_call_and_text(stream: bool) -> Reply:
    """A model server's answer with two choices."""
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    chunks = [
        {"choices": [{"index": 0, "delta": {"tool_calls": [TOOL_CALL]}}]},
        {"choices": [{"index": 1, "delta": {"content": "a"}, "logprobs": LOGPROBS}]},
        {"choices": [{"index": 1, "delta": {"reasoning_content": "Hm."}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": usage},
    ]
    first = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
    second = {"role": "assistant", "content": "a", "reasoning_content": "Hm."}
    whole = [
        {"index": 0, "message": first, "finish_reason": "tool_calls"},
        {"index": 1, "message": second, "logprobs": LOGPROBS, "finish_reason": "stop"},
    ]
    return reply(stream, chunks, {"choices": whole, "usage": usage})


@pytest.mark.parametrize("enabled", ["openai", "opea"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("stream", [False, True])
async def test_tools_logprobs_and_several_answers_go_to_the_model_server_and_come_back(
    monkeypatch: pytest.MonkeyPatch, framework: str, stream: bool, enabled: str
) -> None:
    replies: dict[str, Reply | list[Reply]] = {
        "/v1/models": Reply([b'{"data": []}']),
        CHAT: tool_call_and_text(stream),
    }
    asked = {"n": 2, "tools": [TOOL], "logprobs": True, "min_p": 0.1}
    turns = [
        {"role": "user", "content": "?", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [{k: v for k, v in TOOL_CALL.items() if k != "index"}]},
        {"role": "tool", "content": "42", "tool_call_id": "c"},
    ]
    environment = {"LLM_NAME": "m", "FRAMEWORK": framework, "LLM_DIALECTS": enabled}
    async with replaying(replies) as replay:
        server = open_model_server("vllm", Target("m", replay.url))
        async with running(server, monkeypatch, environment) as service:
            answer = await service.post({"messages": turns, **asked, "stream": stream, "colour": "red"})
    assert answer.status == 200, answer.body
    assert answer.headers["x-ignored-params"] == "colour"
    sent = replay.asked[-1][2]
    assert sent["messages"] == turns
    assert {name: sent[name] for name in asked} == asked
    if not stream:
        one, two = answer.json["choices"]
        assert one["message"]["tool_calls"][0]["function"] == TOOL_CALL["function"]
        assert (two["message"]["content"], two["logprobs"]) == ("a", LOGPROBS)
        assert two["message"]["reasoning_content"] == "Hm."
        assert answer.json["usage"]["total_tokens"] == 7
        assert answer.headers["x-finish-reason"] == "tool_calls,stop"
    else:
        pieces = choices([chunk.decode() for chunk in answer.chunks])
        assert pieces[0]["delta"]["tool_calls"] == [TOOL_CALL]
        assert (pieces[1]["delta"]["content"], pieces[1]["logprobs"]) == ("a", LOGPROBS)
        assert [(piece["index"], piece["finish_reason"]) for piece in pieces[-2:]] == [(0, "tool_calls"), (1, "stop")]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_completions_wish_goes_to_the_model_server_and_comes_back(
    monkeypatch: pytest.MonkeyPatch, framework: str, stream: bool
) -> None:
    def choice(index: int, text: str, reason: str | None = None) -> dict[str, Any]:
        logprobs = {"tokens": list(text), "token_logprobs": [-0.5] * len(text)}
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    details = {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": None}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, **details}
    pieces = choice(0, "a"), choice(1, "x"), choice(0, "b", "length"), choice(1, "y", "length")
    chunks = [*({"choices": [one]} for one in pieces), {"choices": [], "usage": usage}]
    whole = {"choices": [choice(0, "ab", "length"), choice(1, "xy", "length")], "usage": usage}
    replies: dict[str, Reply | list[Reply]] = {
        "/v1/models": Reply([b'{"data": []}']),
        TEXT: reply(stream, chunks, whole),
    }
    asked = {"echo": True, "logprobs": 2, "n": 2, "suffix": "z", "logit_bias": {"5": -100.0}, "user": "Ann"}
    async with replaying(replies) as replay:
        server = open_model_server("openai_api", Target("m", replay.url, Access(whole_answers="whole")))
        async with running(server, monkeypatch, {"LLM_NAME": "m", "FRAMEWORK": framework}) as service:
            streaming = {"stream": stream, "stream_options": {"include_usage": True}}
            answer = await service.post({"prompt": ["p", "q"], **asked, "best_of": 3, **streaming}, TEXT)
    assert answer.headers["x-ignored-params"] == "best_of"
    bodies = [body for path, _, body in replay.asked if path == TEXT]
    assert {body["prompt"] for body in bodies} == {"p", "q"}
    assert all({name: body[name] for name in asked} == asked for body in bodies)
    if stream:
        *items, last, _ = (item.decode() for item in answer.chunks)
        counted = json.loads(last.removeprefix("data: "))["usage"]
        told: dict[int, list[Any]] = {number: [] for number in range(4)}
        for one in choices(items):
            told[one["index"]].append((one["text"], one["logprobs"] and one["logprobs"]["tokens"]))
        ab, xy = ([(first, [first]), (second, [second]), ("", None)] for first, second in ("ab", "xy"))
        assert told == {0: ab, 1: xy, 2: ab, 3: xy}
    else:
        assert [one["text"] for one in answer.json["choices"]] == ["ab", "xy", "ab", "xy"]
        assert answer.json["choices"][3]["logprobs"]["tokens"] == ["x", "y"]
        counted = answer.json["usage"]
    assert (counted["total_tokens"], counted["prompt_tokens_details"]) == (14, {"cached_tokens": 4})


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("stream", [False, True])
async def test_tools_and_their_results_go_to_tgi_and_come_back(
    monkeypatch: pytest.MonkeyPatch, framework: str, stream: bool
) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "weather", "description": "", "parameters": parameters}}
    earlier = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "?", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [earlier]},
        {"role": "tool", "content": "42", "tool_call_id": "c"},
    ]
    async with standing_in() as stand_in:
        server = open_model_server("tgi", Target("tgi", stand_in.url))
        async with running(server, monkeypatch, {"LLM_NAME": "tgi", "FRAMEWORK": framework}) as service:
            body = {"messages": turns, "tools": [tool], "tool_choice": "auto", "n": 2, "max_tokens": 200}
            answer = await service.post({**body, "stream": stream})
    assert answer.headers["x-ignored-params"] == "n, messages.name, messages.tool_call_id"
    (sent,) = stand_in.bodies(CHAT)
    assert sent["messages"] == turns
    assert '"arguments": "{}"' in stand_in.inputs[0].replace("Ġ", " ")
    assert sent["tools"] == [tool]
    if stream:
        pieces = choices([chunk.decode() for chunk in answer.chunks])
        calls = [call["function"] for piece in pieces for call in piece["delta"].get("tool_calls") or ()]
        assert calls[0]["name"] == "weather"
        assert json.loads("".join(call["arguments"] for call in calls)) == {"city": "Paris"}
        assert pieces[-1]["finish_reason"] == "tool_calls"
    else:
        (choice,) = answer.json["choices"]
        (call,) = choice["message"]["tool_calls"]
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", {"city": "Paris"})
        assert choice["finish_reason"] == "tool_calls"


async def test_a_service_before_another_one_names_what_the_model_behind_both_ignores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted([["Deep"]]), monkeypatch) as inner:
        server = open_model_server("ray_serve", Target("scripted", inner.url))
        async with running(server, monkeypatch) as outer:
            answer = await outer.post({**QUESTION, "tools": [TOOL], "min_p": 0.1, "max_tokens": 5})
    assert answer.json["choices"][0]["message"]["content"] == "Deep"
    assert set(answer.headers["x-ignored-params"].split(", ")) == {"tools", "min_p"}


async def test_where_openai_comes_first_errors_on_unknown_routes_are_openais(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, {"LLM_DIALECTS": "openai"}) as service:
        answer = await service.get("/v1/nothing")
    assert answer.status == 404
    assert "/v1/nothing" in answer.json["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_where_streaming_is_switched_off_an_answer_is_whole(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    environment = {"LLM_DIALECTS": "openai", "LLM_DISABLE_STREAMING": "true"}
    async with running(Scripted(), monkeypatch, environment) as service:
        answer = await service.post({**QUESTION, "prompt": "a", "stream": True}, path)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["choices"][0]["finish_reason"] == "stop"


CITED: dict[str, Any] = {
    "annotations": [
        {
            "type": "document_citation",
            "document_citation": {"start_index": 3, "end_index": 6, "title": "T", "number": 1},
        }
    ],
    "unknown_citations": [9],
}


def test_a_text_that_is_continued_says_in_its_choice_what_it_cites() -> None:
    said = Generation("No [1][9]", "stop", extra=CITED)
    (choice,) = read({"prompt": "a"}, TEXT).reply([said], METADATA)["choices"]
    assert choice == {"index": 0, "text": "No [1][9]", "logprobs": None, **CITED, "finish_reason": "stop"}


def test_a_streamed_text_says_in_its_choice_what_it_cites() -> None:
    events = TextDelta("No [1][9]"), TextDelta("", extra=CITED), Finished("stop")
    _, said, end = choices(streamed({"prompt": "a"}, *events, path=TEXT))
    assert said == {"index": 0, "text": "", **CITED, "logprobs": None, "finish_reason": None}
    assert end["finish_reason"] == "stop"


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_each_choice_cites_is_said_with_it_whatever_the_framework(
    monkeypatch: pytest.MonkeyPatch, framework: str, stream: bool
) -> None:
    pieces = [(0, "It has 96 GB ["), (1, "Bread [2"), (0, "1"), (1, "]."), (0, "].")]
    chunks = [
        *({"choices": [{"index": index, "delta": {"content": text}}]} for index, text in pieces),
        *({"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]} for index in (0, 1)),
    ]
    whole = {
        "choices": [
            {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            for index, text in enumerate(("It has 96 GB [1].", "Bread [2]."))
        ]
    }
    replies: dict[str, Reply | list[Reply]] = {
        "/v1/models": Reply([b'{"data": []}']),
        CHAT: reply(stream, chunks, whole),
    }
    documents = [{"text": "96 GB", "title": "Gaudi 2", "metadata": {"url": "http://a", "citation_id": 1}}]
    async with replaying(replies) as replay:
        server = open_model_server("vllm", Target("m", replay.url))
        async with running(server, monkeypatch, {"LLM_NAME": "m", "FRAMEWORK": framework}) as service:
            asked = {**QUESTION, "documents": documents, "citations": True, "n": 2, "stream": stream}
            answer = await service.post(asked)
    link = {"start_index": 13, "end_index": 16, "title": "Gaudi 2", "url": "http://a", "number": 1, "citation_id": 1}
    first = {"annotations": [{"type": "url_citation", "url_citation": link}]}
    second = {"unknown_citations": [2]}
    if stream:
        told = choices([item.decode() for item in answer.chunks])
        tails = [[one for one in told if one["index"] == index][-2:] for index in (0, 1)]
        assert [tail[0]["delta"] for tail in tails] == [first, second]
        assert [tail[1]["finish_reason"] for tail in tails] == ["stop", "stop"]
    else:
        messages = [choice["message"] for choice in answer.json["choices"]]
        assert messages == [
            {"role": "assistant", "content": "It has 96 GB [1].", **first},
            {"role": "assistant", "content": "Bread [2].", **second},
        ]


@pytest.mark.parametrize(
    ("choice", "lost"),
    [
        ({}, True),
        ({"tool_choice": "auto"}, True),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}}, True),
        ({"tool_choice": "none"}, False),
        ({"tool_choice": "required"}, False),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, False),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}}, False),
    ],
)
def test_of_a_model_that_calls_only_on_demand_tools_are_ignored_without_a_demand(
    choice: dict[str, Any], lost: bool
) -> None:
    tool = {"type": "function", "function": {"name": "weather"}}
    body = read({**QUESTION, "tools": [tool], **choice})
    assert body.ignored(ALL) == []
    assert body.ignored(ALL | {"tool_choice.required"}) == (["tools"] if lost else [])
