"""The routes without a body: health, statistics, models, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
from fastapi import FastAPI

import comps.loading
from comps.app import make_app, read_settings
from comps.core.errors import LLMError, ModelServerError, SettingsError, Unreachable
from comps.core.ports import CountsTokens, Embeds, Loads, ModelServer
from comps.core.retries import Retries
from comps.core.types import ModelInfo
from comps.dialects import DIALECTS
from comps.model_servers.replicas import Replicas
from comps.model_servers.scripted import Scripted
from comps.model_servers.target import Access, Target
from comps.opening import open_models
from tests.service import PATH, PATIENCE, running

QUERY = {"query": "?"}


async def test_the_health_check_is_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        answer = await service.get("/v1/health_check")
    assert answer.status == 200
    version = answer.json.pop("Version")
    assert version
    assert answer.json["Service Title"] == "opea_service@llm"
    assert answer.json["Service Description"] == "OPEA Microservice Infrastructure"


async def test_liveness_is_an_empty_200(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        answer = await service.get("/health")
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_readiness_is_an_empty_200_whatever_is_spoken(monkeypatch: pytest.MonkeyPatch, dialect: str) -> None:
    async with running(Scripted(), monkeypatch, {"LLM_DIALECTS": dialect}) as service:
        answer = await service.get("/ready")
    assert (answer.status, answer.body) == (200, b"")


async def test_statistics_are_null_until_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"{kind}_latency{of}" for kind in ("p50", "p99", "average") for of in ("", "_first_token")}
    async with running(Scripted(), monkeypatch, {"USVC_NAME": "mine"}) as service:
        before = (await service.get("/v1/statistics")).json
        await service.post(QUERY)
        after = (await service.get("/v1/statistics")).json
    assert before == {"mine": dict.fromkeys(names)}
    assert set(after["mine"]) == names
    assert all(value > 0 for value in after["mine"].values())


async def test_models_are_listed_as_openai_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(context_window=77), monkeypatch) as service:
        listing = (await service.get("/v1/models")).json
    assert listing["object"] == "list"
    (model,) = listing["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("scripted", "model", 77)


async def test_metrics_count_requests_tokens_and_what_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([["a", "b"]]), monkeypatch) as service:
        await service.post(QUERY)
        await service.post({**QUERY, "stream": False})
        await service.post({})
        answer = await service.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.body.decode().splitlines()
    asked = 'dialect="opea",key="",model="{}",outcome="{}",path="/v1/chat/completions",server="{}"'
    assert f"opea_llm_requests_total{{{asked.format('scripted', 200, 'openvino')}}} 2.0" in lines
    assert f"opea_llm_requests_total{{{asked.format('', 400, '')}}} 1.0" in lines
    made = 'dialect="opea",key="",kind="completion",model="scripted",server="openvino"'
    assert f"opea_llm_tokens_total{{{made}}} 4.0" in lines
    assert "opea_llm_requests_in_flight 0.0" in lines


async def test_a_model_that_is_not_served_is_a_404_that_lists_the_one_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, {"LLM_DIALECTS": "openai, opea"}) as service:
        answer = await service.post({"messages": "?", "model": "gpt-4"})
        served = await service.post({"messages": "?", "model": "scripted"})
        question = await service.post({"query": "?", "model": "gpt-4"})
    assert (answer.status, served.status, question.status) == (404, 200, 200)
    assert answer.json["error"]["code"] == "model_not_found"
    assert "scripted" in answer.json["error"]["message"]


@pytest.mark.parametrize("body", [{"query": "?"}, {"initial_query": "?"}, {"messages": "?"}])
async def test_opeas_bodies_may_name_any_model_where_one_is_served(
    monkeypatch: pytest.MonkeyPatch, body: dict[str, str]
) -> None:
    named = {**body, "stream": False, "model": "Intel/neural-chat-7b-v3-3"}
    async with running(Scripted([["one"]]), monkeypatch) as service:
        answer = await service.post(named)
        shown = await service.post(named, "/v1/prompt")
        completion = await service.post({"prompt": "?", "model": "gpt-4"}, "/v1/completions")
    assert (answer.status, answer.json["model"]) == (200, "scripted")
    assert answer.headers["x-ignored-params"] == "model"
    assert (shown.json["model"], shown.json["ignored"]) == ("scripted", ["model"])
    assert completion.status == 404
    async with running(Scripted(), monkeypatch, {"LLM_STRICT": "true"}) as service:
        refused = await service.post(named)
    assert refused.status == 400
    assert "model" in refused.body.decode()


async def test_no_prompt_and_no_document_is_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with running(Scripted([["answertext"]]), monkeypatch) as service:
        await service.post({"query": "questiontext", "documents": ["documenttext"]})
        await service.post({"query": "questiontext", "documents": 5})
    assert "/v1/chat/completions 200" in caplog.text
    assert "questiontext" not in caplog.text
    assert "documenttext" not in caplog.text
    assert "answertext" not in caplog.text


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
PROBE = "*/*"
KAITO, FLASK = b'["Server is running",200]', b"Server is running"


@pytest.mark.parametrize(
    ("enabled", "root", "healthz"),
    [
        ("", KAITO, b'{"status":"Healthy"}'),
        ("kaito,llm_on_k8s", KAITO, b'{"status":"Healthy"}'),
        ("llm_on_k8s,kaito", FLASK, b"Healthy"),
        ("opea,llm_api,llm_on_k8s,openai,kaito", FLASK, b"Healthy"),
    ],
)
async def test_a_probe_gets_the_answer_of_the_first_dialect_that_has_one_and_a_browser_a_page(
    monkeypatch: pytest.MonkeyPatch, enabled: str, root: bytes, healthz: bytes
) -> None:
    environment = {"LLM_DIALECTS": enabled} if enabled else {}
    async with running(Scripted(), monkeypatch, environment) as service:
        probed = [await service.get("/", Accept=accept) for accept in (PROBE, "", "application/json")]
        ready = await service.get("/healthz")
        page = await service.get("/", Accept=BROWSER)
        shown = await service.get(f"/{page.headers['location']}")
    assert [(answer.status, answer.body) for answer in probed] == [(200, root)] * 3
    assert (ready.status, ready.body) == (200, healthz)
    assert page.status == 307
    assert b"<html" in shown.body.lower()


@pytest.mark.parametrize("accept", [BROWSER, PROBE])
async def test_where_no_dialect_has_an_answer_at_the_root_everybody_gets_the_page(
    monkeypatch: pytest.MonkeyPatch, accept: str
) -> None:
    async with running(Scripted(), monkeypatch, {"LLM_DIALECTS": "opea,openai"}) as service:
        answer = await service.get("/", Accept=accept)
    assert (answer.status, answer.headers["location"]) == (307, "ui")


ORIGIN = "https://chat.example"


async def test_a_web_page_of_another_origin_may_ask_and_read_the_answer_as_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asking = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    go_on = asyncio.Event()
    served = running(Scripted([["one", go_on, "two"]]), monkeypatch, {"USVC_CORS_ORIGINS": "*"})
    async with served as service, service.connect() as client:
        await client.send("OPTIONS", PATH, b"", asking)
        preflight = await client.answer()
        await client.send("POST", PATH, b'{"query": "?"}', {"Origin": ORIGIN})
        streamed = await client.head()
        assert await client.chunk() == b"data: b'one'\n\n"
        go_on.set()
        assert await client.chunk() == b"data: b'two'\n\n"
        refused = await service.post({}, Origin=ORIGIN)
    assert preflight.status == 200
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
    for answer in (streamed, refused):
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["access-control-expose-headers"] == "*"  # Such as x-ignored-params.
        assert "access-control-allow-credentials" not in answer.headers


async def test_only_the_origins_that_are_set_may_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        none = await service.post(QUERY, Origin=ORIGIN)
    async with running(Scripted(), monkeypatch, {"USVC_CORS_ORIGINS": f"https://one.example, {ORIGIN}"}) as service:
        allowed = await service.post(QUERY, Origin=ORIGIN)
        other = await service.post(QUERY, Origin="https://other.example")
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "origin" in allowed.headers["vary"].lower()
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in none.headers


async def test_who_is_no_web_page_is_told_nothing_of_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, {"USVC_CORS_ORIGINS": "*"}) as service:
        answers = [await service.post(QUERY), await service.post({}), await service.get("/v1/models")]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]


class Absent(Scripted):
    """A model server that cannot answer."""

    def __init__(self, error: LLMError) -> None:
        super().__init__([[error]])
        self._error = error

    async def describe(self) -> ModelInfo:
        raise self._error


class Loading(Scripted):
    """A model server that loads until it is let go, and then fails if there is something to fail with."""

    def __init__(self, error: LLMError | None = None) -> None:
        super().__init__([["loaded"]])
        self.go = asyncio.Event()
        self.failed = asyncio.Event()
        self._error = error

    async def load(self) -> None:
        await self.go.wait()
        if self._error:
            self.failed.set()
            raise self._error

    async def describe(self) -> ModelInfo:
        if not self.go.is_set():
            raise Unreachable("still loading", 3)
        return await super().describe()


@pytest.fixture
def sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models: scripted, and a second one."""
    (tmp_path / "config.ini").write_text("[Model]\nmodel_server = scripted\n[Model.org/second]\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("sections")
async def test_the_request_chooses_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Scripted([["one"]]), Scripted([["two"]], name="served as", context_window=5)
    async with running({"scripted": first, "org/second": second}, monkeypatch) as service:
        default = await service.post({"messages": "?"})
        named = await service.post({"messages": "?", "model": "scripted"})
        other = await service.post({"messages": "?", "model": "org/second"})
        query = await service.post({"query": "?", "model": "org/second", "stream": False})
        unknown = await service.post({"messages": "?", "model": "third"})
        listing = (await service.get("/v1/models")).json
    assert [one.json["choices"][0]["message"]["content"] for one in (default, named, other)] == ["one", "one", "two"]
    assert [one.json["model"] for one in (default, named, other)] == ["scripted", "scripted", "org/second"]
    assert query.json["text"] == "two"
    assert unknown.status == 404
    assert "known: scripted, org/second" in unknown.json["error"]["message"]
    assert [(model["id"], model["max_model_len"]) for model in listing["data"]] == [
        ("scripted", None),
        ("org/second", 5),
    ]


@pytest.mark.usefixtures("sections")
async def test_what_a_model_honours_is_its_own_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky(Scripted):
        async def describe(self) -> ModelInfo:
            return ModelInfo("picky", None, frozenset())

    async with running({"scripted": Scripted(), "org/second": Picky()}, monkeypatch) as service:
        first = await service.post({"messages": "?", "max_tokens": 3})
        second = await service.post({"messages": "?", "max_tokens": 3, "model": "org/second"})
    assert "x-ignored-params" not in first.headers
    assert second.headers["x-ignored-params"] == "max_tokens"


@pytest.mark.usefixtures("sections")
async def test_the_service_is_ready_when_one_of_its_models_is(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = {"scripted": Absent(Unreachable("away", 7)), "org/second": Scripted([["two"]])}
    async with running(servers, monkeypatch) as service:
        ready = await service.get("/v1/health_check")
        models = (await service.get("/v1/models")).json["data"]
        loaded = (await service.get("/api/ps")).json["models"]
        away = await service.post({"messages": "?"})
        there = await service.post({"messages": "?", "model": "org/second"})
    assert (ready.status, away.status, there.status) == (200, 503, 200)
    assert [model["id"] for model in models] == ["scripted", "org/second"]
    assert [model["name"] for model in loaded] == ["org/second:latest"]


@pytest.mark.usefixtures("sections")
async def test_the_service_is_not_ready_when_none_of_its_models_is(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = {"scripted": Absent(Unreachable("away", 7)), "org/second": Absent(ModelServerError("broken"))}
    async with running(servers, monkeypatch) as service:
        ready = await service.get("/v1/health_check")
        loaded = await service.get("/api/ps")
    assert (ready.status, ready.headers["retry-after"], ready.json["detail"]) == (503, "7", "away")
    assert (loaded.status, loaded.json) == (200, {"models": []})


@pytest.mark.usefixtures("sections")
async def test_a_model_that_loads_or_cannot_be_loaded_does_not_hold_up_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    servers = {"scripted": Loading(SettingsError("no file /secret")), "org/second": Loading()}
    servers["org/second"].go.set()
    async with running(servers, monkeypatch, loaded=False) as service:
        other = await service.post({"messages": "?", "model": "org/second"})
        loading = await service.post({"messages": "?"})
        servers["scripted"].go.set()
        await asyncio.wait_for(servers["scripted"].failed.wait(), PATIENCE)
        failed = await service.post({"messages": "?"})
        ready = await service.get("/v1/health_check")
    assert (other.status, loading.status, failed.status, ready.status) == (200, 503, 502, 200)
    assert "the model scripted could not be loaded" in failed.json["error"]["message"]
    assert "the model scripted cannot be loaded: no file /secret" in caplog.text


def opened(monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[object]:
    """What answers for each model."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return [generator.server for generator in open_models(read_settings(None))]


@pytest.mark.parametrize("framework", ["native", "langchain"])
def test_several_urls_are_replicas(monkeypatch: pytest.MonkeyPatch, framework: str) -> None:
    endpoint = "http://127.0.0.1:9, http://127.0.0.1:8/v1"
    [one] = opened(
        monkeypatch, MODEL_SERVER="vllm", FRAMEWORK=framework, LLM_MODEL_SERVER_ENDPOINT="http://127.0.0.1:9"
    )
    [two] = opened(monkeypatch, LLM_MODEL_SERVER_ENDPOINT=endpoint)
    assert not isinstance(one, Replicas)
    assert isinstance(two, Replicas)


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("http://one:8,http://one:8", "[Model] model_server_endpoint: it names the same replica twice"),
        ("http://one:8,", "[Model] model_server_endpoint = http://one:8,: a comma has no URL on one of its sides"),
        (
            "http://one:8,,http://two:8",
            "[Model] model_server_endpoint = http://one:8,,http://two:8: a comma has no URL",
        ),
        ("http://one:8,two:8", "[Model] model_server_endpoint = two:8: a URL is needed"),
    ],
)
def test_a_list_of_urls_that_makes_no_sense_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        opened(monkeypatch, MODEL_SERVER="vllm", LLM_MODEL_SERVER_ENDPOINT=endpoint)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("framework", ["native", "langchain"])
def test_a_model_server_keeps_its_abilities_through_a_framework(
    monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    [embedded] = opened(monkeypatch, FRAMEWORK=framework)
    [scripted] = opened(monkeypatch, FRAMEWORK=framework, MODEL_SERVER="scripted")
    assert isinstance(embedded, Loads)
    assert isinstance(embedded, CountsTokens)
    assert isinstance(embedded, Embeds)
    assert not isinstance(scripted, Loads | CountsTokens | Embeds)


def test_what_is_set_reaches_the_model_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened_with: list[tuple[str, Target]] = []

    def watched(kind: str, target: Target) -> ModelServer:
        opened_with.append((kind, target))
        return Scripted()

    monkeypatch.setattr("comps.opening.open_model_server", watched)
    pem = str(tmp_path / "one.pem")
    (tmp_path / "one.pem").touch()
    environment = {
        "MODEL_SERVER": "vllm",
        "LLM_NAME": "m",
        "LLM_MODEL_SERVER_ENDPOINT": "https://one:1",
        "LLM_API_KEY": "key",
        "LLM_TOKEN_URL": "https://login",
        "LLM_CLIENT_ID": "me",
        "LLM_CLIENT_SECRET": "hush",
        "LLM_TLS_SKIP_VERIFY": "1",
        "LLM_CA_FILE": pem,
        "LLM_CLIENT_CERTIFICATE": pem,
        "LLM_CLIENT_KEY": pem,
        "LLM_CONNECT_SECONDS": "1",
        "LLM_FIRST_TOKEN_SECONDS": "2",
        "LLM_BETWEEN_TOKENS_SECONDS": "3",
        "LLM_TOTAL_SECONDS": "4",
        "LLM_WHOLE_ANSWERS": "stream",
        "LLM_RETRY_BUDGET": "0.1",
        "LLM_RETRIES_PER_REQUEST": "1",
        "LLM_CONTEXT_WINDOW": "5",
        "LLM_DEVICE": "GPU",
    }
    opened(monkeypatch, **environment)
    access = Access("key", "https://login", "me", "hush", False, pem, pem, pem, 1, 2, 3, 4, "stream", Retries(0.1, 1))
    default = Access()
    alike = [name for name in Access.__dataclass_fields__ if getattr(access, name) == getattr(default, name)]
    assert alike == ["repeats"]  # There is no other replica.
    assert opened_with == [("vllm", Target("m", "https://one:1", access, 5, "GPU", {}))]


def test_what_is_not_set_is_the_target_s_own_default(monkeypatch: pytest.MonkeyPatch) -> None:
    opened_with: list[Target] = []

    def watched(kind: str, target: Target) -> ModelServer:
        opened_with.append(target)
        return Scripted()

    monkeypatch.setattr("comps.opening.open_model_server", watched)
    opened(monkeypatch)
    assert opened_with == [Target("SmolLM2-135M-Instruct")]


class Late(Scripted):
    """A model server that does not answer until its time has come."""

    def __init__(self) -> None:
        super().__init__()
        self.up = False

    async def describe(self) -> ModelInfo:
        if not self.up:
            raise Unreachable("away")
        return await super().describe()


async def test_models_that_do_not_answer_at_the_start_are_told_and_told_again_when_they_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(comps.loading, "_ASK_AGAIN_SECONDS", 0.005)
    (tmp_path / "config.ini").write_text(
        "[Model]\nmodel_server=scripted\nmodel_name=one\nframework=native\n[Model.two]\n[Model.three]\n"
    )
    servers = {"one": Late(), "two": Scripted(), "three": Late()}
    told: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    def make() -> FastAPI:
        def on_state(silent: Mapping[str, LLMError]) -> None:
            told.put_nowait({name: str(error) for name, error in silent.items()})

        return make_app(read_settings(tmp_path / "config.ini"), servers, on_state=on_state)

    app = await asyncio.to_thread(make)
    async with app.router.lifespan_context(app):
        assert await asyncio.wait_for(told.get(), PATIENCE) == {"one": "away", "three": "away"}
        servers["one"].up = True  # type: ignore[attr-defined]
        assert await asyncio.wait_for(told.get(), PATIENCE) == {"three": "away"}
        servers["three"].up = True  # type: ignore[attr-defined]
        assert await asyncio.wait_for(told.get(), PATIENCE) == {}
    assert told.empty()


def test_what_only_opening_a_model_finds_is_told_with_all_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAMEWORK", "native")
    file = tmp_path / "config.ini"
    opening = (
        "[Model]\nmodel_server=vllm\nmodel_server_endpoint=localhost:8008\nprompt_templates=/no/such/folder\n"
        "[Model.two]\nmodel_server=tgi\nmodel_server_endpoint=ftp://one,http://two/v1/chat/completions\n"
        "[Conversation.x]\nsep_style = WOBBLY\n"
    )
    wrong = [
        "[Conversation.x] sep_style",
        "[Model] model_server_endpoint = localhost:8008: ",
        "[Model] prompt_templates = /no/such/folder: ",
        "[Model.two] model_server_endpoint = ftp://one: ",
        "[Model.two] model_server_endpoint = http://two/v1/chat/completions: ",
        "[Model.two] prompt_templates = /no/such/folder: ",
    ]
    for more, first in (("", []), ("[OPEA_Microservice]\nport=x\n", [f"{file}: [OPEA_Microservice] port = x: "])):
        file.write_text(opening + more)
        with pytest.raises(SettingsError) as caught:
            read_settings(file)
        told = caught.value.problems
        assert [
            begin for begin, problem in zip([*first, *wrong], told, strict=True) if not problem.startswith(begin)
        ] == []
    file.write_text(opening.partition("[Conv")[0])
    settings = read_settings(file)
    with pytest.raises(SettingsError) as caught:
        open_models(settings)
    assert len(caught.value.problems) == len(wrong) - 1
