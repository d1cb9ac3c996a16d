"""POST /v1/prompt: what would be asked of the model is told, and is what the model server gets of the real request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any
from unittest.mock import AsyncMock

import orjson
import pytest
from starlette.types import Scope

import comps.handler
from comps.core.errors import Refused, Unreachable
from comps.core.ports import Answer
from comps.core.types import JSON, Prompt, Sampling
from comps.dialects.shared.base import GenerationCall
from comps.model_servers import FRAMEWORKS
from comps.model_servers.embedded.engine_process import EngineProcess
from comps.model_servers.scripted import Scripted
from comps.responses import Response
from tests.dialects.kinds import KINDS
from tests.model_servers.contract import Subject
from tests.model_servers.test_contract import subject
from tests.model_servers.tgi_stand_in import StandIn
from tests.service import PATH, PATIENCE, Able, Service, running, until_in_flight

__all__ = ["subject"]

PROMPT = "/v1/prompt"
DOCUMENTS = ["A lantern hangs in the harbour.", {"title": "Bridges", "text": "The bridge opens at noon. " * 5}]
GENERATING = ("/v1/completions", "/generate_stream", "/generate", "scripted")
EVERY_ROUTE = tuple(
    dict.fromkeys(kind.route.replace(":path", "") for kind in KINDS if issubclass(kind.call, GenerationCall))
)


# What a model server gets.


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> list[tuple[str, JSON]]:
    """What has reached model servers: paths and bodies; what was asked of an engine; what `Scripted` was asked."""
    got: list[tuple[str, JSON]] = []
    body_of, body_at, ask, generate = comps.requests.read_body, StandIn._body, EngineProcess.ask, Scripted.generate

    async def body(response: Response, scope: Scope, *further: Any) -> bytes:
        read = await body_of(response, scope, *further)
        got.append((scope["path"], json.loads(read)))
        return read

    async def stand_in(self: StandIn, request: Any, schema: str) -> Any:
        got.append((request.path, await request.json()))
        return await body_at(self, request, schema)

    async def engine(
        self: EngineProcess, message: Mapping[str, JSON], on_part: Callable[[JSON], None] | None = None
    ) -> JSON:
        got.append(("engine", message))
        return await ask(self, message, on_part)

    async def scripted(
        self: Scripted, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer
    ) -> None:
        got.append(("scripted", (prompt, sampling, options)))
        await generate(self, prompt, sampling, options, answer)

    monkeypatch.setattr(comps.handler, "read_body", body)
    monkeypatch.setattr(StandIn, "_body", stand_in)
    monkeypatch.setattr(EngineProcess, "ask", engine)
    monkeypatch.setattr(Scripted, "generate", scripted)
    return got


def asked_of(received: list[tuple[str, JSON]]) -> dict[str, JSON]:
    """What the model server was asked to generate from and how, in the words of a preview, whatever its own."""
    path, asked = next(
        (path, asked)
        for path, asked in received
        if path in GENERATING or (path == PATH and "query" not in asked) or (path == "engine" and "generate" in asked)
    )
    if path == "scripted":
        prompt, sampling, options = asked
        if not isinstance(prompt, str):
            prompt = [{"role": message.role, "content": message.content, **message.extra} for message in prompt]
        return {**named(prompt), "sampling": said(asdict(sampling)), "options": options}
    if path == "engine":
        return {**named(asked["generate"]["prompt"]), "sampling": said(asked["generate"]["sampling"])}
    if path in ("/generate_stream", "/generate"):
        parameters = dict(asked["parameters"])
        parameters["max_tokens"] = parameters.pop("max_new_tokens")
        assert parameters.pop("details")
        if not parameters.pop("do_sample"):
            parameters["temperature"] = 0.0
        return {"rendered": asked["inputs"], "sampling": parameters}
    rest = {name: value for name, value in asked.items() if name not in ("model", "stream", "stream_options")}
    prompt = rest.pop("prompt") if "prompt" in rest else rest.pop("messages")
    sampling = {name: rest.pop(name) for name in Sampling.__dataclass_fields__ if name in rest}
    return {**named(prompt), "sampling": said(sampling), "options": rest}


def named(prompt: JSON) -> dict[str, JSON]:
    return {"rendered" if isinstance(prompt, str) else "messages": prompt}


def said(fields: Mapping[str, JSON]) -> dict[str, JSON]:
    return {name: value for name, value in fields.items() if value not in (None, (), [])}


def exactly(document: JSON) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("chat_template", "temperature"), [("", 0.0), ("auto", 0.5)])
async def test_a_preview_is_what_the_model_server_gets_byte_for_byte(
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    received: list[tuple[str, JSON]],
    subject: Subject,
    framework: str,
    chat_template: str,
    temperature: float,
) -> None:
    if chat_template and request.node.callspec.params["subject"] == "langchain":
        pytest.skip("a chat model takes no text to continue")
    assert subject.window
    body = {
        "query": "Where does the lantern hang?",
        "documents": DOCUMENTS,
        "max_tokens": subject.window - 100,  # Less is left, so that it is counted how much.
        "temperature": temperature,
        "stop": ["e", "a", " ", "\n"],  # At its first token.
    }
    environment = {"FRAMEWORK": framework, "LLM_CHAT_TEMPLATE": chat_template, "LLM_NAME": "vicuna-7b"}
    with monkeypatch.context() as patch:
        # Whoever has opened it closes it. (Patched in an instance, it would stay there, and its class would not count.)
        patch.setattr(type(subject.server), "aclose", AsyncMock())
        async with running(subject.server, monkeypatch, environment) as service:
            told = await service.post(body, PROMPT)
            assert told.status == 200, told.body
            assert not any(path in (*GENERATING, PATH) or "generate" in asked for path, asked in received)
            received.clear()
            answer = await service.post({**body, "stream": False, "include_report": True})
            assert answer.status == 200, answer.body
    (preview,) = told.json["prompts"]
    asked = asked_of(received)
    assert exactly({name: preview[name] for name in asked}) == exactly(asked)
    assert preview["sampling"]["max_tokens"] < subject.window - 50
    report, counted = preview["report"], answer.json["report"]
    if report["counted"] == "estimate":
        report, counted = but_for_sizes(report), but_for_sizes(counted)
    assert report == counted


def but_for_sizes(report: Any) -> Any:
    """A report without the tokens of its parts: an answer's are scaled to what the model server counted."""
    sizes = dict.fromkeys(("prompt_tokens", "documents_tokens", "history_tokens", "question_tokens", "headroom"))
    uses = [{**use, "tokens": None, "tokens_used": None} for use in report["documents"]]
    return {**report, **sizes, "documents": uses}


