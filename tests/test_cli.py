"""The command as a person uses it: real processes, real signals, exit codes and what they print."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
import typer

import comps.opening
import comps.serving
from comps.app import read_settings
from comps.cli.ask import ask
from comps.cli.check import check
from comps.cli.serve import serve
from comps.core.errors import SettingsError, Unreachable
from comps.core.generator import TextGenerator
from comps.core.models import Models
from comps.core.ports import Answer
from comps.core.prompts import INSTRUCTIONS
from comps.core.types import JSON, Finished, Prompt, Sampling, Usage
from comps.listening import listening_sockets
from comps.model_servers.scripted import Scripted
from comps.server import Server
from tests.cli.invoking import Ran, invoked
from tests.process import PATH, PATIENCE, QUICK, ROOT, Running, command, free_port, serving

LOADS_A_MODEL = pytest.mark.xdist_group("command")
"""Takes long, so that it begins early; one after the other, since each of them wants all cores."""


def ran(*arguments: str, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> Ran:
    """The command within this process, natively and in this folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(cwd)
        return invoked(*arguments, environment={"FRAMEWORK": "native", **(environment or {})})


@pytest.fixture
def answers(tmp_path: Path) -> str:
    """A file of one long scripted answer."""
    file = tmp_path / "answers.json"
    file.write_text(json.dumps([[f" word{n}" for n in range(2000)]]))
    return str(file)


@pytest.mark.parametrize(
    "program", [("-m", "comps", "serve"), (str(ROOT / "impl" / "microservice" / "opea_llm_microservice.py"),)]
)
def test_every_way_to_start_says_where_it_listens_with_which_model_and_how_to_try_it(program: tuple[str, ...]) -> None:
    with serving(*program, MODEL_SERVER="scripted", LLM_NAME="demo") as service:
        said = "".join(service.said)
        assert f"127.0.0.1:{service.port}" in said
        assert "demo (scripted, native)" in said
        curl = re.search(r"curl (http://\S+) -H 'Content-Type: application/json' -d '(.+)'", said)
        assert curl
        assert curl[1].endswith(f":{service.port}{PATH}")
        assert json.loads(service.post(json.loads(curl[2])))["text"]


