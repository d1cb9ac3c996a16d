"""The llm_on_k8s dialect: what it says otherwise than kaito, over sockets."""

from __future__ import annotations

from typing import Any

import pytest

from comps.core.errors import ModelServerError, Overloaded, Timeout, Unreachable
from comps.core.types import Message
from comps.model_servers.scripted import Scripted
from tests.dialects.llama_seeds import EMOJIS, HAIKU, MAYONNAISE, MOST_RESPECTFUL, PROMPTS, SIGHTS, SIX_DIALOGS, UNSAFE
from tests.dialects.test_kaito import ALTERNATING, SPECIAL_TAGS, Away, Telling, conversation, shown
from tests.service import running

ERROR_SHAPES = [{"error"}]
"""The keys of an error."""

ONLY = {"LLM_DIALECTS": "llm_on_k8s"}
HTML = "text/html; charset=utf-8"


async def test_an_answer_is_flasks_sorted_escaped_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([[" wörld"]]), monkeypatch, ONLY) as service:
        generated = await service.post({"prompts": ["Hello", "2+2="]}, "/generate")
        chatted = await service.post({"input_data": {"input_string": [[{"role": "user", "content": "Hi"}]]}}, "/chat")
    assert generated.body == (
        b'{"results":[{"prompt":"Hello","response":" w\\u00f6rld"},{"prompt":"2+2=","response":" w\\u00f6rld"}]}\n'
    )
    assert chatted.body == (
        b'{"results":[[{"content":"Hi","role":"User"},{"content":" w\\u00f6rld","role":"Assistant"}]]}\n'
    )
    assert generated.headers["content-type"] == chatted.headers["content-type"] == "application/json"


async def test_the_seeds_prompts_are_continued_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Telling(), monkeypatch, ONLY) as service:
        answer = await service.post(PROMPTS, "/generate")
    assert answer.json["results"] == [{"prompt": one, "response": f"[{one[-9:]}]"} for one in PROMPTS["prompts"]]


async def test_the_seeds_six_dialogs_are_answered_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Telling()
    async with running(server, monkeypatch, ONLY) as service:
        answer = await service.post(SIX_DIALOGS, "/chat")
    asked = [MAYONNAISE, SIGHTS, HAIKU, EMOJIS, MOST_RESPECTFUL]
    answered = [shown(dialog, f"[{dialog[-1]['content'][-9:]}]") for dialog in asked]
    assert (answer.status, answer.json) == (200, {"results": [*answered, shown(UNSAFE, SPECIAL_TAGS)]})
    assert [prompt for prompt, _, _ in server.asked] == [conversation(dialog) for dialog in asked]
    assert {sampling.max_tokens for _, sampling, _ in server.asked} == {128}


async def test_the_system_message_that_asks_for_a_haiku_reaches_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scripted()
    async with running(server, monkeypatch, ONLY) as service:
        await service.post({"input_data": {"input_string": [HAIKU]}}, "/chat")
    ((prompt, _, _),) = server.asked
    assert prompt[0] == Message("system", "Always answer with Haiku")


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/generate", {}, "Prompts are required and should be an array"),
        ("/generate", {"prompts": []}, "Prompts are required and should be an array"),
        ("/generate", {"prompts": None}, "Prompts are required and should be an array"),
        ("/generate", {"prompts": "a"}, "Prompts are required and should be an array"),
        ("/generate", {"prompts": ["a", 1]}, "prompts.1: Input should be a valid string"),
        ("/generate", {"prompts": ["a", "b", "c"]}, "Request Failed(3, 2)"),
        ("/generate", {"prompts": ["a"], "parameters": []}, "parameters: Input should be an object"),
        ("/chat", {}, "Input data is required"),
        ("/chat", {"input_data": {}}, "Input data is required"),
        ("/chat", {"input_data": None}, "Input data is required"),
        ("/chat", {"input_data": {"parameters": {}}}, "Input string is required"),
        ("/chat", {"input_data": {"input_string": []}}, "Input string is required"),
        ("/chat", {"input_data": {"input_string": ""}}, "Input string is required"),
        ("/chat", {"input_data": {"input_string": [MAYONNAISE] * 3}}, "Request Failed: (3, 2)"),
        (
            "/chat",
            {"input_data": {"input_string": [MAYONNAISE * 2]}},
            f"Request Failed: {ALTERNATING}; see input_data.input_string.0",
        ),
        (
            "/chat",
            {"input_data": {"input_string": [[{"role": "user"}]]}},
            "input_data.input_string.0.0.content: Field required",
        ),
        ("/generate", [], "body: not a JSON object, but an array"),
        ("/generate", b"", "body: empty"),
    ],
)
async def test_what_is_wrong_with_a_body_is_a_400_in_the_originals_words_if_it_has_some(
    monkeypatch: pytest.MonkeyPatch, path: str, body: Any, said: str
) -> None:
    async with running(Scripted(), monkeypatch, {**ONLY, "LLM_MAX_BATCH_SIZE": "2"}) as service:
        answer = await service.post(body, path)
    assert (answer.status, answer.json) == (400, {"error": said})
    assert answer.body.endswith(b"}\n")


@pytest.mark.parametrize(
    ("error", "status"),
    [(ModelServerError("ö"), 502), (Unreachable("ö"), 503), (Timeout("ö"), 504), (Overloaded("ö"), 429)],
)
async def test_what_fails_has_an_honest_status(monkeypatch: pytest.MonkeyPatch, error: Any, status: int) -> None:
    async with running(Scripted([[error]]), monkeypatch, ONLY) as service:
        answer = await service.post(PROMPTS, "/generate")
    assert (answer.status, answer.body) == (status, b'{"error":"\\u00f6"}\n')


async def test_what_probes_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, ONLY) as service:
        alive, healthy = await service.get("/", Accept="*/*"), await service.get("/healthz")
    assert (alive.status, alive.headers["content-type"], alive.body) == (200, HTML, b"Server is running")
    assert (healthy.status, healthy.headers["content-type"], healthy.body) == (200, HTML, b"Healthy")


async def test_without_its_model_it_is_alive_and_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Away(), monkeypatch, ONLY) as service:
        alive, healthy = await service.get("/", Accept="*/*"), await service.get("/healthz")
    assert alive.status == 200
    assert (healthy.status, healthy.body) == (503, b'{"error":"not there"}\n')


async def test_to_shut_down_is_refused_with_the_setting_that_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, ONLY) as service:
        answer = await service.post(b"", "/shutdown")
    assert answer.status == 403
    assert answer.json == {"error": "not allowed here; [OPEA_Microservice] allow_shutdown = true allows it"}


@pytest.mark.parametrize(
    ("dialects", "alive", "wrong"),
    [
        ("kaito, llm_on_k8s", b'["Server is running",200]', "detail"),
        ("llm_on_k8s, kaito", b"Server is running", "error"),
    ],
)
async def test_the_first_of_the_two_has_what_they_share(
    monkeypatch: pytest.MonkeyPatch, dialects: str, alive: bytes, wrong: str
) -> None:
    async with running(Scripted(), monkeypatch, {"LLM_DIALECTS": dialects}) as service:
        assert (await service.get("/", Accept="*/*")).body == alive
        assert set((await service.post({"prompts": []}, "/generate")).json) == {wrong}
        assert set((await service.post({"input_data": {}}, "/chat")).json) == {wrong}
        assert (await service.post({"prompt": "a"}, "/chat")).status == 200
        assert set((await service.post(b"", "/shutdown")).json) == {wrong}
