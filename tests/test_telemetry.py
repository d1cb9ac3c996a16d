"""Metrics and the log's line of a request: what they tell of requests that a real service answered."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from comps.core.errors import InvalidRequest, LLMError, ModelServerError, Overloaded, Refused, Timeout, Unreachable
from comps.core.ports import Answer
from comps.core.tallies import MODEL_SERVER_ERRORS
from comps.core.types import JSON, Finished, Prompt, Sampling, TextDelta, Usage
from comps.logs import formatter, log
from comps.model_servers.replicas import Replicas
from comps.model_servers.scripted import Scripted
from comps.shared_metrics import SharedMetrics, Snapshot
from comps.telemetry import Telemetry
from tests.service import PATH, PATIENCE, Able, Service, running

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "What is it?"}]}
QUERY = {"query": "What is it?", "documents": ["It is this."]}
DURATION, FIRST = "gen_ai_server_request_duration_seconds", "gen_ai_server_time_to_first_token_seconds"
EACH, ASKED = "gen_ai_server_time_per_output_token_seconds", "gen_ai_client_operation_duration_seconds"
USAGE, OWN = "gen_ai_client_token_usage", "opea_llm_overhead_seconds"
TWO = "[Model]\nmodel_name = scripted\nmodel_server = scripted\n[Model.other]\nmodel_server = openvino\n"

Samples = Mapping[str, Sequence[tuple[dict[str, str], float]]]


async def samples(service: Service, **headers: str) -> Samples:
    """All samples of /metrics, by their names."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families((await service.get("/metrics", **headers)).body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def total(told: Samples, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    return sum(value for said, value in told.get(name, ()) if labels.items() <= said.items())


def timing(header: str) -> dict[str, float]:
    """The milliseconds of a header `server-timing`."""
    return {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", header)}


async def test_requests_and_tokens_are_counted_by_dialect_model_server_key_and_outcome(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.ini").write_text(TWO)
    monkeypatch.chdir(tmp_path)
    servers = {"scripted": Able([["a", "b"]]), "other": Scripted([["c"]])}
    environment = {"USVC_API_KEYS": "web = s3cret, cli = t0ken", "LLM_DIALECTS": "openai, opea"}
    web, cli = {"x-api-key": "s3cret"}, {"x-api-key": "t0ken"}
    async with running(servers, monkeypatch, environment) as service:
        await service.post(QUERY, **web)
        await service.post({**CHAT, "model": "other"}, **cli)
        await service.post({"input": "Hi"}, "/v1/embeddings", **cli)
        for wrong in ({"query": 5}, {**CHAT, "temperature": "x"}, {}, b"no JSON", {**QUERY, "model": "n" * 9}):
            await service.post(wrong, **web)
        for number in range(5):
            await service.post({**CHAT, "model": f"unknown-{number}"}, **web)
            await service.post({**CHAT, "model": "other", f"field-{number}": 1}, **{"x-api-key": f"wrong-{number}"})
        told = await samples(service, **web)
    requests = "opea_llm_requests_total"
    served: dict[str, str] = {"model": "scripted", "server": "scripted"}
    assert total(told, requests, outcome="200", dialect="opea", key="web", path=PATH, **served) == 1
    assert total(told, requests, outcome="200", dialect="openai", key="cli", model="other", server="openvino") == 1
    assert total(told, requests, outcome="200", dialect="openai", key="cli", path="/v1/embeddings", **served) == 1
    assert total(told, requests, outcome="400", dialect="opea", model="") == 1
    assert total(told, requests, outcome="400", dialect="openai", model="") == 3
    assert total(told, requests, outcome="404", dialect="opea", model="", server="", key="web") == 1
    assert total(told, requests, outcome="404", dialect="openai", model="", server="", key="web") == 5
    assert total(told, requests, outcome="401", key="") == 5
    tokens = "opea_llm_tokens_total"
    assert total(told, tokens, kind="completion", key="web", dialect="opea", **served) == 2
    assert total(told, tokens, kind="prompt", key="cli", dialect="openai", **served) == 2
    labels = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "openvino", "gen_ai_request_model": "other"}
    assert total(told, f"{USAGE}_sum", gen_ai_token_type="output", **labels) == 1
    assert total(told, f"{USAGE}_count", gen_ai_token_type="input", gen_ai_operation_name="embeddings") == 1
    values = {value for family in told.values() for said, _ in family for value in said.values()}
    assert not [value for value in values if value.startswith(("unknown", "field", "wrong", "nnn"))]


async def test_times_of_answers_are_apart_from_those_of_refusals_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scripted([["one", " two", " three"], ["one", " two", " three"], [Unreachable("away")], ["a", Timeout()]])
    async with running(server, monkeypatch) as service:
        for body in (QUERY, {**QUERY, "stream": False}, {**QUERY, "stream": False}, QUERY, {"query": 5}):
            await service.post(body)
        told = await samples(service)
    by_outcome = {labels["error_type"]: value for labels, value in told[f"{DURATION}_count"]}
    assert by_outcome == {"": 2, "503": 1, "broken": 1, "400": 1}
    assert {labels["error_type"]: value for labels, value in told[f"{ASKED}_count"]} == {"": 2, "503": 1, "broken": 1}
    assert total(told, f"{FIRST}_count") == 1  # Of the stream that was answered.
    assert total(told, f"{EACH}_count") == 1  # Nobody knows when the first token of a whole answer came.
    assert total(told, f"{OWN}_count") == 2
    assert total(told, "opea_llm_answers_total", reason="stop", dialect="opea") == 2
    parts = [
        total(told, f"{name}_sum", **({"error_type": ""} if name != OWN else {})) for name in (DURATION, ASKED, OWN)
    ]
    assert 0 < parts[1] + parts[2] <= parts[0]
    assert total(told, f"{DURATION}_bucket", error_type="", le="+Inf") == 2


class Slow(Scripted):
    """A model server that begins its answer with nothing, and goes on when it is told to."""

    def __init__(self, pieces: Sequence[str | TextDelta]) -> None:
        super().__init__()
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self._pieces = pieces

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        answer.delta(TextDelta("", 0, {"system_fingerprint": "x"}))
        self.begun.set()
        await self.go_on.wait()
        for piece in self._pieces:
            answer.delta(piece) if isinstance(piece, TextDelta) else answer.text(piece)
        answer.finished(Finished("stop", Usage(1, 2)))


CALLED = TextDelta("", 0, {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]})