@pytest.mark.parametrize(
    ("addresses", "variable", "warned"),
    [
        (["127.0.0.1"], "", False),
        (["127.3.2.1", "::1"], "", False),
        (["0.0.0.0"], "", True),
        (["::1", "10.1.2.3"], "", True),
        (["0.0.0.0"], "USVC_API_KEYS_FILE", False),
        (["0.0.0.0"], "USVC_API_KEYS", False),
        (["0.0.0.0"], "USVC_TLS_CERTIFICATE", True),
        (["0.0.0.0"], "USVC_TLS_CLIENT_CA", False),
    ],
)
async def test_it_warns_if_others_reach_it_without_a_key(
    addresses: list[str],
    variable: str,
    warned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def startup(self: Server, sockets: object = None) -> None:
        pass

    authority, file = trustme.CA(), tmp_path / "file"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(file)
    if variable.startswith("USVC_TLS"):
        monkeypatch.setenv("USVC_TLS_CERTIFICATE", str(file))
    if variable == "USVC_API_KEYS_FILE":
        file.write_text("web = s3cret")
    if variable:
        monkeypatch.setenv(variable, "web = s3cret" if variable == "USVC_API_KEYS" else str(file))
    monkeypatch.setenv("MODEL_SERVER", "scripted")
    monkeypatch.setattr(Server, "startup", startup)
    monkeypatch.setattr(comps.serving, "notice_silence", lambda *_: None)
    sockets: Any = [SimpleNamespace(getsockname=lambda one=one: (one, 9000)) for one in addresses]
    service = await asyncio.to_thread(lambda: comps.serving.ServiceProcess(read_settings(None)))
    await service.startup(sockets)
    warning = "  warnings: all who reach 0.0.0.0:9000 may ask, since no API key is set; USVC_API_KEYS_FILE names a file"
    assert (warning in capsys.readouterr().err) is warned


def test_it_begins_with_five_lines_what_is_served_by_whom_where_with_which_limits_and_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.ini").write_text(
        "[OPEA_Microservice]\nmax_running=7\nmax_waiting=8\nmax_wait_seconds=0\nserve_docs=no\nworkers=2\n"
        "[Logging]\nlog_prompts=yes\n[Dialects]\nenabled=openai, opea\n[Model]\nmodel_name=one\nmodel_server=vllm\n"
        "model_server_endpoint=http://me:s3cret@one:1/v1?k=s3cret, http://two:2\nframework=native\n"
        "[Model.two]\nmodel_server=scripted\nframework=langchain\n"
    )
    monkeypatch.setenv("USVC_HOST", "0.0.0.0")
    settings = read_settings(tmp_path / "config.ini")
    assert comps.serving.beginning(settings, ["few files", *comps.serving.wrong(settings, True)]).splitlines() == [
        "opea_service@llm: starting with one (vllm, native), two (scripted, langchain) …; requests get status 503 "
        "until it is ready",
        "  by: one by vllm at http://one:1/v1 and http://two:2, through native; two by scripted in this process, "
        "through langchain",
        "  at: http://localhost:9000 (listening on 0.0.0.0:9000), no key needed; pages: /ui, /metrics; dialects: "
        "openai, opea",
        "  limits: 7 requests of a model at once, 8 more wait; 16 MB a body; 4096 connections; 2 processes, each with "
        "these limits",
        "  warnings: few files; all who reach 0.0.0.0:9000 may ask, since no API key is set; USVC_API_KEYS_FILE names "
        "a file of keys; the log gets every prompt (log_prompts = true)",
    ]
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("USVC_API_KEYS", "web = s3cret")
    settings = read_settings(tmp_path / "config.ini")
    assert list(comps.serving.wrong(settings, True))[1:] == [
        "LangSmith gets every question and answer (LANGSMITH_TRACING)"
    ]
    assert comps.serving.beginning(settings, []).splitlines()[-1] == "  warnings: none"


def test_with_a_key_and_a_certificate_it_says_how_to_ask(tmp_path: Path) -> None:
    authority, certificate = trustme.CA(), tmp_path / "cert.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "keys").write_text("web = s3cret\n")
    environment = {"USVC_API_KEYS_FILE": str(tmp_path / "keys"), "USVC_TLS_CERTIFICATE": str(certificate)}
    with serving(MODEL_SERVER="scripted", USVC_HOST="0.0.0.0", **environment) as service:
        said = "".join(service.said)
        (printed,) = re.findall("Try it:  (curl .*)", said)
        trusting = {"CURL_CA_BUNDLE": str(tmp_path / "ca.pem"), "KEY": "s3cret"}
        done = subprocess.run(
            ["bash", "-c", printed], env={**os.environ, **trusting}, capture_output=True, timeout=PATIENCE, check=True
        )
    assert b'"text"' in done.stdout or b"data: " in done.stdout
    assert "warnings: none" in said
    assert "s3cret" not in said


LONG_STORY = {"query": "Tell me a long story.", "max_new_tokens": 60, "temperature": 0}


def told_during_its_answer(service: Running, tell: Callable[[], None]) -> None:
    """The service's last answer: one that had begun when it was told to end, and is whole."""
    with service.posting(LONG_STORY) as response:
        first = response.readline()
        tell()
        rest = response.read()
    assert first.startswith(b"data: b'")
    assert b"data: [DONE]" in rest
    assert rest.count(b"data: ") > 20
    assert service.process.wait(PATIENCE) == 0


@LOADS_A_MODEL
def test_the_embedded_model_answers_the_seeds_question_and_when_told_to_terminate_finishes_its_answer() -> None:
    question = {"query": "What is Deep Learning?", "max_new_tokens": 17, "temperature": 0.01}
    with serving(FRAMEWORK="langchain") as service:
        whole = json.loads(service.post({**question, "streaming": False}))
        streamed = service.post({**question, "streaming": True})
        told_during_its_answer(service, lambda: service.process.send_signal(signal.SIGTERM))
    assert "learning" in whole["text"].lower()
    assert whole["prompt"] == "What is Deep Learning?"
    assert streamed.startswith(b"data: b'")
    assert b"data: [DONE]\n\n" in streamed


