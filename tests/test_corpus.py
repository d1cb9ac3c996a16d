"""The corpus of what clients and model servers really send, through the running service."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import pytest

from comps.core.errors import InvalidRequest
from comps.core.ports import Answer as AnswerWriter
from comps.core.types import JSON, Prompt, Sampling
from comps.dialects.shared.base import GenerationCall
from comps.model_servers import FRAMEWORKS, open_model_server
from comps.model_servers.target import Access, Target
from tests.corpus import Case, cases
from tests.dialects.kinds import KINDS, Kind
from tests.dialects.test_contract import own_statuses
from tests.model_servers.replay import Reply, replaying, sse
from tests.service import PATH, Able, Answer, running

UPSTREAM = cases("upstream")
SERVERS = sorted({case.get("server", "vllm") for case in UPSTREAM})
ASKED = ("/v1/chat/completions", "/v1/completions", "/generate_stream", "/generate")
TEXTS = [kind for kind in KINDS if issubclass(kind.call, GenerationCall)]


class Routes(dict[str, Reply]):
    """Replies by path; 404 on any other."""

    def __missing__(self, path: str) -> Reply:
        return Reply([b'{"detail": "Not Found"}'], 404)


def upstream(case: Case, streamed: bool) -> Routes:
    """What the model server of a case answers."""
    headers = case.get("headers", {})
    if "stream" in case.said and (streamed or "whole" not in case.said):
        pieces = [event.encode() + b"\n\n" for event in case["stream"].rstrip("\n").split("\n\n")]
        reply = Reply(pieces, case.get("status", 200), {"Content-Type": "text/event-stream", **headers})
    else:
        whole = json.dumps(case["whole"]).encode()
        reply = Reply([whole], case.get("status", 200), {"Content-Type": "application/json", **headers})
    routes = Routes(dict.fromkeys(ASKED, reply))
    for path, (status, document) in case.get("routes", {}).items():
        routes[path] = Reply([json.dumps(document).encode()], status)
    return routes


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", TEXTS, ids=str)
async def test_what_a_model_server_sends_is_read_as_far_as_it_can_be(
    kind: Kind, framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong: dict[str, list[str]] = {}
    settings = {"FRAMEWORK": framework, "LLM_DIALECTS": kind.dialect, "LLM_NAME": "scripted"}
    for name in SERVERS:
        async with replaying(Routes()) as replay:
            server = open_model_server(name, Target("scripted", replay.url, Access(repeats=False)))
            async with running(server, monkeypatch, settings) as service:
                for case in UPSTREAM:
                    if case.get("server", "vllm") != name:
                        continue
                    for streamed in (True, False):
                        for body in kind.bodies(streamed)[:1]:
                            replay.replies = upstream(case, streamed)
                            answer = await service.post(body, kind.path)
                            problems = [
                                *unlike(answer, case.outcome, kind.dialect),
                                *unlike_openai(answer, case.outcome, kind),
                            ]
                            if problems:
                                way = "streamed" if streamed else "whole"
                                wrong[f"{case.name}, {way}"] = [*problems, answer.body.decode()[:500]]
    assert wrong == {}


def unlike(answer: Answer, outcome: Mapping[str, Any], dialect: str) -> list[str]:
    """What is not as it should be, whatever the dialect."""
    error = outcome.get("error")
    if error is None:
        at, body = 0, answer.body
        for piece in outcome["pieces"]:
            at = body.find(piece.encode(), at) + 1
            if not at:
                return [f"{answer.status}, without {piece!r}"]
        return [] if answer.status == 200 else [f"status {answer.status}"]
    problems = []
    if answer.status not in own_statuses(dialect, error["status"]):
        problems.append(f"status {answer.status}, not {error['status']}")
    if error.get("says", "") not in answer.body.decode():
        problems.append(f"without {error['says']!r}")
    if (wait := error.get("retry_after")) and answer.headers.get("retry-after") != str(wait):
        problems.append(f"retry-after {answer.headers.get('retry-after')}, not {wait}")
    return problems


def unlike_openai(answer: Answer, outcome: Mapping[str, Any], kind: Kind) -> list[str]:
    """What is not as it should be in OpenAI's chat API."""
    if kind.dialect != "openai" or kind.call.marker != "messages":
        return []
    if error := outcome.get("error"):
        code = answer.json["error"].get("code") if answer.status != 200 else None
        return [f"code {code}"] if "code" in error and code != error["code"] else []
    found = joined(answer)
    wanted = {name: outcome[name] for name in found if name in outcome}
    return [f"{name}: {found[name]!r}, not {value!r}" for name, value in wanted.items() if found[name] != value]


