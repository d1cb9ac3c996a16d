"""Ollama's dialect: what its bodies mean, and the exact bytes of its answers."""

from __future__ import annotations

import json
from base64 import b64decode, encodebytes
from collections.abc import Mapping
from dataclasses import replace
from time import process_time
from typing import Any

import orjson
import pytest

from comps.core.citations import ANNOTATIONS
from comps.core.errors import InvalidRequest, LLMError, ModelServerError
from comps.core.ports import Answer
from comps.core.times import Times
from comps.core.types import (
    CALLS_ON_DEMAND,
    JSON,
    MANY,
    Document,
    Embeddings,
    Finished,
    Generation,
    Message,
    ModelInfo,
    Prompt,
    Report,
    Sampling,
    TextDelta,
    Usage,
)
from comps.dialects.ollama.dialect import ollama
from comps.dialects.ollama.templates import fill
from comps.dialects.shared.base import EmbeddingCall, GenerationCall, Switches
from comps.dialects.shared.endpoint import Endpoint, RequestError
from tests.dialects.written import METADATA, written
from tests.service import Able, running

ERROR_SHAPES = [{"error"}]
"""The keys of an error."""
ITEMS_WITHOUT_TEXT = 1
REFUSED = dict.fromkeys(
    (
        *("POST /api/pull", "POST /api/push", "POST /api/create", "POST /api/copy", "DELETE /api/delete"),
        "POST /api/blobs/{digest}",
    ),
    403,
)
TOGETHER = {"name": {"model": "scripted"}}
ANYWAY = {
    "keep_alive": [0.25, 0.5, 1.5, -1],
    "num_predict": [0, -1],
    "shift": [False],
    "truncate": [True, False],
    "typical_p": [1.5],
}

CHAT, GENERATE, EMBED, OLDER, SHOW = "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"
ONLY = {"LLM_DIALECTS": "ollama"}
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}]}
HEAD = '{"model":"tiny","created_at":"2023-11-14T22:13:20.000000Z"'
DURATIONS = '"total_duration":0,"load_duration":0,"eval_duration":0'
PNG = "iVBORw0KGgo="


class Measured(Times):
    """The times of an exchange whose model was asked after a second, began after two and ended after four."""

    started, asked_at, first_token_at, answered_at = 10.0, 11.0, 12.0, 14.0


def dialect(**switches: bool) -> Any:
    return ollama(Switches(**switches))


def read(body: Any, path: str = CHAT, served: ModelInfo | None = None, **switches: bool) -> GenerationCall:
    call = Endpoint(path, [dialect(**switches)]).read(orjson.dumps(body), {})
    assert isinstance(call, GenerationCall)
    if served:
        call.answered_by(served)
    return call


def asked(body: Any, path: str = CHAT, served: ModelInfo | None = None) -> Any:
    (request,) = read(body, path, served).requests()
    return request


def refused(body: Any, path: str = CHAT) -> str:
    with pytest.raises(RequestError) as caught:
        Endpoint(path, [dialect()]).read(orjson.dumps(body), {})
    assert caught.value.style.status(caught.value.error) == 400
    error: str = caught.value.style.error(caught.value.error)["error"]
    return error


def lines(body: Any, *events: Any, path: str = CHAT) -> list[str]:
    return [item.decode() for item in written(read(body, path), *events)]


def whole(body: Any, generation: Generation, path: str = CHAT, **metadata: Any) -> Any:
    return read(body, path).reply([generation], replace(METADATA, **metadata))


# What the bodies mean.


def test_options_say_how_to_sample_and_the_model_server_decides_the_rest() -> None:
    options = {
        **{"num_predict": 9, "temperature": 0, "top_k": 3, "top_p": 1.5, "typical_p": 0.5, "repeat_penalty": 1.1},
        **{"presence_penalty": 0.1, "frequency_penalty": 0.2, "seed": 4, "stop": ["a", ""], "min_p": 0.05},
    }
    request = asked({**QUESTION, "options": options})
    assert request.sampling == Sampling(9, 0, 1.0, 3, 0.5, 1.1, 0.2, 0.1, 4, ("a",))
    assert request.options == {"min_p": 0.05}
    assert asked(QUESTION).sampling == Sampling()