def test_told_to_shut_down_by_a_client_of_llm_on_k8s_it_ends_and_says_nothing() -> None:
    dialects = "llm_on_k8s, opea"
    with serving(MODEL_SERVER="scripted", USVC_ALLOW_SHUTDOWN="true", LLM_DIALECTS=dialects) as service:
        with service.posting(None, "/shutdown") as told:
            assert (told.status, told.read()) == (200, b"")
            assert told.headers["content-type"] == "text/html; charset=utf-8"
        code = service.process.wait(PATIENCE)
    assert code == 0
    assert "Traceback" not in "".join(service.said)


def test_a_client_may_not_end_it_unless_the_settings_say_so_and_ctrl_c_ends_it_without_a_traceback() -> None:
    with serving(MODEL_SERVER="scripted") as service:
        with service.posting(None, "/shutdown") as told:
            assert told.status == 403
            assert b"allow_shutdown" in told.read()
        assert json.loads(service.post({"query": "?", "streaming": False}))["text"]
        code = service.end(signal.SIGINT)
        said = "".join(service.said)
    assert code == 0
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)], ids=str
)
def test_a_signal_while_the_model_loads_ends_it_and_its_engine(number: signal.Signals, code: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "comps", "serve"],
        env={**os.environ, **QUICK, "USVC_PORT": port, "USVC_HOST": "127.0.0.1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr
    for line in process.stderr:
        if ": starting with " in line:
            break
    os.killpg(process.pid, number)  # To all that the terminal runs, as Ctrl-C is.
    rest = process.stderr.read()  # Ends only when the engine, which has inherited it, has ended as well.
    assert process.wait(PATIENCE) == code
    process.stderr.close()
    assert "Traceback" not in rest


@pytest.mark.parametrize("arguments", [("serve",), ("ask", "?"), ("check",)])
def test_ctrl_c_before_anything_has_begun_is_silent(arguments: tuple[str, ...]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-v", "-m", "comps", *arguments],  # -v tells every import, so that one can be interrupted.
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    for line in process.stderr:
        if line.startswith("import 'comps.app'") or "comps/app.py" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(PATIENCE) == -signal.SIGINT
    process.stderr.close()
    assert "Traceback" not in rest


def test_a_port_that_is_taken_is_one_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = ran("serve", environment={"MODEL_SERVER": "scripted", "USVC_PORT": port, "USVC_HOST": "127.0.0.1"})
    assert done.code == 1
    assert done.err == (
        f"opea-llm: cannot listen on 127.0.0.1:{port}: address already in use; "
        f"[OPEA_Microservice] port = {port} (environment USVC_PORT); USVC_PORT sets another one\n"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_a_host_that_is_none_of_this_machine_is_a_wrong_setting(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USVC_HOST", host)
    with pytest.raises(SettingsError) as caught:
        listening_sockets(read_settings(Path(os.devnull)))
    (problem,) = caught.value.problems
    assert problem.startswith(f"cannot listen on {host}:9000: ")
    assert f"[OPEA_Microservice] host = {host} (environment USVC_HOST) is no address of this machine" in problem


def test_all_addresses_of_a_host_are_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USVC_HOST", "localhost")
    monkeypatch.setenv("USVC_PORT", str(free_port()))
    sockets = listening_sockets(read_settings(Path(os.devnull)))
    wanted = {info[4][0] for info in socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)}
    assert {one.getsockname()[0] for one in sockets} == wanted
    for one in sockets:
        one.close()


def test_a_model_server_that_does_not_answer_is_told_at_the_start_instead_of_that_it_is_ready(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("USVC_PORT", "9012")
    (tmp_path / "config.ini").write_text(TWO)
    settings = read_settings(tmp_path / "config.ini")
    away = Unreachable("away", operator_text="http://one:8008: connection refused")
    none = comps.serving.state(settings, {"one": away, "two": away})
    assert none.startswith("opea_service@llm: started at http://localhost:9012 ")
    assert "not ready: one (scripted, langchain) does not answer: http://one:8008: connection refused" in none
    assert "answering with" not in none
    one = comps.serving.state(settings, {"one": away})
    assert "answering with two (scripted, langchain); one (scripted, langchain) does not answer: http://one:8008" in one


def test_check_and_ask_tell_the_address_that_refuses_and_the_callers_of_the_service_only_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    environment = {"MODEL_SERVER": "vllm", "LLM_NAME": "foo", "LLM_MODEL_SERVER_ENDPOINT": url}
    cannot = "the model server cannot be reached:"
    for name, value in {**environment, "FRAMEWORK": "native"}.items():
        monkeypatch.setenv(name, value)
    for run, arguments in ((check, ()), (ask, ("?",))):
        with pytest.raises(typer.Exit) as ended:
            run(*arguments)
        assert ended.value.exit_code == 1
        assert capsys.readouterr().err == f"opea-llm: {cannot} {url}: connection refused\n"
    with serving(**environment) as service:
        with service.posting({"query": "?"}) as response:
            assert json.loads(response.read()) == {"detail": f"{cannot} connection refused"}
        service.end(signal.SIGINT)
    log = "".join(service.said)
    assert log.count(f"{cannot} {url}: connection refused") == 2, "once at the start, and once for the request"
    assert "Uvicorn" not in log


def test_a_model_that_is_not_there_ends_the_service_with_one_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    done = command("serve", environment={"LLM_NAME": "./nowhere.gguf", "USVC_PORT": port, "USVC_HOST": "127.0.0.1"})
    assert done.returncode == 2
    assert "nowhere.gguf" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"USVC_PORT": "70000"}, ("environment USVC_PORT", "port = 70000")),
        ({"USVC_PORT": "http"}, ("environment USVC_PORT", "port = http")),
        ({"LLM_NAME": ""}, ("environment LLM_NAME", "model_name")),
        ({"MODEL_SERVER": "vlllm"}, ("environment MODEL_SERVER", "vlllm")),
        ({"FRAMEWORK": "django"}, ("environment FRAMEWORK", "django")),
        ({"LLM_DIALECTS": "opea,klingon"}, ("environment LLM_DIALECTS", "klingon")),
    ],
)
@pytest.mark.parametrize("what", ["serve", "check", "ask", "prompt"])
def test_a_wrong_setting_is_one_line_and_exit_code_2(
    what: str, environment: dict[str, str], named: tuple[str, ...]
) -> None:
    done = invoked(what, *(["?"] if what in ("ask", "prompt") else []), environment=environment)
    assert done.code == 2
    (line,) = done.err.strip().splitlines()
    assert all(name in line for name in named)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[Model]\nmodel_nam = x\n", ("[Model] model_nam = x", "model_name")),
        ("[Modell]\nmodel_name = x\n", ("[Modell]", "Model")),
        ("[OPEA_Microservice]\nport = nine\n", ("port = nine",)),
        ("[Model]\nmodel_name =\n", ("model_name",)),
        ("port = 1\n", ("cannot be read", "line 1")),
        ("[Model]\nmodel_name = x  # mine\n", ("line 2", "[Model] model_name: a comment", "quotes")),
    ],
)
def test_a_wrong_file_is_one_line_and_exit_code_2(tmp_path: Path, text: str, named: tuple[str, ...]) -> None:
    file = tmp_path / "my.ini"
    file.write_text(text)
    done = invoked("check", "--config", str(file))
    assert done.code == 2
    (line,) = done.err.strip().splitlines()
    assert str(file) in line
    assert all(name in line for name in named)


