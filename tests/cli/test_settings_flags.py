"""Flags of `serve` as settings: before the environment, which is before the file; and what is wrong names the flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

import comps.serving
from comps.cli.serve import serve
from comps.settings import Settings
from comps.settings.example_file import example_file
from tests.process import ROOT

FLAGS: dict[str, tuple[Any, str, str, str]] = {
    "host": ("127.0.0.9", "OPEA_Microservice", "host", "USVC_HOST"),
    "port": (8123, "OPEA_Microservice", "port", "LLM_USVC_PORT"),
    "workers": (3, "OPEA_Microservice", "workers", "USVC_WORKERS"),
    "model": ("mine", "Model", "model_name", "LLM_MODEL_ID"),
    "endpoint": ("http://127.0.0.1:1/v1", "Model", "model_server_endpoint", "LLM_ENDPOINT"),
    "model_server": ("openai_api", "Model", "model_server", "MODEL_SERVER"),
    "framework": ("native", "Model", "framework", "FRAMEWORK"),
    "log_level": ("DEBUG", "Logging", "log_level", "OPEA_LOGGER_LEVEL"),
}
IN_FILE = {
    "Logging": {"log_level": "ERROR"},
    "OPEA_Microservice": {"host": "127.0.0.2", "port": "8001", "workers": "2"},
    "Model": {
        "model_name": "of-file",
        "model_server": "vllm",
        "model_server_endpoint": "http://127.0.0.1:2",
        "framework": "langchain",
    },
}


class Started(Exception):
    """The service would run now."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings with which the service is started."""
    settings: list[Settings] = []

    def start(given: Settings) -> None:
        settings.append(given)
        raise Started

    monkeypatch.setattr(comps.serving, "ServiceProcess", start)
    return settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    written = tmp_path / "config.ini"
    sections = (f"[{name}]\n" + "".join(f"{k}={v}\n" for k, v in keys.items()) for name, keys in IN_FILE.items())
    written.write_text("".join(sections))
    return written


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_goes_before_the_environment_which_goes_before_the_file(
    flag: str, file: Path, started: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    meant, section, key, variable = FLAGS[flag]
    monkeypatch.delenv("FRAMEWORK", raising=False)
    in_environment = {"host": "127.0.0.3", "port": "8002", "workers": "4", "model_server": "openai_api"}
    in_environment |= {"model": "of-env", "endpoint": "http://127.0.0.1:3", "framework": "native", "log_level": "INFO"}
    monkeypatch.setenv(variable, in_environment[flag])
    for given in ({flag: meant}, {}):
        with pytest.raises(Started):
            serve(file, **given)
    monkeypatch.delenv(variable)
    with pytest.raises(Started):
        serve(file)
    shown = [{(one.section, one.key): one for one in each.listing}[section, key] for each in started]
    assert [one.value for one in shown] == [str(meant), in_environment[flag], IN_FILE[section][key]]
    sources = ["--" + flag.replace("_", "-"), f"environment {variable}", str(file)]
    assert [one.source for one in shown] == sources


def test_what_is_wrong_with_flags_is_told_at_once_and_names_them(
    started: list[Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USVC_PORT", "80")
    with pytest.raises(typer.Exit) as ended:
        serve(None, port=70000, model_server="vlllm", framework="django", log_level="loud", workers=0)
    assert ended.value.exit_code == 2
    said = capsys.readouterr().err
    for told in (
        "--port: [OPEA_Microservice] port = 70000: ",
        "--workers: [OPEA_Microservice] workers = 0: ",
        "--log-level: [Logging] log_level = LOUD: ",
        "--framework: [Model] framework = django: ",
        "--model-server: [Model] model_server = vlllm: unknown; did you mean vllm?",
    ):
        assert f"opea-llm: {told}" in said
    assert started == []


def test_the_file_that_config_init_writes_is_the_one_that_is_shipped() -> None:
    """If it is not: `opea-llm config init --force`, and what is not of a setting is in `example_file.py`."""
    assert example_file() == (ROOT / "config.ini").read_text("utf-8")