@pytest.mark.parametrize(
    "options", [{"num_predict": -1}, {"num_predict": -2}, {"num_predict": 0}, {"seed": -1}, {}, None]
)
def test_an_option_that_switches_off_is_left_to_the_model_server(options: Any) -> None:
    assert asked({**QUESTION, "options": options}).sampling == Sampling()
    assert asked({**QUESTION, "options": {"top_k": -1, "stop": "x"}}).sampling == Sampling(top_k=MANY, stop=("x",))


def test_options_without_effect_are_named_with_where_they_stand() -> None:
    options = {
        "num_ctx": 4096,
        "num_gpu": 1,
        "use_mmap": False,
        "mirostat": 2,
        "top_k": 4,
        "colour": "red",
        "numa": None,
    }
    call = read({**QUESTION, "options": options, "keep_alive": "5m"}, served=ModelInfo("tiny", 2048))
    lost = call.ignored(frozenset({"messages.*"}))
    names = ["top_k", "num_ctx", "num_gpu", "use_mmap", "mirostat", "colour"]
    assert lost == [f"options.{name}" for name in names]
    within = read({**QUESTION, "options": {"num_ctx": 2048}}, served=ModelInfo("tiny", 2048))
    assert within.ignored(frozenset({"messages.*"})) == []


def test_a_format_is_a_response_format() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    of_schema = asked({**QUESTION, "format": schema}).options["response_format"]
    assert of_schema == {"type": "json_schema", "json_schema": {"name": "format", "schema": schema}}
    assert asked({**QUESTION, "format": "json"}).options == {"response_format": {"type": "json_object"}}
    assert asked({**QUESTION, "format": ""}).options == {}
    assert "format: it is 'json'" in refused({**QUESTION, "format": "xml"})
    assert read({**QUESTION, "format": "json"}).ignored(frozenset()) == ["format"]


@pytest.mark.parametrize(
    ("think", "capabilities", "options"),
    [
        ("low", {"reasoning_effort"}, {"reasoning_effort": "low"}),
        ("max", {"reasoning_effort"}, {"reasoning_effort": "high"}),
        (True, {"reasoning_effort"}, {"reasoning_effort": "medium"}),
        (True, {"reasoning_effort", "chat_template_kwargs"}, {"chat_template_kwargs": {"enable_thinking": True}}),
        (False, {"chat_template_kwargs"}, {"chat_template_kwargs": {"enable_thinking": False}}),
        (None, {"chat_template_kwargs"}, {}),
    ],
)
def test_thinking_is_asked_for_as_the_model_server_knows_it(
    think: Any, capabilities: set[str], options: dict[str, JSON]
) -> None:
    served = ModelInfo("tiny", capabilities=frozenset(capabilities))
    call = read({**QUESTION, "think": think}, served=served)
    assert call.requests()[0].options == options
    assert call.ignored(served.capabilities) == []
    assert read({**QUESTION, "think": think}).ignored(frozenset()) == ([] if think is None else ["think"])
    raw = read({"prompt": "?", "raw": True, "think": think}, GENERATE, served)
    assert (raw.requests()[0].options, raw.ignored(served.capabilities)) == ({}, [] if think is None else ["think"])