def test_a_file_that_is_not_there_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = command("check", "--config", str(tmp_path / "none.ini"))
    assert done.returncode == 2
    assert "none.ini" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_shows_every_setting_with_its_source_and_whether_the_model_server_answers(tmp_path: Path) -> None:
    (tmp_path / "config.ini").write_text("[Model]\nmodel_name = 'from % file'\nmodel_server=scripted\n")
    done = ran("check", cwd=tmp_path, environment={"LLM_USVC_PORT": "1234"})
    assert done.code == 0
    lines = [re.sub(" +", " ", line) for line in done.out.splitlines()]
    assert "[Model] model_name = from % file (config.ini)" in lines
    assert "[OPEA_Microservice] port = 1234 (environment LLM_USVC_PORT)" in lines
    assert "[Logging] log_level = INFO (default)" in lines
    assert "scripted answers with from % file" in lines[-1]


TWO = "[Model]\nmodel_server=scripted\nmodel_name=one\n[Model.two]\nmodel_name=served as\n"


def test_check_reports_every_model(tmp_path: Path) -> None:
    (tmp_path / "config.ini").write_text(TWO)
    done = ran("check", cwd=tmp_path, environment={"LLM_CONTEXT_WINDOW__TWO": "77"})
    assert done.code == 0
    lines = [re.sub(" +", " ", line) for line in done.out.splitlines()]
    assert "[Model.two] model_server = scripted ([Model])" in lines
    assert "[Model.two] context_window = 77 (environment LLM_CONTEXT_WINDOW__TWO)" in lines
    assert lines[-2:] == [
        "model server of one: scripted answers with one, context window of unknown size",
        "model server of two: scripted answers with served as, context window 77 tokens",
    ]


