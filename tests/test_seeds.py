"""Every example printed in the five documents that this service comes from works as it is printed."""

from __future__ import annotations

import asyncio
import json
from ast import literal_eval
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from comps.core.errors import ModelServerError
from comps.core.types import Message, Prompt
from tests.seeds import EXAMPLES, NOT_OURS, SEEDS, Example, Printed, code, run
from tests.seeds.__main__ import main, rows
from tests.seeds.judgement import WITHOUT_TEXT, fault, faults
from tests.service import Able, Service, running

WORDS = ["Deep", " learning", " is", " fun."]
ANSWER = "".join(WORDS)
SPECIAL_TAGS = "Error: special tags are not allowed as part of the prompt."
AS_PRINTED = [pytest.param(example, id=str(example)) for example in EXAMPLES if not example.mends]
TO_BE_MENDED = [pytest.param(example, id=str(example)) for example in EXAMPLES if example.mends]
HAIKU = "Always answer with Haiku"


async def sent(example: Example, service: Service) -> Printed:
    return await asyncio.to_thread(run, example.command(service.url))


def check_opea(example: Example, answer: Printed) -> None:
    if not example.body["streaming"]:
        document = answer.json
        assert set(document) == {"id", "text", "prompt"}
        assert (document["text"], document["prompt"]) == (ANSWER, "What is Deep Learning?")
        return
    *pieces, end = answer.body.decode().removesuffix("\n\n").split("\n\n")
    assert answer.media_type.startswith("text/event-stream")
    assert end == "data: [DONE]"
    assert b"".join(literal_eval(piece.removeprefix("data: ")) for piece in pieces).decode() == ANSWER


def check_health(example: Example, answer: Printed) -> None:
    assert set(answer.json) == {"Service Title", "Service Description", "Version"}
    assert answer.json["Service Title"] == "opea_service@llm"


def check_square(example: Example, answer: Printed) -> None:
    assert answer.json["text"] == ANSWER  # Without the prompt: echo is false in all examples.
    assert answer.json["error_code"] == 0
    assert "usage" in answer.json


def check_square_frames(example: Example, answer: Printed) -> None:
    *frames, nothing = answer.body.split(b"\0")
    texts = [json.loads(frame)["text"] for frame in frames]
    assert nothing == b""
    assert texts[0] == WORDS[0]
    assert texts[-1] == ANSWER
    assert all(later.startswith(text) for text, later in pairwise(texts))


def check_bare_string(example: Example, answer: Printed) -> None:
    assert answer.json == ANSWER
    assert answer.media_type == "application/json"


def check_raw_events(example: Example, answer: Printed) -> None:
    assert answer.body == b"".join(f"data: {word}\r\n\r\n".encode() for word in WORDS)
    assert answer.media_type.startswith("text/event-stream")


def check_vector(example: Example, answer: Printed) -> None:
    assert answer.json == [1.0, float(len(example.body["text"]))]


def check_prompts(example: Example, answer: Printed) -> None:
    results = [{"prompt": prompt, "response": ANSWER} for prompt in example.body["prompts"]]
    assert answer.json == {"results": results}


def check_chat(example: Example, answer: Printed) -> None:
    if "prompt" in example.body:
        assert answer.json == {"Result": example.body["prompt"] + ANSWER}
        return
    dialogs = example.body["input_data"]["input_string"]
    for dialog, result in zip(dialogs, answer.json["results"], strict=True):
        *echoed, said = result
        assert echoed == [{"role": turn["role"].capitalize(), "content": turn["content"]} for turn in dialog]
        assert said["role"] == "Assistant"
        assert said["content"] == (SPECIAL_TAGS if "[/INST]" in json.dumps(dialog) else ANSWER)


def check_root(example: Example, answer: Printed) -> None:
    assert b"Server is running" in answer.body


def check_healthz(example: Example, answer: Printed) -> None:
    assert b"Healthy" in answer.body


