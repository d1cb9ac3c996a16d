"""The rig itself: the fake's wires are those of real servers, a wrong byte is noticed, ratios are what they seem."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.benchmarks.relay import wire, words
from tests.benchmarks.relay.cells import BEFORE_TGI, CELLS, GOALS, PLANNING
from tests.benchmarks.relay.checks import Asked, Wrong, check
from tests.benchmarks.relay.fake import Stats, in_chunks, listen
from tests.benchmarks.relay.load import Job, measure, stats
from tests.benchmarks.relay.processes import Cores, Ticks, cpu_seconds, on_core, tree
from tests.benchmarks.relay.report import Goal, Spread, bench, compared, ratio
from tests.benchmarks.relay.rig import Found
from tests.process import ROOT

TRAFFIC = ROOT / "tests" / "model_servers" / "traffic"
QUESTION = words.question(3)
STREAM = Job("steady", 0, os.getpid(), streams=3, tokens=12, pause_ms=5, exact=True)
WHOLE = Job("repeated", 0, os.getpid(), streams=2, tokens=5, stream=False, seconds=0.02, exact=True)
LEFT = Job("cancelled", 0, os.getpid(), streams=4, tokens=200, pause_ms=5, seconds=5.0, exact=True)
Twist = Callable[[bytes], bytes]


def recorded(name: str) -> tuple[wire.Said, bytes]:
    """What a real vLLM said, and its bytes."""
    body = json.loads((TRAFFIC / "vllm" / f"{name}.json").read_text("utf-8"))["body_raw"]
    told = [json.loads(line.removeprefix("data: ")) for line in body.split("\n\n") if "{" in line]
    pieces, usage, mark = [], {"prompt_tokens": 0}, ""
    for one in told:
        usage, mark = one.get("usage") or usage, one.get("system_fingerprint") or mark
        for choice in one["choices"]:
            delta = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
            pieces += [delta["content"]] if delta["content"] else []
    first = told[0]
    return wire.Said(
        tuple(pieces), usage["prompt_tokens"], first["id"], first["created"], first["model"], mark
    ), body.encode()


@asynccontextmanager
async def faked(twist: Twist | None = None) -> AsyncIterator[int]:
    """The fake model server; its port."""
    counted = Stats()
    server = await listen(counted, twist)
    async with server:
        yield server.sockets[0].getsockname()[1]
    while counted.connections:  # noqa: ASYNC110  # There is no event for it.
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("chat_stream", lambda said: wire.chat_stream(said, usage=False)),
        ("chat_stream_usage", lambda said: wire.chat_stream(said, usage=True)),
        ("completions_stream", lambda said: wire.completion_stream(said, usage=True)),
    ],
)
def test_a_stream_has_the_bytes_of_vllm(name: str, made: Callable[[wire.Said], list[bytes]]) -> None:
    said, body = recorded(name)
    assert b"".join(made(said)) == body


@pytest.mark.parametrize(("name", "made"), [("chat", wire.chat_whole), ("completions", wire.completion_whole)])
def test_a_whole_answer_has_the_fields_of_vllm(name: str, made: Callable[[wire.Said], bytes]) -> None:
    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(one) for key, one in value.items()}
        return [shape(one) for one in value] if isinstance(value, list) else type(value)

    said, body = recorded(name)
    assert shape(json.loads(made(said))) == shape(json.loads(body))
    assert list(json.loads(made(said))) == list(json.loads(body))


def fields(name: str) -> tuple[set[str], set[str]]:
    """Of one of TGI's types: those that must be there, and those that may."""
    schema = json.loads((TRAFFIC / "tgi" / "openapi.json").read_text("utf-8"))["components"]["schemas"][name]
    return set(schema["required"]), set(schema["properties"])


def test_tgis_answers_have_the_fields_of_its_types() -> None:
    said = Asked(QUESTION, 5, stream=True, exact=True, tgi=True).said
    *events, last = [json.loads(event.removeprefix(b"data: ")) for event in wire.tgi_stream(said)]
    whole, info = json.loads(wire.tgi_whole(said, prompt=True)), json.loads(wire.tgi_info("m"))
    documents = [("StreamResponse", event) for event in (*events, last)]
    documents += [("Token", last["token"]), ("StreamDetails", last["details"]), ("Info", info)]
    documents += [("GenerateResponse", whole), ("Details", whole["details"]), ("Token", whole["details"]["tokens"][0])]
    documents += [("PrefillToken", whole["details"]["prefill"][0])]
    for name, document in documents:
        required, known = fields(name)
        assert required <= document.keys() <= known
    assert last["generated_text"] == whole["generated_text"] == "".join(said.pieces)


