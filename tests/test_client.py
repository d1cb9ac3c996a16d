"""The client for previews and reports, against the running service."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from comps import (
    DocumentUse,
    InvalidRequest,
    Message,
    PromptClient,
    SettingsError,
    Unauthorized,
    Unreachable,
    reports_of,
)
from tests.service import Able, running

QUESTION = {"query": "How long is the warranty?", "documents": ["Three years.", "21 kg."], "max_new_tokens": 8}
KEYS = {"USVC_API_KEYS": "me = a-secret"}


async def test_a_prompt_and_its_report_come_as_the_objects_that_the_service_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Able([["Three", " years."]]), monkeypatch, KEYS) as service:

        def use() -> None:
            with PromptClient(service.url, "a-secret") as client:
                found = client.prompt({**QUESTION, "mood": "good"})
                text = client.prompt({"prompt": "Once upon", "params": {"temperature": 0, "stop": ["."]}}, "/generate")
                with pytest.raises(InvalidRequest, match="query"):
                    client.prompt({"query": ""})
                with pytest.raises(InvalidRequest, match="/nowhere"):
                    client.prompt(QUESTION, "/nowhere")
            assert (found.model, found.dialect, found.route, found.stream) == (
                *("scripted", "opea", "/v1/chat/completions"),
                True,
            )
            assert found.model_server == {"kind": "openvino", "framework": "native"}
            assert "mood" in found.ignored
            (one,) = found.prompts
            assert isinstance(one.prompt, tuple)
            assert one.prompt[0].role == "system"
            assert isinstance(one.prompt[-1], Message)
            assert "Three years." in str(one.prompt[-1].content)
            assert (one.sampling.max_tokens, one.sampling.temperature) == (8, 0.01)
            assert [(use.number, use.fate) for use in one.report.documents] == [(1, "kept"), (2, "kept")]
            assert isinstance(one.report.documents[0], DocumentUse)
            assert text.prompts[0].sampling.stop == (".",)
            with PromptClient(service.url) as client, pytest.raises(Unauthorized):
                client.prompt(QUESTION)

        await asyncio.to_thread(use)
        asked = {"include_report": True, "stream": False, **QUESTION}
        answer = await service.post(asked, authorization="Bearer a-secret")
    (report,) = reports_of(answer.json)
    assert report.order == "given"
    assert [use.position for use in report.documents] == [1, 2]
    assert reports_of({"text": "Three years."}) == ()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"content": b"<html>Bad gateway</html>", "status_code": 502}, "status 502"),
        ({"json": ["no object"], "status_code": 404}, "status 404"),
        ({"json": {"error": "It broke."}, "status_code": 500}, "It broke"),
        ({"json": {"error": {"message": "It broke."}}, "status_code": 500}, "It broke"),
    ],
)
def test_an_answer_that_is_not_the_services_own_is_an_error_with_its_words_or_status(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, object], error: str
) -> None:
    client = PromptClient("http://127.0.0.1")
    response = httpx.Response(**said)  # type: ignore[arg-type]
    monkeypatch.setattr(client._http, "post", lambda *_, **__: response)
    from comps import LLMError

    with pytest.raises(LLMError, match=error):
        client.prompt(QUESTION)
    client.close()


def test_a_service_that_is_not_there_is_unreachable() -> None:
    with PromptClient("http://127.0.0.1:9") as client, pytest.raises(Unreachable, match="refused") as caught:
        client.prompt(QUESTION)
    assert "Errno" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:1", "url = localhost:1: a URL is needed, which begins with http:// or https://"),
        ("", "begins with http"),
        ("ftp://localhost", "begins with http"),
        ("http://", "no host"),
        ("http://[::1", "url = http"),
        ("me:a-secret@localhost:1", "begins with http"),
    ],
)
def test_a_url_that_is_none_of_http_is_told_at_once(url: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        PromptClient(url)
    assert said in str(caught.value)
    assert "a-secret" not in str(caught.value)