def test_check_fails_if_one_of_several_models_does_not_answer_and_still_reports_the_others(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    away = f"model_server=openai_api\nmodel_server_endpoint=http://127.0.0.1:{port}\n"
    (tmp_path / "config.ini").write_text(f"[Model]\n{away}model_name=one\n[Model.two]\nmodel_server=scripted\n")
    done = ran("check", cwd=tmp_path)
    assert done.code == 1
    first, second = done.out.splitlines()[-2:]
    assert first.startswith("model server of one: openai_api does not answer: ")
    assert second.startswith("model server of two: scripted answers with two")
    assert done.err.splitlines()[-1] == "opea-llm: 1 of 2 do not answer; see above"


def test_check_reports_every_replica() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with serving(MODEL_SERVER="scripted", LLM_NAME="demo") as service:
        endpoints = f"http://127.0.0.1:{service.port},http://127.0.0.1:{port}"
        environment = {"MODEL_SERVER": "openai_api", "LLM_NAME": "demo", "LLM_MODEL_SERVER_ENDPOINT": endpoints}
        done = ran("check", environment=environment)
    assert done.code == 1
    first, second = done.out.splitlines()[-2:]
    assert first.startswith("model server of demo: openai_api answers with demo")
    assert second.startswith("model server of demo: openai_api does not answer")


def test_ask_asks_the_model_that_is_named(tmp_path: Path, answers: str) -> None:
    (tmp_path / "config.ini").write_text(f"{TWO}model_server_endpoint={answers}\n")
    first, second, third = (
        ran("ask", "?", "--max-tokens", "2", *model, cwd=tmp_path)
        for model in ((), ("--model", "two"), ("--model", "three"))
    )
    assert (first.code, first.out) == (0, "This answer\n")
    assert (second.code, second.out) == (0, " word0 word1\n")
    assert (third.code, third.out) == (2, "")
    assert "known: one, two" in third.err


def test_all_models_are_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "config.ini").write_text(TWO)
    with serving("-m", "comps", "serve", "-c", str(tmp_path / "config.ini")) as service:
        assert "one (scripted, native), two (scripted, native)" in "".join(service.said)
        with service.posting({"messages": "?", "model": "two"}) as response:
            assert json.loads(response.read())["model"] == "two"


