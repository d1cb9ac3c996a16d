"""Who may ask: keys, what each may have, and what everybody else is told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import re
from pathlib import Path

import openai
import pytest

from comps import access, watched_files
from comps.access import Keys
from comps.app import read_settings
from comps.core import ports
from comps.core.errors import LLMError, ModelServerError, Overloaded, SettingsError, Unauthorized
from comps.core.types import Finished, Sampling
from comps.dialects import DIALECTS, open_dialect
from comps.model_servers.scripted import Script, Scripted
from tests.service import PATH, Answer, Service, running

KEYS = "USVC_API_KEYS"
FILE = "USVC_API_KEYS_FILE"
QUERY = {"query": "?", "stream": False}
BODY = json.dumps({"messages": "?"}).encode()
WEB = {"Authorization": "Bearer s3cret"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def hashed(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def read(text: str) -> Keys:
    """The keys of a file with that text."""
    return Keys(lambda: text, "keys", "keys")


def named(keys: Keys, key: str) -> str:
    return keys.caller([(b"x-api-key", key.encode())]).name


async def ask(service: Service, method: str, path: str, headers: dict[str, str] | None = None) -> Answer:
    async with service.connect() as client:
        await client.send(method, path, b"", headers or {})
        return await (client.head() if method == "HEAD" else client.answer())


# How keys are written.


def test_a_file_has_a_key_in_each_line() -> None:
    keys = read(
        "\ufeff# ours\r\n\r\n web = s3cret \r\n"
        f"  batch={hashed('x=y==').upper()} ; requests_per_minute = 60; tokens_per_minute=1000\n"
        "# theirs\nguest@x = abc; models = small, org/large other\n".removeprefix("\ufeff")
    )
    assert [named(keys, key) for key in ("s3cret", "x=y==", "abc")] == ["web", "batch", "guest@x"]
    batch, guest = (keys.caller([(b"api-key", key)]) for key in (b"x=y==", b"abc"))
    assert batch.requests
    assert batch.tokens
    assert (batch.requests.per_minute, batch.tokens.per_minute, batch.models) == (60, 1000, frozenset())
    assert (guest.requests, guest.tokens) == (None, None)
    assert guest.models == {"small", "org/large", "other"}
    for unknown in ("", "s3cre", "s3cret ", "web", hashed("x=y==")):
        if unknown.strip() != "s3cret":
            with pytest.raises(Unauthorized):
                named(keys, unknown)


def test_a_variable_has_keys_between_commas_and_so_are_models() -> None:
    keys = Keys(lambda: "web=s3cret, two = t==; models=a,b; tokens_per_minute=5,three=u,\n", "environment X")
    assert [named(keys, key) for key in ("s3cret", "t==", "u")] == ["web", "two", "three"]
    assert keys.caller([(b"api-key", b"t==")]).models == {"a", "b"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("hush", "line 2: not name = key"),
        ("= hush", "line 2: not name = key"),
        ("a name = hush", "line 2: not name = key"),
        ("näme = hush", "line 2: not name = key"),
        ("name =", "line 2: a key is of visible ASCII"),
        ("name = hush hush", "line 2: a key is of visible ASCII"),
        ("name = 'hush'", "line 2: a key is of visible ASCII"),
        ("name = hush,hush", "line 2: a key is of visible ASCII"),
        ("name = hüsh", "line 2: a key is of visible ASCII"),
        ("name = sha256:hush", "line 2: sha256: is not followed by 64"),
        ("name = hush; requests_per_minute=0", "line 2: requests_per_minute is not a whole number above 0"),
        (f"name = hush; tokens_per_minute={'9' * 5000}", "line 2: tokens_per_minute is not a whole number above 0"),
        ("name = hush; tokens_per_minute=many", "line 2: tokens_per_minute is not a whole number above 0"),
        ("name = hush;hush", "line 2: behind ; may stand requests_per_minute=…, tokens_per_minute=…, models=…"),
        ("name = hush; request_per_minute=3", "line 2: behind ; may stand"),
        ("name = hush; models=a; models=b", "line 2: what stands behind ; is there twice"),
        ("name = hush; models=", "line 2: behind ; may stand"),
        ("first = hush", "line 2: the same name as in line 1"),
        ("name = s3cret", "line 2: the same key as in line 1"),
        (f"name = {hashed('s3cret')}", "line 2: the same key as in line 1"),
    ],
)
def test_a_wrong_line_is_named_and_no_key_is_told(line: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(f"first = s3cret\n{line}\n")
    assert str(caught.value).startswith(f"keys, {said}")
    assert not re.search("hush|s3cret|hüsh", str(caught.value))


@pytest.mark.parametrize("text", ["", "# web = s3cret\n", "\n \n"])
def test_a_file_without_keys_is_a_mistake_and_lets_nobody_in(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text(text)
    (tmp_path / "config.ini").write_text(f"[OPEA_Microservice]\napi_keys_file = {tmp_path / 'keys'}\n")
    with pytest.raises(SettingsError, match="no key is there"):
        read_settings(tmp_path / "config.ini")


def test_keys_in_a_variable_and_in_a_file_are_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("web = s3cret\n")
    (tmp_path / "config.ini").write_text(f"[OPEA_Microservice]\napi_keys_file = {tmp_path / 'keys'}\n")
    monkeypatch.setenv(KEYS, "two = t")
    with pytest.raises(SettingsError, match="api_keys and api_keys_file are both set"):
        read_settings(tmp_path / "config.ini")


# Who is let in.


@pytest.mark.parametrize("way", [KEYS, FILE, "api_keys_file"])
async def test_a_key_is_taken_however_it_is_sent_and_wherever_it_is_kept(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "keys").write_text(f"# ours\nweb = {hashed('s3cret')}\n")
    (tmp_path / "config.ini").write_text(f"[OPEA_Microservice]\napi_keys_file = {tmp_path / 'keys'}\n")
    if way == "api_keys_file":
        monkeypatch.chdir(tmp_path)
    environment = {KEYS: {KEYS: "web=s3cret"}, FILE: {FILE: str(tmp_path / "keys")}}.get(way, {})
    sent = [
        WEB,
        {"authorization": "bearer s3cret"},
        {"AUTHORIZATION": "BEARER  s3cret "},
        {"X-API-Key": "s3cret"},
        {"api-key": "s3cret"},
        {"Authorization": "Bearer None", "x-api-key": "s3cret"},  # OPEA's orchestrator says so where it has no key.
        {"Authorization": "Basic dXNlcjpwYXNz", "api-key": "s3cret"},
    ]
    wrong = [
        {},
        bearer("S3cret"),
        bearer(""),
        {"Authorization": "s3cret"},
        {"Authorization": "Basic s3cret"},
        {"Authorization": "Bearers3cret"},
        {"x-api-key": "Bearer s3cret"},
        {"Cookie": "api-key=s3cret"},
    ]
    caplog.set_level(logging.INFO, "opea_llm")
    async with running(Scripted(), monkeypatch, environment) as service:
        answers = [await service.post(QUERY, **headers) for headers in sent]
        answers += [await service.get("/v1/models", **headers) for headers in sent]
        refused = [await service.post(QUERY, **headers) for headers in wrong]
        in_query = await service.post(QUERY, f"{PATH}?api_key=s3cret&key=s3cret")
        metrics = (await service.get("/metrics", **WEB)).body.decode()
    assert {answer.status for answer in answers} == {200}
    assert {answer.status for answer in (*refused, in_query)} == {401}
    asked = re.findall(r'^opea_llm_requests_total\{.*key="(.*?)",.*outcome="(.*?)".*\} (.*)$', metrics, re.MULTILINE)
    assert sorted(asked) == [("", "401", str(float(len(wrong) + 1))), ("web", "200", str(float(len(sent))))]
    assert re.search(r'^opea_llm_tokens_total\{.*key="web",kind="completion"', metrics, re.MULTILINE)
    assert f"{PATH} 200 id=" in caplog.text
    assert " key=web " in caplog.text
    assert f"POST {PATH} from 127.0.0.1 401 key=-: an API key is needed" in caplog.text
    assert ("the key 'web' has fewer than 16 characters and could be guessed" in caplog.text) is (way == KEYS)
    assert not re.search("(?i)s3cret", metrics + caplog.text)


async def test_without_keys_nobody_is_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, {KEYS: ""}) as service:
        assert service.app.state.service.guard is None
        for headers in ({}, bearer("None"), {"x-api-key": "anything"}):
            assert (await service.post(QUERY, **headers)).status == 200


ROUTES = [
    *("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings", "POST /generate", "POST /chat"),
    *("POST /api/m/worker_generate", "GET /v1/models", "GET /v1/models/scripted", "GET /v1/statistics", "GET /metrics"),
    *("GET /metrics?format=kaito", "GET /docs", "GET /openapi.json", "GET /static-offline-docs/swagger-ui.css"),
    *("POST /shutdown", "POST /v1/prompt", "GET /nothing", "POST /v1/nothing", "PUT /health2", "OPTIONS /generate"),
]
"""Some that there are and some that there are not."""


@pytest.mark.parametrize("cors", ["", "*"])
async def test_who_has_no_key_gets_401_everywhere_and_learns_of_no_path(
    cors: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {KEYS: "web=s3cret", "USVC_CORS_ORIGINS": cors}

    async def told(dialects: str) -> dict[str, tuple[int, list[str], bytes]]:
        async with running(Scripted(), monkeypatch, {**environment, "LLM_DIALECTS": dialects}) as service:
            parted = {route: route.partition(" ") for route in ROUTES}
            answers = {route: await ask(service, method, path) for route, (method, _, path) in parted.items()}
        return {
            route: (answer.status, sorted(set(answer.headers) - {"content-length"}), answer.body)
            for route, answer in answers.items()
        }

    all_of_them, one = await told(", ".join(DIALECTS)), await told("opea")
    assert all_of_them == one
    assert {status for status, _, _ in one.values()} == {401}
    assert len({tuple(headers) for _, headers, _ in one.values()}) == 1
    assert "www-authenticate" in one["GET /nothing"][1]


@pytest.mark.parametrize("name", DIALECTS)
async def test_a_refusal_has_the_shape_of_the_dialect(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dialect = open_dialect(name, None)
    environment = {KEYS: "web=s3cret; requests_per_minute=1, two=t; models=other", "LLM_DIALECTS": name}
    posts = {path: calls[0].style for path, calls in dialect.calls.items()}
    open_routes = re.compile("GET /(|.*health.*|check)|POST .*")
    gets = {
        route.partition(" ")[2]: one.style or dialect.style
        for route, one in dialect.routes.items()
        if not open_routes.fullmatch(route) and "?" not in route
    }
    async with running(Scripted(), monkeypatch, environment) as service:
        await service.post(QUERY, **WEB)
        for method, styles in (("POST", posts), ("GET", gets)):
            for path, style in styles.items():
                where = re.sub(r"\{.*?\}", "scripted", path)
                for headers, status, error in ((bearer("no"), 401, Unauthorized("x")), (WEB, 429, Overloaded("x"))):
                    answer = await ask(service, method, where, headers)
                    assert answer.status == status, where
                    shape = style.error(error)
                    assert json.loads(answer.body.rstrip(b"\0")).keys() == shape.keys(), where
                    assert answer.headers["content-type"] == style.media_type
                    assert "x-request-id" in answer.headers
                    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
                    assert answer.headers.get("retry-after", "none").isdigit() is (status == 429)


async def test_openais_sdk_raises_its_own_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {KEYS: "web=s3cret; requests_per_minute=1, two=t; models=other"}
    async with running(Scripted(), monkeypatch, environment) as service:
        for key, error in (
            ("no", openai.AuthenticationError),
            ("t", openai.PermissionDeniedError),
            ("s3cret", None),
            ("s3cret", openai.RateLimitError),
        ):
            async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0) as sdk:
                asked = sdk.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "?"}])
                if error is None:
                    assert (await asked).choices
                    continue
                with pytest.raises(error):
                    await asked


async def test_health_is_open_and_other_routes_are_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    default = ("/", "/health", "/ready", "/healthz", "/v1/health_check", "/check", "//health/")
    page = ("/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css")
    async with running(Scripted(), monkeypatch, {KEYS: "web=s3cret"}) as service:
        assert {path: (await service.get(path)).status for path in default} == dict.fromkeys(default, 200)
        assert {path: (await service.get(path)).status for path in page} == dict.fromkeys(page, 401)
        assert (await ask(service, "HEAD", "/ready")).status == 200
        assert (await ask(service, "HEAD", "/docs")).status == 401
    async with running(Scripted(), monkeypatch, {"USVC_OPEN_ROUTES": f"/docs, /metrics, {PATH}"}) as service:
        opened = (*page[::2], "/metrics")
        assert (await service.get("/openapi.json")).json["security"] == [{"key": []}]
        assert {path: (await service.get(path)).status for path in opened} == dict.fromkeys(opened, 200)
        assert (await service.post(QUERY)).status == 200
        assert {path: (await service.get(path)).status for path in default} == dict.fromkeys(default, 401)


async def test_a_web_page_reads_why_it_is_refused_and_its_preflight_needs_no_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    origin = "https://chat.example"
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    environment = {KEYS: "web=s3cret", "USVC_CORS_ORIGINS": origin}
    async with running(Scripted(), monkeypatch, environment) as service:
        preflight = await ask(service, "OPTIONS", PATH, {"Origin": origin, **asking})
        refused = await service.post(QUERY, Origin=origin)
        answered = await service.post(QUERY, Origin=origin, **WEB)
    assert (preflight.status, refused.status, answered.status) == (200, 401, 200)
    for answer in (preflight, refused, answered):
        assert answer.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in answer.headers


# What a key may have.


@pytest.fixture
def two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.ini").write_text("[Model]\nmodel_server = scripted\n[Model.org/second]\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("two_models")
@pytest.mark.parametrize("framework", ["native", "langchain"])
async def test_a_key_sees_and_uses_its_own_models_alone(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = {"scripted": Scripted([["one"]]), "org/second": Scripted([["two"]])}
    environment = {KEYS: "all=a, one=b; models=org/second:latest, none=c; models=third", "FRAMEWORK": framework}
    async with running(servers, monkeypatch, environment) as service:
        listed = {
            key: [model["id"] for model in (await service.get("/v1/models", **bearer(key))).json["data"]]
            for key in ("a", "b")
        }
        default = await service.post({"messages": "?"}, **bearer("b"))
        refused = [
            await service.post(body, path, **bearer(key))
            for key in ("b", "c")
            for path, body in (
                (PATH, {"messages": "?", "model": "scripted"}),
                (PATH, {"query": "?", "model": "scripted"}),
                ("/v1/completions", {"prompt": "?", "model": "scripted"}),
                ("/v1/embeddings", {"input": "?", "model": "scripted"}),
                ("/api/scripted/worker_generate", {"prompt": "?"}),
                ("/v1/prompt", {"messages": "?", "model": "scripted"}),
            )
        ]
        models = ("/v1/models/scripted", "/api/scripted/worker_status")
        refused += [await service.get(path, **bearer(key)) for key in ("b", "c") for path in models]
        refused += [
            await service.get("/v1/models", **bearer("c")),
            await service.post({"messages": "?"}, **bearer("c")),
        ]
        on_the_page = [(await service.get("/ui/service.json", **bearer(key))).json["models"] for key in "abc"]
        unknown = await service.post({"messages": "?", "model": "third"}, **bearer("b"))
        ready = await service.get("/ready", **bearer("c"))
    assert listed == {"a": ["scripted", "org/second"], "b": ["org/second"]}
    assert on_the_page == [["scripted", "org/second"], ["org/second"], []]
    assert default.json["choices"][0]["message"]["content"] == "two"
    assert [answer.status for answer in refused] == [403] * len(refused)
    assert all(b"'scripted' may not be used with this API key" in answer.body for answer in refused)
    assert unknown.status == 404
    assert "known: org/second" in unknown.json["error"]["message"]
    assert ready.status == 200


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(access, "monotonic", clock)
    return clock


async def test_requests_and_tokens_of_a_minute_are_limited_for_each_key_alone(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {KEYS: "few=a; requests_per_minute=2, short=b; tokens_per_minute=60, free=c"}
    async with running(Scripted([["one", "two"]]), monkeypatch, environment) as service:

        async def asked(key: str, body: object = QUERY) -> tuple[int, str | None]:
            answer = await service.post(body, **bearer(key))
            return answer.status, answer.headers.get("retry-after")

        assert [await asked("a") for _ in range(3)] == [(200, None), (200, None), (429, "30")]
        assert (await service.get("/v1/models", **bearer("a"))).status == 429
        assert (await service.get("/health", **bearer("a"))).status == 200
        clock.now += 30
        assert [await asked("a") for _ in range(2)] == [(200, None), (429, "30")]
        long = {"query": "? " * 89, "stream": False}  # With the answer, more than is left: it is finished.
        assert (await asked("b", long))[0] == 200
        status, retry = await asked("b")
        assert status == 429
        assert retry
        assert (await service.get("/v1/models", **bearer("b"))).status == 200
        clock.now += int(retry) - 2
        assert (await asked("b"))[0] == 429
        clock.now += 2
        assert (await asked("b"))[0] == 200
        assert [await asked("c") for _ in range(4)] == [(200, None)] * 4
        metrics = (await service.get("/metrics", **bearer("c"))).body.decode()
    assert re.search(r'^opea_llm_requests_total\{.*key="few",.*outcome="429".*\} 3.0$', metrics, re.MULTILINE)


class Uncounted(Scripted):
    """A model server that says nothing of the tokens."""

    async def _play(self, script: Script, prompt_tokens: int, sampling: Sampling, answer: ports.Answer) -> None:
        for item in script:
            if isinstance(item, LLMError):
                raise item
            if isinstance(item, asyncio.Event):
                await item.wait()
            else:
                answer.text(item)
        answer.finished(Finished("stop"))


WORD = "word "
HUNDRED = [WORD] * 100
UNCOUNTED: dict[str, tuple[str, Script, bool, int]] = {
    "little, left": ("?", [WORD, asyncio.Event()], True, 200),
    "a long prompt, left": ("x" * 400, [WORD, asyncio.Event()], True, 429),
    "a long answer, left": ("?", [*HUNDRED, asyncio.Event()], True, 429),
    "a long answer that breaks off": ("?", [*HUNDRED, ModelServerError("broken")], True, 429),
    "a long stream": ("?", HUNDRED, True, 429),
    "a long answer": ("?", HUNDRED, False, 429),
}


@pytest.mark.parametrize(("query", "script", "stream", "then"), UNCOUNTED.values(), ids=UNCOUNTED)
async def test_tokens_that_no_model_server_counted_are_estimated(
    query: str, script: Script, stream: bool, then: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {KEYS: "short=b; tokens_per_minute=60"}
    async with running(Uncounted([script]), monkeypatch, environment) as service:
        async with service.connect() as client:
            body = {"query": query, "stream": stream, "max_tokens": 200}
            await client.send("POST", PATH, json.dumps(body).encode(), bearer("b"))
            await client.head()
            for _ in range(script.count(WORD) if stream else 0):
                await client.chunk()
        while "opea_llm_requests_in_flight 0.0" not in (await service.get("/metrics", **bearer("b"))).body.decode():
            pass
        async with service.connect() as client:
            await client.send("POST", PATH, json.dumps({**QUERY, "stream": True}).encode(), bearer("b"))
            assert (await client.head()).status == then


async def test_a_request_whose_client_leaves_the_queue_costs_nothing(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    environment = {KEYS: "short=b; tokens_per_minute=60, free=c", "USVC_MAX_RUNNING": "1"}
    async with running(Scripted([[gate, "one"]]), monkeypatch, environment) as service, service.connect() as first:
        await first.send("POST", PATH, json.dumps(QUERY).encode(), bearer("c"))
        async with service.connect() as client:
            await client.send("POST", PATH, json.dumps({"query": "x" * 400}).encode(), bearer("b"))
            while 'opea_llm_requests_waiting{model="scripted"} 1.0' not in await metrics_of(service):
                pass
        while 'opea_llm_requests_waiting{model="scripted"} 0.0' not in await metrics_of(service):
            pass
        gate.set()
        assert (await service.post(QUERY, **bearer("b"))).status == 200


async def metrics_of(service: Service) -> str:
    return (await service.get("/metrics", **bearer("c"))).body.decode()


# Keys that change.


async def test_keys_are_read_again_when_the_file_changes_and_kept_when_it_is_broken(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watched_files, "CHECK_SECONDS", 0.01)
    caplog.set_level(logging.INFO, "opea_llm")
    file = tmp_path / "keys"
    file.write_text("web = s3cret; requests_per_minute=5\n")

    told: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def tell(record: logging.LogRecord) -> bool:
        loop.call_soon_threadsafe(told.put_nowait, record.getMessage())
        return True

    async def until(said: str) -> None:
        while said not in await asyncio.wait_for(told.get(), 60):
            pass

    monkeypatch.setattr(logging.getLogger("opea_llm"), "filters", [tell])
    async with running(Scripted(), monkeypatch, {FILE: str(file)}) as service:

        async def statuses(*keys: str) -> list[int]:
            return [(await service.post(QUERY, **bearer(key))).status for key in keys]

        assert await statuses("s3cret", "s3cret", "new") == [200, 200, 401]
        (tmp_path / "next").write_text("web = new; requests_per_minute=5\nother = third\n")
        (tmp_path / "next").replace(file)
        await until("read again, 2 keys")
        assert await statuses("s3cret", "new", "third") == [401, 200, 200]
        for broken in ("web = new\nweb = hush\n", "", None):
            caplog.clear()
            file.write_text(broken) if broken is not None else file.unlink()
            await until("the keys stay as they were")
            assert "hush" not in caplog.text
        # What was spent before stays spent: five of web's.
        assert await statuses("new", "new", "new", "third") == [200, 200, 429, 200]


# What the service shows, and to whom.


@pytest.mark.parametrize(
    ("variable", "routes"),
    [
        (
            "USVC_SERVE_DOCS",
            ["GET /docs", "GET /openapi.json", "GET /static-offline-docs/swagger-ui.css", "GET /redoc"],
        ),
        ("USVC_SERVE_METRICS", ["GET /metrics", "GET /metrics?format=kaito"]),
        ("USVC_SERVE_PROMPT", ["POST /v1/prompt"]),
    ],
)
async def test_each_page_can_be_switched_off(variable: str, routes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch, {variable: "false", "USVC_SERVE_UI": "false"}) as service:
        for route in routes:
            method, _, path = route.partition(" ")
            answer = await ask(service, method, path)
            assert answer.status == 404
            assert ("/docs" in answer.json["detail"].partition(";")[2]) is (variable != "USVC_SERVE_DOCS")
        root = await service.get("/", Accept="text/html")
        assert root.status == (200 if variable == "USVC_SERVE_DOCS" else 307)
        assert (await service.post(QUERY)).status == 200


async def test_where_no_dialect_has_a_root_and_there_is_no_page_there_is_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {"USVC_SERVE_DOCS": "false", "USVC_SERVE_UI": "false", "LLM_DIALECTS": "opea"}
    async with running(Scripted(), monkeypatch, environment) as service:
        assert (await service.get("/")).status == 404


async def test_the_page_may_run_its_own_scripts_alone_and_stand_in_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        page = await service.get("/docs")
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    scripts = re.findall(r"<script>(.*?)</script>", page.body.decode(), re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert digests
    assert policy["script-src"].split() == ["'self'", *(f"'sha256-{digest}'" for digest in digests)]
    assert {policy[name] for name in ("default-src", "frame-ancestors", "base-uri", "form-action")} == {"'none'"}
    assert policy["connect-src"] == "'self'"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["x-frame-options"] == "DENY"
    assert page.headers["referrer-policy"] == "no-referrer"


# Behind proxies.


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        ("", "203.0.113.9", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("127.0.0.0/8, 10.0.0.0/8", "198.51.100.1, 203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("10.0.0.0/8", "203.0.113.9", "127.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "evil 200 key=web", "evil%20200%20key%3Dweb"),
        ("127.0.0.1", "x" * 9000, "x" * 100),
        ("127.0.0.0/8, 2001:db8::/32", "9.9.9.9, [2001:DB9:0::1]:443, 2001:db8:1::1", "2001:DB9:0::1"),
    ],
)
async def test_the_address_of_a_client_is_what_a_trusted_proxy_tells(
    trusted: str, forwarded: str, client: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "opea_llm")
    environment = {KEYS: "web=s3cret", "USVC_TRUSTED_PROXIES": trusted}
    async with running(Scripted(), monkeypatch, environment) as service:
        headers = {"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https"} if forwarded else {}
        assert (await service.post(QUERY, **headers)).status == 401
        assert (await service.post(QUERY, **headers, **WEB)).status == 200
    assert f"from {client} 401" in caplog.text
    assert f" client={client} key=web " in caplog.text
