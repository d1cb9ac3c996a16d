"""The llm_api dialect: what each body asks for, the exact bytes of each answer, and its own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import llm_api as client
import orjson
import pytest
import requests
from llm_api import error as client_errors

from comps.core.errors import InvalidRequest, ModelServerError, PromptTooLong, Unreachable
from comps.core.types import (
    Finished,
    Generation,
    GenerationRequest,
    Message,
    ModelInfo,
    Sampling,
    TextDelta,
    Usage,
)
from comps.dialects.llm_api.dialect import Switches, llm_api
from comps.dialects.llm_api.events import text_event
from comps.dialects.llm_api.params import Family
from comps.dialects.shared.base import GenerationCall
from comps.dialects.shared.endpoint import Endpoint, RequestError
from comps.model_servers.scripted import Scripted
from tests.dialects.written import METADATA, written
from tests.service import PATIENCE, Able, Service, running

ERROR_SHAPES = [{"detail"}]
"""The keys of an error."""

LLAMA = Switches()
ALL = frozenset((*Sampling.__dataclass_fields__, "max_total_tokens", "min_tokens"))
LLAMAS = Sampling(128, 0.8, 0.95, 40, None, 1.1, 0.0, 0.0)
TRANSFORMERS = Sampling(None, 0.0, 1.0, 50, 1.0, 1.0)
WORDS = [" The", " capital", " is", " Paris.\n"]


def read(body: Any, path: str = "/generate", switches: Switches = LLAMA) -> GenerationCall:
    call = Endpoint(path, [llm_api(switches)]).read(orjson.dumps(body), {})
    assert isinstance(call, GenerationCall)
    return call


def request(params: Any, family: Family = "llama", **further: Any) -> GenerationRequest:
    (only,) = read({"prompt": "?", "params": params, **further}, switches=Switches(family)).requests()
    return only


def ignored(params: Any, capabilities: frozenset[str] = ALL, family: Family = "llama", **further: Any) -> list[str]:
    return read({"prompt": "?", "params": params, **further}, switches=Switches(family)).ignored(capabilities)


def streamed(params: Any, *pieces: str, reason: str = "stop") -> list[bytes]:
    call = read({"prompt": "One\nand", "params": params}, "/agenerate")
    return written(call, *map(TextDelta, pieces), Finished(reason, Usage(5, 2)))


def refusal(body: Any) -> Any:
    """What a body that is not read is told."""
    with pytest.raises(RequestError) as caught:
        Endpoint("/generate", [llm_api(LLAMA)]).read(body if isinstance(body, bytes) else orjson.dumps(body), {})
    assert caught.value.style.status(caught.value.error) == 422
    return caught.value.style.error(caught.value.error)["detail"]


# What it asks for.


def test_a_prompt_is_a_text_to_continue_as_it_stands() -> None:
    (asked,) = read({"prompt": " What is\n"}).requests()
    assert asked == GenerationRequest(" What is\n", sampling=LLAMAS)


CHATTING = ModelInfo("m", has_chat_template=True)
TEXT_ONLY = ModelInfo("m", has_chat_template=False)
FRANCE = "What is the capital of France?"


def asked(body: Any, served: ModelInfo, path: str = "/generate", switches: Switches = LLAMA) -> GenerationRequest:
    """What a body asks of a model."""
    call = read(body, path, switches)
    call.answered_by(served)
    (only,) = call.requests()
    return only


@pytest.mark.parametrize("path", ["/generate", "/agenerate"])
@pytest.mark.parametrize(
    ("form", "served", "is_message"),
    [
        ("auto", CHATTING, True),
        ("auto", TEXT_ONLY, False),
        ("auto", ModelInfo("m"), False),
        ("text", CHATTING, False),
        ("messages", TEXT_ONLY, True),
    ],
)
def test_a_prompt_is_a_message_to_a_model_that_answers_such(
    path: str, form: Any, served: ModelInfo, is_message: bool
) -> None:
    prompt = asked({"prompt": FRANCE}, served, path, Switches(prompt=form)).prompt
    assert prompt == ((Message("user", FRANCE),) if is_message else FRANCE)


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<s>[INST] Hi [/INST]",
        "[INST] <<SYS>>\nBe brief\n<</SYS>>\n\nHi [/INST]",
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        "<｜User｜>Hi<｜Assistant｜>",
        "A chat between a curious user and an assistant. USER: Hi ASSISTANT:",
        "### Instruction:\nHi\n\n### Response:\n",
        "Human: Hi\nAI:",
        "Question: Hi?\nAnswer: ",
        "问：你好？\n答：",
        "",
        " \n",
    ],
)
def test_a_prompt_that_its_client_has_rendered_is_not_rendered_again(prompt: str) -> None:
    assert asked({"prompt": prompt}, CHATTING).prompt == prompt


@pytest.mark.parametrize(
    "prompt", ["Is a < b | c > d?", "See [1] for\nthe answer: 7", "What does AI: mean?", "Human: hi"]
)
def test_what_only_looks_like_a_marker_keeps_no_prompt_from_being_a_message(prompt: str) -> None:
    assert asked({"prompt": prompt}, CHATTING).prompt == (Message("user", prompt),)


async def test_a_limit_of_prompt_and_answer_does_not_count_what_the_models_template_adds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Able([WORDS])  # A character is a token.
    async with running(server, monkeypatch, {"LLM_NAME": "SmolLM2-135M-Instruct"}) as service:
        await service.post({"prompt": "12345", "params": {"max_length": 25}}, "/generate")
        preview = await service.post({"prompt": "12345", "params": {"max_length": 25}}, "/v1/prompt?route=/generate")
        full = await service.post({"prompt": "12345", "params": {"max_length": 5}}, "/generate")
    [(prompt, sampling, _)] = server.asked
    assert prompt == (Message("user", "12345"),)
    assert (sampling.max_tokens, sampling.max_total_tokens) == (20, None)
    [previewed] = preview.json["prompts"]
    assert (previewed["messages"], previewed["sampling"]["max_tokens"]) == ([{"role": "user", "content": "12345"}], 20)
    assert (full.status, "max_length" in full.body.decode()) == (400, True)


@pytest.mark.parametrize(("prompt", "text"), [(5, "5"), (5.0, "5.0"), (1e20, "1e+20"), ("", "")])
def test_a_prompt_that_is_a_number_stands_for_its_digits(prompt: Any, text: str) -> None:
    assert read({"prompt": prompt}).requests()[0].prompt == text


@pytest.mark.parametrize(
    ("family", "expected", "most_in_all"),
    [
        ("llama", LLAMAS, None),
        ("huggingface", TRANSFORMERS, 20),
        ("autoawq", TRANSFORMERS, 20),
        ("gptq_llama", Sampling(None, 0.8, 0.95), 50),
    ],
)
@pytest.mark.parametrize("params", [None, {}, {"max_tokens": None, "temperature": None, "stop": None}])
def test_where_parameters_are_silent_the_familys_defaults_count(
    family: Family, expected: Sampling, most_in_all: int | None, params: Any
) -> None:
    asked = request(params, family)
    assert (asked.sampling, asked.max_total_tokens) == (expected, most_in_all)
    assert asked.total_is_default == (most_in_all is not None)


def test_every_family_has_defaults() -> None:
    assert [request({}, family).prompt for family in get_args(Family)] == ["?"] * 4


@pytest.mark.parametrize(
    ("params", "field", "value"),
    [
        ({"max_tokens": 5}, "max_tokens", 5),
        ({"max_new_tokens": 5}, "max_tokens", 5),
        ({"n_predict": 5}, "max_tokens", 5),
        ({"n_predict": 5, "max_new_tokens": 6}, "max_tokens", 6),
        ({"n_predict": 5, "max_new_tokens": 6, "max_tokens": 7}, "max_tokens", 7),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"n_predict": -1}, "max_tokens", None),
        ({"temperature": 0.2}, "temperature", 0.2),
        ({"temp": 0.2}, "temperature", 0.2),
        ({"temp": 0.2, "temperature": 0.3}, "temperature", 0.3),
        ({"do_sample": False}, "temperature", 0.0),
        ({"do_sample": False, "temperature": 0.3}, "temperature", 0.0),
        ({"do_sample": True}, "temperature", 0.8),
        ({"repeat_penalty": 1.3}, "repetition_penalty", 1.3),
        ({"repetition_penalty": 1.3}, "repetition_penalty", 1.3),
        ({"repetition_penalty": 1.3, "repeat_penalty": 1.2}, "repetition_penalty", 1.2),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"top_p": 1.5}, "top_p", 1.0),
        ({"top_k": 7}, "top_k", 7),
        ({"top_k": 0}, "top_k", 2**31 - 1),
        ({"top_k": -1}, "top_k", 2**31 - 1),
        ({"typical_p": 0.5}, "typical_p", 0.5),
        ({"frequency_penalty": 0.5}, "frequency_penalty", 0.5),
        ({"presence_penalty": 0.5}, "presence_penalty", 0.5),
        ({"seed": 0}, "seed", 0),
        ({"seed": -1}, "seed", None),
        ({"stop": "a"}, "stop", ("a",)),
        ({"stop": ["a", "", "b"]}, "stop", ("a", "b")),
        ({"stop": []}, "stop", ()),
        ({"stop": ""}, "stop", ()),
    ],
)
def test_parameters_of_all_families_and_ages_are_understood(params: Any, field: str, value: Any) -> None:
    assert getattr(request(params).sampling, field) == value


def test_transformers_samples_only_if_told_to() -> None:
    assert request({"temperature": 0.5}, "huggingface").sampling.temperature == 0.0
    without_effect = {"temperature": 0.5, "top_k": 5, "top_p": 0.5, "typical_p": 0.5}
    assert ignored(without_effect, family="huggingface") == [f"params.{name}" for name in without_effect]
    assert ignored({"temperature": 0, "top_k": 0, "top_p": 1}, family="huggingface") == []
    assert request({"temperature": 0.5, "do_sample": True}, "huggingface").sampling.temperature == 0.5


@pytest.mark.parametrize("family", get_args(Family))
@pytest.mark.parametrize(
    ("params", "most", "most_in_all"),
    [
        ({"max_length": 25}, None, 25),
        ({"max_length": 25, "max_new_tokens": 30}, 30, None),
        ({"max_length": 25, "max_tokens": 0}, None, 25),
        ({"max_tokens": 0}, None, None),
        ({"max_tokens": 9}, 9, None),
    ],
)
def test_a_limit_of_the_answer_goes_before_one_of_prompt_and_answer_and_both_before_defaults(
    family: Family, params: Any, most: int | None, most_in_all: int | None
) -> None:
    asked = request(params, family)
    assert (asked.sampling.max_tokens, asked.max_total_tokens) == (most, most_in_all)
    assert not asked.total_is_default


def test_a_least_length_goes_to_model_servers_that_know_one() -> None:
    assert request({"min_new_tokens": 5}).options == {"min_tokens": 5}
    assert ignored({"min_new_tokens": 5}, ALL - {"min_tokens"}) == ["params.min_new_tokens"]


def test_the_model_may_be_named_at_the_top_or_in_the_parameters() -> None:
    assert read({"prompt": "?", "model": "m"}).wanted_model == "m"
    assert read({"prompt": "?", "params": {"model": "m"}}).wanted_model == "m"
    assert read({"prompt": "?", "params": {"model": "n"}, "model": "m"}).wanted_model == "m"
    assert ignored({"model": "n"}, model="m") == ["params.model"]
    assert ignored({"model": "m"}, model="m") == []


def test_nothing_that_is_sent_is_ignored_without_a_word() -> None:
    lost = ignored(
        {
            "max_length": 25,
            "max_new_tokens": 25,
            "n_predict": 30,
            "repetition_penalty": 1.2,
            "temp": 0.5,
            "do_sample": False,
            "min_length": 10,
            "num_beams": 4,
            "logprobs": 3,
            "tfs_z": 0.9,
        },
        ALL - {"repetition_penalty"},
        messages=[],
        stream=True,
        temperature=0.3,
    )
    assert sorted(lost) == [
        "messages",
        "params.logprobs",
        "params.max_length",
        "params.min_length",
        "params.n_predict",
        "params.num_beams",
        "params.repetition_penalty",
        "params.temp",
        "params.tfs_z",
        "stream",
        "temperature",
    ]


def test_a_model_server_that_cannot_choose_greedily_or_count_says_so() -> None:
    assert ignored({"do_sample": False}, frozenset()) == ["params.do_sample"]
    assert ignored({"do_sample": True, "temperature": 0}) == ["params.do_sample"]
    assert ignored({"max_length": 5}, frozenset()) == ["params.max_length"]


def test_what_changes_nothing_is_not_said_to_be_ignored() -> None:
    neutral: dict[str, Any] = {
        "suffix": None,
        "logprobs": None,
        "stop": [],
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repeat_penalty": 1.0,
        "typical_p": 1.0,
        "top_p": 1,
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "early_stopping": False,
        "use_cache": True,
        "length_penalty": 1.0,
        "bad_words_ids": None,
        "max_tokens": 5,
        "n_predict": 5,
    }
    assert ignored(neutral, frozenset({"max_tokens"}), unknown=None) == []
    assert read({"prompt": "?", "stream": True}, "/agenerate").ignored(ALL) == []


# How it answers.


def test_a_whole_answer_is_a_bare_string() -> None:
    def whole(params: Any) -> Any:
        return read({"prompt": "Who?", "params": params}).reply([Generation(" Me.\n", "stop")], METADATA)

    assert whole(None) == " Me.\n"
    assert whole({"echo": True}) == "Who? Me.\n"
    assert whole({"echo": True, "suffix": " End"}) == "Who? Me.\n End"


@pytest.mark.parametrize(
    ("text", "event"),
    [
        (" Paris", b"data:  Paris\r\n\r\n"),
        ("\n\n", b"data: \r\ndata: \r\ndata: \r\n\r\n"),
        (" x\ny", b"data:  x\r\ndata: y\r\n\r\n"),
        ("", b"data: \r\n\r\n"),
        ("a\r\nb\rc", b"data: a\r\ndata: b\r\ndata: c\r\n\r\n"),
        ("é\u2028z\x0b", "data: é\u2028z\x0b\r\n\r\n".encode()),
    ],
)
def test_an_event_is_the_raw_text_line_by_line(text: str, event: bytes) -> None:
    assert text_event(text) == event


def test_a_line_break_that_comes_in_two_pieces_is_one() -> None:
    assert streamed({}, "a\r", "", "\nb\n", "\nc") == [
        b"data: a\r\ndata: \r\n\r\n",
        b"data: b\r\ndata: \r\n\r\n",
        b"data: \r\ndata: c\r\n\r\n",
    ]


def test_prompt_and_suffix_are_streamed_too_if_asked_for() -> None:
    assert streamed({"echo": True, "suffix": "End"}, " two", reason="length") == [
        b"data: One\r\ndata: and\r\n\r\n",
        b"data:  two\r\n\r\n",
        b"data: End\r\n\r\n",
        b": finish_reason=length\r\n\r\n",
    ]


def test_errors_are_spelled_as_by_fastapi() -> None:
    style = read({"prompt": "?"}).style
    error = PromptTooLong(9000, 8192)
    assert (style.status(error), style.error(error)) == (400, {"detail": str(error)})
    assert style.status(InvalidRequest("x")) == 400
    assert style.status(Unreachable("x")) == 503


@pytest.mark.parametrize(
    ("body", "place", "said", "kind"),
    [
        ({}, ["prompt"], "field required", "value_error.missing"),
        ({"prompt": None}, ["prompt"], "none is not an allowed value", "type_error.none.not_allowed"),
        ({"prompt": []}, ["prompt"], "str type expected", "type_error.str"),
        ({"prompt": True}, ["prompt"], "str type expected", "type_error.str"),
        (b"", [], "field required", "value_error.missing"),
        (b"null", [], "field required", "value_error.missing"),
        (b"[1]", [], "value is not a valid dict", "type_error.dict"),
        ({"prompt": "", "params": 5}, ["params"], "value is not a valid dict", "type_error.dict"),
    ],
)
def test_a_malformed_body_is_told_in_the_words_of_the_original(
    body: Any, place: list[str], said: str, kind: str
) -> None:
    assert refusal(body) == [{"loc": ["body", *place], "msg": said, "type": kind}]


@pytest.mark.parametrize(
    ("name", "value", "said", "kind"),
    [
        ("max_tokens", "many", "value is not a valid integer", "type_error.integer"),
        ("max_tokens", 1.5, "value is not a valid integer", "type_error.integer"),
        ("max_tokens", [], "value is not a valid integer", "type_error.integer"),
        ("max_length", 0, "ensure this value is greater than 0", "value_error.number.not_gt"),
        ("temp", "hot", "value is not a valid float", "type_error.float"),
        ("temp", -1, "ensure this value is greater than or equal to 0", "value_error.number.not_ge"),
        ("temp", 101, "ensure this value is less than or equal to 100", "value_error.number.not_le"),
        ("seed", 2**63, "ensure this value is less than 9223372036854775808", "value_error.number.not_lt"),
        ("echo", "perhaps", "value could not be parsed to a boolean", "type_error.bool"),
        ("do_sample", [], "value could not be parsed to a boolean", "type_error.bool"),
        ("stop", 5, "value is not a valid list", "type_error.list"),
        ("suffix", 5, "str type expected", "type_error.str"),
    ],
)
def test_a_wrong_parameter_is_named(name: str, value: Any, said: str, kind: str) -> None:
    assert refusal({"prompt": "?", "params": {name: value}}) == [
        {"loc": ["body", "params", name], "msg": said, "type": kind}
    ]


def test_a_number_that_is_none_is_named() -> None:
    (problem,) = refusal(b'{"prompt": "?", "params": {"top_p": NaN}}')
    assert problem == {
        "loc": ["body", "params", "top_p"],
        "msg": "ensure this value is a finite number",
        "type": "value_error.number.not_finite_number",
    }


def test_where_a_body_stops_being_json_is_told() -> None:
    (problem,) = refusal(b'{\n"prompt": "a" "b"}')
    assert (problem["loc"], problem["type"]) == (["body", 16], "value_error.jsondecode")
    assert "line 2 column 15" in problem["msg"]
    assert problem["ctx"] == {"msg": problem["msg"], "pos": 16}


def test_every_problem_is_told() -> None:
    detail = refusal({"prompt": "?", "params": {"temp": -1, "stop": ["a", 5]}})
    assert [problem["loc"] for problem in detail] == [["body", "params", "temp"], ["body", "params", "stop", 1]]


def test_of_very_many_problems_the_first_are_told() -> None:
    detail = refusal({"prompt": "?", "params": {"stop": [5] * 100}})
    assert [problem["loc"][-1] for problem in detail] == list(range(20))


# Over a socket.


class Loading(Scripted):
    """A model server that is not ready."""

    async def describe(self) -> ModelInfo:
        raise Unreachable("the model is still loading", 3)


async def test_a_whole_answer_over_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([[" Père", ' "Noël"', "\n"]]), monkeypatch) as service:
        answer = await service.post({"prompt": "Qui ?", "params": {"max_tokens": 2, "top_k": 4}, "foo": 1}, "/generate")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.body == '" Père \\"Noël\\""'.encode()
    assert answer.headers["x-finish-reason"] == "length"
    assert answer.headers["x-ignored-params"] == "params.top_k, foo"


async def test_a_streamed_answer_over_the_wire_is_an_event_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([[" Paris", "\n\n", " x\ny"]]), monkeypatch) as service:
        answer = await service.post({"prompt": "?"}, "/agenerate")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.chunks == [
        b"data:  Paris\r\n\r\n",
        b"data: \r\ndata: \r\ndata: \r\n\r\n",
        b"data:  x\r\ndata: y\r\n\r\n",
    ]


async def test_with_streaming_disabled_a_streamed_answer_is_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([WORDS]), monkeypatch, {"LLM_DISABLE_STREAMING": "true"}) as service:
        answer = await service.post({"prompt": "?", "params": {"max_tokens": 2}}, "/agenerate")
    assert answer.chunks == [b"data:  The capital\r\n\r\n", b": finish_reason=length\r\n\r\n"]


async def test_a_stream_that_was_cut_short_says_so_where_its_clients_pass_over_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service:
        answer = await service.post({"prompt": "?", "params": {"max_tokens": 1}}, "/agenerate")
    assert answer.chunks == [b"data:  The\r\n\r\n", b": finish_reason=length\r\n\r\n"]


async def test_a_stream_that_fails_loses_its_connection_and_requests_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = Scripted([[" The", ModelServerError("out of\nmemory")]])
    async with running(server, monkeypatch) as service, service.connect() as connection:
        await connection.send("POST", "/agenerate", b'{"prompt": "?"}')
        assert (await connection.head()).status == 200
        assert await connection.chunk() == b"data:  The\r\n\r\n"
        assert await connection.chunk() == b": error: out of memory\r\n\r\n"
        assert await connection.reader.read() == b""

        def ask() -> None:
            requests.post(f"{service.url}/agenerate", json={"prompt": "?"}, timeout=PATIENCE)

        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            await asyncio.to_thread(ask)
    assert [record.name for record in caplog.records if record.levelname == "ERROR"] == []


async def test_what_fails_before_the_first_token_is_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([[Unreachable("gone")]]), monkeypatch) as service:
        for path in ("/generate", "/agenerate"):
            answer = await service.post({"prompt": "?"}, path)
            assert (answer.status, answer.json) == (503, {"detail": "gone"})


@pytest.mark.parametrize("path", ["/generate", "/agenerate"])
async def test_a_client_that_leaves_stops_the_model(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    server = Scripted([["one", asyncio.Event(), "never"]])
    async with running(server, monkeypatch) as service:
        async with service.connect() as connection:
            await connection.send("POST", path, b'{"prompt": "?"}')
            await asyncio.wait_for(server.reached.wait(), PATIENCE)
            if path == "/agenerate":
                await connection.head()
                assert await connection.chunk() == b"data: one\r\n\r\n"
        await asyncio.wait_for(server.closed.wait(), PATIENCE)


async def test_the_only_model_goes_by_any_name_and_of_several_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with running(Scripted([["one"]]), monkeypatch) as service:
        answer = await service.post({"prompt": "?", "model": "gpt-3.5-turbo"}, "/generate")
    assert (answer.json, answer.headers["x-ignored-params"]) == ("one", "model")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.ini").write_text("[Model.other]\n")
    async with running({"scripted": Scripted([["one"]]), "other": Scripted([["two"]])}, monkeypatch) as service:
        assert (await service.post({"prompt": "?"}, "/generate")).json == "one"
        assert (await service.post({"prompt": "?", "model": "other"}, "/generate")).json == "two"
        unknown = await service.post({"prompt": "?", "params": {"model": "third"}}, "/generate")
    assert unknown.status == 404
    assert "other" in unknown.json["detail"]


async def test_prompt_and_answer_together_are_limited_where_tokens_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able([["a", "b", "c"]]), monkeypatch) as service:
        answer = await service.post({"prompt": "four", "params": {"max_length": 6}}, "/generate")
        refused = await service.post({"prompt": "four", "params": {"max_length": 4}}, "/generate")
    assert (answer.json, answer.headers["x-finish-reason"]) == ("ab", "length")
    assert "x-ignored-params" not in answer.headers
    assert refused.status == 400
    assert refused.json["detail"].startswith("params.max_length: the prompt alone has 4 tokens")


async def test_a_vector_is_a_bare_array(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able(), monkeypatch) as service:
        answer = await service.post({"text": "abc"}, "/embeddings")
        missing = await service.post({}, "/embeddings")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.body == b"[1.0,3.0]"
    assert missing.status == 422
    assert missing.json == {
        "detail": [{"loc": ["body", "text"], "msg": "field required", "type": "value_error.missing"}]
    }


async def test_a_model_server_without_vectors_is_an_honest_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        answer = await service.post({"text": "abc"}, "/embeddings")
    assert (answer.status, answer.json) == (400, {"detail": "model: scripted makes no embeddings"})


async def test_check_is_ok_when_the_model_can_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        answer = await service.get("/check")
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "application/json", b'"Ok"')
    async with running(Loading(), monkeypatch) as service:
        answer = await service.get("/check")
    assert (answer.status, answer.json) == (503, {"detail": "the model is still loading"})
    assert answer.headers["retry-after"] == "3"


# What its documentation prints, as it is printed there: https://github.com/1b5d/llm-api, README.md at 0.1.0.

HUGGINGFACE = r"""
curl --location 'localhost:8000/generate' \
--header 'Content-Type: application/json' \
--data '{
    "prompt": "What is the capital of paris",
    "params": {
        "max_length": 25,
        "max_new_tokens": 25,
        "do_sample": true,
        "top_k": 40,
        "top_p": 0.95
    }
}'
"""
GPTQ_LLAMA = r"""
curl --location 'localhost:8000/generate' \
--header 'Content-Type: application/json' \
--data '{
    "prompt": "What is the capital of paris",
    "params": {
        "temp": 0.8,
        "top_p": 0.95,
        "min_length": 10,
        "max_length": 50
    }
}'
"""
NOT_JSON = r"""
curl --location 'localhost:8000/generate' \
--header 'Content-Type: application/json' \
--data '{
    "prompt": "What is the capital of paris",
    "params": {
        "suffix": null or string,
        "max_tokens": 128,
        "temperature": 0.8,
        "top_p": 0.95,
        "logprobs": null or integer,
        "echo": False,
        "stop": ["\Q"],
        "frequency_penalty: 0.0,
        "presence_penalty": 0.0,
        "repeat_penalty": 1.1
        "top_k": 40,
    }
}'
"""


async def curl(service: Service, command: str) -> str:
    """Run a printed command; it gives the body, and the status behind it."""
    script = command.strip().replace("curl ", "curl --silent --write-out ' %{http_code}' ", 1)
    script = script.replace("localhost:8000", f"127.0.0.1:{service.port}")
    running = await asyncio.create_subprocess_exec("bash", "-c", script, stdout=asyncio.subprocess.PIPE)
    printed, _ = await asyncio.wait_for(running.communicate(), PATIENCE)
    return printed.decode()


async def test_printed_commands_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scripted([WORDS])
    async with running(server, monkeypatch) as service:
        for command in (HUGGINGFACE, GPTQ_LLAMA):
            assert await curl(service, command) == '" The capital is Paris.\\n" 200'
    (_, first, _), (_, second, _) = server.asked
    assert (first.max_tokens, first.top_k, first.top_p) == (25, 40, 0.95)
    assert (second.max_tokens, second.temperature, second.top_p) == (50, 0.8, 0.95)


async def test_the_printed_command_that_is_no_json_is_told_where_it_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service:
        printed = await curl(service, NOT_JSON)
    body, _, status = printed.rpartition(" ")
    (problem,) = json.loads(body)["detail"]
    assert status == "422"
    assert "line 4 column 24" in problem["msg"]


# Its own client, llm-api-python, as its documentation has it.

MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
PROMPT = (
    "You are a helpful assistant.\n## system: You are a helpful assistant.\n"
    "## user: What is the capital of France?\n## assistant:"
)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client's key, and a session of its own: it would keep one open for each thread."""
    monkeypatch.setattr(client, "api_key", "none")
    with requests.Session() as session:
        monkeypatch.setattr(client, "requestssession", session)
        yield