def test_a_conversation_with_tools_images_and_thoughts_is_openais() -> None:
    calls = [{"function": {"name": name, "arguments": {"city": "Köln"}}} for name in ("weather", "time")]
    turns = [
        {"role": "System", "content": "Be brief."},
        {"role": "user", "content": "Here.", "images": [PNG, "data:image/webp;base64,AAAA"]},
        {"role": "assistant", "thinking": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_name": "time", "content": "Noon."},
        {"role": "tool", "content": "Rain."},
        {"role": "user", "images": ["/9j/AAAA"]},
    ]
    request = asked({"messages": turns})
    told = [
        {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": '{"city":"Köln"}'}}
        for n, name in enumerate(("weather", "time"))
    ]
    urls = [f"data:image/png;base64,{PNG}", "data:image/webp;base64,AAAA", "data:image/jpeg;base64,/9j/AAAA"]
    first, second, third = ({"type": "image_url", "image_url": {"url": url}} for url in urls)
    assert request.prompt == (
        Message("system", "Be brief."),
        Message("user", [{"type": "text", "text": "Here."}, first, second]),
        Message("assistant", "", {"reasoning_content": "Hm.", "tool_calls": told}),
        Message("tool", "Noon.", {"name": "time", "tool_call_id": "call_1"}),
        Message("tool", "Rain.", {"tool_call_id": "call_0"}),
        Message("user", [third]),
    )


@pytest.mark.parametrize(
    ("turn", "field"),
    [
        ({"role": "user", "images": ["no!"]}, "messages.1.images"),
        ({"role": "user", "images": [""]}, "messages.1.images"),
        ({"role": "assistant", "tool_calls": [{"name": "x"}]}, "messages.1.tool_calls"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": [1]}}]}, "messages.1.tool_calls"),
    ],
)
def test_an_image_or_a_call_that_is_none_is_refused_with_its_place(turn: Any, field: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{field}: "):
        asked({"messages": [*QUESTION["messages"], turn]})


def test_an_image_may_have_line_breaks() -> None:
    broken = encodebytes(b64decode(PNG) + bytes(100)).decode()
    assert "\n" in broken.strip()
    (request,) = read({"messages": [{"role": "user", "images": [broken]}]}).requests()
    url = "data:image/png;base64," + broken.replace("\n", "")
    assert request.prompt == (Message("user", [{"type": "image_url", "image_url": {"url": url}}]),)


def test_what_a_message_has_that_the_model_server_does_not_know_is_named() -> None:
    call = read({"messages": [{"role": "tool", "content": "x", "tool_name": "y", "thinking": "z", "mood": 1}]})
    assert call.ignored(frozenset()) == ["messages.mood", "messages.thinking", "messages.tool_name"]
    assert call.ignored(frozenset({"messages.*"})) == ["messages.mood"]
    with_tools = read({**QUESTION, "tools": [{"type": "function", "function": {"name": "x"}}]})
    assert with_tools.ignored(frozenset({"tools"})) == []
    assert with_tools.ignored(frozenset({"tools", CALLS_ON_DEMAND})) == ["tools"]


def test_a_text_is_answered_with_its_system_message_and_images() -> None:
    request = asked({"prompt": "?", "system": "Be brief.", "images": [PNG]}, GENERATE)
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    assert request.prompt == (Message("system", "Be brief."), Message("user", [{"type": "text", "text": "?"}, image]))
    assert asked({"prompt": "?"}, GENERATE).prompt == (Message("user", "?"),)
    base = ModelInfo("tiny", has_chat_template=False)
    assert asked({"prompt": "?"}, GENERATE, base).prompt == "?"
    assert asked({"prompt": "?", "system": "x"}, GENERATE, base).prompt == (
        Message("system", "x"),
        Message("user", "?"),
    )


def test_a_text_is_continued_raw_by_a_template_or_up_to_a_suffix() -> None:
    assert asked({"prompt": "?", "raw": True}, GENERATE).prompt == "?"
    template = "{{ if .System }}<s>{{ .System }}</s>{{ end }}{{ .Prompt }}:{{ .Response }}<end>"
    assert asked({"prompt": "?", "system": "x", "template": template}, GENERATE).prompt == "<s>x</s>?:"
    fills = read({"prompt": "def f(", "suffix": "return", "system": "x"}, GENERATE)
    assert (fills.requests()[0].prompt, fills.requests()[0].options) == ("def f(", {"suffix": "return"})
    assert fills.ignored(frozenset({"suffix"})) == ["system"]
    with pytest.raises(InvalidRequest, match="does not support insert"):
        fills.ignored(frozenset())


def test_a_text_to_continue_may_fill_the_window_unless_it_says_how_long() -> None:
    served = ModelInfo("tiny", 2048, frozenset({"max_total_tokens"}))
    for body in ({"raw": True}, {"raw": True, "options": {"num_predict": -1}}):
        request = asked({"prompt": "?", **body}, GENERATE, served)
        assert (request.max_total_tokens, request.total_is_default) == (2040, True)
    assert asked({"prompt": "?", "raw": True, "options": {"num_predict": 5}}, GENERATE, served).max_total_tokens is None
    assert asked({"prompt": "?", "raw": True}, GENERATE, replace(served, context_window=None)).max_total_tokens is None
    assert asked({"prompt": "?"}, GENERATE, served).max_total_tokens is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"context": [1, 2]}, "context"),
        ({"raw": True, "system": "x"}, "system"),
        ({"raw": True, "template": "x"}, "template"),
        ({"raw": True, "images": [PNG]}, "images"),
        ({"template": "{{ range .Messages }}{{ end }}"}, "template"),
        ({"images": ["no!"]}, "images"),
    ],
)
def test_a_text_with_what_cannot_be_done_is_refused_by_the_fields_name(fields: Any, field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        asked({"prompt": "?", **fields}, GENERATE)


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("", ""),
        ("{{.Prompt}} {{ .Suffix }}", "p {{ .System }} "),
        ("a {{- .Prompt -}} \n b", "ap {{ .System }}b"),
        ("{{ if .Suffix }}x{{ else }}y{{ end }}z", "yz"),
        ("{{ if .System }}{{ if .Suffix }}x{{ else }}y{{ end }}{{ else }}{{ .Response }}z{{ end }}!", "y!"),
        ("x{{ .Response }}{{ .Prompt }}", "x"),
        ("{ .Prompt }", "{ .Prompt }"),
    ],
)
def test_a_template_is_filled_in_as_go_does(template: str, filled: str) -> None:
    assert fill(template, {"System": "s", "Prompt": "p {{ .System }}", "Suffix": ""}) == filled


