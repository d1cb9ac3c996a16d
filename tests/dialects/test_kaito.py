"""The kaito dialect: what each body asks for, and the exact bytes of each answer, over sockets."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic.version import version_short

from comps.core.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidRequest,
    LLMError,
    ModelServerError,
    Overloaded,
    PromptTooLong,
    Refused,
    Timeout,
    Unauthorized,
    UnknownModel,
    Unreachable,
)
from comps.core.ports import Answer
from comps.core.types import Generation, GenerationRequest, Message, ModelInfo, Prompt, Sampling
from comps.dialects.kaito import KAITO, kaito
from comps.dialects.shared.base import GenerationCall
from comps.dialects.shared.endpoint import Endpoint
from comps.dialects.shared.framing import ResponseMetadata
from comps.dialects.shared.llama import Switches
from comps.model_servers.scripted import Scripted
from tests.dialects.llama_seeds import (
    ART,
    EMOJIS,
    FALCON,
    FALCON_ADVANCED,
    FOUR_DIALOGS,
    HAIKU,
    MAYONNAISE,
    MOST_RESPECTFUL,
    ONE_DIALOG,
    ONE_DIALOG_WITH_PARAMETERS,
    PROMPTS,
    RESPECTFUL,
    SIGHTS,
    SIX_DIALOGS,
    UNSAFE,
)
from tests.service import PATIENCE, running

ERROR_SHAPES = [{"detail"}]
"""The keys of an error."""

ONLY = {"LLM_DIALECTS": "kaito"}
STAMP = ResponseMetadata("0123456789abcdef0123456789abcdef", 1_700_000_000, "tiny")
SPECIAL_TAGS = "Error: special tags are not allowed as part of the prompt."
ALTERNATING = (
    "model only supports 'system', 'user' and 'assistant' roles, "
    "starting with 'system', then 'user' and alternating (u/a/u/a/u...)"
)
ALL = frozenset({*Sampling.__dataclass_fields__, "max_total_tokens", "min_tokens"})


def read(path: str, body: Any, switches: Switches | None = None) -> GenerationCall:
    call = Endpoint(path, [kaito(switches or Switches())]).read(orjson.dumps(body), {})
    assert isinstance(call, GenerationCall)
    return call


def chat(body: Any, switches: Switches | None = None) -> Sequence[GenerationRequest]:
    return read("/chat", body, switches).requests()


def continued(**fields: Any) -> GenerationRequest:
    """What a body with a `prompt` asks for."""
    (request,) = chat({"prompt": "Once", **fields})
    return request


def result(*texts: str, **fields: Any) -> str:
    """What it is answered."""
    call = read("/chat", {"prompt": "Once", **fields})
    answer: str = call.reply([Generation(text, "stop") for text in texts], STAMP)["Result"]
    return answer


def lost(body: Any, capabilities: frozenset[str] = ALL, path: str = "/chat") -> list[str]:
    return read(path, body).ignored(capabilities)


def conversation(dialog: Sequence[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(turn["role"], turn["content"]) for turn in dialog)


def shown(dialog: Sequence[dict[str, str]], answer: str) -> list[dict[str, str]]:
    """A dialog as an answer has it."""
    turns = [*dialog, {"role": "assistant", "content": answer}]
    return [{"role": turn["role"].capitalize(), "content": turn["content"]} for turn in turns]


class Telling(Scripted):
    """A model server that answers with the end of what it was told, whatever the order of the answers."""

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Any, answer: Answer) -> None:
        self.asked.append((prompt, sampling, options))
        text = prompt if isinstance(prompt, str) else str(prompt[-1].content)
        await Scripted([[f"[{text[-9:]}]"]]).generate(prompt, sampling, options, answer)


async def test_the_seeds_prompts_are_continued_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Telling()
    async with running(server, monkeypatch, ONLY) as service:
        answer = await service.post(PROMPTS, "/generate")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    prompts = list(PROMPTS["prompts"])
    assert answer.json["results"] == [{"prompt": one, "response": f"[{one[-9:]}]"} for one in prompts]
    assert [prompt for prompt, _, _ in server.asked] == prompts
    assert server.asked[0][1] == Sampling(max_tokens=128, temperature=0.6, top_p=0.9)


async def test_an_answer_has_these_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([[" wörld"]]), monkeypatch, ONLY) as service:
        generated = await service.post({"prompts": ["Hello"]}, "/generate")
        chatted = await service.post({"input_data": {"input_string": [[{"role": "user", "content": "Hi"}]]}}, "/chat")
        continued = await service.post({"prompt": "Hello"}, "/chat")
        spoken = await service.post({"messages": [{"role": "user", "content": "Hi"}]}, "/chat")
    assert generated.body == '{"results":[{"prompt":"Hello","response":" wörld"}]}'.encode()
    assert (
        chatted.body
        == '{"results":[[{"role":"User","content":"Hi"},{"role":"Assistant","content":" wörld"}]]}'.encode()
    )
    assert continued.body == '{"Result":"Hello wörld"}'.encode()
    assert spoken.body == """{"Result":"{'role': 'assistant', 'content': ' wörld'}"}""".encode()


async def test_the_seeds_six_dialogs_are_answered_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Telling()
    async with running(server, monkeypatch, ONLY) as service:
        answer = await service.post(SIX_DIALOGS, "/chat")
    assert answer.status == 200
    asked = [MAYONNAISE, SIGHTS, HAIKU, EMOJIS, MOST_RESPECTFUL]
    answered = [shown(dialog, f"[{dialog[-1]['content'][-9:]}]") for dialog in asked]
    assert answer.json == {"results": [*answered, shown(UNSAFE, SPECIAL_TAGS)]}
    assert [prompt for prompt, _, _ in server.asked] == [conversation(dialog) for dialog in asked]
    assert {sampling.max_tokens for _, sampling, _ in server.asked} == {128}


@pytest.mark.parametrize(
    ("body", "dialogs"),
    [
        (FOUR_DIALOGS, [MAYONNAISE, HAIKU, EMOJIS]),
        (ONE_DIALOG_WITH_PARAMETERS, [ART]),
        (ONE_DIALOG, [RESPECTFUL]),
    ],
)
def test_the_seeds_other_dialogs_ask_for_these_conversations(body: Any, dialogs: list[Any]) -> None:
    requests = chat(body)
    assert [request.prompt for request in requests] == [conversation(dialog) for dialog in dialogs]
    assert {request.sampling for request in requests} == {Sampling(511, 0.6, 0.9)}
    assert {request.max_total_tokens for request in requests} == {None}


async def test_the_system_message_that_asks_for_a_haiku_reaches_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scripted()
    async with running(server, monkeypatch, ONLY) as service:
        await service.post({"input_data": {"input_string": [HAIKU]}}, "/chat")
    ((prompt, _, _),) = server.asked
    assert prompt == (
        Message("system", "Always answer with Haiku"),
        Message("user", "I am going to Paris, what should I see?"),
    )


async def test_dialogs_with_special_tags_ask_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    tagged = [[{"role": "user", "content": f"a {tag} b"}] for tag in ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")]
    server = Scripted()
    async with running(server, monkeypatch, ONLY) as service:
        answer = await service.post({"input_data": {"input_string": tagged}}, "/chat")
    assert answer.status == 200
    assert answer.json["results"] == [shown(dialog, SPECIAL_TAGS) for dialog in tagged]
    assert answer.headers["x-finish-reason"] == "stop,stop,stop,stop"
    assert server.asked == []


async def test_the_ends_of_dialogs_are_said_in_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    dialogs = [[{"role": "user", "content": text}] for text in ("a", "[INST]", "b")]
    body = {"input_data": {"input_string": dialogs}, "parameters": {"max_gen_len": 1}}
    async with running(Scripted([["one", "two"]]), monkeypatch, ONLY) as service:
        answer = await service.post(body, "/chat")
    assert answer.headers["x-finish-reason"] == "length,stop,length"


async def test_dialogs_with_special_tags_are_answered_under_no_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"input_data": {"input_string": [[{"role": "user", "content": "[INST]"}]]}, "model": "other"}
    async with running(Scripted(), monkeypatch, ONLY) as service:
        assert (await service.post(body, "/chat")).status == 404


def test_an_answer_can_be_posted_again_with_its_capitalised_roles() -> None:
    (request,) = chat({"input_data": {"input_string": [[*shown(HAIKU, "Seine"), {"role": "User", "content": "?"}]]}})
    assert [message.role for message in request.prompt if isinstance(message, Message)] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (["assistant"], ALTERNATING),
        (["user", "user"], ALTERNATING),
        (["user", "system", "user"], ALTERNATING),
        (["system", "system", "user"], ALTERNATING),
        (["user", "human"], ALTERNATING),
        (["user", "assistant"], "Last message must be from user, got assistant"),
        (["system", "user", "assistant"], "Last message must be from user, got assistant"),
        (["system"], "Last message must be from user, got system"),
        ([], "Last message must be from user, got none"),
    ],
)
def test_a_dialog_out_of_order_is_refused_in_the_reference_implementations_words(roles: list[str], said: str) -> None:
    dialog = [{"role": role, "content": "?"} for role in roles]
    with pytest.raises(InvalidRequest) as error:
        chat({"input_data": {"input_string": [MAYONNAISE, dialog]}})
    assert str(error.value) == f"Request Failed: {said}; see input_data.input_string.1"


def test_parameters_are_read_in_both_places_and_the_outer_ones_win() -> None:
    inner = {"max_gen_len": 5, "temperature": 0.1, "top_p": 0.2}
    body = {
        "input_data": {"input_string": [MAYONNAISE], "parameters": inner},
        "parameters": {"temperature": 1.5, "top_p": 0.2},
    }
    (request,) = chat(body)
    assert request.sampling == Sampling(5, 1.5, 0.2)
    assert lost(body) == ["input_data.parameters.temperature"]


@pytest.mark.parametrize(
    ("given", "sampling"),
    [
        ({"temperature": -1}, Sampling(511, 0.0, 0.9)),
        ({"temperature": 0}, Sampling(511, 0.0, 0.9)),
        ({"top_p": 7}, Sampling(511, 0.6, 1.0)),
        ({"max_gen_len": None, "temperature": None, "top_p": None}, Sampling(511, 0.6, 0.9)),
        (None, Sampling(511, 0.6, 0.9)),
    ],
)
def test_llamas_parameters_mean_what_they_mean_there(given: Any, sampling: Sampling) -> None:
    (request,) = read("/generate", {"prompts": ["a"], "parameters": given}).requests()
    assert request.sampling == sampling


def test_a_limit_of_length_is_one_of_prompt_and_answer_together() -> None:
    (request,) = read("/generate", {"prompts": ["a"]}, Switches(max_seq_len=512)).requests()
    assert (request.max_total_tokens, request.sampling.max_tokens) == (512, None)


async def test_the_limits_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"LLM_MAX_BATCH_SIZE": "4", "LLM_MAX_SEQ_LEN": "3"}
    server = Scripted([["a", "b", "c", "d", "e"]])
    async with running(server, monkeypatch, {**ONLY, **limits}) as service:
        dialogs = await service.post(SIX_DIALOGS, "/chat")
        prompts = await service.post({"prompts": ["?"] * 5}, "/generate")
        short = await service.post({"prompts": ["?"]}, "/generate")
    assert (dialogs.status, dialogs.body) == (400, b'{"detail":"Request Failed: (6, 4)"}')
    assert (prompts.status, prompts.body) == (400, b'{"detail":"Request Failed: (5, 4)"}')
    assert short.json["results"][0]["response"] == "abc"
    assert short.headers["x-finish-reason"] == "length"


async def test_what_is_ignored_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {
        "input_data": {
            "input_string": [[{"role": "user", "content": "?", "name": "me"}]],
            "parameters": {"seed": 1, "top_p": 0.5},
            "id": 5,
        },
        "parameters": {"logprobs": True},
        "stream": True,
    }
    async with running(Scripted(), monkeypatch, ONLY) as service:
        answer = await service.post(body, "/chat")
    assert answer.headers["x-ignored-params"].split(", ") == [
        "input_data.id",
        "input_data.input_string.name",
        "input_data.parameters.seed",
        "input_data.parameters.top_p",
        "parameters.logprobs",
        "stream",
    ]


async def test_a_client_that_leaves_stops_all_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, closed = asyncio.Event(), asyncio.Semaphore(0)
    server = Scripted([["a", gate, "b"]])
    monkeypatch.setattr(server.closed, "set", closed.release)
    async with running(server, monkeypatch, ONLY) as service:
        async with service.connect() as connection:
            await connection.send("POST", "/chat", orjson.dumps(FOUR_DIALOGS))
            while len(server.asked) < 3:
                await asyncio.wait_for(server.reached.wait(), PATIENCE)
                server.reached.clear()
        for _ in range(3):
            await asyncio.wait_for(closed.acquire(), PATIENCE)
    assert not gate.is_set()


async def test_all_answers_of_a_body_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    server = Scripted([[gate, "a"]])
    async with running(server, monkeypatch, ONLY) as service:
        asking = asyncio.ensure_future(service.post(PROMPTS, "/generate"))
        while len(server.asked) < 4:
            await asyncio.wait_for(server.reached.wait(), PATIENCE)
            server.reached.clear()
        gate.set()
        assert len((await asking).json["results"]) == 4


def test_the_seeds_falcon_bodies_ask_for_a_text_of_200_tokens_with_its_prompt() -> None:
    sampled = Sampling(temperature=1.0, top_k=10, top_p=1.0)
    assert chat(FALCON) == [
        GenerationRequest("YOUR_PROMPT_HERE", sampling=sampled, max_total_tokens=200, total_is_default=True)
    ]
    explicit = Sampling(temperature=1.0, top_k=10, top_p=1.0, typical_p=1.0, repetition_penalty=1.0)
    assert chat(FALCON_ADVANCED) == [
        GenerationRequest("YOUR_PROMPT_HERE", sampling=explicit, max_total_tokens=200, total_field="max_length")
    ]


async def test_the_seeds_falcon_bodies_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([[" and more"]]), monkeypatch, ONLY) as service:
        basic = await service.post(FALCON, "/chat")
        advanced = await service.post(FALCON_ADVANCED, "/chat")
    assert basic.body == advanced.body == b'{"Result":"YOUR_PROMPT_HERE and more"}'
    assert "x-ignored-params" not in basic.headers
    assert advanced.headers["x-ignored-params"] == "max_length, top_k"  # Which this model server does not know.


def test_a_parameter_that_changes_nothing_is_not_called_ignored() -> None:
    assert lost(FALCON_ADVANCED) == []
    assert lost({"prompt": "a", "pad_token_id": 11, "generate_kwargs": {"use_cache": False}}) == []


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"num_beams": 4, "early_stopping": True}, ["early_stopping", "num_beams"]),
        ({"min_length": 5, "bad_words_ids": [[1, 2]]}, ["bad_words_ids", "min_length"]),
        ({"generate_kwargs": {"num_beams": 4, "penalty_alpha": 0.6}}, ["num_beams", "penalty_alpha"]),
        ({"top_k": 3, "generate_kwargs": {"top_k": 4}}, ["top_k"]),
        ({"max_length": 3, "max_new_tokens": 4}, ["max_length"]),
        ({"do_sample": True, "temperature": 0}, ["do_sample"]),
        (
            {"do_sample": False, "temperature": 0.5, "top_k": 3, "top_p": 0, "typical_p": 0.5},
            ["temperature", "top_k", "top_p", "typical_p"],
        ),
        ({"handle_long_generation": "hole", "colour": "red"}, ["colour", "handle_long_generation"]),
    ],
)
def test_a_parameter_that_would_change_something_is_called_ignored(fields: Any, names: list[str]) -> None:
    assert sorted(name.removeprefix("generate_kwargs.") for name in lost({"prompt": "a", **fields})) == names


@pytest.mark.parametrize("fields", [{"top_p": 1.5, "top_k": 0}, {"do_sample": False, "temperature": 1, "top_p": 1}])
def test_what_is_off_is_not_called_ignored(fields: Any) -> None:
    assert lost({"prompt": "a", **fields}, frozenset({"temperature"})) == []


def test_parameters_that_the_model_server_does_not_know_are_ignored() -> None:
    fields = {"max_length": 9, "top_k": 5, "do_sample": False, "min_new_tokens": 2}
    assert lost({"prompt": "a", **fields}, frozenset({"max_tokens"})) == [
        "max_length",
        "min_new_tokens",
        "do_sample",
        "top_k",
    ]


def test_generate_kwargs_are_the_flat_parameters_and_beat_them() -> None:
    request = continued(top_k=3, temperature=0.5, generate_kwargs={"top_k": 4, "max_length": 50, "typical_p": 0.9})
    assert request.sampling == Sampling(temperature=0.5, top_k=4, top_p=1.0, typical_p=0.9)
    assert (request.max_total_tokens, request.total_field) == (50, "generate_kwargs.max_length")


def test_max_new_tokens_is_of_the_answer_and_voids_max_length() -> None:
    request = continued(generate_kwargs={"max_length": 50, "max_new_tokens": 7})
    assert (request.sampling.max_tokens, request.max_total_tokens) == (7, None)


def test_not_to_sample_is_greedy() -> None:
    assert continued(do_sample=False, temperature=0.7).sampling.temperature == 0


@pytest.mark.parametrize(("given", "meant"), [({"top_k": 0}, 2**31 - 1), ({}, 10), ({"top_k": None}, 10)])
def test_a_top_k_of_0_is_off(given: Any, meant: int) -> None:
    assert continued(**given).sampling.top_k == meant


def test_min_new_tokens_is_an_option_of_the_model_server() -> None:
    assert continued(min_new_tokens=5).options == {"min_tokens": 5}
    assert continued(min_new_tokens=0).options == {}


async def test_several_sequences_are_several_answers_one_behind_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scripted([["1"], ["2"], ["3"]])
    async with running(server, monkeypatch, ONLY) as service:
        answer = await service.post({"prompt": "n", "generate_kwargs": {"num_return_sequences": 3}}, "/chat")
    assert sorted(answer.json["Result"].split("n")[1:]) == ["1", "2", "3"]
    assert len(server.asked) == 3
    assert "x-ignored-params" not in answer.headers


@pytest.mark.parametrize("fields", [{"num_return_sequences": 33}, {"generate_kwargs": {"num_return_sequences": 33}}])
def test_no_more_sequences_than_prompts_are_answered_at_once(fields: Any) -> None:
    with pytest.raises(InvalidRequest, match="num_return_sequences: 33 are asked for, and 32 allowed"):
        chat({"prompt": "a", **fields})
    assert len(chat({"prompt": "a", "num_return_sequences": 32})) == 32


def test_the_prompt_is_left_out_of_the_answer_on_demand() -> None:
    assert result(" upon") == "Once upon"
    assert result(" upon", return_full_text=None) == "Once upon"
    assert result(" upon", return_full_text=False) == " upon"


@pytest.mark.parametrize(
    ("form", "has_chat_template", "prompt", "is_message"),
    [
        ("auto", True, "Once", True),
        ("auto", True, "<s>[INST] Once [/INST]", False),
        ("auto", False, "Once", False),
        ("auto", None, "Once", False),
        ("text", True, "Once", False),
        ("messages", False, "Once", True),
    ],
)
def test_a_prompt_is_a_message_to_a_model_that_answers_such(
    form: Any, has_chat_template: bool | None, prompt: str, is_message: bool
) -> None:
    call = read("/chat", {"prompt": prompt, "prefix": "Well. "}, Switches(prompt=form))
    call.answered_by(ModelInfo("m", has_chat_template=has_chat_template))
    (asked,) = call.requests()
    text = f"Well. {prompt}"
    assert asked.prompt == ((Message("user", text),) if is_message else text)
    assert (asked.max_total_tokens, asked.total_without_template) == (200, is_message)
    assert call.reply([Generation(" upon", "stop", None)], STAMP) == {"Result": f"{prompt} upon"}


@pytest.mark.parametrize("dialect", ["kaito", "llm_on_k8s"])
async def test_llamas_dialogs_and_prompts_go_to_the_models_own_template(
    monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    life, rendered = "I believe the meaning of life is", "[INST] Hi [/INST]"
    server = Scripted([["A"]])
    settings = {"LLM_DIALECTS": dialect, "LLM_NAME": "SmolLM2-135M-Instruct"}
    async with running(server, monkeypatch, settings) as service:
        await service.post({"input_data": {"input_string": [HAIKU]}}, "/chat")
        answer = await service.post({"prompts": [life, rendered]}, "/generate")
    assert [prompt for prompt, _, _ in server.asked] == [
        tuple(Message(turn["role"], turn["content"]) for turn in HAIKU),
        (Message("user", life),),
        rendered,
    ]
    assert [one["prompt"] for one in answer.json["results"]] == [life, rendered]
    async with running(
        server, monkeypatch, {**settings, f"LLM_{dialect.removeprefix('llm_')}_PROMPT".upper(): "text"}
    ) as service:
        await service.post({"prompts": [life]}, "/generate")
    assert server.asked[-1][0] == life


def test_a_prefix_is_for_the_model_only() -> None:
    assert continued(prefix="Well. ").prompt == "Well. Once"
    assert result(" upon", prefix="Well. ") == "Once upon"


def test_spaces_of_tokenization_are_cleaned_up_on_demand() -> None:
    said = " I do n't , you 're ' so ' good . Or is n't it ?"
    assert result(said) == "Once" + said
    assert result(said, clean_up_tokenization_spaces=True) == "Once I don't, you're'so'good. Or isn't it?"


def test_a_conversation_is_answered_with_pythons_text_of_a_message() -> None:
    turns = [("System", "S"), ("user", "Q"), ("assistant", "A"), ("User", "?")]
    call = read("/chat", {"messages": [{"role": role, "content": content} for role, content in turns]})
    assert call.requests()[0].prompt == (
        Message("system", "S"),
        Message("user", "Q"),
        Message("assistant", "A"),
        Message("user", "?"),
    )
    reply = call.reply([Generation('it\'s "so"\n', "stop")], STAMP)
    assert reply == {"Result": str({"role": "assistant", "content": 'it\'s "so"\n'})}


def test_what_a_conversation_has_no_use_for_is_called_ignored() -> None:
    body = {
        "messages": [{"role": "user", "content": "?", "name": "me"}],
        "return_full_text": False,
        "generate_kwargs": {"num_return_sequences": 2},
    }
    assert lost(body) == ["messages.name", "generate_kwargs.num_return_sequences", "return_full_text"]


def problem(kind: str, loc: list[Any], message: str, value: Any) -> dict[str, Any]:
    url = f"https://errors.pydantic.dev/{version_short()}/v/{kind}"
    return {"type": kind, "loc": loc, "msg": message, "input": value, "url": url}


async def test_a_missing_field_is_told_in_these_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, ONLY) as service:
        answer = await service.post({}, "/generate")
    assert answer.status == 422
    assert answer.body == (
        b'{"detail":[{"type":"missing","loc":["body","prompts"],"msg":"Field required","input":{},'
        b'"url":"https://errors.pydantic.dev/%s/v/missing"}]}' % version_short().encode()
    )


@pytest.mark.parametrize(
    ("path", "body", "problems"),
    [
        (
            "/generate",
            {"prompts": "a"},
            [problem("list_type", ["body", "prompts"], "Input should be a valid list", "a")],
        ),
        (
            "/chat",
            {"input_data": []},
            [problem("dict_type", ["body", "input_data"], "Input should be a valid dictionary", [])],
        ),
        (
            "/chat",
            {"input_data": {"input_string": [[{"role": "user"}]]}},
            [
                problem(
                    "missing",
                    ["body", "input_data", "input_string", 0, 0, "content"],
                    "Field required",
                    {"role": "user"},
                )
            ],
        ),
        (
            "/chat",
            {"prompt": "a", "generate_kwargs": {"top_k": "many"}},
            [
                problem(
                    "int_parsing",
                    ["body", "generate_kwargs", "top_k"],
                    "Input should be a valid integer, unable to parse string as an integer",
                    "many",
                )
            ],
        ),
        (
            "/generate",
            {"prompts": ["a"], "parameters": {"max_gen_len": 0}},
            [problem("greater_than", ["body", "parameters", "max_gen_len"], "Input should be greater than 0", 0)],
        ),
        ("/generate", [1], [problem("dict_type", ["body"], "Input should be a valid dictionary", {})]),
    ],
)
async def test_what_is_wrong_with_a_body_is_told_as_pydantic_does(
    monkeypatch: pytest.MonkeyPatch, path: str, body: Any, problems: list[Any]
) -> None:
    async with running(Scripted(), monkeypatch, ONLY) as service:
        answer = await service.post(body, path)
    assert (answer.status, answer.json) == (422, {"detail": problems})


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(json.dumps({"prompts": "a" * 100_000}).encode(), id="megabytes"),
        pytest.param(json.dumps({"prompts": [1] * 9000}).encode(), id="many"),
        pytest.param(json.dumps({"prompts": "\ud800"}).encode(), id="half a character"),
        pytest.param(json.dumps({"prompts": 2**80}).encode(), id="a large number"),
        pytest.param(b'{"prompts": NaN}', id="not a number"),
        pytest.param(b'{"prompts": ', id="no JSON"),
        pytest.param(b"\xff", id="no text"),
        pytest.param(b"", id="nothing"),
    ],
)
async def test_what_is_wrong_is_not_echoed_if_it_is_long_or_no_json(
    monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    async with running(Scripted(), monkeypatch, ONLY) as service:
        answer = await service.post(body, "/generate")
    assert answer.status == 422
    assert 1 <= len(answer.json["detail"]) <= 20
    assert len(answer.body) < 10_000


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/generate", {"prompts": []}, "Prompts are required and should be an array"),
        ("/chat", {"input_data": {}}, "Input data is required"),
        ("/chat", {"input_data": {"input_string": []}}, "Input string is required"),
        ("/chat", {"input_data": {"input_string": None}}, "Input string is required"),
        ("/chat", {"input_data": {"parameters": {}}}, "Input string is required"),
        ("/chat", {"prompt": ""}, "Text generation parameter prompt required"),
        ("/chat", {"messages": []}, "Conversational parameter messages required"),
    ],
)
async def test_what_is_empty_is_refused_in_the_originals_words(
    monkeypatch: pytest.MonkeyPatch, path: str, body: Any, said: str
) -> None:
    async with running(Scripted(), monkeypatch, ONLY) as service:
        answer = await service.post(body, path)
    assert (answer.status, answer.json) == (400, {"detail": said})


ERRORS: list[tuple[LLMError, int]] = [
    (InvalidRequest("no", "prompts"), 400),
    (PromptTooLong(9, 8), 400),
    (Forbidden("no"), 403),
    (Unauthorized("no"), 401),
    (UnknownModel("a", "b"), 404),
    (BodyTooLarge("no"), 413),
    (Overloaded("no"), 429),
    (LLMError("no"), 500),
    (ModelServerError("no"), 502),
    (Refused(500, "no"), 502),
    (Unreachable("no"), 503),
    (Timeout("no"), 504),
]


@pytest.mark.parametrize(("error", "status"), ERRORS, ids=lambda value: type(value).__name__)
def test_every_other_error_is_a_sentence_with_an_honest_status(error: LLMError, status: int) -> None:
    assert KAITO.status(error) == status
    assert KAITO.error(error) == {"detail": str(error)}


async def test_one_answer_that_fails_fails_the_whole_and_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    server = Scripted([["a", gate], [ModelServerError("broken")]])
    async with running(server, monkeypatch, ONLY) as service:
        answer = await service.post({"prompts": ["a", "b"]}, "/generate")
        await asyncio.wait_for(server.closed.wait(), PATIENCE)
    assert (answer.status, answer.body) == (502, b'{"detail":"broken"}')


class Away(Scripted):
    """A model server that is not there."""

    async def describe(self) -> ModelInfo:
        raise Unreachable("not there")


async def test_what_probes_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, ONLY) as service:
        alive, healthy = await service.get("/", Accept="*/*"), await service.get("/healthz")
    assert (alive.status, alive.body) == (200, b'["Server is running",200]')
    assert (healthy.status, healthy.body) == (200, b'{"status":"Healthy"}')
    assert alive.headers["content-type"] == healthy.headers["content-type"] == "application/json"


async def test_without_its_model_it_is_alive_and_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Away(), monkeypatch, ONLY) as service:
        alive, healthy = await service.get("/", Accept="*/*"), await service.get("/healthz")
    assert alive.status == 200
    assert (healthy.status, healthy.body) == (503, b'{"detail":"not there"}')


async def test_to_shut_down_is_refused_with_the_setting_that_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, ONLY) as service:
        answer = await service.post(b"", "/shutdown")
        assert (await service.get("/health")).status == 200
    assert answer.status == 403
    assert answer.json == {"detail": "not allowed here; [OPEA_Microservice] allow_shutdown = true allows it"}


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a tool of that name on the PATH, and nothing else."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


async def test_the_graphics_cards_are_what_nvidias_tool_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cards = "0, NVIDIA H200, 12, 55, 1024, 143771\n1, NVIDIA H200, [N/A], 30, 0, 143771"
    asked = '[ "$1" = --query-gpu=index,name,utilization.gpu,temperature.gpu,memory.used,memory.total ] || exit 2'
    nvidia_smi(tmp_path, monkeypatch, f"{asked}\necho '{cards}'")
    async with running(Scripted(), monkeypatch, ONLY) as service:
        answer = await service.get("/metrics?format=kaito")
        prometheus = await service.get("/metrics")
    assert answer.json == {
        "gpu_info": [
            {
                "id": 0,
                "name": "NVIDIA H200",
                "load": "12.00%",
                "temperature": "55.0 C",
                "memory": {"used": "1.00 GB", "total": "140.40 GB"},
            },
            {
                "id": 1,
                "name": "NVIDIA H200",
                "load": "nan%",
                "temperature": "30.0 C",
                "memory": {"used": "0.00 GB", "total": "140.40 GB"},
            },
        ]
    }
    assert b"opea_llm_requests" in prometheus.body


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'NVIDIA-SMI has failed'; exit 9", "nvidia-smi: NVIDIA-SMI has failed"),
        ("echo nonsense", "nvidia-smi: it cannot be asked; the service's log has the reason"),
    ],
)
async def test_graphics_cards_that_cannot_be_told_are_an_error_and_a_200(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: str
) -> None:
    nvidia_smi(tmp_path, monkeypatch, script)
    async with running(Scripted(), monkeypatch, ONLY) as service:
        answer = await service.get("/metrics?format=kaito")
    assert (answer.status, answer.json) == (200, {"error": said})


async def test_without_nvidias_tool_there_are_no_graphics_cards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with running(Scripted(), monkeypatch, ONLY) as service:
        assert (await service.get("/metrics?format=kaito")).body == b'{"gpu_info":[]}'


async def test_a_slow_tool_blocks_no_other_request_and_runs_once_for_all_who_ask(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate, runs = tmp_path / "gate", tmp_path / "runs"
    os.mkfifo(gate)
    nvidia_smi(tmp_path, monkeypatch, f"echo run >> {runs}\nread line < {gate}")
    async with running(Scripted([["a"]]), monkeypatch, ONLY) as service:
        asking = [asyncio.ensure_future(service.get("/metrics?format=kaito")) for _ in range(40)]
        assert (await service.post({"prompts": ["?"]}, "/generate")).status == 200
        assert (await service.get("/metrics")).status == 200
        assert not any(one.done() for one in asking)
        await asyncio.to_thread(gate.write_text, "go\n")
        assert {one.status for one in await asyncio.gather(*asking)} == {200}
        assert runs.read_text() == "run\n"
