"""docker/healthcheck.py: where it asks, and what it makes of the answer."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import trustme

from comps.core.errors import Unreachable
from comps.core.types import ModelInfo
from comps.model_servers.scripted import Scripted
from comps.settings import SECTIONS, environment_names
from tests.service import running

SCRIPT = Path(__file__).parents[2] / "docker" / "healthcheck.py"


class Ready(BaseHTTPRequestHandler):
    """Says what its server has been told to."""

    def do_GET(self) -> None:
        status, text = self.server.says if self.path == "/ready" else (404, "")  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        server.says = (200, "")  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The program, beside a configuration file that is not there yet."""
    spec = importlib.util.spec_from_file_location("healthcheck", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CONFIG", tmp_path / "config.ini")
    return module


def test_ready_is_0_and_anything_else_is_1_with_the_reason(
    check: ModuleType, service: HTTPServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("USVC_PORT", str(service.server_port))
    assert check.main([]) == 0
    service.says = (503, '{"error":\n"the model is still loading"}')  # type: ignore[attr-defined]
    assert check.main([]) == 1
    assert capsys.readouterr().out == 'ready\n503: {"error": "the model is still loading"}\n'


async def test_a_service_with_a_certificate_is_asked_over_tls(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, file = trustme.CA(), tmp_path / "cert.pem"
    authority.issue_cert("llm.example.com").private_key_and_cert_chain_pem.write_to_path(file)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for further in ({}, {"USVC_TLS_CLIENT_CA": str(tmp_path / "ca.pem")}):
        environment = {"USVC_TLS_CERTIFICATE": str(file), **further}
        async with running(Scripted(), monkeypatch, environment) as service:
            monkeypatch.setenv("USVC_PORT", str(service.port))
            assert await asyncio.to_thread(check.main, []) == 0
    async with running(Absent(), monkeypatch, {"USVC_TLS_CLIENT_CA": ""}) as service:
        monkeypatch.setenv("USVC_PORT", str(service.port))
        assert await asyncio.to_thread(check.main, []) == 1


class Absent(Scripted):
    """A model server that cannot answer."""

    async def describe(self) -> ModelInfo:
        raise Unreachable("away")


def test_no_listener_is_1(
    check: ModuleType, service: HTTPServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service.server_close()
    monkeypatch.setenv("USVC_PORT", str(service.server_port))
    assert check.main([]) == 1
    assert f"127.0.0.1:{service.server_port} does not answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "config", "asked"),
    [
        ({}, None, ("127.0.0.1", "9000")),
        ({"USVC_PORT": "1", "LLM_USVC_PORT": "2"}, None, ("127.0.0.1", "1")),
        ({"LLM_USVC_PORT": "2"}, "[OPEA_Microservice]\nport = 3\n", ("127.0.0.1", "2")),
        ({"USVC_PORT": ""}, '[OPEA_Microservice]\nport="3"\nhost="0.0.0.0"\n', ("127.0.0.1", "3")),
        ({}, "[OPEA_Microservice]\nhost = ::\nname = 100%\n", ("::1", "9000")),
        ({"USVC_HOST": "10.1.2.3"}, "[OPEA_Microservice]\nhost = ::\n", ("10.1.2.3", "9000")),
        ({}, "no settings at all", ("127.0.0.1", "9000")),
    ],
)
def test_it_asks_where_the_settings_say(
    check: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    config: str | None,
    asked: tuple[str, str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if config is not None:
        check.CONFIG.write_text(config, "utf-8")
    monkeypatch.setattr(check, "trouble", lambda *address: "" if address == (*asked, False) else f"asked at {address}")
    assert check.main([]) == 0


def test_another_service_s_port_is_in_the_variable_that_is_named(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USVC_PORT", "1")
    monkeypatch.setenv("LLM_ENDPOINT_PORT", "8008")
    monkeypatch.setattr(check, "trouble", lambda host, port, tls: "" if port == "8008" else f"asked at {port}")
    assert check.main(["LLM_ENDPOINT_PORT"]) == 0


def test_it_knows_all_names_that_the_settings_have_for_the_port() -> None:
    names = environment_names(SECTIONS["OPEA_Microservice"].model_fields["port"])
    text = SCRIPT.read_text("utf-8")
    assert all(f'"{name}"' in text for name in names)


def test_it_is_a_program_of_the_standard_library_alone(service: HTTPServer) -> None:
    command = [sys.executable, "-I", "-S", str(SCRIPT)]
    for says, code in (((200, ""), 0), ((503, "no"), 1)):
        service.says = says  # type: ignore[attr-defined]
        environment = {"USVC_PORT": str(service.server_port)}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (code, b"")