@pytest.mark.parametrize(
    "template",
    ["{{ end }}", "{{ if .Prompt }}", "{{ .Tools }}", "{{ if or .A .B }}", "{{ .Prompt"],
)
def test_a_template_that_does_more_is_refused(template: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^template: "):
        fill(template, {"Prompt": "p"})


def test_a_template_that_repeats_long_texts_is_refused() -> None:
    long = {"Prompt": "p" * 1_000_000}
    assert len(fill("{{ .Prompt }}" * 4, long)) == 4_000_000
    with pytest.raises(InvalidRequest, match=r"^template: it repeats its texts too often"):
        fill("{{ .Prompt }}" * 6, long)


def test_a_text_that_its_template_does_not_name_is_named() -> None:
    body = {"prompt": "p", "system": "s", "suffix": "x", "template": "{{ .Prompt }}"}
    assert read(body, GENERATE).ignored(frozenset()) == ["system", "suffix"]
    whole_template = "{{ .System }}{{ .Suffix }}"
    assert read({**body, "template": whole_template}, GENERATE).ignored(frozenset()) == ["prompt"]


def test_a_template_with_many_conditions_takes_no_time() -> None:
    started = process_time()
    assert fill("{{if .Prompt}}" * 4_000 + "a" + "{{end}}" * 4_000, {"Prompt": "p"}) == "a"
    assert process_time() - started < 0.1


def test_a_long_template_takes_no_time() -> None:
    for text in ("{{" * 50_000, "{{ " + " " * 100_000, " " * 100_000 + "{{- x"):
        with pytest.raises(InvalidRequest):
            fill(text, {})


def test_log_probabilities_are_asked_for_as_openai_does() -> None:
    body = {"logprobs": True, "top_logprobs": 2}
    assert asked({**QUESTION, **body}).options == {"logprobs": True, "top_logprobs": 2}
    able = ModelInfo("tiny", capabilities=frozenset({"logprobs", "top_logprobs"}))
    text = {"prompt": "?", "raw": True, **body}
    assert asked(text, GENERATE, able).options == {"logprobs": 2}
    assert asked(text, GENERATE).options == {"logprobs": 0}
    alone = read({**QUESTION, "top_logprobs": 2})
    assert alone.ignored(frozenset({"logprobs", "top_logprobs", "messages.*"})) == ["top_logprobs"]


def test_documents_are_those_of_every_dialect() -> None:
    body = {"documents": [{"text": "a", "title": "A"}, "b"], "citations": True, "order": "given"}
    for request in (asked({**QUESTION, **body}), asked({"prompt": "?", **body}, GENERATE)):
        assert request.documents == (Document("a", "A"), Document("b"))
        assert (request.citations, request.order) == ("on", "given")


@pytest.mark.parametrize("keep_alive", ["soon", "5", True, [], "1h-2m", "1m" * 51])
def test_a_duration_that_is_none_is_refused(keep_alive: Any) -> None:
    assert refused({**QUESTION, "keep_alive": keep_alive}).startswith("keep_alive: ")


@pytest.mark.parametrize("path", [CHAT, GENERATE, EMBED, OLDER])
def test_a_body_that_asks_nothing_needs_a_model_to_load(path: str) -> None:
    for body in ({}, {"stream": False}, {"model": "", "messages": [], "prompt": "", "input": []}):
        assert refused(body, path) == "body: model is required"
    assert refused({}, SHOW) == "body: model is required"


def test_a_message_without_anything_in_it_is_refused() -> None:
    assert "a message needs content" in refused({"messages": [{"role": "user", "text": "?"}]})
    assert asked({"messages": [{"role": "user", "content": ""}]}).prompt == (Message("user", ""),)


# Answers.


def test_a_chat_is_streamed_a_line_for_each_piece() -> None:
    told = lines({**QUESTION, "model": "tiny"}, TextDelta("De\u00e9p\u2028"), Finished("length", Usage(3, 1)))
    piece = f'{HEAD},"message":{{"role":"assistant","content":"De\u00e9p\u2028"}},"done":false}}\n'
    end = f'{HEAD},"message":{{"role":"assistant","content":""}},"done":true,"done_reason":"length",'
    assert told == [piece, f'{end}{DURATIONS},"prompt_eval_count":3,"eval_count":1}}\n']


def test_a_text_is_streamed_the_same_way_and_an_empty_answer_has_the_last_line_alone() -> None:
    (piece, last) = lines({"prompt": "?"}, TextDelta("Deep"), Finished("stop"), path=GENERATE)
    assert piece == f'{HEAD},"response":"Deep","done":false}}\n'
    assert last == f'{HEAD},"response":"","done":true,"done_reason":"stop",{DURATIONS}}}\n'
    assert lines({"prompt": "?"}, Finished("stop"), path=GENERATE) == [last]
    (named, _) = lines({"prompt": "?", "model": 'a""b:latest'}, TextDelta("x"), Finished("stop"), path=GENERATE)
    assert json.loads(named)["model"] == 'a""b:latest'


def test_calls_in_pieces_become_a_line_with_their_arguments_as_objects() -> None:
    def piece(index: int, arguments: str, **more: str) -> TextDelta:
        function = {"arguments": arguments, **({"name": more["name"]} if more else {})}
        return TextDelta("", extra={"tool_calls": [{"index": index, "id": more.get("id"), "function": function}]})

    events = [
        TextDelta("Wait."),
        piece(0, '{"a', id="x", name="first"),
        piece(0, '": [1]}'),
        piece(1, "", id="y", name="second"),
        piece(2, '{"b', id="z", name="cut"),
        Finished("tool_calls"),
    ]
    pieces = [json.loads(line) for line in lines(QUESTION, *events)]
    assert [one["message"]["content"] for one in pieces] == ["Wait.", '{"name": "cut", "arguments": {"b', ""]
    assert [one["done"] for one in pieces] == [False, False, True]
    assert pieces[1]["message"]["tool_calls"] == [
        {"id": "x", "function": {"index": 0, "name": "first", "arguments": {"a": [1]}}},
        {"id": "y", "function": {"index": 1, "name": "second", "arguments": {}}},
    ]
    assert pieces[2]["done_reason"] == "stop"


def test_thoughts_refusals_citations_and_log_probabilities_have_their_places() -> None:
    token = {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [{"token": "b", "logprob": -1, "bytes": None}],
    }
    events = [
        TextDelta("", extra={"reasoning_content": "Hm."}),
        TextDelta("", extra={"reasoning": "Ah.", "audio": None}),
        TextDelta("a", extra={"logprobs": {"content": [token]}}),
        TextDelta("", extra={"refusal": "No."}),
        TextDelta("", extra={"annotations": [{"type": "x"}], "unknown_citations": [4]}),
        TextDelta("", extra={"role": "assistant", "tool_calls": []}),
        Finished("content_filter"),
    ]
    chat = [json.loads(line) for line in lines(QUESTION, *events)]
    text = [json.loads(line) for line in lines({"prompt": "?"}, *events, path=GENERATE)]
    told = [{name: value for name, value in line["message"].items() if name != "role"} for line in chat[:5]]
    cites = {"annotations": [{"type": "x"}], "unknown_citations": [4]}
    assert told == [
        {"content": "", "thinking": "Hm."},
        {"content": "", "thinking": "Ah."},
        {"content": "a"},
        {"content": "No."},
        {"content": "", **cites},
    ]
    read = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1}]}]
    assert chat[2]["logprobs"] == text[2]["logprobs"] == read
    assert (text[0]["thinking"], text[3]["response"], text[4]["annotations"]) == ("Hm.", "No.", [{"type": "x"}])
    assert chat[-1]["done_reason"] == text[-1]["done_reason"] == "content_filter"