CHECKS: dict[str, Callable[[Example, Printed], None]] = {
    "/v1/chat/completions": check_opea,
    "/v1/health_check": check_health,
    "/api/Llama-2-7b-chat/worker_generate": check_square,
    "/api/Llama-2-7b-chat/worker_generate_stream": check_square_frames,
    "/agenerate": check_raw_events,
    "/embeddings": check_vector,
    "/chat": check_chat,
    "/": check_root,
    "/healthz": check_healthz,
}


def check(example: Example, answer: Printed) -> None:
    """The answer has the shape that clients of the document's service know."""
    path = example.path.strip()
    if path == "/generate":
        (check_prompts if "prompts" in example.body else check_bare_string)(example, answer)
    else:
        CHECKS[path](example, answer)


def test_no_code_in_the_documents_is_overlooked() -> None:
    for seed in SEEDS:
        used = {example.line for example in EXAMPLES if example.seed == seed}
        for line, text in code(seed):
            others = [why for why, starts in NOT_OURS.items() if text.startswith(starts)]
            within = used & set(range(line, line + text.count("\n") + 1))
            assert bool(within) != bool(others), f"{seed}.md:{line}: {text[:80]}"
    to_model_servers = 3
    taken = sum("curl " in example.printed for example in EXAMPLES)
    assert sum(text.count("curl ") for text in SEEDS.values()) == taken + to_model_servers


@pytest.mark.parametrize("example", AS_PRINTED)
async def test_every_example_works_as_printed(monkeypatch: pytest.MonkeyPatch, example: Example) -> None:
    async with running(Able([WORDS]), monkeypatch) as service:
        answer = await sent(example, service)
    if example.path == "/shutdown":  # The one thing that nobody may do unasked.
        assert answer.status == 403
        assert b"allow_shutdown" in answer.body
        return
    assert answer.status == 200, answer.body
    check(example, answer)


@pytest.mark.parametrize("example", TO_BE_MENDED)
async def test_an_example_that_is_no_json_is_told_where_and_works_when_mended(
    monkeypatch: pytest.MonkeyPatch, example: Example
) -> None:
    async with running(Able([WORDS]), monkeypatch) as service:
        refused = await sent(example, service)
        answer = await sent(example.mended(), service)
    assert refused.status == 422
    [problem] = refused.json["detail"]
    assert problem["type"] == "value_error.jsondecode"
    assert "line" in problem["msg"]
    assert problem["ctx"]["pos"]
    assert answer.status == 200, answer.body
    check(example.mended(), answer)


async def test_all_examples_are_answered_by_one_instance_in_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able([WORDS]), monkeypatch) as service:
        ran = await asyncio.to_thread(lambda: list(rows(service.url)))
    statuses = [row.answer.status for row in ran]
    assert len(statuses) == len(EXAMPLES) + len(TO_BE_MENDED)
    assert statuses.count(422) == len(TO_BE_MENDED)
    assert statuses.count(403) == sum(example.path == "/shutdown" for example in EXAMPLES)
    assert set(statuses) == {200, 403, 422}
    assert [row.fault for row in ran if row.fault] == []


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (["", " \n"], "empty"),
        (["?", "\n"], "empty"),
        (["Fine.", "<|im_end|>"], "garbage: <|im_end|>"),
        (["SELECT\n"] * 9 + ["FROM"], "garbage: select 9 times in 10 words"),
        ([ModelServerError("It is broken.")], "status 502"),
    ],
)
async def test_an_answer_that_is_empty_or_garbage_is_named_and_ends_the_command_with_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: list[Any], why: str
) -> None:
    mended = [example.mended() for example in EXAMPLES if example.path.strip() not in WITHOUT_TEXT]
    one_of_each = {(example.seed, example.path.strip()): example for example in mended}
    async with running(Able([said]), monkeypatch) as service:
        assert await asyncio.to_thread(main, service.url, [*one_of_each.values()]) == 1
    named = capsys.readouterr().err
    assert [example for example in one_of_each.values() if f"{example}: {why}" not in named] == []
    assert len(one_of_each) == 9