def test_a_token_is_a_write_of_its_own_one_chunk_and_one_event() -> None:
    head, *tokens, last = in_chunks("/v1/chat/completions", QUESTION, 9, usage=True)
    assert head.count(b"data: {") == 1
    assert len(tokens) == 8
    for write in tokens:
        size, _, rest = write.partition(b"\r\n")
        assert len(rest) == int(size, 16) + 2
        assert rest.count(b"\n\n") == 1
    assert last.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_the_text_has_what_readers_stumble_over() -> None:
    text = "".join(words.PIECES)
    for found in ('"', "\\", "🌊", "\ndata: ", "data: [DONE]\n\n", "\r\n0\r\n\r\n", "\u2028", "\u0085", "event: "):
        assert found in text
    assert words.answer(words.question(1), 40) != words.answer(words.question(2), 40)


@pytest.mark.parametrize("tgi", [False, True], ids=["vllm", "tgi"])
@pytest.mark.parametrize(
    "job", [STREAM, WHOLE, replace(WHOLE, stream=True, tokens=1)], ids=["steady", "whole", "short"]
)
async def test_the_load_client_counts_what_it_is_answered(job: Job, tgi: bool) -> None:
    async with faked() as port:
        result = await measure(replace(job, port=port, tgi=tgi))
    assert result.units > 0
    assert 0 < result.cpu < 5 * result.wall
    if job is STREAM:
        assert 0.02 < result.wall < 1
        assert 15 <= result.units <= 3 * 9 + 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"content":" word"', b'"content":" words"'),
        (b"\xf0\x9f\x8c\x8a", b"\xf0\x9f\x8c\x8b"),
        (b'"finish_reason":"length"', b'"finish_reason":"stop"'),
        (b'"completion_tokens":40', b'"completion_tokens":41'),
        (b'"index":0', b'"index":1'),
        (b"data: [DONE]", b": [DONE]    "),
        (b'"id":"chatcmpl-0', b'"id":"chatcmpl-1'),
    ],
)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "read"])
def test_a_wrong_byte_is_noticed(before: bytes, after: bytes, exact: bool) -> None:
    asked = Asked(QUESTION, len(words.PIECES), stream=True, exact=exact)
    body = b"".join(wire.chat_stream(asked.said, usage=True))
    check(asked, body)
    assert before in body
    with pytest.raises(Wrong):
        check(asked, body.replace(before, after, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda events: events[:-1],
        lambda events: [*events[:3], events[2], *events[3:]],
        lambda events: [*events[:3], *events[4:]],
        lambda events: [*events[:3], b"data: x\n\n", *events[3:]],
        lambda events: [events[0], *events[2:4], events[1], *events[4:]],
        lambda events: [*events, b": \n\n"],
    ],
    ids=["cut", "doubled", "lost", "no JSON", "in another order", "something after the end"],
)
def test_wrong_events_are_noticed(change: Callable[[list[bytes]], list[bytes]]) -> None:
    asked = Asked(QUESTION, 8, stream=True, exact=False)
    with pytest.raises(Wrong):
        check(asked, b"".join(change(wire.chat_stream(asked.said, usage=True))))


def test_a_wrong_whole_answer_is_noticed() -> None:
    asked = Asked(QUESTION, 8, stream=False, exact=False)
    body = wire.chat_whole(asked.said)
    check(asked, body)
    for before, after in ((b"quoted", b"Quoted"), (b'"length"', b'"stop"'), (b'_tokens":8', b'_tokens":9')):
        with pytest.raises(Wrong):
            check(replace(asked, tokens=40 if before == b"quoted" else 8), body.replace(before, after))


async def test_a_wrong_byte_on_the_wire_ends_the_job() -> None:
    async with faked(lambda data: data.replace(b"null", b"nuLL")) as port:
        with pytest.raises(Wrong, match=r"at byte \d+ of \d+: .*nuLL"):
            await measure(replace(STREAM, port=port))
    async with faked(lambda data: data.replace(b"200 OK", b"503 No")) as port:
        with pytest.raises(Wrong, match="status 503"):
            await measure(replace(STREAM, port=port))