def test_a_whole_answer_has_all_of_that_at_once() -> None:
    call = {"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    of_text = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1}], "text_offset": [0]}
    extra = {"reasoning_content": "Hm.", "tool_calls": [call], ANNOTATIONS: [{"type": "x"}], "logprobs": of_text}
    generation = Generation("", "tool_calls", Usage(3, 4), extra)
    answer = whole({**QUESTION, "model": "tiny:latest"}, generation, times=Measured())
    told = {"id": "x", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}
    cites = {"annotations": [{"type": "x"}]}
    assert answer == {
        "model": "tiny:latest",
        "created_at": "2023-11-14T22:13:20.000000Z",
        "message": {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [told], **cites},
        "done": True,
        "done_reason": "stop",
        **{"total_duration": 4 * 10**9, "load_duration": 10**9},
        **{"prompt_eval_duration": 10**9, "eval_duration": 2 * 10**9, "prompt_eval_count": 3, "eval_count": 4},
        "logprobs": [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1}]}],
    }


def test_a_report_is_in_the_last_line_if_it_is_wanted_and_in_the_whole_answer() -> None:
    report = Report(context_window=2048)
    for body, has_it in ((QUESTION, False), ({**QUESTION, "include_report": True}, True)):
        events = written(read(body), TextDelta("a"), Finished("stop"), reports={0: report})
        assert ["report" in json.loads(item) for item in events] == [False, has_it]
        assert ("report" in whole(body, Generation("a", "stop"), reports={0: report})) is has_it


