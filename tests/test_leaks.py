"""What leaks: canaries in everything secret or private, looked for in everything that somebody else gets to see."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest
from pydantic import SecretStr

from comps import logs
from comps.app import read_settings
from comps.core.answers import collect
from comps.core.errors import InvalidRequest, LLMError, ModelServerError, Refused, Timeout, for_operator, told_at
from comps.core.ports import Answer
from comps.core.redaction import Redactor, without_keys, without_quotes
from comps.core.types import JSON, Document, Generation, GenerationRequest, Message, Prompt, Sampling, TextDelta
from comps.dialects.shared.base import GenerationCall
from comps.model_servers.redacted import Redacted
from comps.model_servers.remote.client import HTTP
from comps.model_servers.scripted import Scripted
from comps.model_servers.target import Access, Target
from comps.opening import open_models
from tests.dialects.kinds import KINDS, Kind
from tests.model_servers.replay import Reply, replaying, sse
from tests.service import PATIENCE, Service, running

KEY, SECRET, PASSWORD = "canary-of-the-key-1", "canary-of-the-client-secret-2", "canary-of-a-password-3"
PROMPT, ANSWER, HEADER = "Canary of a prompt 4", "Canary of an answer 5", "canary-of-a-header-6"
CHAT = next(kind for kind in KINDS if kind.dialect == "openai" and "chat" in kind.path)
ROUTES = ("/metrics", "/v1/statistics", "/openapi.json", "/v1/models", "/health", "/ready", "/v1/health_check", "/nope")


@pytest.fixture
def written(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What the log gets, in the service's own form, at the level of the test's parameter."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logs._Formatter())
    logging.getLogger().addHandler(handler)
    logs.log.setLevel(getattr(request, "param", "INFO"))
    yield text
    logging.getLogger().removeHandler(handler)


def planted(value: Any) -> Any:
    """A body whose sentences have a canary in front."""
    if isinstance(value, dict):
        return {name: planted(one) for name, one in value.items()}
    if isinstance(value, list):
        return [planted(one) for one in value]
    return f"{PROMPT} {value}" if isinstance(value, str) and " " in value else value


def quoting(url: str) -> str:
    """The message of a model server that says all that it knows."""
    host = url.removeprefix("http://")
    return f"{url}/v1 ({host}) got Bearer {KEY}, {KEY}: input_value='{PROMPT} How much memory\nhas it', not a number"


def failures(url: str) -> dict[str, Reply]:
    said = quoting(url)
    error = {"error": {"message": said, "type": "odd", "code": None}}
    statuses = (400, 401, 404, 422, 429, 500, 503)
    begun = {"choices": [{"index": 0, "delta": {"content": ANSWER}}]}
    headers = {"Content-Type": "application/json", "X-Canary": HEADER, "Retry-After": "0"}
    html = {"Content-Type": "text/html", "X-Canary": HEADER}
    return {
        **{str(status): Reply([json.dumps(error).encode()], status, headers) for status in statuses},
        "plain text": Reply([said.encode()], 500, {"Content-Type": "text/plain"}),
        "an error in a 200": Reply([json.dumps(error).encode()]),
        "an error in a stream": sse(begun, error),
        "an error first": sse(error),
        "no event stream": Reply([f"<p>{ANSWER}".encode()], headers=html),
        "no JSON": Reply([f'{{"choices": [{ANSWER}'.encode()]),
        "another structure": Reply([json.dumps({"choices": [{"message": [ANSWER]}]}).encode()]),
        "a stream that breaks": Reply(sse(begun).pieces, headers={"Content-Type": "text/event-stream"}, break_off=True),
        "nothing": Reply([], unanswered=True),
        "silence": Reply([], hang=True),
    }


class Everywhere(dict[str, Any]):
    """The same reply on every path but that of the models."""

    reply: Reply

    def __missing__(self, path: str) -> Reply:
        return Reply([b'{"data": [{"id": "scripted"}]}']) if path.endswith("/models") else self.reply


async def ask(service: Service, kind: Kind, shown: list[str], hidden: list[str]) -> None:
    """Ask whole and streamed, and look at what comes back."""
    for body in kind.bodies()[:1] + kind.bodies(streamed=True)[:1]:
        async with service.connect() as connection:
            headers = {"X-Canary": HEADER, "Connection": "close"}
            await connection.send("POST", kind.path, json.dumps(planted(body)).encode(), headers)
            said = (await asyncio.wait_for(connection.reader.read(), PATIENCE)).decode()
        succeeded = said.startswith("HTTP/1.1 200")
        echoes = succeeded and kind.dialect in ("square", "kaito", "llm_on_k8s", "responses")
        for canary in [*hidden, *([] if echoes else [PROMPT]), *([] if succeeded else [ANSWER])]:
            assert canary not in said, (str(kind), said)
        shown.append(said)


@pytest.mark.parametrize(
    ("written", "framework"), [("INFO", "native"), ("INFO", "langchain"), ("DEBUG", "native")], indirect=["written"]
)
async def test_nothing_private_is_in_an_error_a_metric_or_the_log(
    monkeypatch: pytest.MonkeyPatch, written: io.StringIO, framework: str
) -> None:
    replies, at_debug = Everywhere(), logs.log.level == logging.DEBUG
    async with replaying(replies) as replay:
        environment = {
            "FRAMEWORK": framework,
            "MODEL_SERVER": "openai_api",
            "LLM_MODEL_SERVER_ENDPOINT": replay.url,
            "LLM_API_KEY": KEY,
            "LLM_FIRST_TOKEN_SECONDS": "0.05",
        }
        address = replay.url.removeprefix("http://")
        hidden = [KEY, HEADER, address]
        shown: list[str] = []
        monkeypatch.setattr(GenerationCall, "ends", ends_or_fails)
        async with running({}, monkeypatch, environment) as service:
            for name, replies.reply in failures(replay.url).items():
                before = len(replay.asked)
                for kind in KINDS if name in ("400", "an error in a stream") and not at_debug else [CHAT]:
                    await ask(service, kind, shown, hidden)
                assert len(replay.asked) > before, name
            replies.reply = Reply([json.dumps(whole()).encode()])
            await ask(service, CHAT, shown, hidden)  # Fails in us.
            for route in ROUTES:
                page = await service.get(route)
                shown.append(page.body.decode())
                assert not [canary for canary in (*hidden, PROMPT, ANSWER) if canary in page.body.decode()], route
    assert "internal error" in str(shown)
    assert "not a number" in str(shown)  # The rest of the message stays.
    log = written.getvalue()
    assert f"http://{address}" in log  # The operator's text.
    assert "RuntimeError" in log
    assert KEY not in log
    if not at_debug:
        assert not [canary for canary in (PROMPT, ANSWER, HEADER) if canary in log]


FUNCTION: JSON = {"name": "look_up_the_weather", "description": PROMPT, "parameters": {"type": "object"}}
CALLED: JSON = {"id": PROMPT, "type": "function", "function": {"name": "f", "arguments": PROMPT}}
FIELDS: dict[str, list[JSON]] = {
    "/v1/chat/completions": [
        {"messages": [{"role": "system", "content": PROMPT}, {"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "user", "content": "Hi", "name": PROMPT}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:{PROMPT}"}}]}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [CALLED]}]},
        {"messages": "Hi", "tools": [{"type": "function", "function": FUNCTION}]},
        {"messages": "Hi", "stop": ["a", PROMPT]},
        {"messages": "Hi", "user": PROMPT},
        {
            "messages": "Hi",
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"x": {"enum": [PROMPT]}}}},
            },
        },
        {"query": "Hi", "documents": [PROMPT]},
        {"query": "Hi", "chat_template": f"{PROMPT} {{question}} {{context}}"},
    ],
    "/v1/completions": [{"prompt": "Hi", "suffix": PROMPT}],
    "/v1/embeddings": [{"input": ["Hi", PROMPT]}],
}
"""Bodies with a canary in each field that a model server gets."""


@pytest.mark.parametrize("framework", ["native", "langchain"])
async def test_no_field_that_a_model_server_quotes_is_in_an_error_or_the_log(
    monkeypatch: pytest.MonkeyPatch, written: io.StringIO, framework: str
) -> None:
    replies = Everywhere()
    quotes = {"error": {"message": f"bad: {{'x': '{PROMPT}'}} of 'look_up_the_weather'"}}
    replies.reply = Reply([json.dumps(quotes).encode()], 400)
    async with replaying(replies) as replay:
        environment = {
            "FRAMEWORK": framework,
            "MODEL_SERVER": "openai_api",
            "LLM_MODEL_SERVER_ENDPOINT": replay.url,
        }
        async with running({}, monkeypatch, environment) as service:
            for path, bodies in FIELDS.items():
                for body in bodies:
                    answer = await service.post(body | {"stream": False}, path)
                    said = answer.body.decode()
                    assert PROMPT in json.dumps(replay.asked[-1][2]), body
                    assert PROMPT not in said, body
                    assert "bad: {'x': '***" in said
                    assert "look_up_the_weather" in said
    assert PROMPT not in written.getvalue()


def whole() -> JSON:
    return {"choices": [{"index": 0, "message": {"content": ANSWER}, "finish_reason": "stop"}]}


def ends_or_fails(call: GenerationCall, generations: Any) -> list[str]:
    """A fault of ours, whose message quotes all."""
    raise RuntimeError(f"{KEY[:0]}{PROMPT} {ANSWER} {call} {generations}")


ODD: list[tuple[str, JSON]] = [
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": PROMPT}]}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": {"text": PROMPT}}]}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": [PROMPT]}}]}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": [PROMPT]}}]}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "tools": [{"type": PROMPT}]}),
    (
        "/v1/messages",
        {
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": [{"name": "f", "input_schema": {}}],
            "tool_choice": {"type": "tool", "name": PROMPT},
        },
    ),
    ("/v1/responses", {"input": [{"type": {"text": PROMPT}}]}),
    ("/v1/responses", {"input": "Hi", "tools": [{"type": PROMPT}]}),
    ("/v2/embed", {"model": "scripted", "input_type": "x", "texts": ["Hi"], "embedding_types": [PROMPT]}),
    ("/api/generate", {"model": "scripted", "prompt": "Hi", "template": f'{{{{ "{PROMPT}" }}}}'}),
    (CHAT.path, {"query": "Hi", "documents": ["Hi"], "language": PROMPT}),
    (CHAT.path, {"messages": [{"role": PROMPT, "content": PROMPT}]}),
    (CHAT.path, {"messages": "Hi", "temperature": PROMPT, "stop": {"x": PROMPT}, "stream": PROMPT}),
]
"""Bodies with a text where a name or a value of another type is read."""


async def test_a_text_where_none_belongs_is_in_no_error_and_not_in_the_log(
    monkeypatch: pytest.MonkeyPatch, written: io.StringIO
) -> None:
    async with running(Scripted(), monkeypatch) as service:
        for path, body in ODD:
            answer = await service.post({"max_tokens": 2, **body}, path)
            assert answer.status in (400, 422), (path, body, answer.body)
            assert PROMPT not in answer.body.decode()
        body = {"max_tokens": 2, "messages": [{"role": "user", "content": [{"type": "odd-1"}]}]}
        assert "a block of type 'odd-1' is not read here" in (await service.post(body, "/v1/messages")).body.decode()
    assert PROMPT not in written.getvalue()


async def test_the_servers_of_tokens_and_their_secrets_are_in_no_error(
    monkeypatch: pytest.MonkeyPatch, written: io.StringIO
) -> None:
    refusal = {"error": "invalid_client", "error_description": f"{SECRET} is wrong"}
    async with replaying({"/token": Reply([json.dumps(refusal).encode()], 401)}) as replay:
        environment = {
            "MODEL_SERVER": "openai_api",
            "LLM_MODEL_SERVER_ENDPOINT": replay.url,
            "LLM_TOKEN_URL": f"{replay.url.replace('//', f'//me:{PASSWORD}@')}/token",
            "LLM_CLIENT_ID": "me",
            "LLM_CLIENT_SECRET": SECRET,
        }
        async with running({}, monkeypatch, environment) as service:
            answer = await service.post(planted(CHAT.bodies()[0]), CHAT.path)
            settings = await asyncio.to_thread(read_settings, None)
    seen = f"{answer.body.decode()} {written.getvalue()} {settings!r} {settings}"
    assert "invalid_client" in seen
    assert not [canary for canary in (SECRET, PASSWORD) if canary in seen]
    assert replay.url.removeprefix("http://") not in answer.body.decode()


def test_no_repr_shows_what_somebody_said_or_a_secret() -> None:
    message = Message("user", PROMPT, {"name": PROMPT})
    document = Document(PROMPT, PROMPT, {"text": PROMPT})
    access = Access(KEY, f"http://me:{PASSWORD}@tokens", "me", SECRET)
    values: list[Any] = [
        GenerationRequest((message,), (document,), template=PROMPT, options={"tools": [PROMPT]}),
        GenerationRequest(PROMPT),
        TextDelta(ANSWER, extra={"reasoning": ANSWER}),
        Generation(ANSWER, "stop", None, {"x": ANSWER}),
        access,
        Target("m", f"http://me:{PASSWORD}@here", access, engine={"api_key": KEY}),
        HTTP("http://here", Access(KEY)),
        *(kind.call.model_validate(planted(kind.examples[0]) | kind.variables) for kind in KINDS),
        *(LLMError("x"), InvalidRequest("x", "y"), SecretStr(KEY)),
    ]
    for value in values:
        for text in (repr(value), str(value), f"{value}"):
            assert not [canary for canary in (KEY, SECRET, PASSWORD, PROMPT, ANSWER) if canary in text], text


def test_what_a_message_quotes_of_a_prompt_is_hidden_and_the_rest_stays() -> None:
    prompt = "You are kind. How many tokens has the model's context?\n\nSee ticket-4711-b."
    for message, wanted in (
        ("bad input: 'How many tokens has the model's context?'", "bad input: '***'"),
        ("no ticket-4711-b here", "no*** here"),
        ("the model's context length is 8192", "the model's context length is 8192"),
        ("short: kind.", "short: kind."),
    ):
        assert without_quotes(message, " ".join(prompt.split())) == wanted
    assert without_quotes("anything", "") == "anything"
    assert without_quotes(r"bad: \u4f60\u597d\ud83d\ude00 0123456", "你好😀 0123456789") == "bad: 你好😀 0123456"
    assert without_quotes(r"bad: \u4f60\u597d\ud83d\ude00 0123456789 \ud83d", "你好😀 0123456789") == "bad: *** \ufffd"
    long = "x" * 3_000_000 + " the very end, which is quoted"
    error = LLMError("what: the very end, which is quoted")
    Redactor().redact(error, (Message("user", [{"type": "text", "text": long}, {"type": "image_url"}, "other"]),))
    assert str(error) == "what:***"


@pytest.mark.parametrize("many", ["word " * 2000, ["word"] * 100])
async def test_long_requests_are_searched_for_quotes_beside_the_event_loop(
    many: str | list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = list[threading.Thread]()
    redact = Redactor.redact

    def noted(redactor: Redactor, error: LLMError, *asked: object) -> None:
        threads.append(threading.current_thread())
        redact(redactor, error, *asked)

    monkeypatch.setattr(Redactor, "redact", noted)
    server = Redacted(Scripted([[ModelServerError(f"no: {PROMPT}")]]), Redactor())
    for options in ({}, {"tools": many}):
        with pytest.raises(ModelServerError) as caught:
            await collect(server.generate, PROMPT, Sampling(), options)
        assert str(caught.value) == "no: ***"
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


def test_an_operator_is_told_the_address_and_a_caller_is_not() -> None:
    redactor = Redactor([KEY], ["http://vllm:8000", "http://10.1.2.3", "http://[::1]:80", "no url", "http://x:y"])
    said = f"host='vllm' vllm:8000 10.1.2.3 http://other/v1 {KEY} failed, vllm knows"
    for error in (
        LLMError(said),
        told_at(Refused(500, said), "http://vllm:8000"),
        InvalidRequest(said, "f"),
        Timeout(),
    ):
        redactor.redact(error)
        redactor.redact(error)
        assert not [one for one in ("vllm:8000", "'vllm'", "10.1.2.3", "other/v1", KEY) if one in str(error)]
        assert str(error) == "" or "vllm knows" in str(error)
        assert str(error) == "" or "vllm:8000" in for_operator(error)
        assert KEY not in for_operator(error)
        assert not isinstance(error, Refused) or "8000" not in error.body


KEYS = (
    *("sk-proj-abcdefghijklmnop", "hf_abcdefghijklmnopqrs", "ghp_0123456789abcdef", "AKIA0123456789ABCDEF"),
    *("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "0123456789abcdef0123456789abcdef"),
    *("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "hunter2-of-mine"),
)


@pytest.mark.parametrize("key", KEYS)
def test_what_looks_like_a_key_is_hidden(key: str) -> None:
    for text in (f"Bearer {key}", f"authorization: Basic {key}", f'"api_key": "{key}"', f"PASSWORD={key} and"):
        assert key not in without_keys(text)
    assert key not in without_keys(f"http://me:{key}@host/") or "/" in key
    if key != KEYS[-1]:
        assert key not in without_keys(f"Look at {key}, please.")
    for text in ("What is Deep Learning?", "max_tokens: 4096", "a/path/to/some/file/in/a/folder/of/mine.txt"):
        assert without_keys(text) == text


async def test_prompts_are_logged_if_that_is_set_and_loudly(
    monkeypatch: pytest.MonkeyPatch, written: io.StringIO
) -> None:
    body = {"messages": [{"role": "user", "content": f"{PROMPT}\nmy key is sk-{'a1' * 12}"}]}
    for setting in ("true", "false"):
        async with running(Scripted([["Hi"]]), monkeypatch, {"LOG_PROMPTS": setting}) as service:
            for way in ({}, {"stream": True}):
                assert (await service.post(body | way, **{"X-Request-Id": "mine"})).status == 200
        log = written.getvalue()
        if setting == "true":
            before = log
            assert log.count(f'prompt id=mine: [{{"role": "user", "content": "{PROMPT}\\nmy key is ***') == 2
            assert "WARNING] opea_llm: log_prompts = true" in log
        assert log.count(PROMPT) == before.count(PROMPT) == 2
    assert "a1a1" not in log


INJECTED = "x\r\n[2026-01-01] [ INFO] opea_llm: forged \x1b[2J\x07\u2028\u202e\x85"


async def test_no_text_of_others_begins_a_line_of_the_log_or_moves_the_cursor(
    monkeypatch: pytest.MonkeyPatch, written: io.StringIO
) -> None:
    error = ModelServerError(INJECTED)
    async with running(Scripted([[error], [RuntimeError(INJECTED)]]), monkeypatch) as service:  # type: ignore[list-item]
        for _ in range(2):
            await service.post({"messages": INJECTED, INJECTED: 1, "model": INJECTED})
        await service.get("/v1/models/%0d%0a%1b[2J", **{"X-Request-Id": "a\x1b[2Jb"})
        assert len((await service.get(f"/{'%00' * 2000}")).body) < 2000
    logs.log.error("%s", INJECTED, exc_info=caused())
    asyncio.get_running_loop().call_exception_handler({"message": INJECTED, "exception": RuntimeError(PROMPT)})
    lines = written.getvalue().splitlines()
    assert "\\x1b[2J" in written.getvalue()
    assert all(line.isprintable() and len(line) < 2000 for line in lines)
    assert all(line.startswith(("[2", "  ")) and not line.startswith("[2026-01-01]") for line in lines)
    assert [line for line in lines if "ValueError" in line]
    assert PROMPT not in written.getvalue()


def caused() -> ValueError:
    """An error with a cause, raised."""
    with suppress(ValueError):
        try:
            raise RuntimeError(INJECTED)
        except RuntimeError as error:
            raise ValueError(PROMPT) from error
    failed = ValueError(PROMPT)
    failed.__cause__ = RuntimeError(INJECTED)
    return failed


@pytest.mark.parametrize("written", ["DEBUG"], indirect=True)
def test_a_traceback_has_messages_at_debug_in_one_line_each(written: io.StringIO) -> None:
    logs.log.error("failed", exc_info=caused())
    assert [line.strip()[:20] for line in written.getvalue().splitlines()[1:]] == [
        f"ValueError: {PROMPT}"[:20],
        "RuntimeError: x\\r\\n[2"[:20],
    ]


class Injecting(Scripted):
    """A model server whose words would end a header."""

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        raise InvalidRequest("no", "x\r\nSet-Cookie: a=b")


@pytest.mark.parametrize("framework", ["native", "langchain"])
async def test_no_name_or_id_adds_a_header_to_a_response_or_a_request(
    monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    split = "stop\r\nSet-Cookie: a=b\r\n\r\n"
    chunk = {"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": split}], "id": split}
    replies: dict[str, Reply | list[Reply]] = {
        "/v1/models": Reply([json.dumps({"data": [{"id": "scripted", "root": split}]}).encode()]),
        "/v1/chat/completions": Reply([json.dumps(chunk | {"model": split}).encode()]),
    }
    async with replaying(replies) as replay:
        environment = {"FRAMEWORK": framework, "MODEL_SERVER": "vllm", "LLM_MODEL_SERVER_ENDPOINT": replay.url}
        async with running({}, monkeypatch, environment) as service:
            body = {"query": "Hi", "model": split, split: 1, "id": split, "stream": False, "user": split}
            for sent in ("a b", "a\tb", "é", "x" * 300, ""):
                answer = await service.post(body, **{"X-Request-Id": sent or " "})
                assert answer.status == 200
                assert "set-cookie" not in answer.headers
                assert answer.headers["x-request-id"].isalnum()
    assert answer.headers["x-finish-reason"] == "unknown"
    assert "%0D%0A" in answer.headers["x-ignored-params"]
    assert all("set-cookie" not in headers for _, headers, _ in replay.asked)
    async with running(Injecting(), monkeypatch) as service:
        assert "set-cookie" not in (await service.post({"query": "Hi"})).headers


async def test_each_replica_is_redacted_before_its_failure_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_MODEL_SERVER_ENDPOINT", "http://127.0.0.1:1,http://127.0.0.1:2")
    monkeypatch.setenv("MODEL_SERVER", "vllm")
    models = open_models(await asyncio.to_thread(read_settings, None))
    assert [type(one) for one in models.named(None).server.servers] == [Redacted, Redacted]  # type: ignore[attr-defined]