async def test_streams_that_are_left_are_counted() -> None:
    async with faked() as port:
        result = await measure(replace(LEFT, port=port, stats_port=port))
        told = await stats(port)
    assert (told["requests"], told["streams"], told["finished"], told["cancelled"]) == (4, 4, 0, 4)
    assert result.units == 4
    assert result.wall < 2


def test_streams_of_one_pace_get_their_tokens_in_the_same_moment() -> None:
    assert words.moments(words.seed(20), 1.001) == words.moments(words.seed(20), 1.013) == (1.02, 0.02)
    assert words.moments(words.seed(20, 5), 1.001) == pytest.approx((1.005, 0.02))
    assert words.moments(words.seed(0), 1.001) == (1.001, 0.0)


def test_ratios_are_of_the_same_round() -> None:
    assert ratio([2.0, 6.0, 30.0], [1.0, 2.0, 10.0]) == Spread(3.0, 2.0, 3.0)
    assert str(Spread.of([100.4, 12.34, 1.234])) == "12.3 (1.23–100)"
    with pytest.raises(ValueError, match="longer"):
        ratio([1.0], [1.0, 2.0])
    assert Goal("", 2.0, Spread(2.0, 1.0, 9.0), "x").met
    assert not Goal("", 2.0, Spread(2.1, 1.0, 9.0), "x").met


def found(*frameworks: str) -> Found:
    """A run whose figures grow with the place of a target."""
    targets = ("relay", *frameworks)
    once = {target: [float(place), place + 0.5] for place, target in enumerate(targets, 1)}
    return Found(
        notes=["quiet"],
        vllm={cell.name: once for cell in CELLS},
        tgi={cell.name: once for cell in BEFORE_TGI},
        first_ms=once,
        late_ms=once,
        start=once,
        memory=dict.fromkeys(targets, 60.0),
        documents={kind: {"planning": [1.0, 2.0], "planning @old": [2.0, 4.0]} for kind in PLANNING},
    )


def test_the_report_says_what_is_met_and_what_is_missed() -> None:
    report = bench(found("native", "langchain"))
    assert "| native | 1.83 (1.67–2.00) | 1.83 (1.67–2.00) | 1.83 (1.67–2.00) | 1.83 (1.67–2.00) |" in report
    assert "| native: token 64 | ≤ 0.9 x | 1.83 (1.67–2.00) x | **miss** |" in report
    assert "| langchain: request | ≤ 6 x | 2.67 (2.33–3.00) x | pass |" in report
    assert "| native: resident memory at rest | ≤ 70 MB | 60.0 (60.0–60.0) MB | pass |" in report
    assert "| 40 documents of 300 words: nothing counted | ≤ 1.2 ms | 1.50 (1.00–2.00) ms | **miss** |" in report
    assert report.endswith("- quiet\n")


def test_the_comparison_says_what_a_change_cost() -> None:
    names = [framework + suffix for framework in GOALS for suffix in (" @old", "")]
    report = compared(found(*names), " @old")
    assert "| token 64, x of the relay | 1.83 (1.67–2.00) | 2.67 (2.33–3.00) | 1.45 (1.40–1.50) |" in report
    assert "| uncounted | 3.00 (2.00–4.00) | 1.50 (1.00–2.00) | 0.50 |" in report


def test_processor_time_is_that_of_a_process_and_its_children() -> None:
    burn = "import time\nuntil = time.process_time() + 0.1\nwhile time.process_time() < until: pass\nprint()\ninput()"
    cores = Cores.allotted()
    with on_core(cores.target):
        child = subprocess.Popen([sys.executable, "-c", burn], stdin=-1, stdout=-1)
    assert os.sched_getaffinity(child.pid) == {cores.target}
    assert child.stdin
    assert child.stdout
    child.stdout.readline()
    assert child.pid in tree(os.getpid())
    assert 0.1 <= cpu_seconds([child.pid]) < 2
    assert cpu_seconds([os.getpid()]) == pytest.approx(time.process_time(), abs=0.1)
    child.communicate(b"\n")
    assert Ticks(300, 70, 10).since(Ticks(100, 20, 0)) == (0.25, 0.05)