# How it is asked for.


async def preview_of(service: Service, body: JSON, path: str = PROMPT) -> Any:
    answer = await service.post(body, path)
    assert answer.status == 200, answer.body
    return answer.json


async def test_a_preview_says_who_would_be_asked_what_how_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted(context_window=250)
    endpoint = "http://me:secret@one:8000/v1?key=secret,https://two"
    environment = {"MODEL_SERVER": "vllm", "LLM_MODEL_SERVER_ENDPOINT": endpoint, "FRAMEWORK": "langchain"}
    body = {"query": "Where?", "documents": ["Here. " * 200, "There."], "top_k": 3, "max_tokens": 9, "colour": "blue"}
    async with running(scripted, monkeypatch, environment) as service:
        told = await preview_of(service, body)
    async with running(scripted, monkeypatch, {**environment, "USVC_SHOW_ENDPOINTS": "true"}) as service:
        shown = (await preview_of(service, body))["model_server"]
    assert shown == {"kind": "vllm", "framework": "langchain", "endpoint": "http://one:8000/v1, https://two"}
    assert scripted.asked == []
    (prompt,) = told.pop("prompts")
    assert told == {
        "model": "scripted",
        "model_server": {"kind": "vllm", "framework": "langchain"},
        "dialect": "opea",
        "route": "/v1/chat/completions",
        "stream": True,
        "ignored": ["top_k", "colour"],
    }
    assert prompt["sampling"]["max_tokens"] == 9
    assert "seed" not in prompt["sampling"]
    assert (prompt["rendered"], prompt["options"], prompt["answer"]) == (None, {}, None)
    assert [use["fate"] for use in prompt["report"]["documents"]] == ["cut", "dropped"]
    instruction, message = prompt["messages"]
    assert (instruction["role"], message["role"]) == ("system", "user")
    assert message["content"].endswith("\n\nWhere?")
    assert prompt["report"]["headroom"] == 250 - prompt["report"]["prompt_tokens"] - 9


async def test_every_part_of_a_short_prompt_is_counted_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able(context_window=10_000), monkeypatch) as service:
        (prompt,) = (await preview_of(service, {"query": "Where?", "documents": ["Here."]}))["prompts"]
    report = prompt["report"]
    assert report["counted"] == "model"
    assert [use["tokens_used"] for use in report["documents"]] == [len("Here.\n")]
    assert report["documents_tokens"] + report["history_tokens"] + report["question_tokens"] == report["prompt_tokens"]