@pytest.mark.parametrize(
    ("pieces", "has_token", "keepalive"),
    [
        (["word"], True, "0"),
        (["word"], True, "0.01"),
        ([TextDelta("word", 0, {"logprobs": {}})], True, "0"),
        ([TextDelta("", 0, {"reasoning_content": "hm"}), "word"], True, "0.01"),
        ([CALLED], True, "0"),
        ([], False, "0"),
    ],
)
async def test_the_first_token_is_no_comment_and_no_chunk_without_a_part_of_the_answer(
    pieces: list[str | TextDelta], has_token: bool, keepalive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Slow(pieces)
    async with running(server, monkeypatch, {"USVC_KEEPALIVE_SECONDS": keepalive}) as service:
        async with service.connect() as client:
            await client.send("POST", PATH, json.dumps({**CHAT, "stream": True}).encode())
            first_byte = timing((await client.head()).headers["server-timing"])["total"]
            await asyncio.wait_for(server.begun.wait(), PATIENCE)
            while keepalive != "0" and b"keep-alive" not in await client.chunk():
                pass
            server.go_on.set()
            while await client.chunk():
                pass
        told = await samples(service)
    assert total(told, f"{FIRST}_count") == has_token
    if has_token:
        assert first_byte < 1000 * total(told, f"{FIRST}_sum") <= 1000 * total(told, f"{DURATION}_sum")
        assert total(told, f"{EACH}_count") == 1


async def test_each_class_of_a_model_server_s_errors_is_counted_once_and_readiness_counts_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    MODEL_SERVER_ERRORS.clear()
    errors: dict[str, list[LLMError]] = {
        "unreachable": [Unreachable("x")],
        "timeout": [Timeout("x")],
        "overloaded": [Overloaded("x")],
        "rejected": [InvalidRequest("x"), Refused(403, "x")],
        "failed": [Refused(500, "x")],
        "broken": [ModelServerError("x")],
    }
    every = [error for some in errors.values() for error in some]
    async with running(Scripted([[error] for error in every]), monkeypatch) as service:
        for number in range(len(every)):
            await service.post({**CHAT, "stream": bool(number % 2)})
        await service.get("/ready")
        told = await samples(service)
    counted = {labels["class"]: value for labels, value in told["opea_llm_model_server_errors_total"]}
    assert counted == {name: len(some) for name, some in errors.items()}
    assert {labels["model"] for labels, _ in told["opea_llm_model_server_errors_total"]} == {"scripted"}


async def test_documents_and_earlier_messages_are_counted_by_what_became_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = " ".join(f"Sentence {number} says something." for number in range(40))
    messages = [{"role": role, "content": text[:500]} for role in ("user", "assistant")] * 3
    body = {"messages": [*messages, *CHAT["messages"]], "documents": [text[:300], text, text[:-9]], "max_tokens": 9}
    async with running(Scripted(context_window=700), monkeypatch, {"LLM_MIN_ANSWER_TOKENS": "1"}) as service:
        report = (await service.post({**body, "include_report": True, "stream": False})).json["report"]
        told = await samples(service)
    fates = Counter(use["fate"] for use in report["documents"])
    assert len(fates) >= 2
    assert {labels["fate"]: value for labels, value in told["opea_llm_documents_total"]} == fates
    assert total(told, "opea_llm_turns_dropped_total", model="scripted") == report["turns_dropped"] > 0


async def test_every_reply_says_where_its_time_went(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Able([["a", "b"]], delay=0.02)
    async with running(server, monkeypatch) as service:
        answers = [
            await service.post({**QUERY, "stream": False}),
            await service.post(QUERY),
            await service.post({"input": "Hi"}, "/v1/embeddings"),
            await service.post({"query": 5}),
            await service.post(QUERY, "/v1/prompt"),
        ]
    told = [timing(answer.headers["server-timing"]) for answer in answers]
    for said in told:
        assert set(said) == {"total", "queue", "model", "overhead"}
        assert said["total"] >= said["queue"] + said["model"] + said["overhead"] - 0.05
    assert told[0]["model"] >= 35
    assert 15 <= told[1]["model"] <= told[1]["total"]  # Up to the first piece.
    assert told[0]["overhead"] > 0
    assert told[3]["model"] == 0


async def test_the_process_and_the_build_are_told_and_several_workers_are_one_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with running(Scripted(), monkeypatch) as service:
        told = await samples(service)
        version = service.app.state.service.version
    assert [labels["version"] for labels, _ in told["opea_llm_build_info"]] == [version]
    for name in ("resident_memory_bytes", "cpu_seconds_total", "open_fds", "start_time_seconds"):
        assert total(told, f"process_{name}") > 0
    one, two = Telemetry(version="1"), Telemetry(version="1")
    for telemetry in (one, two):
        await telemetry.read_process()
    whole = {
        sample.name: sample.value
        for metric in await asyncio.to_thread(of_both, one, two, tmp_path)
        for sample in metric.samples
    }
    assert whole["opea_llm_build_info"] == 1
    assert whole["process_start_time_seconds"] == total(told, "process_start_time_seconds")
    assert whole["process_open_fds"] > total(told, "process_open_fds")


def of_both(one: Telemetry, two: Telemetry, folder: Path) -> Sequence[Metric]:
    """The metrics of two workers."""
    SharedMetrics(folder, 1, 1).publish(Snapshot(list(two.collect())))
    return SharedMetrics(folder, 0, 1).whole(Snapshot(list(one.collect()))).metrics


LINE = {
    "path": PATH,
    "outcome": "200",
    "request_id": "mine",
    "client": "127.0.0.1",
    "key": "web",
    "dialect": "opea",
    "model": "scripted",
    "server": "openvino",
    "stream": True,
    "reason": "stop",
    "prompt_tokens": 21,
    "completion_tokens": 2,
    "ignored": ["top_k", "odd%20one"],
    "error": None,
}


@contextmanager
def logged(form: str, level: str) -> Iterator[io.StringIO]:
    """What the service writes to its log."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(formatter(form))
    logging.getLogger().addHandler(handler)
    log.setLevel(level)
    try:
        yield text
    finally:
        logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize("form", ["text", "json"])
async def test_the_log_has_a_line_for_each_request_and_nothing_of_a_prompt(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Scripted([["a", "b"], [Refused(500, "it broke")], ["a", RuntimeError("Canary")]])  # type: ignore[list-item]
    web = {"x-api-key": "a-key-of-sixteen", "x-request-id": "mine"}
    query = {"query": "Canary of a question", "documents": ["Canary of a document"], "top_k": 5, "odd one": "Canary"}
    keys = {"USVC_API_KEYS": "web = a-key-of-sixteen"}
    with logged(form, "INFO") as text:
        async with running(server, monkeypatch, keys) as service:
            await service.post({**query, "stream": True}, **web)
            await service.post({**query, "stream": False}, **web)
            await service.post({**query, "temperature": "Canary"}, **web)
            await service.post({**query, "stream": True}, **web)
            await service.post(query)
    said = text.getvalue()
    lines = said.splitlines()
    assert "Canary" not in said
    if form == "json":
        first, failed, wrong, fault, broken, refused = map(json.loads, lines)
        assert {name: first[name] for name in LINE} == LINE
        assert 0 <= first["queue_seconds"] <= first["first_token_seconds"] <= first["seconds"]
        assert 0 < first["overhead_seconds"] + first["model_seconds"] <= first["seconds"]
        assert (first["level"], first["message"]) == ("INFO", f"{PATH} 200")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
        assert (failed["level"], failed["outcome"]) == ("WARNING", "502")
        assert "it broke" in failed["error"]
        assert (wrong["level"], wrong["outcome"], wrong["model"]) == ("INFO", "400", "")
        assert "temperature" in wrong["error"]
        assert (fault["level"], fault["request_id"]) == ("ERROR", "mine")
        assert "Error" in "".join(fault["exception"])
        assert broken["outcome"] == "broken"
        assert (refused["path"], refused["outcome"], refused["key"]) == (PATH, "401", None)
        assert "an API key is needed" in refused["error"]
        return
    assert re.search(
        rf"\[    INFO\] opea_llm: {PATH} 200 id=mine client=127\.0\.0\.1 key=web dialect=opea model=scripted "
        r"server=openvino stream=yes reason=stop tokens=21\+2 queue=0\.000 first=\d+\.\d{3} answer=\d+\.\d{3} "
        r"overhead=\d+\.\d{4} total=\d+\.\d{4} ignored=top_k,odd%20one$",
        lines[0],
    )
    assert re.search(r"\[ WARNING\] opea_llm: \S+ 502 .* total=\S+ ignored=\S+: .*it broke$", lines[1])
    assert re.search(r"\[    INFO\] opea_llm: \S+ 400 .* total=\S+: temperature: ", lines[2])


async def test_at_debug_the_log_says_each_decision_with_the_request_s_id_and_nothing_of_a_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = Scripted([[Unreachable("away")]], context_window=500), Scripted([["a"]], context_window=500)
    replicas = Replicas([first, second], model="scripted")
    gate = asyncio.Event()
    waiting = Scripted([[gate, "a"], ["b"]])
    documents = ["Canary of a document. " * 30, "Canary of another one. " * 40]
    body = {"query": "Canary of a question", "documents": documents, "max_tokens": 9, "stream": False}
    with logged("text", "DEBUG") as text:
        async with running(replicas, monkeypatch, {"LLM_MIN_ANSWER_TOKENS": "9"}) as service:
            assert (await service.post(body, **{"x-request-id": "mine"})).status == 200
        async with running(waiting, monkeypatch, {"USVC_MAX_RUNNING": "1"}) as service:
            asking = [asyncio.ensure_future(service.post(CHAT)) for _ in range(2)]
            await asyncio.wait_for(waiting.reached.wait(), PATIENCE)
            while (await samples(service))["opea_llm_requests_waiting"][0][1] < 1:
                pass
            gate.set()
            await asyncio.gather(*asking)
    said = text.getvalue()
    assert "Canary" not in said
    for line in (
        r"\[scripted\] chat template: the model server's; prompt templates: ours",
        r"read as QueryCall of opea id=mine|read as \w+ of opea id=mine",
        r"template: en, the instruction in a system message id=mine",
        r"prompt: 2 messages; documents: 1 kept, .*; 2 (cut|dropped) .* window=500 .* max_tokens=9 id=mine",
        r"replica 1 of 2 of scripted is asked; it has 1 requests, and its circuit is closed id=mine",
        r"another replica is asked: away id=mine",
        r"replica 2 of 2 of scripted is asked; .* id=mine",
        r"waited \d+\.\d{3} s for a slot; 0 more wait id=\w{32}",
    ):
        assert re.search(rf"\[   DEBUG\] opea_llm: ({line})$", said, re.MULTILINE), (line, said)