def joined(answer: Answer) -> dict[str, Any]:
    """An answer of OpenAI's chat API, whole or streamed, in the words of the corpus."""
    if "transfer-encoding" not in answer.headers:
        pieces, usage = [answer.json["choices"][0]], answer.json["usage"]
        said = [piece["message"] for piece in pieces]
    else:
        chunks = [json.loads(chunk[6:]) for chunk in answer.chunks if chunk.startswith(b"data: {")]
        pieces = [choice for chunk in chunks for choice in chunk.get("choices", ())]
        said, usage = [piece["delta"] for piece in pieces], None
    calls = [call["function"] for one in said for call in one.get("tool_calls") or ()]
    return {
        "text": "".join(one.get("content") or "" for one in said),
        "reason": next((piece["finish_reason"] for piece in pieces if piece["finish_reason"]), None),
        "reasoning": "".join(one.get("reasoning_content") or "" for one in said),
        "arguments": "".join(call.get("arguments") or "" for call in calls),
        **({} if "transfer-encoding" in answer.headers else {"usage": usage and tokens(usage)}),
    }


def tokens(usage: Mapping[str, int]) -> list[int]:
    return [usage["prompt_tokens"], usage["completion_tokens"]]


# What clients send.

ANSWERED = sse({"choices": [{"index": 0, "delta": {"content": "Yes"}, "text": "Yes", "finish_reason": "stop"}]})


def compressed(body: bytes, encodings: str) -> bytes:
    if encodings.startswith("utf"):
        return body.decode().encode(encodings)
    if encodings == "members":
        return compressed(body[:9], "gzip") + compressed(body[9:], "gzip")
    for encoding in encodings.replace("raw deflate", "raw").split():
        packer = zlib.compressobj(wbits={"gzip": 31, "deflate": 15, "raw": -15}[encoding])
        body = packer.compress(body) + packer.flush()
    return body


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("case", cases("requests"), ids=lambda case: case.name)
async def test_what_a_client_sends_is_answered_right(
    case: Case, framework: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "opea_llm")
    settings = {"FRAMEWORK": framework, "LLM_NAME": "m", **case.get("settings", {})}
    body = json.dumps(case["body"]).encode() if "body" in case.said else b""
    headers = {**case.get("headers", {}), **({} if body else {"Content-Type": ""})}
    async with replaying(Routes(dict.fromkeys(ASKED, ANSWERED))) as replay:
        name = case.get("server", "vllm")
        server = open_model_server(name, Target("m", "" if name == "scripted" else replay.url))
        async with running(server, monkeypatch, settings) as service, service.connect() as client:
            data = compressed(body, case.get("encode", ""))
            await client.send(case.get("method", "POST"), case.get("path", PATH), data, headers)
            if case.get("method") == "HEAD":
                answer = await client.head()
                await client.send("GET", "/health")  # A body would be taken for the next answer.
                assert (await client.answer()).status == 200
            else:
                answer = await client.answer()
    check(answer, case.outcome, [one for one in replay.asked if one[0] in ASKED], caplog.text)


def check(answer: Answer, outcome: Mapping[str, Any], asked: list[tuple[str, Any, Any]], log: str) -> None:
    """Raises AssertionError where an answer, or what has reached the model server, is not as it should be."""
    assert answer.status == outcome["status"], answer.body
    assert outcome.get("says", "") in answer.body.decode()
    assert {name: answer.headers.get(name) for name in outcome.get("headers", {})} == outcome.get("headers", {})
    assert outcome.get("log", "") in log
    if "keys" in outcome:
        assert sorted(answer.json) == outcome["keys"]
    if "ignored" in outcome:
        assert answer.headers.get("x-ignored-params") == outcome["ignored"]
    if not outcome.keys().isdisjoint(("prompt", "upstream", "upstream_headers", "upstream_has")):
        ((_, headers, body),) = asked
        assert outcome.get("upstream_has", "") in json.dumps(body)
        wanted = outcome.get("upstream_headers", {})
        assert {name: headers.get(name) for name in wanted} == wanted
        wanted = outcome.get("upstream", {})
        assert {name: body.get(name) for name in wanted} == wanted
        if "prompt" in outcome:
            messages = [[message["role"], message["content"]] for message in body.get("messages", ())]
            assert (messages or body["prompt"]) == outcome["prompt"]


# Defaults that nobody sent.


class Refusing(Able):
    """A model server that refuses sampling fields, one at a time, as reasoning models do."""

    async def generate(
        self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: AnswerWriter
    ) -> None:
        for name in ("temperature", "top_p", "top_k"):
            if getattr(sampling, name) is not None:
                raise InvalidRequest("Unsupported value", name)
        await super().generate(prompt, sampling, options, answer)


@pytest.mark.parametrize("kind", TEXTS, ids=str)
async def test_a_default_that_nobody_sent_refuses_nothing(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {name for name, field in kind.call.model_fields.items() if field.is_required()}
    bare = {name: value for name, value in kind.examples[-1].items() if name in {*_ASKING, kind.call.marker, *needed}}
    async with running(Refusing([["Deep"]]), monkeypatch, {"LLM_DIALECTS": kind.dialect}) as service:
        answer = await service.post(bare, kind.path)
        assert (answer.status, b"Deep" in answer.body) == (200, True), answer.body
        if kind.dialect in ("opea", "openai", "square"):
            assert (await service.post({**bare, "temperature": 0.5}, kind.path)).status == 400


_ASKING = ("query", "initial_query", "messages", "prompt", "prompts", "input_data", "generation_mode")