def test_check_of_the_settings_alone_loads_no_model_and_asks_no_model_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("FRAMEWORK", "native")
    monkeypatch.setenv("LLM_NAME", str(tmp_path / "nowhere.gguf"))
    check(settings_only=True)
    monkeypatch.setenv("MODEL_SERVER", "vllm")
    monkeypatch.setenv("LLM_MODEL_SERVER_ENDPOINT", "http://127.0.0.1:1")
    check(settings_only=True)
    said = capsys.readouterr()
    assert said.out.count("[Model] model_name = ") == 2
    assert said.err == ""
    monkeypatch.setenv("LLM_MODEL_SERVER_ENDPOINT", "vllm:8000")  # No URL, which only opening it finds.
    with pytest.raises(typer.Exit) as ended:
        check(settings_only=True)
    assert ended.value.exit_code == 2
    assert "model_server_endpoint = vllm:8000" in capsys.readouterr().err


def test_a_device_that_is_not_here_is_told_with_the_wrong_settings_and_no_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, value in {"FRAMEWORK": "native", "LLM_DEVICE": "cuda", "USVC_PORT": "x", "LLM_NAEM": "y"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LLM_NAME", str(tmp_path / "nowhere.gguf"))
    with pytest.raises(typer.Exit) as ended:
        serve(Path(os.devnull))
    assert ended.value.exit_code == 2
    unknown, port, device = capsys.readouterr().err.splitlines()
    assert "LLM_NAEM" in unknown
    assert port.startswith("opea-llm: environment USVC_PORT: [OPEA_Microservice] port = x: ")
    assert device.startswith("opea-llm: [Model] device = cuda: OpenVINO finds no CUDA here; it finds: ")


def test_check_says_so_if_the_model_cannot_be_loaded(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 100)
    done = ran("check", environment={"LLM_NAME": str(broken)})
    assert done.code == 1
    assert "broken.gguf" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_ask_prints_the_answer_and_nothing_else_on_standard_output(answers: str) -> None:
    done = ran(
        "ask", "?", "--max-tokens", "3", environment={"MODEL_SERVER": "scripted", "LLM_MODEL_SERVER_ENDPOINT": answers}
    )
    assert (done.code, done.out) == (0, " word0 word1 word2\n")
    assert "cut short: length; --max-tokens allows more" in done.err


def test_ask_does_not_blame_its_limit_for_what_the_context_window_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comps.opening, "open_models", lambda _: Models([TextGenerator(Full(), "full")]))
    ask("?", max_tokens=3)
    assert capsys.readouterr() == ("one\n", "[cut short: length]\n")


def test_ask_says_which_documents_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.txt" for number in range(3)]
    for file in files:
        file.write_text("A lantern hangs in the harbour. " * 30)
    server = Scripted([["one"]], context_window=500)
    monkeypatch.setattr(comps.opening, "open_models", lambda _: Models([TextGenerator(server, "small")]))
    ask("?", files, max_tokens=3)
    why = "fit the context window]\n"
    assert capsys.readouterr() == (
        "one\n",
        f"[document 2 (1.txt) was cut: the rest does not {why}[document 3 (2.txt) was dropped: it does not {why}",
    )


class Full(Scripted):
    """A model server whose answers reach the context window after one token."""

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        answer.text("one")
        answer.finished(Finished("length", Usage(7, 1)))