def test_an_error_in_a_stream_is_a_line() -> None:
    call = read(QUESTION)
    assert call.error_item(ModelServerError("é broke")) == '{"error":"é broke"}\n'.encode()
    assert not call.takes_comments


def test_vectors_are_cut_and_have_the_length_1_but_for_the_older_form() -> None:
    def reply(body: Any, path: str, *vectors: list[float]) -> Any:
        call = Endpoint(path, [dialect()]).read(orjson.dumps(body), {})
        assert isinstance(call, EmbeddingCall)
        return call.reply(Embeddings(tuple(vectors), 5), replace(METADATA, times=Measured()))

    body = {"model": "tiny", "input": ["a", "b"], "dimensions": 2}
    assert reply(body, EMBED, [3.0, 4.0, 9.0], [0.0, 0.0, 1.0]) == {
        "model": "tiny",
        "embeddings": [[0.6, 0.8], [0.0, 0.0]],
        **{"total_duration": 4 * 10**9, "load_duration": 10**9, "prompt_eval_count": 5},
    }
    assert reply({"prompt": "a"}, OLDER, [3.0, 4.0]) == {"embedding": [3.0, 4.0]}
    no_texts: list[JSON] = [0, False, {}, [1]]
    for wrong in no_texts:
        assert refused({"input": wrong}, EMBED).startswith("input")
    with pytest.raises(InvalidRequest, match="dimensions: the vectors of tiny have 2 dimensions"):
        reply({"input": "a", "dimensions": 3}, EMBED, [3.0, 4.0])


# Over sockets.


class Silent(Able):
    """A model server that must not be asked."""

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        raise AssertionError

    async def embed(self, texts: Any) -> Embeddings:
        raise AssertionError


@pytest.mark.parametrize(
    ("path", "body", "done", "ignored"),
    [
        (CHAT, {}, "load", None),
        (CHAT, {"messages": [], "tools": [], "keep_alive": "5m"}, "load", None),
        (CHAT, {"messages": [], "stream": False, "keep_alive": 0}, "unload", "keep_alive"),
        (GENERATE, {"prompt": "", "keep_alive": "0s", "stream": True}, "unload", "keep_alive"),
        (GENERATE, {"keep_alive": -1, "system": "x"}, "load", "system"),
        (EMBED, {"input": ""}, None, None),
        (OLDER, {}, None, None),
    ],
)
async def test_a_body_that_asks_nothing_is_answered_at_once_without_the_model(
    monkeypatch: pytest.MonkeyPatch, path: str, body: Any, done: str | None, ignored: str | None
) -> None:
    async with running(Silent(), monkeypatch, ONLY) as service:
        answer = await service.post({"model": "scripted", **body}, path)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers.get("x-ignored-params") == ignored
    assert answer.json.get("done_reason") == answer.headers.get("x-finish-reason") == done
    assert answer.json.get("embeddings", answer.json.get("embedding", [])) == []


