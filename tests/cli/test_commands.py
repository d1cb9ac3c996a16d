"""Help, version, completion, progress and colours; `config init` and `pull`."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from threading import active_count

import pytest

import comps.exit_codes
from comps.app import read_settings
from comps.cli import cli
from comps.cli.path_faults import Finding, shown
from comps.cli.progress import progress
from tests.cli.invoking import invoked
from tests.model_servers.embedded import fake_hub
from tests.process import QUICK

COMMANDS = [command.callback.__name__ for command in cli.registered_commands if command.callback]


def test_the_help_names_all_commands_examples_and_exit_codes_and_the_version_is_the_package_s() -> None:
    said = invoked("--help")
    assert said.code == 0
    for name in (*COMMANDS, "config"):
        assert re.search(rf"^  {name} +\w.*[^.]\.$", said.out, re.MULTILINE), name
    for code in ("FAILED", "WRONG_SETTINGS", "FOUND", "CUT_OFF", "INTERRUPTED"):
        assert re.search(rf"^ +{getattr(comps.exit_codes, code)}  \w", said.out, re.MULTILINE)
    assert "opea-llm ask " in said.out
    assert (invoked("--version").out, invoked("-V").code) == (f"opea-llm {version('opea-llm-microservice')}\n", 0)
    unknown = invoked("serv")
    assert unknown.code == 2
    assert "No such command 'serv'" in unknown.err


@pytest.mark.parametrize("command", [*((name,) for name in COMMANDS), ("config", "init")])
def test_each_command_has_examples_that_are_commands(command: Sequence[str]) -> None:
    said = invoked(*command, "--help").out
    examples = re.findall(r"^ +(?:.*\| |eval \"\$\()?opea-llm (\w+)", said.partition("Examples:")[2], re.MULTILINE)
    assert examples
    assert set(examples) == {command[0]}


def test_help_and_completion_load_neither_web_nor_models() -> None:
    code = "import sys, comps.cli; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **QUICK}, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "typer" in loaded
    assert not loaded & {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "rich", "huggingface_hub"}


def test_bash_completes_by_the_script_that_is_printed(tmp_path: Path) -> None:
    (tmp_path / "opea-llm").write_text(f'#!/bin/sh\nexec {sys.executable} -m comps "$@"\n')
    (tmp_path / "opea-llm").chmod(0o755)
    program = f"""
        {invoked("completion", "bash").out}
        complete -p opea-llm >/dev/null
        COMP_WORDS=(opea-llm ch); COMP_CWORD=1
        _opea_llm_completion opea-llm
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, **QUICK, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["chat", "check"]


@pytest.mark.parametrize(
    ("line", "completed"),
    [("serve --mod", ["--model", "--model-server"]), ("serve --model-server v", ["vllm"]), ("completion z", ["zsh"])],
)
def test_flags_and_their_values_are_completed(line: str, completed: list[str]) -> None:
    words = {"COMP_WORDS": f"opea-llm {line}".replace(" ", "\n"), "COMP_CWORD": str(len(line.split()))}
    assert invoked(environment={"_OPEA_LLM_COMPLETE": "complete_bash", **words}).out.split() == completed


def test_the_key_for_services_in_the_environment_disturbs_no_other_command() -> None:
    done = invoked("check", "--settings", environment={"OPEA_LLM_API_KEY": "x", "MODEL_SERVER": "scripted"})
    assert (done.code, done.err) == (0, "")


def test_the_help_of_a_key_names_the_flag_that_it_is_for() -> None:
    for command, flag in (("ask", "--url"), ("check", "--through")):
        (said,) = re.findall(r"--api-key .*(?:\n {10,}.*)*", invoked(command, "--help").out)
        assert flag in said
        assert ("--url" in said) is (flag == "--url")


def test_zsh_and_fish_have_scripts_and_no_other_shell_does() -> None:
    assert "#compdef opea-llm" in invoked("completion", "zsh").out
    assert "complete --command opea-llm" in invoked("completion", "fish").out
    assert invoked("completion", "csh").code == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_alone_after_a_while_and_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, waits in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        threads = active_count()
        with progress("Loading it", after=0.01):
            assert active_count() - threads == waits
            while waits and "Loading it … 0 s" not in stream.getvalue():
                time.sleep(0.001)
        assert stream.getvalue().endswith("\r\x1b[K") is waits
        assert bool(stream.getvalue()) is waits
    monkeypatch.setattr(sys, "stderr", quick := Terminal())
    with progress("Loading it") as end:
        end()
    assert quick.getvalue() == ""


def test_colours_are_for_terminals_without_no_color_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = Finding("idle", True, "cut\x1b[2J", "mend it")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    coloured = shown(finding)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown(finding)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert coloured == "\x1b[31mFAULT\x1b[0m idle: cut\\u001b[2J\n      mend: mend it"
    assert plain == shown(finding) == "FAULT idle: cut\\u001b[2J\n      mend: mend it"


def test_config_init_writes_a_file_that_can_be_served_and_writes_over_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoked("config", "init")
    assert (done.code, done.out) == (0, "")
    assert {one.source for one in read_settings(None).listing if "environment" not in one.source} <= {
        "config.ini",
        "default",
    }
    Path("config.ini").write_text("mine")
    assert invoked("config", "init").err == "opea-llm: config.ini is there already; --force writes over it\n"
    assert Path("config.ini").read_text() == "mine"
    printed = invoked("config", "init", "-")
    assert invoked("config", "init", "--force").code == 0
    assert Path("config.ini").read_text() == printed.out
    away = invoked("config", "init", str(tmp_path / "no" / "file"))
    assert (away.code, away.err) == (1, f"opea-llm: {tmp_path}/no/file: cannot be written: No such file or directory\n")


GGUF = b"GGUF" + bytes(100)
REPOSITORIES = {
    "owner/ggufs": {"model-Q2_K.gguf": GGUF, "model-Q8_0.gguf": GGUF + b"8"},
    "owner/weights": {"config.json": b"{}", "model.safetensors": b"weights", "model.bin": b"others", "cat.png": b""},
}


PULL = """
import sys
from comps.cli import cli
for arguments in (["owner/ggufs"], ["owner/weights", "--model-server", "transformers"]):
    try:
        cli(["pull", *arguments])
    except SystemExit as ended:
        print(ended.code)
"""


def test_pull_fetches_what_each_engine_loads_and_says_where_it_is(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), **QUICK}
    with fake_hub.running(REPOSITORIES) as hub:
        environment |= {"HF_ENDPOINT": hub.url}
        done = subprocess.run([sys.executable, "-c", PULL], env=environment, capture_output=True, text=True, check=True)
    gguf, one, weights, two = done.stdout.splitlines()
    assert (one, two) == ("0", "0")
    assert Path(gguf).name == "model-Q8_0.gguf"
    assert "Serve it: opea-llm serve --model-server openvino --model owner/ggufs\n" in done.stderr
    assert "\r" not in done.stderr
    assert sorted(file.name for file in Path(weights).iterdir()) == ["config.json", "model.safetensors"]
    assert invoked("pull", "owner/ggufs", "--model-server", "vllm").err == (
        "opea-llm: --model-server vllm: runs no model here; known: openvino, llama_cpp, transformers\n"
    )
