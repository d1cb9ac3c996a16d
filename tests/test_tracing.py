"""Traces: W3C's trace headers, which pass with and without OpenTelemetry, and its spans, if the environment asks."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from threading import Thread
from typing import Any

import pytest

from comps import trace_exporters, tracing
from comps.core.errors import Unreachable
from comps.dialects import DIALECTS
from comps.dialects.shared.base import GenerationCall
from comps.model_servers.scripted import Scripted
from tests.dialects.kinds import KINDS
from tests.model_servers.replay import Reply, replaying, sse
from tests.service import PATH, Able, running, until_idle
from tests.test_telemetry import CHAT, QUERY

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STATE = "vendor=value,other=1"
TRACE, SPAN = PARENT.split("-")[1:3]
needs_sdk = pytest.mark.skipif(
    find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None,
    reason="OpenTelemetry's SDK is not installed (the extra otel)",
)
ANSWERED = {"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]}
STREAMED = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}


@pytest.mark.parametrize("framework", ["native", "langchain"])
async def test_a_request_s_id_and_trace_go_on_to_the_model_server_without_opentelemetry_unless_malformed(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Reply([json.dumps({"data": [{"id": "scripted"}]}).encode()])
    replies: dict[str, Reply | list[Reply]] = {
        "/v1/models": models,
        PATH: [Reply([json.dumps(ANSWERED).encode()]), sse(STREAMED)] * 5,
    }
    sent: list[tuple[dict[str, str], dict[str, str]]] = [
        ({"traceparent": PARENT, "tracestate": STATE}, {"traceparent": PARENT, "tracestate": STATE}),
        ({"Traceparent": PARENT}, {"traceparent": PARENT}),
        ({"tracestate": STATE}, {}),
        ({"traceparent": PARENT.replace(TRACE, "0" * 32), "tracestate": STATE}, {}),
        ({"traceparent": PARENT + "\tx", "tracestate": STATE}, {}),
    ]
    async with replaying(replies) as replay:
        environment = {"FRAMEWORK": framework, "MODEL_SERVER": "vllm", "LLM_MODEL_SERVER_ENDPOINT": replay.url}
        async with running({}, monkeypatch, environment) as service:
            for headers, wanted in sent:
                for stream in (False, True):
                    answer = await service.post({**CHAT, "stream": stream}, **headers, **{"X-Request-Id": "mine"})
                    assert (answer.status, answer.headers["x-request-id"]) == (200, "mine")
                    _, got, _ = replay.asked[-1]
                    assert got["x-request-id"] == "mine"
                    assert {name: got[name] for name in ("traceparent", "tracestate") if name in got} == wanted


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
    ],
)
def test_nothing_of_opentelemetry_s_sdk_is_imported_unless_the_environment_asks_for_traces(
    variables: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.sdk")] or ["opentelemetry.sdk"]:
        monkeypatch.setitem(sys.modules, name, None)  # To import it fails.
    monkeypatch.setattr(tracing, "problem", lambda: "")
    assert trace_exporters.is_wanted() is wanted
    assert tracing.Tracing.from_environment("x", {}, "1") is None
    assert ("no traces are exported: " in caplog.text) is wanted


def test_traces_that_cannot_be_had_are_told_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with monkeypatch.context() as patched:
        patched.setattr(trace_exporters, "find_spec", lambda _: None)
        assert "pip install 'opea-llm-microservice[otel]'" in trace_exporters.problem()
        assert tracing.Tracing.from_environment("x", {}, "1") is None
    monkeypatch.setattr(trace_exporters, "find_spec", lambda _: True)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
    assert "no exporter carrier-pigeon is installed" in trace_exporters.problem()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The spans of the services of a test, in memory."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setattr(tracing, "provider_for", lambda *_: provider)
    return exporter


def by_name(exporter: Any) -> dict[str, Any]:
    return {span.name: span for span in exporter.get_finished_spans()}


@needs_sdk
async def test_no_header_of_a_caller_is_in_the_log_or_the_spans(
    monkeypatch: pytest.MonkeyPatch, spans: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sent = {"traceparent": PARENT, "tracestate": "Canary,canary=x y", "baggage": f"canary=x y,{'Canary' * 999}"}
    async with running(Scripted(), monkeypatch) as service:
        assert (await service.post(CHAT, **sent)).status == 200
        await until_idle(service)
    assert "canary" not in f"{caplog.text} {[span.to_json() for span in spans.get_finished_spans()]}".lower()


@needs_sdk
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("framework", ["native", "langchain"])
async def test_a_request_has_spans_for_itself_its_queue_its_prompt_and_the_model_server(
    framework: str, stream: bool, monkeypatch: pytest.MonkeyPatch, spans: Any
) -> None:
    usage = {"usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}
    reply = sse(STREAMED | usage) if stream else Reply([json.dumps(ANSWERED | usage).encode()])
    models = Reply([json.dumps({"data": [{"id": "scripted", "max_model_len": 9000}]}).encode()])
    async with replaying({"/v1/models": models, PATH: reply}) as replay:
        environment = {"FRAMEWORK": framework, "MODEL_SERVER": "vllm", "LLM_MODEL_SERVER_ENDPOINT": replay.url}
        async with running({}, monkeypatch, environment) as service:
            headers = {"traceparent": PARENT, "tracestate": STATE, "x-request-id": "mine"}
            body = {**CHAT, "stream": stream, "max_tokens": 5, "documents": ["Canary"], "temperature": 0.5}
            assert (await service.post(body, **headers)).status == 200
            await until_idle(service)
        _, got, _ = replay.asked[-1]
    found = by_name(spans)
    assert list(found) == ["queue", "prompt", "chat scripted", f"POST {PATH}"]
    whole, asked = found[f"POST {PATH}"], found["chat scripted"]
    assert (f"{whole.context.trace_id:032x}", f"{whole.parent.span_id:016x}") == (TRACE, SPAN)
    for name in ("queue", "prompt", "chat scripted"):
        assert found[name].parent.span_id == whole.context.span_id
        assert whole.start_time <= found[name].start_time <= found[name].end_time <= whole.end_time
    assert got["traceparent"] == f"00-{TRACE}-{asked.context.span_id:016x}-01"
    assert got["tracestate"] == STATE
    assert (whole.kind.name, asked.kind.name, found["prompt"].kind.name) == ("SERVER", "CLIENT", "INTERNAL")
    told = dict(asked.attributes)
    assert (told.pop("gen_ai.response.time_to_first_chunk", None) is not None) is stream
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stream": stream,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
        "server.address": "127.0.0.1",
        "server.port": int(replay.url.rpartition(":")[2]),
    }
    assert whole.attributes["http.response.status_code"] == 200
    assert whole.attributes["http.request.header.x-request-id"] == ("mine",)
    assert found["prompt"].attributes["opea_llm.documents.kept"] == 1
    assert "Canary" not in " ".join(span.to_json() for span in spans.get_finished_spans())


@needs_sdk
@pytest.mark.parametrize("captures", ["", "false", "true"])
async def test_content_is_in_the_spans_only_if_that_is_asked_for(
    captures: str, monkeypatch: pytest.MonkeyPatch, spans: Any
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", captures)
    key = "sk-" + "a1" * 12
    body = {"messages": [{"role": "user", "content": f"Canary of a prompt {key}"}], "user": "Canary of a user"}
    async with running(Able([["Canary of", " an answer"]]), monkeypatch) as service:
        for stream in (True, False):
            await service.post({**body, "stream": stream})
        await service.post({"input": "Canary of a text"}, "/v1/embeddings")
        await until_idle(service)
    found = by_name(spans)
    assert found["embeddings scripted"].attributes["gen_ai.usage.input_tokens"] == len("Canary of a text")
    said = " ".join(span.to_json() for span in spans.get_finished_spans())
    assert said.count("Canary") == (4 if captures == "true" else 0)
    assert key not in said
    if captures == "true":
        asked = found["chat scripted"].attributes
        (message,) = json.loads(asked["gen_ai.input.messages"])
        assert message == {"role": "user", "parts": [{"type": "text", "content": "Canary of a prompt ***"}]}
        (answer,) = json.loads(asked["gen_ai.output.messages"])
        text = [{"type": "text", "content": "Canary of an answer"}]
        assert answer == {"role": "assistant", "parts": text, "finish_reason": "stop"}


@needs_sdk
@pytest.mark.parametrize("stream", [True, False])
async def test_each_prompt_of_a_body_has_spans_of_its_own(
    stream: bool, monkeypatch: pytest.MonkeyPatch, spans: Any
) -> None:
    async with running(Scripted([["a", "b"]]), monkeypatch) as service:
        body = {"prompt": ["One?", "Two?"], "stream": stream, "max_tokens": 3}
        assert (await service.post(body, "/v1/completions")).status == 200
        assert (await service.post(body, "/v1/prompt")).status == 200
        await until_idle(service)
    found = Counter(span.name for span in spans.get_finished_spans())
    two = {"queue": 2, "prompt": 2, "text_completion scripted": 2, "POST /v1/completions": 1, "POST /v1/prompt": 1}
    assert found == two


@needs_sdk
@pytest.mark.parametrize("stream", [True, False])
async def test_a_span_names_the_sampling_that_the_model_server_takes_and_no_other(
    stream: bool, monkeypatch: pytest.MonkeyPatch, spans: Any
) -> None:
    wishes = {"max_tokens": 3, "temperature": 0.5, "top_k": 5, "frequency_penalty": 1, "seed": 1, "n": 2}
    async with running(Scripted([["a"]]), monkeypatch) as service:
        answer = await service.post({**CHAT, **wishes, "stream": stream})
        await until_idle(service)
    assert {"temperature", "top_k", "seed", "n"} <= set(answer.headers["x-ignored-params"].split(", "))
    told = by_name(spans)["chat scripted"].attributes
    asked = {name.removeprefix("gen_ai.request."): value for name, value in told.items() if ".request." in name}
    assert asked == {"model": "scripted", "max_tokens": 3, "stream": stream}


@needs_sdk
async def test_tokens_that_are_counted_or_told_are_asked_in_a_span_of_their_own(
    monkeypatch: pytest.MonkeyPatch, spans: Any
) -> None:
    chat = {"messages": [{"role": "user", "content": "Canary"}]}
    bodies: list[tuple[str, dict[str, Any], str]] = [
        ("/api/count_token", {"prompt": "Canary"}, "count_tokens"),
        ("/v1/messages/count_tokens", chat, "count_tokens"),
        ("/v1/responses/input_tokens", {"input": "Canary"}, "count_tokens"),
        ("/tokenize", {"inputs": "Canary"}, "tokenize"),
        ("/chat_tokenize", chat, "tokenize"),
    ]
    async with running(Able(), monkeypatch) as service:
        for path, body, operation in bodies:
            spans.clear()
            assert (await service.post(body, path)).status == 200
            await until_idle(service)
            found = by_name(spans)
            asked, whole = found[f"{operation} scripted"], found[f"POST {path}"]
            assert asked.kind.name == "CLIENT"
            assert asked.parent.span_id == whole.context.span_id
            assert asked.attributes["gen_ai.operation.name"] == operation
            assert "Canary" not in asked.to_json()


@needs_sdk
async def test_failures_refusals_and_clients_that_leave_are_told_from_answers(
    monkeypatch: pytest.MonkeyPatch, spans: Any
) -> None:
    server = Scripted([[Unreachable("Canary")], ["a", asyncio.Event()]])
    async with running(server, monkeypatch) as service:
        await service.post(CHAT)
        await service.post({"query": 5})
        async with service.connect() as client:
            await client.send("POST", PATH, json.dumps({**QUERY, "stream": True}).encode())
            await client.head()
            await client.chunk()
        await until_idle(service)
    told = [
        (span.name, span.attributes.get("error.type"), span.status.status_code.name)
        for span in spans.get_finished_spans()
        if span.name not in ("queue", "prompt")
    ]
    assert told == [
        ("chat scripted", "unreachable", "ERROR"),
        (f"POST {PATH}", "503", "ERROR"),
        (f"POST {PATH}", "400", "UNSET"),
        ("chat scripted", "cancelled", "UNSET"),
        (f"POST {PATH}", "gone", "UNSET"),
    ]
    assert "Canary" not in " ".join(span.to_json() for span in spans.get_finished_spans())


@pytest.fixture
def collector() -> Iterator[Any]:
    """A receiver of OTLP over HTTP; `arrived` has what was posted, by path."""

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            arrived.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    arrived: list[tuple[str, bytes]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", arrived
    server.shutdown()
    server.server_close()


@needs_sdk
async def test_spans_are_exported_by_opentelemetry_s_own_variables_and_the_last_ones_at_the_end(
    collector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, arrived = collector
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SERVICE_NAME": "front", "OTEL_BSP_SCHEDULE_DELAY": "60000"}
    async with running(Scripted(), monkeypatch, variables) as service:
        assert (await service.post(CHAT)).status == 200
        assert arrived == []
    ((path, body),) = arrived
    assert path == "/v1/traces"
    for text in (b"front", b"chat scripted", b"POST /v1/chat/completions", b"queue", b"prompt"):
        assert text in body


@needs_sdk
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_every_kind_of_body_is_answered_and_previewed_with_traces(
    dialect: str, monkeypatch: pytest.MonkeyPatch, spans: Any
) -> None:
    kinds = [kind for kind in KINDS if kind.dialect == dialect]
    async with running(Able([["Hi"]]), monkeypatch, {"LLM_DIALECTS": dialect}) as service:
        for kind in kinds:
            body = kind.bodies()[0]
            assert (await service.post(body, kind.path)).status == 200, kind
            if issubclass(kind.call, GenerationCall):
                assert (await service.post(body, f"/v1/prompt?route={kind.path}")).status == 200, kind
        await until_idle(service)
    assert {f"POST {kind.route}" for kind in kinds} <= by_name(spans).keys()
