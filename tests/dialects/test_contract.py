"""What holds for every dialect: its examples work, what is cut short says so, and the page shows it all."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from comps.core.errors import ModelServerError
from comps.core.types import JSON, Event, Finished, Prompt, Sampling
from comps.dialects import DIALECTS, open_dialect
from comps.dialects.base import GenerationCall
from comps.model_servers.scripted import Scripted
from tests.service import Able, running


def filled(path: str) -> str:
    """A path as a client asks for it, with the served model's name where it has a variable."""
    return re.sub(r"\{[^}]+\}", "scripted", path)


CALLS = [
    pytest.param(name, filled(path), call, id=f"{name}-{path}-{call.marker}")
    for name in DIALECTS
    for path, calls in open_dialect(name, None).calls.items()
    for call in calls
    if issubclass(call, GenerationCall)
]


class Short(Scripted):
    """A model server whose answers are all cut short."""

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> AsyncGenerator[Event]:
        async for event in super().generate(prompt, sampling, options):
            yield replace(event, reason="length") if isinstance(event, Finished) else event


def streamed(call: type[GenerationCall], body: dict[str, Any]) -> bool:
    """Whether that body is answered piece by piece; some paths always are, and some never."""
    return call.model_validate(body).streamed


def some(call: type[GenerationCall]) -> dict[str, Any]:
    """Any of its examples."""
    example: dict[str, Any] = next(iter(call.examples.values()))
    return example


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("dialect", "path", "call"), CALLS)
async def test_every_example_is_answered(
    monkeypatch: pytest.MonkeyPatch, dialect: str, path: str, call: type[GenerationCall], stream: bool
) -> None:
    async with running(Scripted([["Deep", " learning"]]), monkeypatch, {"LLM_DIALECTS": dialect}) as service:
        for example in call.examples.values():
            body = {**example, "stream": stream}
            answer = await service.post(body, path)
            assert answer.status == 200
            assert b"Deep" in answer.body
            assert ("transfer-encoding" in answer.headers) is streamed(call, body)


@pytest.mark.parametrize(("dialect", "path", "call"), CALLS)
async def test_an_answer_cut_short_says_so(
    monkeypatch: pytest.MonkeyPatch, dialect: str, path: str, call: type[GenerationCall]
) -> None:
    for stream in (True, False):
        async with running(Short([["Deep"]]), monkeypatch, {"LLM_DIALECTS": dialect}) as service:
            answer = await service.post({**some(call), "stream": stream}, path)
        assert b"length" in answer.body or "length" in answer.headers["x-finish-reason"]


@pytest.mark.parametrize(("dialect", "path", "call"), CALLS)
async def test_a_stream_that_breaks_off_has_no_mark_of_its_end(
    monkeypatch: pytest.MonkeyPatch, dialect: str, path: str, call: type[GenerationCall]
) -> None:
    body = {**some(call), "stream": True}
    if not streamed(call, body):
        return
    server = Scripted([["Deep", ModelServerError("x")]])
    async with running(server, monkeypatch, {"LLM_DIALECTS": dialect}) as service, service.connect() as connection:
        await connection.send("POST", path, json.dumps(body).encode(), {"Connection": "close"})
        assert (await connection.head()).status == 200
        sent = await connection.reader.read()
    assert b"rror" in sent.rpartition(b"Deep")[2].lower()
    assert b"[DONE]" not in sent
    assert sent.endswith(b"0\r\n\r\n") is not call.cuts_off


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_page_shows_every_body_with_an_example_that_is_answered(
    monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    async with running(Able([["Deep"]]), monkeypatch, {"LLM_DIALECTS": dialect}) as service:
        document = (await service.get("/openapi.json")).json
        for path in open_dialect(dialect, None).calls:
            content = document["paths"][path.replace(":path", "")]["post"]["requestBody"]["content"]["application/json"]
            shown: list[dict[str, Any]] = [example["value"] for example in content["examples"].values()]
            for body in shown:
                assert (await service.post(body, filled(path))).status == 200
            for reference in content["schema"]["anyOf"]:
                assert reference["$ref"].rpartition("/")[2] in document["components"]["schemas"]


def test_no_two_bodies_have_the_same_name_in_the_openapi_document() -> None:
    dialects = [open_dialect(name, None) for name in DIALECTS]
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
        for route in open_dialect(dialect, None).facts:
            method, path = filled(route).split(" ")
            async with service.connect() as connection:
                await connection.send(method, path)
                assert (await connection.answer()).status == (403 if path == "/shutdown" else 200)
