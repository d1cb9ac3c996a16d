"""What a dialect may do, with one that does it all: variables in paths, several requests, vectors, counts, routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

import pytest

from comps.core.errors import Forbidden, InvalidRequest, LLMError, ModelServerError
from comps.core.types import JSON, Embeddings, Finished, Generation, GenerationRequest, Message, ModelInfo, TextDelta
from comps.dialects.shared.base import (
    DescriptionCall,
    Dialect,
    EmbeddingCall,
    GenerationCall,
    PromptCountCall,
    Route,
    ServiceStatus,
    Style,
    Text,
    TokenCountCall,
    Writer,
)
from comps.dialects.shared.framing import ResponseMetadata
from comps.model_servers.scripted import Scripted
from tests.service import Able, Service, running


def _shout(document: JSON) -> bytes:
    return json.dumps(document).upper().encode()


STYLE = Style(lambda error: {"wrong": str(error)}, {InvalidRequest: 422}, _shout)


class Numbered:
    """Writes the texts of all choices, each with the number of its choice."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def text(self, text: str, choice: int = 0) -> None:
        self._write(f"{choice}:{text};".encode())

    def delta(self, delta: TextDelta) -> None:
        self.text(delta.text, delta.choice)

    def finished(self, end: Finished) -> None:
        """Nothing is written of it."""

    def close(self) -> None:
        """Nothing follows."""


class Tell(GenerationCall):
    """One answer for each of `say`."""

    marker = None
    examples = {"One": {"say": ["a"]}}
    style = STYLE
    any_model = True
    cuts_off = True

    say: list[str]
    flow: bool = False

    @property
    def streamed(self) -> bool:
        return self.flow

    def requests(self) -> Sequence[GenerationRequest]:
        return [GenerationRequest(text) for text in self.say]

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        return [metadata.model, *(generation.text for generation in generations)]

    def writer(self, metadata: ResponseMetadata, write: Callable[[bytes], None]) -> Writer:
        return Numbered(write)

    def error_item(self, error: LLMError) -> bytes:
        return b"oh no;"


class Embed(EmbeddingCall):
    """Vectors."""

    marker = None
    examples = {"One": {"of": "a"}}
    style = STYLE
    of: str

    def texts(self) -> Sequence[str]:
        return [self.of]

    def reply(self, embeddings: Embeddings, metadata: ResponseMetadata) -> JSON:
        return [list(vector) for vector in embeddings.vectors]


class Count(TokenCountCall):
    """Tokens."""

    marker = None
    examples = {"One": {"of": "a"}}
    style = STYLE
    of: str

    def text(self) -> str:
        return self.of

    def reply(self, tokens: int) -> JSON:
        return tokens


class PromptCount(PromptCountCall):
    """Tokens of a prompt."""

    marker = None
    examples = {"One": {"of": "a"}}
    style = STYLE
    of: str

    def request(self) -> GenerationRequest:
        return GenerationRequest((Message("user", self.of),))

    def reply(self, tokens: int) -> JSON:
        return tokens


class Describe(DescriptionCall):
    """What is known of a model."""

    marker = None
    examples = {"One": {}}
    style = STYLE

    def reply(self, info: ModelInfo) -> JSON:
        return [info.name, info.context_window]


def _who(status: ServiceStatus) -> JSON:
    """Which model the path names"""
    return {"asked": status.path["model"], "served": [model.name for model in status.models]}


def _forbidden(status: ServiceStatus) -> JSON:
    """Something that is not allowed"""
    raise Forbidden("no")


ALL = Dialect(
    "all",
    {
        "/{model:path}/tell": (Tell,),
        "/tell": (Tell,),
        "/embed": (Embed,),
        "/count": (Count,),
        "/count-prompt": (PromptCount,),
        "/describe": (Describe,),
    },
    STYLE,
    {
        "GET /": Route(lambda status: Text("here"), asks_models=False),
        "GET /{model:path}/who": Route(_who),
        "POST /end": Route(_forbidden),
        "GET /metrics?format=all": Route(lambda status: status.queue_length),
    },
)


async def test_what_the_path_says_beats_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = {"scripted": Scripted([["wrong"]])}
    async with running(servers, monkeypatch, further=[ALL]) as service:
        answer = await service.post({"say": ["x"], "model": "other"}, "/some/model-v1.3/tell")
    assert answer.json == ["SCRIPTED", "WRONG"]
    assert answer.headers["x-ignored-params"] == "model"


async def test_several_requests_of_a_body_are_answered_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scripted([["one"], ["two"], ["three"]])
    async with running(server, monkeypatch, further=[ALL]) as service:
        answer = await service.post({"say": ["a", "b", "c"]}, "/tell")
    assert answer.json == ["SCRIPTED", "ONE", "TWO", "THREE"]
    assert answer.headers["x-finish-reason"] == "stop,stop,stop"
    assert [prompt for prompt, _, _ in server.asked] == ["a", "b", "c"]


async def test_several_requests_run_at_once_and_are_all_closed_when_the_client_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    server = Scripted([[gates[0]], [gates[1]]])
    closed = asyncio.Semaphore(0)
    monkeypatch.setattr(server.closed, "set", closed.release)
    async with running(server, monkeypatch, further=[ALL]) as service:
        async with service.connect() as connection:
            await connection.send("POST", "/tell", b'{"say": ["a", "b"]}')
            await server.reached.wait()
        await asyncio.wait_for(closed.acquire(), 5)
        await asyncio.wait_for(closed.acquire(), 5)


async def test_several_requests_are_streamed_as_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([["x"], ["y"]]), monkeypatch, further=[ALL]) as service:
        answer = await service.post({"say": ["a", "b"], "flow": True}, "/tell")
    assert sorted(answer.chunks) == [b"0:x;", b"1:y;"]


