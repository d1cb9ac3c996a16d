"""The routes without a body: health, statistics, models, metrics."""

from __future__ import annotations

import pytest

from comps.model_servers.scripted import Scripted
from tests.service import running

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
    assert 'opea_llm_requests_total{outcome="200",path="/v1/chat/completions"} 2.0' in lines
    assert 'opea_llm_requests_total{outcome="400",path="/v1/chat/completions"} 1.0' in lines
    assert 'opea_llm_tokens_total{kind="completion"} 4.0' in lines
    assert "opea_llm_requests_in_flight 0.0" in lines
    assert "opea_llm_first_token_seconds_count 1.0" in lines


async def test_a_model_that_is_not_served_is_a_404_that_lists_the_one_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service:
        answer = await service.post({"messages": "?", "model": "gpt-4"})
        served = await service.post({"messages": "?", "model": "scripted"})
    assert (answer.status, served.status) == (404, 200)
    assert answer.json["error"]["code"] == "model_not_found"
    assert "scripted" in answer.json["error"]["message"]


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