async def test_strict_refuses_no_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, {"LLM_STRICT": "true"}) as service:
        assert (await preview_of(service, {"query": "Where?", "colour": "blue"}))["ignored"] == ["colour"]


async def test_a_search_that_found_nothing_is_answered_without_the_model_and_the_preview_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted(), monkeypatch, {"LLM_NOTHING_FOUND": "Nothing was found."}) as service:
        (prompt,) = (await preview_of(service, {"query": "Where?", "documents": []}))["prompts"]
    assert prompt["answer"] == "Nothing was found."


@pytest.mark.parametrize(
    ("body", "dialect", "route", "prompts"),
    [
        ({"query": "?"}, "opea", "/v1/chat/completions", 1),
        ({"messages": [{"role": "user", "content": "?"}]}, "opea", "/v1/chat/completions", 1),
        ({"prompt": "Once"}, "openai", "/v1/completions", 1),
        ({"prompt": ["Once", "Twice"]}, "openai", "/v1/completions", 2),
        ({"prompts": ["Once", "Twice"]}, "kaito", "/generate", 2),
        ({"input_data": {"input_string": [[{"role": "user", "content": "?"}]]}}, "kaito", "/chat", 1),
        ({"inputs": "Once"}, "tgi", "/generate", 1),
        # OpenAI's has no parameters, but that they are nothing is said; what it cannot be is llm-api's.
        ({"prompt": "Once", "max_tokens": "many"}, "llm_api", "/generate", 1),
        # SQuARE's has no marker, and is asked last: its chats have their turns where OpenAI has messages.
        (
            {"generation_mode": "chat", "messages": [{"role": "user", "text": "?"}]},
            "square",
            "/api/worker_generate",
            1,
        ),
    ],
)
async def test_a_body_is_read_as_the_first_route_would_that_finds_nothing_wrong_with_it(
    monkeypatch: pytest.MonkeyPatch, body: JSON, dialect: str, route: str, prompts: int
) -> None:
    async with running(Scripted(), monkeypatch) as service:
        told = await preview_of(service, body)
    assert (told["dialect"], told["route"], len(told["prompts"])) == (dialect, route, prompts)


@pytest.mark.parametrize(
    ("asked", "body", "dialect", "route"),
    [
        ("/generate", {"prompt": "Once"}, "llm_api", "/generate"),
        ("/generate", {"prompts": ["Once"]}, "kaito", "/generate"),
        ("/agenerate", {"prompt": "Once"}, "llm_api", "/agenerate"),
        ("/chat", {"prompt": "Once"}, "kaito", "/chat"),
        ("/api/worker_generate", {"prompt": "Once"}, "square", "/api/worker_generate"),
        ("/api/a/b/worker_generate_stream", {"prompt": "Once"}, "square", "/api/{model}/worker_generate_stream"),
    ],
)
async def test_a_route_says_how_a_body_is_read(
    monkeypatch: pytest.MonkeyPatch, asked: str, body: JSON, dialect: str, route: str
) -> None:
    async with running(Scripted(), monkeypatch) as service:
        told = await preview_of(service, body, f"{PROMPT}?route={asked}")
    assert (told["dialect"], told["route"]) == (dialect, route)
    assert told["prompts"][0]["rendered"] == told["prompts"][0].get("prompt")


async def test_what_a_route_s_path_says_is_read_as_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        told = await preview_of(service, {"prompt": "Once"}, f"{PROMPT}?route=/api/other/worker_generate")
    assert (told["model"], told["ignored"]) == ("scripted", ["model"])


async def test_every_dialect_alone_has_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for dialect, body in {
        "square": {"prompt": "Once"},
        "llm_api": {"prompt": "Once"},
        "llm_on_k8s": {"prompts": ["Once"]},
    }.items():
        async with running(Scripted(), monkeypatch, {"LLM_DIALECTS": dialect}) as service:
            assert (await preview_of(service, body))["dialect"] == dialect


