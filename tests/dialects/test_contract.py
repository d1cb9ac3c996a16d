"""What holds for every dialect: its examples work, what is cut short says so, and the page shows it all."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from comps.core.errors import ModelServerError
from comps.dialects import DIALECTS, open_dialect
from comps.dialects.base import Call, GenerationCall
from comps.dialects.opea import Switches
from comps.model_servers.scripted import Scripted
from tests.service import Able, running

SWITCHES = {"opea": Switches()}
CALLS = [
    pytest.param(name, path, call, id=f"{name}-{call.marker}")
    for name in DIALECTS
    for path, calls in open_dialect(name, SWITCHES.get(name)).calls.items()
    for call in calls
    if issubclass(call, GenerationCall)
]


def streams(call: type[Call]) -> bool:
    """Whether it can be answered piece by piece."""
    return issubclass(call, GenerationCall) and call.reply_stream is not GenerationCall.reply_stream


STREAMED = [param for param in CALLS if streams(param.values[2])]  # type: ignore[arg-type]
ONE_TOKEN: dict[str, dict[str, Any]] = {
    "KaitoGenerateCall": {"parameters": {"max_gen_len": 1}},
    "KaitoChatCall": {"parameters": {"max_gen_len": 1}},
    "KaitoPromptCall": {"max_new_tokens": 1},
    "KaitoMessagesCall": {"generate_kwargs": {"max_new_tokens": 1}},
    "LLMOnK8sGenerateCall": {"parameters": {"max_gen_len": 1}},
    "LLMOnK8sChatCall": {"parameters": {"max_gen_len": 1}},
}
"""How a body says that an answer may have one token, where that is not `max_tokens`."""


def some(call: type[Call]) -> dict[str, Any]:
    """Any of its examples."""
    example: dict[str, Any] = next(iter(call.examples.values()))
    return example


@pytest.mark.parametrize(("dialect", "path", "call"), CALLS)
async def test_every_example_is_answered(
    monkeypatch: pytest.MonkeyPatch, dialect: str, path: str, call: type[Call]
) -> None:
    async with running(Scripted([["Deep", " learning"]]), monkeypatch, {"LLM_DIALECTS": dialect}) as service:
        for example in call.examples.values():
            answer = await service.post({**example, "stream": False}, path)
            assert answer.status == 200
            assert b"Deep" in answer.body
            assert "transfer-encoding" not in answer.headers


@pytest.mark.parametrize(("dialect", "path", "call"), STREAMED)
async def test_every_example_is_streamed_if_its_dialect_streams(
    monkeypatch: pytest.MonkeyPatch, dialect: str, path: str, call: type[Call]
) -> None:
    async with running(Scripted([["Deep", " learning"]]), monkeypatch, {"LLM_DIALECTS": dialect}) as service:
        for example in call.examples.values():
            answer = await service.post({**example, "stream": True}, path)
            assert answer.status == 200
            assert b"Deep" in answer.body
            assert "transfer-encoding" in answer.headers


@pytest.mark.parametrize(("dialect", "path", "call"), CALLS)
async def test_an_answer_cut_short_says_so(
    monkeypatch: pytest.MonkeyPatch, dialect: str, path: str, call: type[Call]
) -> None:
    body = {**some(call), **ONE_TOKEN.get(call.__name__, {"max_tokens": 1})}
    for stream in (False, True)[: 1 + streams(call)]:
        async with running(Scripted([["Deep", " learning"]]), monkeypatch, {"LLM_DIALECTS": dialect}) as service:
            answer = await service.post({**body, "stream": stream}, path)
        assert b"length" in answer.body or "length" in answer.headers["x-finish-reason"]


@pytest.mark.parametrize(("dialect", "path", "call"), STREAMED)
async def test_a_stream_that_breaks_off_has_no_mark_of_its_end(
    monkeypatch: pytest.MonkeyPatch, dialect: str, path: str, call: type[Call]
) -> None:
    server = Scripted([["Deep", ModelServerError("x")]])
    async with running(server, monkeypatch, {"LLM_DIALECTS": dialect}) as service:
        answer = await service.post({**some(call), "stream": True}, path)
    assert b"rror" in answer.chunks[-1].lower()
    assert b"[DONE]" not in answer.body


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_page_shows_every_body_with_an_example_that_is_answered(
    monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    async with running(Able([["Deep"]]), monkeypatch, {"LLM_DIALECTS": dialect}) as service:
        document = (await service.get("/openapi.json")).json
        for path in open_dialect(dialect, SWITCHES.get(dialect)).calls:
            content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            shown: list[dict[str, Any]] = [example["value"] for example in content["examples"].values()]
            for body in shown:
                assert (await service.post(body, path)).status == 200
            for reference in content["schema"]["anyOf"]:
                assert reference["$ref"].rpartition("/")[2] in document["components"]["schemas"]


def test_no_two_bodies_have_the_same_name_in_the_openapi_document() -> None:
    dialects = [open_dialect(name, SWITCHES.get(name)) for name in DIALECTS]
    bodies = {call for dialect in dialects for calls in dialect.calls.values() for call in calls}
    assert len(bodies) == len({call.__name__ for call in bodies})


async def test_every_reference_in_the_openapi_document_leads_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        text = (await service.get("/openapi.json")).body.decode()
    schemas = json.loads(text)["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/([^"]+)"', text)) <= set(schemas)


async def test_the_page_needs_nothing_from_the_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        page = (await service.get("/docs")).body.decode()
        links = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert links
        for link in links:
            assert link.startswith("/")
            assert (await service.get(link)).status == 200


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_every_fact_is_answered_but_what_the_settings_do_not_allow(
    monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    async with running(Able(), monkeypatch, {"LLM_DIALECTS": dialect}) as service:
        for route in open_dialect(dialect, SWITCHES.get(dialect)).facts:
            method, path = route.replace("{model:path}", "scripted").split(" ")
            async with service.connect() as connection:
                await connection.send(method, path)
                assert (await connection.answer()).status == (200 if method == "GET" else 403)