@LOADS_A_MODEL
def test_ask_answers_from_documents_and_the_folder_it_is_run_in_lends_it_no_module(tmp_path: Path) -> None:
    (tmp_path / "comps").mkdir()
    for name in ("random.py", "json.py", "comps/__init__.py"):
        (tmp_path / name).write_text("raise SystemExit('imported from the current folder')")
    texts = {"bread": "Bread is made of flour.", "gaudi": "Gaudi 2 has 96 GB of memory.", "paris": "Paris is a city."}
    files = [tmp_path / f"{name}.txt" for name in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_text(text)
    documents = [argument for file in files for argument in ("--document", str(file))]
    done = subprocess.run(
        [str(Path(sys.executable).parent / "opea-llm"), "ask", "How much memory does Gaudi 2 have?", *documents],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "96" in done.stdout


def three_documents(folder: Path) -> list[str]:
    """The arguments that name three files of a hundred tokens and more."""
    for number in range(1, 4):
        (folder / f"{number}.txt").write_text(f"Lantern {number} hangs in the harbour. " * 10)
    return [argument for number in range(1, 4) for argument in ("-d", str(folder / f"{number}.txt"))]


SCRIPTED = {"MODEL_SERVER": "scripted"}
SMALL_AND_LARGE = (
    "[Model]\nmodel_server=scripted\nmodel_name=small\ncontext_window=300\n[Model.large]\ncontext_window=9000\n"
)


def test_prompt_shows_what_would_be_asked_and_where_something_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.ini").write_text(SMALL_AND_LARGE)
    done = ran("prompt", "Where [is] it?", *three_documents(tmp_path), "--max-tokens", "50", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    heading, report, shown = done.out.split("\n\n", 2)
    assert heading == "small (scripted, native)"
    facts = {line[:16].strip(): line[16:] for line in report.splitlines() if not line.startswith("document")}
    assert facts["context window"] == "300 tokens"
    assert facts["sampling"] == "max_tokens = 50, temperature = 0.0"
    numbers = re.fullmatch(r"(\d+) tokens \(question (\d+), documents (\d+)\)", facts["prompt"])
    assert numbers
    prompt, question, documents = map(int, numbers.groups())
    assert prompt == question + documents
    assert facts["headroom"] == f"{300 - prompt - 50} tokens"
    fates = [line.split()[2:5] for line in report.splitlines() if line.startswith("document")]
    assert [(name, fate) for name, fate, _ in fates] == [("1.txt", "kept"), ("2.txt", "cut"), ("3.txt", "dropped")]
    (missing,) = re.findall(
        r"harbour\.\n\[\.\.\. document 2 \(2\.txt\) is cut: (\d+) tokens missing\]\n"
        r"\[\.\.\. document 3 \(3\.txt\) is dropped: \d+ tokens missing\]\n\nWhere \[is\] it\?\n$",
        shown,
    )
    (used, size) = re.findall(r"cut +(\d+) of (\d+) tokens", report)[0]
    assert int(missing) == int(size) - int(used)
    assert shown.startswith(f"system:\n{INSTRUCTIONS['en']}\n\nuser:\nContext:\n1.txt: ")
    assert "Lantern 3" not in shown


def test_prompt_shows_two_models_side_by_side_in_colour_and_elsewhere_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "config.ini").write_text(SMALL_AND_LARGE)
    models = ("--model", "small", "--model", "large")
    arguments = ("prompt", "Where?", *three_documents(tmp_path), "--max-tokens", "50", *models)
    terminal = ran(*arguments, cwd=tmp_path, environment={"FORCE_COLOR": "1", "COLUMNS": "150", "TERM": "xterm"})
    first, *lines = terminal.out.splitlines()
    assert re.search("small.*large", first)
    assert any("\x1b[33mcut" in line and "\x1b[32mkept" in line for line in lines)
    piped = ran(*arguments, cwd=tmp_path)
    assert "\x1b" not in piped.out
    assert re.findall(r"^(\w+) \(scripted", piped.out, re.MULTILINE) == ["small", "large"]
    assert piped.out.count("Lantern 3 hangs") == 10


def test_prompt_shows_the_text_that_a_chat_template_makes_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Rain.")
    environment = {"MODEL_SERVER": "scripted", "LLM_CHAT_TEMPLATE": "chatml"}
    done = ran("prompt", "Why?", "-d", str(tmp_path / "a.txt"), environment=environment)
    assert (done.code, done.err) == (0, "")
    assert "counted         estimated, without the model's tokenizer\n" in done.out
    assert "\n\n<|im_start|>system\n" in done.out
    assert "<|im_start|>user\nContext:\na.txt: Rain.\n\nWhy?<|im_end|>\n<|im_start|>assistant\n" in done.out


def test_prompt_gives_a_terminal_no_commands_from_a_document(tmp_path: Path) -> None:
    (tmp_path / "evil.txt").write_text("a\x1b[2Jb\x9b2Jc\x07[red]d")
    arguments = ("prompt", "?", "-d", str(tmp_path / "evil.txt"))
    environment = {"MODEL_SERVER": "scripted", "FORCE_COLOR": "1", "TERM": "xterm"}
    shown = ran(*arguments, environment=environment)
    assert "a␛[2Jb\ufffd2Jc␇[red]d" in shown.out


def test_prompt_names_a_model_that_is_not_there_before_it_loads_one(tmp_path: Path) -> None:
    (tmp_path / "config.ini").write_text(SMALL_AND_LARGE)
    done = ran("prompt", "?", "--model", "small", "--model", "huge", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err == "opea-llm: model: 'huge' is not served here; known: small, large\n"


def test_a_folder_stands_for_its_text_files_of_which_the_most_relevant_comes_first(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    texts = {"a.txt": "Herring is sold on Fridays.", "b/c.md": "The bridge was opened in 1931.", "d.bin": "\x00"}
    for name, text in {**texts, "e.txt": " \n", ".git/f.txt": "hidden"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    done = ran("prompt", "When was the bridge opened?", "-d", ".", cwd=tmp_path, environment=SCRIPTED)
    assert done.code == 0
    reasons = {"e.txt": "it has no text", "latin.txt": "it is not UTF-8 text"}
    assert done.err == "".join(
        f"[left out: --document {name}: cannot be read: {why}]\n" for name, why in reasons.items()
    )
    assert "Context:\nb/c.md: The bridge was opened in 1931.\na.txt: Herring is sold on Fridays.\n\nWhen" in done.out


def test_ask_names_a_document_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for file in ("none.txt", "binary", "."):
        done = ran("ask", "?", "-d", str(tmp_path / file), environment={"MODEL_SERVER": "scripted"})
        assert done.code == 2
        (line,) = done.err.strip().splitlines()
        assert str(tmp_path / file) in line


def test_ctrl_c_ends_ask_at_once_and_quietly(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    file.write_text(json.dumps([["word "] * 100_000]))
    process = subprocess.Popen(
        [sys.executable, "-m", "comps", "ask", "?", "--max-tokens", "100000"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MODEL_SERVER": "scripted", "LLM_MODEL_SERVER_ENDPOINT": str(file)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stderr
    assert process.stdout.read(5) == b"word "
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert b"Traceback" not in said


def test_the_log_goes_to_its_file(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "llm.log"
    with serving(MODEL_SERVER="scripted", LOG_PATH=str(log), LOG_LEVEL="info") as service:
        service.post({"query": "?"})
        assert service.end(signal.SIGINT) == 0
    assert f"{PATH} 200" in log.read_text()


async def test_a_client_that_takes_nothing_of_its_answer_counts_as_gone_after_the_time_that_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"MODEL_SERVER": "scripted", "USVC_HOST": "127.0.0.1", "USVC_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("USVC_STALLED_CLIENT_SECONDS", "33")
    service = await asyncio.to_thread(lambda: comps.serving.ServiceProcess(read_settings(Path(os.devnull))))
    service.config.load()
    service.lifespan = service.config.lifespan_class(service.config)
    await service.startup()
    try:
        (listening,) = service.servers[0].sockets
        assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 33_000
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    finally:
        await service.shutdown()


def test_it_raises_the_limit_of_open_files_and_serves_fewer_connections_if_that_is_too_low() -> None:
    with serving(within=["prlimit", "--nofile=50:64"], MODEL_SERVER="scripted") as service:
        assert resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE) == (64, 64)
        assert "only 64 files may be open (ulimit -n), so that 16 connections are served" in "".join(service.said)
        clients = [socket.create_connection(("127.0.0.1", service.port), PATIENCE) for _ in range(100)]
        assert clients[-1].recv(1) == b""  # It is accepted and closed, since there is no file for it.
        for client in clients:
            client.close()
        while True:  # Until it has noticed that they are closed.
            with suppress(ConnectionError), service.posting({"query": "?", "streaming": False}) as response:
                if response.status == 200:
                    break
                assert response.status == 503