@pytest.mark.parametrize("asked", ["/v1/embeddings", "/nowhere", "", "/api/count_token", "v1/completions"])
async def test_a_route_that_generates_no_text_is_an_error_that_names_those_that_do(
    monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    async with running(Scripted(), monkeypatch) as service:
        answer = await service.post({"query": "?"}, f"{PROMPT}?route={asked}")
    assert answer.status == 400
    assert answer.json["detail"].startswith(f"route: no text is generated at '{asked}'; known: ")
    assert answer.json["detail"].endswith(", ".join(EVERY_ROUTE))


@pytest.mark.parametrize(
    "route", [*(route.format(model="m") for route in EVERY_ROUTE if "completions" not in route), PATH]
)
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"prompt": {}, "prompts": 5, "query": 5}', b" " * 1_000_001]
)
async def test_what_is_wrong_is_said_as_the_route_says_it(
    monkeypatch: pytest.MonkeyPatch, route: str, body: bytes
) -> None:
    async with running(Scripted(), monkeypatch, {"USVC_MAX_BODY_MB": "1"}) as service:
        own = {"X-Request-Id": "1"}  # Errors of some dialects have it.
        there, here = await service.post(body, route, **own), await service.post(body, f"{PROMPT}?route={route}", **own)
    assert (here.status, here.body) == (there.status, there.body)
    assert here.status >= 400


async def test_a_body_that_no_route_reads_is_told_so_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        bodies: list[JSON] = [{}, {"question": "?"}, {"query": " "}, {"messages": [], "prompt": []}]
        # The last would load a model for Ollama, which is no prompt either.
        for body in [*bodies, {"model": "scripted", "messages": []}]:
            assert (await service.post(body, PROMPT)).body == (await service.post(body)).body


# What it costs.


async def test_a_preview_waits_for_a_place_and_none_gets_around_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()
    scripted = Scripted([["one", go_on]])
    limits = {"USVC_MAX_RUNNING": "1", "USVC_MAX_WAITING": "1"}
    body = {"query": "?", "stream": False}
    async with running(scripted, monkeypatch, limits) as service:
        answering = asyncio.ensure_future(service.post(body))
        await asyncio.wait_for(scripted.reached.wait(), PATIENCE)
        waiting = asyncio.ensure_future(service.post(body, PROMPT))
        await until_in_flight(service, 2)
        assert (await service.post(body, PROMPT)).status == 429
        go_on.set()
        assert [(await one).status for one in (answering, waiting)] == [200, 200]
    assert len(scripted.asked) == 1


class Rendering(Scripted):
    """A model server that can render, or should."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__()
        self.failure = failure

    async def render(self, prompt: Prompt, options: Mapping[str, JSON]) -> str:
        if self.failure:
            raise self.failure
        return f"<user>{prompt[-1].content}" if not isinstance(prompt, str) else "never asked"


async def test_the_rendered_prompt_is_null_where_the_server_has_no_route_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query, text = {"query": "?"}, {"prompt": "Once"}
    for failure, status, rendered in (
        (None, 200, "<user>?"),
        (Refused(404, ""), 200, None),
        (Refused(500, ""), 502, None),
        (Unreachable("gone"), 503, None),
    ):
        async with running(Rendering(failure), monkeypatch) as service:
            answer = await service.post(query, PROMPT)
            assert answer.status == status
            assert status != 200 or answer.json["prompts"][0]["rendered"] == rendered
            assert (await preview_of(service, text))["prompts"][0]["rendered"] == "Once"


@pytest.mark.parametrize(("length", "asked"), [({"max_length": 40}, 39), ({}, 199)])
async def test_what_prompt_and_answer_may_have_together_is_in_the_sampling(
    monkeypatch: pytest.MonkeyPatch, length: JSON, asked: int
) -> None:
    body = {"prompt": "x", "generate_kwargs": length}
    server = Able()
    async with running(server, monkeypatch, {"LLM_DIALECTS": "kaito"}) as service:
        (prompt,) = (await preview_of(service, body, f"{PROMPT}?route=/chat"))["prompts"]
        await service.post(body, "/chat")
    assert prompt["sampling"]["max_tokens"] == server.asked[0][1].max_tokens == asked


async def test_the_page_shows_it_with_examples_and_its_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        operation = (await service.get("/openapi.json")).json["paths"][PROMPT]["post"]
    assert [(one["name"], one["in"]) for one in operation["parameters"]] == [("route", "query")]
    content = operation["requestBody"]["content"]["application/json"]
    assert content["examples"]
    assert len(content["schema"]["anyOf"]) > 8


async def test_a_body_without_its_route_is_read_by_whom_knows_the_most_of_its_fields(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted(), monkeypatch) as service:
        told = await preview_of(service, {"prompt": "Once", "params": {"max_tokens": 32}})
        plain = await preview_of(service, {"prompt": "Once", "max_tokens": 32})
    assert (told["route"], told["ignored"]) == ("/generate", [])
    assert told["prompts"][0]["sampling"]["max_tokens"] == 32
    assert plain["route"] == "/v1/completions"