async def test_names_may_have_the_tag_latest_and_others_are_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**ONLY, "LLM_NAME": "org/tiny"}
    async with running(Able([["Deep"]]), monkeypatch, environment) as service:
        for name in ("org/tiny", "org/tiny:latest", ""):
            answer = await service.post({**QUESTION, "model": name}, CHAT)
            assert answer.status == 200
            assert "x-ignored-params" not in answer.headers
            assert json.loads(answer.chunks[0])["model"] == (name or "org/tiny")
        for path in (CHAT, GENERATE, EMBED, OLDER, SHOW):
            answer = await service.post({"model": "org/tiny:7b"}, path)
            assert answer.status == 404
            told = "model 'org/tiny:7b' not found: 'org/tiny:7b' is not served here; known: org/tiny"
            assert answer.json == {"error": told}
        assert (await service.get("/api/tags")).json["models"][0]["name"] == "org/tiny:latest"
    async with running(Able(), monkeypatch, {**ONLY, "LLM_NAME": "tiny:latest"}) as service:
        assert (await service.post({"name": "tiny"}, SHOW)).json["model_info"]["general.basename"] == "tiny:latest"
        assert (await service.get("/api/ps")).json["models"][0]["name"] == "tiny:latest"


async def test_a_name_with_the_tag_latest_is_the_model_s_in_all_dialects_and_to_all_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {"USVC_API_KEYS": "any=first, other=second;models=else"}
    first, second = ({"authorization": f"Bearer {key}"} for key in ("first", "second"))
    async with running(Able(), monkeypatch, {"LLM_DIALECTS": "tgi,openai,cohere,ollama", **keys}) as service:
        for name, status in (("scripted:latest", 200), ("scripted:7b", 404)):
            assert (await service.get(f"/v1/models/{name}", **first)).status == status
        assert (await service.get("/v1/models/scripted:latest", **second)).status == 403
        told = await service.post({"inputs": "?", "model": "scripted:latest"}, "/generate", **first)
    assert (told.status, "x-ignored-params" in told.headers) == (200, False)


async def test_a_stream_has_true_times_and_ends_with_the_error_if_it_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[list[str | LLMError]] = [["a", "b"], ["a", ModelServerError("it broke")]]
    async with running(Able(answers), monkeypatch, ONLY) as service:
        good, broken = await service.post(QUESTION, CHAT), await service.post(QUESTION, CHAT)
        wrong = await service.post({**QUESTION, "options": {"seed": "x"}}, CHAT)
    assert good.headers["content-type"] == "application/x-ndjson"
    end = json.loads(good.chunks[-1])
    spans = [end[f"{name}_duration"] for name in ("load", "prompt_eval", "eval")]
    assert all(span > 0 for span in spans)
    assert end["total_duration"] == pytest.approx(sum(spans), abs=3)
    assert broken.chunks[1:] == [b'{"error":"it broke"}\n']
    assert (wrong.status, wrong.json["error"].partition(":")[0]) == (400, "options.seed")


async def test_streams_may_be_disabled_and_the_root_is_ollamas_only_if_it_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    off = {"LLM_DISABLE_STREAMING": "true"}
    for enabled, root in (("ollama, kaito", b"Ollama is running"), ("kaito, ollama", b"")):
        async with running(Able([["Deep"]]), monkeypatch, {"LLM_DIALECTS": enabled, **off}) as service:
            answer = await service.post({**QUESTION, "stream": True}, CHAT)
            assert (answer.headers["content-type"], answer.json["done"]) == ("application/json", True)
            assert ((await service.get("/")).body == root) is bool(root)
            async with service.connect() as client:
                for path in ("/", "/api/version", "/api/tags"):
                    await client.send("HEAD", path)
                    assert (await client.head()).status == 200
