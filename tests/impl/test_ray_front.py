"""What the service's Ray Serve application does without Ray; on a real one: tests/live."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from comps.app import make_app, read_settings
from comps.model_servers.scripted import Scripted
from impl.microservice import ray_app

PATIENCE = 60.0


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_request_that_ray_cancels_is_one_whose_client_left(
    monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setenv("FRAMEWORK", "native")
    server = Scripted([["one", asyncio.Event()]], name="scripted")

    def make() -> FastAPI:
        settings = read_settings(Path(os.devnull))
        app = make_app(settings, {settings.model.model_name: server})
        app.add_middleware(ray_app.DisconnectOnCancel)
        return app

    app = await asyncio.to_thread(make)
    body = [{"type": "http.request", "body": json.dumps({"query": "?", "streaming": streaming}).encode()}]
    sent: list[Any] = []

    async def receive() -> Any:
        return body.pop() if body else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async with app.router.lifespan_context(app):
        path = "/v1/chat/completions"
        request = asyncio.create_task(app(_scope("POST", path), receive, send))
        await asyncio.wait_for(server.reached.wait(), PATIENCE)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(request, PATIENCE)
        assert server.closed.is_set()
        assert not [message for message in sent if message.get("status", 200) != 200]
        metrics: list[Any] = []

        async def keep(message: Any) -> None:
            metrics.append(message)

        await app(_scope("GET", "/metrics"), receive, keep)
    told = b"".join(message.get("body", b"") for message in metrics).decode()
    assert re.search(rf'^opea_llm_requests_total\{{.*outcome="gone",path="{path}".*\}} 1.0$', told, re.MULTILINE)


def _scope(method: str, path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
    }


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["two"], {}, "ray_app: argument two: an argument is a name, = and a value, such as min_replicas=2"),
        ([], {"USVC_MAX_RUNNING": "0"}, "ray_app: environment USVC_MAX_RUNNING: [OPEA_Microservice] max_running = 0"),
        ([], {}, "ray_app: Ray is not installed here; mend it with: "),
    ],
)
def test_what_is_wrong_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    environment: dict[str, str],
    said: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ray_app, "find_spec", lambda _: None)
    assert ray_app.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_settings_of_the_http_server_that_ray_takes_the_place_of_are_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certificate = tmp_path / "certificate.pem"
    certificate.write_text("")
    monkeypatch.setattr("comps.app.read_tls", lambda settings: None)
    monkeypatch.setenv("USVC_WORKERS", "4")
    monkeypatch.setenv("USVC_TLS_CERTIFICATE", str(certificate))
    monkeypatch.setenv("USVC_PRE_STOP_SECONDS", "3")
    monkeypatch.setenv("USVC_IDLE_SECONDS", "5")  # The default.
    lost = ray_app.read_own_settings().without_effect
    assert [sentence.partition(" has no effect here")[0] for sentence in lost] == [
        "environment USVC_WORKERS: workers",
        "environment USVC_TLS_CERTIFICATE: tls_certificate",
        "environment USVC_PRE_STOP_SECONDS: pre_stop_seconds",
    ]