async def in_thread(service: Service, ask: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the client says that waits."""
    monkeypatch.setattr(client, "api_base", service.url)
    return await asyncio.wait_for(asyncio.to_thread(ask), PATIENCE)


@pytest.mark.usefixtures("sessions")
async def test_its_client_gets_a_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scripted([WORDS])

    def ask() -> Any:
        return client.ChatCompletion.create(messages=MESSAGES, model="vicuna", params={"max_tokens": 2})

    async with running(server, monkeypatch) as service:
        answer = await in_thread(service, ask, monkeypatch)
    # It takes the body as it stands, with the quotes of a JSON string.
    assert answer.choices[0].message.content == '" The capital"'
    assert server.asked[0][0] == PROMPT


@pytest.mark.usefixtures("sessions")
async def test_its_client_gets_a_streamed_answer_and_passes_over_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> Any:
        return list(client.ChatCompletion.create(messages=MESSAGES, stream=True, params={"max_tokens": 3}))

    async with running(Scripted([WORDS]), monkeypatch) as service:
        assert await in_thread(service, ask, monkeypatch) == WORDS[:3]


@pytest.mark.usefixtures("sessions")
async def test_its_async_client_gets_whole_and_streamed_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service:
        where = {"api_base": service.url, "messages": MESSAGES}
        answer = await client.ChatCompletion.acreate(**where)
        stream = await client.ChatCompletion.acreate(**where, stream=True, params={"max_tokens": 3})
        pieces = [piece async for piece in stream]
    assert answer.choices[0].message.content == '" The capital is Paris.\\n"'
    # Here it leaves the line's end where it is.
    assert pieces == [f"{word}\r\n" for word in WORDS[:3]]


@pytest.mark.usefixtures("sessions")
async def test_its_client_raises_our_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(**asked: Any) -> Callable[[], Any]:
        return lambda: list(client.ChatCompletion.create(messages=MESSAGES, **asked))

    server = Scripted([[Unreachable("gone")], ["one", ModelServerError("broken")]])
    async with running(server, monkeypatch) as service:
        with pytest.raises(client_errors.APIError, match="value is not a valid integer"):
            await in_thread(service, ask(params={"max_tokens": "many"}), monkeypatch)
        with pytest.raises(client_errors.ServiceUnavailableError):
            await in_thread(service, ask(), monkeypatch)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            await in_thread(service, ask(stream=True), monkeypatch)