async def test_sensible_answers_end_the_command_well_even_if_one_was_garbage_by_chance(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [prompt] = [example for example in EXAMPLES if str(example) == "llm-api.md:252"]
    async with running(Able([[""], WORDS]), monkeypatch) as service:
        assert await asyncio.to_thread(main, service.url, [EXAMPLES[0], prompt]) == 0
    shown = capsys.readouterr()
    assert shown.err.strip() == ""
    assert [row.split(" | ")[-2] for row in shown.out.splitlines()[2:]] == ["fine", "fine at try 2"]


@pytest.mark.parametrize(
    "text",
    ["Paris.", "4", "No, no, no.", "はい", "a < b", "It is [1], or <b>bold</b>.", "the cat and the dog and the cow"],
)
def test_text_is_no_garbage(text: str) -> None:
    assert fault(text) is None


@pytest.mark.parametrize("marker", ["<|assistant|>", "[/INST]", "<<SYS>>", "</s>", "<end_of_turn>", "\ufffd"])
def test_what_a_chat_template_writes_is_garbage_in_an_answer(marker: str) -> None:
    assert fault(f"Paris. {marker} Paris") == f"garbage: {marker}"


def test_of_several_texts_the_faulty_ones_are_counted() -> None:
    results = {"results": [{"prompt": "a", "response": text} for text in ("One.", "", "Two.", "…")]}
    assert faults("/generate", {}, json.dumps(results).encode()) == ["empty (text 2)", "empty (text 4)"]


def test_the_prompt_in_an_answer_is_no_text_of_the_models() -> None:
    assert faults("/chat", {"prompt": "Once"}, b'{"Result": "Once"}') == ["empty"]


HAIKU_TURNS = [
    {"role": "system", "content": HAIKU},
    {"role": "user", "content": "I am going to Paris, what should I see?"},
]
HAIKU_CALLS = [
    ("opea", "/v1/chat/completions", {"messages": HAIKU_TURNS}),
    ("openai", "/v1/chat/completions", {"messages": HAIKU_TURNS}),
    ("openai", "/v1/chat/completions", {"messages": [{**HAIKU_TURNS[0], "role": "developer"}, HAIKU_TURNS[1]]}),
    ("square", "/api/worker_generate", {"generation_mode": "chat", "messages": HAIKU_TURNS}),
    (
        "square",
        "/api/worker_generate",
        {"generation_mode": "chat", "system_message": HAIKU, "messages": [{"role": "human", "text": "Paris?"}]},
    ),
    ("kaito", "/chat", {"input_data": {"input_string": [HAIKU_TURNS]}}),
    ("kaito", "/chat", {"messages": HAIKU_TURNS}),
    ("llm_on_k8s", "/chat", {"input_data": {"input_string": [HAIKU_TURNS]}}),
]


@pytest.mark.parametrize(("dialect", "path", "body"), HAIKU_CALLS)
async def test_the_haiku_of_the_documents_is_asked_for_in_every_dialect_that_has_system_messages(
    monkeypatch: pytest.MonkeyPatch, dialect: str, path: str, body: Any
) -> None:
    server = Able([WORDS])
    async with running(server, monkeypatch, {"LLM_DIALECTS": dialect}) as service:
        answer = await service.post(body, path)
    assert answer.status == 200
    [(prompt, _, _)] = server.asked
    assert HAIKU in system_of(prompt)


def system_of(prompt: Prompt) -> str:
    """The system message of a conversation, or what a conversation template has made of all of it."""
    if isinstance(prompt, str):
        return prompt
    systems: Sequence[Message] = [message for message in prompt if message.role in ("system", "developer")]
    return " ".join(str(message.content) for message in systems)
