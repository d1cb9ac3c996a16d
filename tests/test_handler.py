"""The HTTP handler over a real socket: framing, first token, disconnects, failures, bad input."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import uvloop

from comps.core.errors import InvalidRequest, ModelServerError, Overloaded, PromptTooLong, Timeout, Unreachable
from comps.core.ports import Answer
from comps.core.types import JSON, ModelInfo, Prompt, Sampling
from comps.model_servers.scripted import Scripted
from tests.events import texts
from tests.service import PATH, PATIENCE, Able, running, until_idle, until_in_flight

WORDS = ["Deep", " learning", " is", " fun", "."]
QUERY = {"query": "What is Deep Learning?"}
CHAT = {"messages": [{"role": "user", "content": "What is Deep Learning?"}], "stream": True}
STREAMS = [
    pytest.param({}, QUERY, id="bytes"),
    pytest.param({"LLM_OPEA_STREAM": "text"}, QUERY, id="text"),
    pytest.param({"LLM_OPEA_STREAM": "openai"}, QUERY, id="openai"),
    pytest.param({}, CHAT, id="messages"),
]


class Loading(Scripted):
    """A model server whose model is not there before it is let go."""

    def __init__(self) -> None:
        super().__init__([WORDS], name="slow")
        self.go = asyncio.Event()

    async def load(self) -> None:
        await self.go.wait()

    async def describe(self) -> ModelInfo:
        if not self.go.is_set():
            raise Unreachable("the model is still loading", 3)
        return await super().describe()


class Faulty(Scripted):
    """A model server with a mistake in it."""

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        raise RuntimeError("secret")


@pytest.mark.parametrize(("environment", "body"), STREAMS)
async def test_one_event_is_one_http_chunk(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], body: Any
) -> None:
    async with running(Scripted([WORDS]), monkeypatch, environment) as service:
        answer = await service.post(body)
    assert answer.headers["transfer-encoding"] == "chunked"
    assert all(chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") for chunk in answer.chunks)
    assert all(chunk.count(b"\n\n") == 1 for chunk in answer.chunks)
    assert answer.chunks[-1] == b"data: [DONE]\n\n"
    assert len(answer.chunks) - 1 in (len(WORDS), len(WORDS) + 1)  # OpenAI's has one more for the finish reason.


@pytest.mark.parametrize("framework", ["native", "langchain"])
@pytest.mark.parametrize(("environment", "body"), STREAMS)
async def test_the_first_token_arrives_before_the_answer_is_complete(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], body: Any, framework: str
) -> None:
    go_on = asyncio.Event()
    scripted = Scripted([["first", go_on, "second"]])
    async with (
        running(scripted, monkeypatch, {"FRAMEWORK": framework, **environment}) as service,
        service.connect() as client,
    ):
        await client.send("POST", PATH, json.dumps(body).encode())
        assert (await client.head()).status == 200
        assert b"first" in await client.chunk()
        go_on.set()
        assert b"second" in await client.chunk()


async def test_a_stream_is_not_to_be_cached_or_buffered_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service:
        headers = (await service.post(QUERY)).headers
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_small_packets_are_sent_at_once(
    monkeypatch: pytest.MonkeyPatch, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    loop = new_loop()
    loop.run_until_complete(check_that_small_packets_are_sent_at_once(monkeypatch))
    loop.close()


async def check_that_small_packets_are_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service, service.connect() as client:
        await client.send("GET", "/health")
        await client.answer()
        (transport,) = (state.transport for state in service.server.server_state.connections)
        accepted = transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_client_that_leaves_the_queue_never_reaches_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()
    scripted = Scripted([["one", go_on, "two"]])
    async with running(scripted, monkeypatch, {"USVC_MAX_RUNNING": "1", "USVC_MAX_WAITING": "1"}) as service:
        running_one = asyncio.ensure_future(service.post(QUERY))
        await asyncio.wait_for(scripted.reached.wait(), PATIENCE)
        async with service.connect() as client:
            await client.send("POST", PATH, json.dumps(QUERY).encode())
            await until_in_flight(service, 2)
        await until_in_flight(service, 1)
        go_on.set()
        assert (await running_one).status == 200
        assert (await service.post(QUERY)).status == 200
    assert len(scripted.asked) == 2


async def test_a_request_beyond_the_queue_is_told_when_to_retry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = asyncio.Event()
    scripted = Scripted([["one", go_on, "two"]])
    async with running(scripted, monkeypatch, {"USVC_MAX_RUNNING": "1", "USVC_MAX_WAITING": "0"}) as service:
        running_one = asyncio.ensure_future(service.post(QUERY))
        await asyncio.wait_for(scripted.reached.wait(), PATIENCE)
        refused = await service.post(QUERY)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        go_on.set()
        assert (await running_one).status == 200


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequest("no good", "top_k"), 400),
        (PromptTooLong(9000, 8192), 400),
        (Overloaded("full"), 429),
        (ModelServerError("broken"), 502),
        (Unreachable("not there"), 503),
        (Timeout("too slow"), 504),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_before_the_first_token_is_a_status_and_a_warning_in_the_log_unless_it_is_the_callers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Any, status: int, stream: bool
) -> None:
    caplog.set_level("INFO", "opea_llm")
    async with running(Scripted([[error]]), monkeypatch) as service:
        answer = await service.post({**QUERY, "stream": stream})
        chat = await service.post({**CHAT, "stream": stream})
    assert (answer.status, chat.status) == (status, status)
    assert error.args[0] in answer.json["detail"]
    assert error.args[0] in chat.json["error"]["message"]
    lines = [record for record in caplog.records if f" {status} id=" in record.getMessage()]
    assert all(error.args[0] in line.getMessage() for line in lines)
    assert {line.levelname for line in lines} == ({"WARNING"} if status >= 500 else {"INFO"})


@pytest.mark.parametrize(
    ("environment", "body", "item"),
    [
        ({}, QUERY, b"data: [ERROR]\n\n"),
        ({"LLM_OPEA_STREAM": "text"}, QUERY, b"data: [ERROR]\n\n"),
        ({"LLM_OPEA_STREAM": "openai"}, QUERY, b'data: {"error":{"message":"it broke"'),
        ({}, CHAT, b'data: {"error":{"message":"it broke"'),
    ],
)
@pytest.mark.parametrize("framework", ["native", "langchain"])
async def test_a_failure_in_the_middle_of_a_stream_is_its_last_item(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], body: Any, item: bytes, framework: str
) -> None:
    scripted = Scripted([["one", ModelServerError("it broke")], WORDS])
    async with running(scripted, monkeypatch, {"FRAMEWORK": framework, **environment}) as service:
        answer = await service.post(body)
        after = await service.post(body)
    assert answer.status == 200
    assert answer.chunks[-1].startswith(item)
    assert b"[DONE]" not in answer.body
    assert b"[DONE]" in after.body


@pytest.mark.parametrize("marker", ["query", "messages"])
async def test_a_prompt_that_is_too_long_is_told_by_the_field_that_holds_it(
    monkeypatch: pytest.MonkeyPatch, marker: str
) -> None:
    async with running(Scripted([[PromptTooLong(9000, 8192)]]), monkeypatch) as service:
        answer = await service.post({marker: "x"})
    assert answer.status == 400
    assert f"{marker}: the prompt has 9000 tokens" in answer.body.decode()


async def test_a_stream_that_the_end_of_the_service_breaks_off_ends_with_an_error_item(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted = Scripted([["one", asyncio.Event(), "never"]])
    async with running(scripted, monkeypatch) as service, service.connect() as client:
        await client.send("POST", PATH, json.dumps(QUERY).encode())
        await client.head()
        await client.chunk()
        service.server.config.timeout_graceful_shutdown = 0
        service.server.end()
        assert await client.chunk() == b"data: [ERROR]\n\n"
        assert await client.chunk() == b""
    assert scripted.closed.is_set()


async def test_an_answer_cut_short_says_so_streamed_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {**QUERY, "max_new_tokens": 2}
    async with running(Scripted([WORDS]), monkeypatch) as service:
        streamed = await service.post(short)
        whole = await service.post({**short, "stream": False})
        chat = await service.post({**CHAT, "max_tokens": 2})
    # Behind the end, where OPEA's own client reads no more: anything before would be taken for text.
    assert streamed.chunks[-2:] == [b"data: [DONE]\n\n", b": finish_reason=length\n\n"]
    assert whole.headers["x-finish-reason"] == "length"
    assert b'"finish_reason":"length"' in chat.chunks[-2]


async def test_fields_that_are_not_honoured_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {**QUERY, "top_k": 5, "colour": "blue", "évil\r\nx: y": 1, "nothing": None, "stream": False}
    async with running(Scripted([WORDS]), monkeypatch) as service:
        answer = await service.post(body)
    assert answer.status == 200
    assert answer.headers["x-ignored-params"] == "top_k, colour, %C3%A9vil%0D%0Ax:%20y"


async def test_strict_refuses_what_it_would_ignore(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([WORDS]), monkeypatch, {"LLM_STRICT": "true"}) as service:
        refused = await service.post({**QUERY, "colour": "blue"})
        accepted = await service.post({**QUERY, "max_tokens": 3})
    assert refused.status == 400
    assert "colour" in refused.json["detail"]
    assert accepted.status == 200


DEEP = b'{"query":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{not json", "body"),
        (b"\xff\xfe{}", "body"),
        (b'{"query": "\xff"}', "body"),
        (b"", "body"),
        (b"[]", "body"),
        (b'"text"', "body"),
        (b"null", "body"),
        (b"{}", "query"),
        (b'{"query": null}', "query"),
        (b'{"query": ""}', "query"),
        (b'{"query": " \\n"}', "query"),
        (b'{"query": 5}', "query"),
        (b'{"query": "\\ud800"}', "query"),
        (b'{"initial_query": ""}', "initial_query"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": ""}', "messages"),
        (b'{"messages": [{"role": "user", "content": ""}]}', "messages"),
        (b'{"messages": [{"role": "wizard", "content": "x"}]}', "messages.0.role"),
        (b'{"messages": [{"role": "user", "content": []}]}', "messages"),
        (b'{"messages": [{"role": "user", "content": null}]}', "messages"),
        (b'{"messages": [{"role": "user", "content": 5}]}', "messages.0.content"),
        (b'{"messages": [{"role": "user", "content": [5]}]}', "messages.0.content.0"),
        (b'{"messages": [{"role": "user", "content": [{"text": "x"}]}]}', "messages.0.content.0"),
        (b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "messages.0.content.0"),
        (b'{"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}', "messages.0.content.0"),
        (b'{"messages": [{"content": "x"}]}', "messages.0.role"),
        (b'{"messages": {"role": "user"}}', "messages"),
        (b'{"query": "x", "temperature": "hot"}', "temperature"),
        (b'{"query": "x", "temperature": NaN}', "temperature"),
        (b'{"query": "x", "temperature": -1}', "temperature"),
        (b'{"query": "x", "temperature": 1e300}', "temperature"),
        (b'{"query": "x", "temperature": 1e999}', "temperature"),
        (b'{"query": "x", "max_new_tokens": 0}', "max_new_tokens"),
        (b'{"query": "x", "max_new_tokens": -5}', "max_new_tokens"),
        (b'{"query": "x", "max_new_tokens": 99999999999999999999}', "max_new_tokens"),
        (b'{"query": "x", "max_tokens": 1.5}', "max_tokens"),
        (b'{"query": "x", "top_k": -2}', "top_k"),
        (b'{"query": "x", "top_p": 1.1}', "top_p"),
        (b'{"query": "x", "typical_p": -0.1}', "typical_p"),
        (b'{"query": "x", "repetition_penalty": 0}', "repetition_penalty"),
        (b'{"query": "x", "frequency_penalty": 3}', "frequency_penalty"),
        (b'{"query": "x", "seed": 1e40}', "seed"),
        (b'{"query": "x", "stream": "perhaps"}', "stream"),
        (b'{"query": "x", "stop": 5}', "stop"),
        (b'{"query": "x", "stop": ["."' + b', "."' * 100 + b"]}", "stop"),
        (b'{"query": "x", "language": "tlh"}', "language"),
        (b'{"query": "x", "documents": "one"}', "documents"),
        (b'{"query": "x", "documents": [5]}', "documents.0"),
        (b'{"query": "x", "documents": [{"title": "x"}]}', "documents.0.text"),
        (b'{"initial_query": "x", "retrieved_docs": [{"text": "a"}], "top_n": 0}', "top_n"),
        (b'{"messages": "x", "data": {"reranked_docs": [{}]}}', "data.reranked_docs.0.text"),
        (DEEP, "body"),
        (b'{"messages": [{"role": "user", "content": "x", "a": ' + b"[" * 900 + b"]" * 900 + b"}]}", "messages"),
        (b'{"query": "x", "documents": ["a", "\\udc00"]}', "documents.1"),
        (b'{"query": "x", "documents": [{"text": "a", "metadata": {"url": "\\ud800"}}]}', "documents.0.metadata.url"),
        (b'{"query": "x", "documents": [{"text": "a", "metadata": {"b": {"\\ud800": 1}}}]}', "documents.0.metadata.b"),
    ],
)
async def test_bad_input_is_a_400_that_names_the_field(
    monkeypatch: pytest.MonkeyPatch, body: bytes, named: str
) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service:
        answer = await service.post(body)
        after = await service.post(QUERY)
    assert answer.status == 400
    assert named in json.dumps(answer.json)
    assert "\n" not in json.dumps(answer.json)
    assert after.status == 200


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service:
        async with service.connect() as client:
            await client.send("POST", PATH, b'{"query": "', {"Content-Length": "50000000"})
            declared = await client.answer()
        async with service.connect() as client:
            await client.send("POST", PATH, b"", {"Content-Length": "", "Transfer-Encoding": "chunked"})
            for _ in range(17):
                client.writer.write(b"%x\r\n" % 1_000_000 + b"x" * 1_000_000 + b"\r\n")
                await client.writer.drain()
            chunked = await client.answer()
        after = await service.post(QUERY)
    assert [answer.status for answer in (declared, chunked, after)] == [413, 413, 200]
    assert "16000000 bytes" in declared.json["detail"]


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
async def test_the_content_type_does_not_matter(monkeypatch: pytest.MonkeyPatch, content_type: str) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service, service.connect() as client:
        await client.send("POST", PATH, json.dumps(QUERY).encode(), {"Content-Type": content_type})
        assert (await client.answer()).status == 200


async def test_an_unknown_route_and_a_wrong_method_are_told_in_json_logged_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "opea_llm")
    async with running(Scripted([WORDS]), monkeypatch) as service:
        unknown, wrong, wrong_too = (
            await service.get("/nope"),
            await service.get(PATH),
            await service.post({}, "/health"),
        )
        metrics = (await service.get("/metrics")).body.decode()
    assert [answer.status for answer in (unknown, wrong, wrong_too)] == [404, 405, 405]
    assert "/nope" in unknown.json["detail"]
    assert PATH in wrong.json["detail"]
    assert "GET /nope from 127.0.0.1 404" in caplog.text
    assert re.search(r'opea_llm_requests_total\{[^}]*outcome="405"[^}]*\} 2.0', metrics)


async def test_a_fault_of_ours_is_a_500_that_tells_no_details(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(Faulty([WORDS]), monkeypatch) as service:
        answer = await service.post(QUERY)
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert "secret" in caplog.text


async def test_while_the_model_loads_it_is_alive_but_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    loading = Loading()
    async with running(loading, monkeypatch, loaded=False) as service:
        alive, ready = await service.get("/health"), await service.get("/v1/health_check")
        probed, asked = await service.get("/ready"), await service.post(QUERY)
        assert [answer.status for answer in (alive, ready, probed, asked)] == [200, 503, 503, 503]
        assert (probed.body, probed.headers["retry-after"]) == (ready.body, "3")
        assert asked.headers["retry-after"] == ready.headers["retry-after"] == "3"
        assert "still loading" in ready.json["detail"]
        assert (await service.get("/v1/models")).json["data"][0]["id"] == "scripted"
        loading.go.set()
        assert (await service.get("/v1/health_check")).status == 200
        assert (await service.get("/ready")).status == 200


async def test_a_client_that_breaks_off_its_own_request_affects_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service:
        async with service.connect() as client:
            await client.send("POST", PATH, b'{"query":', {"Content-Length": "100"})
        await until_idle(service)
        assert (await service.post(QUERY)).status == 200


LANTERNS = [" ".join([f"Lantern {number} hangs in the harbour."] * 12) for number in range(4)]


async def test_what_does_not_fit_the_window_is_reported_by_a_header_and_in_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Scripted([["one"]], context_window=580)
    async with running(server, monkeypatch) as service:
        body = {"query": "Where is lantern 2?", "documents": LANTERNS, "max_tokens": 20}
        whole = await service.post({**body, "stream": False})
        chat = await service.post({"messages": body["query"], "documents": LANTERNS, "max_tokens": 20})
    (prompt, sampling, _), second = server.asked
    assert second[0] == prompt
    assert whole.headers["x-documents-used"] == chat.headers["x-documents-used"] == "1,2,3,4"
    assert [use["fate"] for use in whole.json["report"]["documents"]] == ["kept", "kept", "kept", "cut"]
    assert whole.json["report"] == chat.json["report"]
    assert whole.json["report"]["max_tokens"] == sampling.max_tokens == 20
    assert "Where is lantern 2?" in texts(prompt)


@pytest.mark.parametrize(
    ("stream", "item"), [("bytes", b'event: report\ndata: {"'), ("openai", b'"choices":[],"report":{')]
)
async def test_a_stream_has_the_report_before_its_end_if_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, stream: str, item: bytes
) -> None:
    body = {"query": "?", "documents": LANTERNS[:1], "stream": True}
    async with running(Scripted([["one"]]), monkeypatch, {"LLM_OPEA_STREAM": stream}) as service:
        silent = await service.post(body)
        asked = await service.post({**body, "include_report": True})
    assert b"report" not in silent.body
    assert silent.headers["x-documents-used"] == "1"
    assert item in asked.chunks[-2]
    assert asked.chunks[-1] == b"data: [DONE]\n\n"


PROMPTS = ["words " * 300, "short", "words " * 700]
THREE_PROMPTS = {"prompt": PROMPTS, "documents": LANTERNS, "max_tokens": 20, "include_report": True}


async def test_of_several_prompts_each_has_its_documents_and_its_report_told_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted([["one"]], context_window=1100), monkeypatch) as service:
        whole = await service.post(THREE_PROMPTS, "/v1/completions")
        alike = await service.post({**THREE_PROMPTS, "prompt": ["a", "b"]}, "/v1/completions")
        alone = await service.post({**THREE_PROMPTS, "prompt": PROMPTS[:1]}, "/v1/completions")
        preview = await service.post(THREE_PROMPTS, "/v1/prompt")
    told = [[use["fate"] for use in report["documents"]] for report in whole.json["reports"]]
    assert told == [[use["fate"] for use in one["report"]["documents"]] for one in preview.json["prompts"]]
    assert told[1] == ["kept"] * 4
    assert whole.headers["x-documents-used"] == "1,2,3,4;1,2,3,4;none"
    assert alike.headers["x-documents-used"] == alone.headers["x-documents-used"] == "1,2,3,4"
    assert "report" not in whole.json
    assert "reports" not in alone.json
    assert alone.json["report"] == whole.json["reports"][0]


async def test_of_several_prompts_a_stream_says_whose_report_it_is_and_its_headers_tell_no_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One after the other, so that the second is not planned when the first begins.
    limits = {"USVC_MAX_RUNNING": "1"}
    async with running(Scripted([["one"]], context_window=1100), monkeypatch, limits) as service:
        streamed = await service.post({**THREE_PROMPTS, "stream": True}, "/v1/completions")
        whole = await service.post(THREE_PROMPTS, "/v1/completions")
    chunks = [json.loads(chunk.removeprefix(b"data: ")) for chunk in streamed.chunks[:-1]]
    told = [(chunk["prompt"], chunk["report"]) for chunk in chunks if "report" in chunk]
    assert told == list(enumerate(whole.json["reports"]))
    assert "x-documents-used" not in streamed.headers


@pytest.mark.parametrize("stream", [True, False])
async def test_where_nothing_was_found_the_settings_may_answer_and_no_model_is_asked(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    server = Scripted([["one"]])
    async with running(server, monkeypatch, {"LLM_NOTHING_FOUND": "I found nothing."}) as service:
        answer = await service.post({"query": "?", "documents": [], "stream": stream})
        assert answer.headers["x-documents-used"] == "none"
        assert b"I found nothing." in answer.body
        assert server.asked == []
        for body in ({"query": "?", "stream": stream}, {"query": "?", "documents": ["a"], "stream": stream}):
            assert b"one" in (await service.post(body)).body


async def test_unless_they_do_the_model_answers_and_the_header_says_that_nothing_was_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted([["one"]]), monkeypatch) as service:
        answer = await service.post({"query": "?", "documents": [], "stream": False})
    assert (answer.headers["x-documents-used"], answer.json["text"]) == ("none", "one")


async def test_earlier_messages_that_do_not_fit_are_counted_in_a_header_whatever_the_dialect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = [{"role": role, "content": "word " * 100} for role in ("user", "assistant")]
    short, long = [{"role": "user", "content": "a"}], [*said, *said, {"role": "user", "content": "b"}]
    server = Scripted([["one"]], context_window=800)
    async with running(server, monkeypatch) as service:
        chat = await service.post({"messages": long})
        dialogs = await service.post({"input_data": {"input_string": [short, long]}}, "/chat")
        fits = await service.post({"messages": short})
    assert chat.headers["x-turns-dropped"] == "2"
    assert dialogs.headers["x-turns-dropped"] == "0,2"
    assert "x-turns-dropped" not in fits.headers
    assert [len(prompt) for prompt, _, _ in server.asked] == [3, 1, 3, 1]


async def test_a_header_is_no_longer_than_clients_take(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        answer = await service.post(
            {"query": "?", "documents": [str(number) for number in range(2000)], "streaming": False}
        )
    assert answer.headers["x-documents-used"].startswith("1,2,3,")
    assert answer.headers["x-documents-used"].endswith("...")
    assert len(answer.headers["x-documents-used"]) < 1100


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {"inputs": "a" * 2_000_001}, 422),
        ("/chat_tokenize", {"messages": [{"role": "user", "content": "a" * 2_000_001}]}, 422),
        ("/v1/tokenize", {"text": "a" * 2_000_001}, 400),
    ],
)
async def test_of_a_text_of_megabytes_no_tokens_are_told(
    path: str, body: dict[str, Any], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Able([["Hi"]]), monkeypatch) as service:
        answer = await service.post(body, path)
    assert answer.status == status
    said = answer.body.decode()
    assert "it has more than 2000000 characters" in said
    assert next(iter(body)) in said