@pytest.mark.parametrize("flow", [False, True])
async def test_a_body_may_ask_for_more_answers_than_are_made_at_once(
    monkeypatch: pytest.MonkeyPatch, flow: bool
) -> None:
    server = Scripted([[word] for word in "abc"])
    async with running(
        server, monkeypatch, {"USVC_MAX_RUNNING": "2", "USVC_MAX_WAITING": "0"}, further=[ALL]
    ) as service:
        answer = await service.post({"say": ["a", "b", "c"], "flow": flow}, "/tell")
    assert answer.status == 200
    assert len(server.asked) == 3


async def test_a_stream_that_cannot_tell_of_its_failure_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scripted([["x", ModelServerError("broken")]])
    async with running(server, monkeypatch, further=[ALL]) as service, service.connect() as connection:
        await connection.send("POST", "/tell", b'{"say": ["a"], "flow": true}')
        await connection.head()
        assert [await connection.chunk(), await connection.chunk()] == [b"0:x;", b"oh no;"]
        assert await connection.reader.read() == b""


async def test_bodies_that_ask_for_vectors_and_counts_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able(), monkeypatch, further=[ALL]) as service:
        vectors = await service.post({"of": "abc"}, "/embed")
        tokens = await service.post({"of": "abc", "colour": "red"}, "/count")
        of_prompt = await service.post({"of": "abc", "colour": "red"}, "/count-prompt")
        described = await service.post({"colour": "red"}, "/describe")
        unknown = await service.post({"model": ["x"]}, "/describe")
    assert vectors.json == [[1.0, 3.0]]
    assert (of_prompt.json, of_prompt.headers["x-ignored-params"]) == (19, "colour")  # With the markers of its message.
    assert (described.body, described.headers["x-ignored-params"]) == (b'["SCRIPTED", NULL]', "colour")
    assert unknown.status == 422
    assert tokens.json == 3
    assert tokens.headers["x-ignored-params"] == "colour"


class Counted(Able):
    """A model server that keeps count of what it was asked for, and waits to be told before it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = 0
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        self.counts += 1
        self.reached.set()
        await self.go_on.wait()
        return await super().embed(texts)

    async def count_tokens(self, text: str) -> int:
        self.counts += 1
        self.reached.set()
        await self.go_on.wait()
        return await super().count_tokens(text)


@pytest.mark.parametrize("path", ["/embed", "/count"])
async def test_vectors_and_counts_take_places_as_answers_do(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    server = Counted()
    full = {"USVC_MAX_RUNNING": "1", "USVC_MAX_WAITING": "0"}
    async with running(server, monkeypatch, full, further=[ALL]) as service:
        first = asyncio.ensure_future(service.post({"of": "abc"}, path))
        await asyncio.wait_for(server.reached.wait(), 5)
        assert (await service.post({"of": "abc"}, path)).status == 429
        server.go_on.set()
        assert (await first).status == 200


@pytest.mark.parametrize("path", ["/embed", "/count"])
async def test_what_a_strict_service_refuses_is_not_worked_on_first(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    server = Counted()
    async with running(server, monkeypatch, {"LLM_STRICT": "true"}, further=[ALL]) as service:
        assert (await service.post({"of": "abc", "colour": "red"}, path)).status == 422
    assert server.counts == 0


async def test_the_tokens_of_vectors_are_counted_as_those_of_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        async with running(Able(), monkeypatch, further=[ALL]) as service:
            await service.post({"of": "abc"}, "/embed")
    assert "tokens=3+0" in caplog.text


async def test_what_the_model_server_cannot_do_is_an_error_in_the_dialects_style(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted(), monkeypatch, further=[ALL]) as service:
        answers = [await service.post({"of": "abc"}, path) for path in ("/embed", "/count")]
    assert [answer.status for answer in answers] == [422, 422]
    assert answers[0].body == b'{"WRONG": "MODEL: SCRIPTED MAKES NO EMBEDDINGS"}'


async def test_a_field_that_is_missing_is_told_by_the_only_body_of_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, further=[ALL]) as service:
        answer = await service.post({}, "/tell")
    assert (answer.status, answer.body) == (422, b'{"WRONG": "SAY: FIELD REQUIRED"}')


async def test_routes_without_a_body_know_the_path_and_speak_in_their_dialects_style(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted(), monkeypatch, further=[ALL]) as service:
        assert (await service.get("/a/b.c/who")).body == b'{"ASKED": "A/B.C", "SERVED": ["SCRIPTED"]}'
        refused = await service.post({}, "/end")
        assert (refused.status, refused.body) == (403, b'{"WRONG": "NO"}')
        assert (await service.get("/metrics?format=all")).body == b"0"
        assert b"opea_llm_requests" in (await service.get("/metrics")).body


async def front(service: Service, accept: str) -> tuple[int, str, bytes]:
    answer = await service.get("/", Accept=accept)
    return answer.status, answer.headers.get("location", ""), answer.body


async def test_a_browser_gets_a_page_and_a_probe_the_probes_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    async with running(Scripted(), monkeypatch, further=[ALL]) as service:
        assert await front(service, browser) == (307, "ui", b"")
        assert await front(service, "*/*") == (200, "", b"here")


async def test_variables_of_paths_are_in_the_openapi_document(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, further=[ALL]) as service:
        document = (await service.get("/openapi.json")).json
    for path in ("/{model}/tell", "/{model}/who"):
        for operation in document["paths"][path].values():
            assert [parameter["name"] for parameter in operation["parameters"]] == ["model"]
