"""What the Ray Serve application makes of the environment, and its /v1/completions; Ray itself: tests/live."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from comps.app import read_settings
from comps.core.errors import SettingsError
from comps.model_servers.scripted import Scripted
from impl.model_server.ray import serve_app
from tests.service import running

FOLDER = Path(__file__).parents[2] / "impl" / "model_server" / "ray"
COMPLETIONS = "/v1/completions"


@pytest.fixture(autouse=True)
def no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in serve_app.Plan.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def plan(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Any:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return serve_app.read_plan()


@pytest.mark.parametrize(("device", "engine"), [("CPU", "openvino"), ("gpu", "vllm"), ("HPU", "vllm")])
def test_the_device_chooses_the_engine(monkeypatch: pytest.MonkeyPatch, device: str, engine: str) -> None:
    assert plan(monkeypatch, LLM_DEVICE=device).engine == engine


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"LLM_RAY_MIN_REPLICAS": "0"}, "LLM_RAY_MIN_REPLICAS = 0"),
        ({"LLM_RAY_MIN_REPLICAS": "3", "LLM_RAY_MAX_REPLICAS": "2"}, "LLM_RAY_MAX_REPLICAS"),
        ({"LLM_ENDPOINT_PORT": "http"}, "LLM_ENDPOINT_PORT = http"),
        ({"LLM_DEVICE": "TPU"}, "LLM_DEVICE = TPU"),
        ({"LLM_DEVICE": "HPU", "LLM_RAY_ENGINE": "openvino"}, "LLM_DEVICE = HPU"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(named)):
        plan(monkeypatch, **environment)


def test_the_command_ends_with_that_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "serve_app.py")],
        env={"LLM_RAY_CPUS": "none"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("ray_serve: LLM_RAY_CPUS = none")


def test_every_variable_of_the_application_is_in_its_env_file() -> None:
    explained = set(re.findall(r"^(\w+)=", (FOLDER / ".env").read_text("utf-8"), re.MULTILINE))
    by_compose = {"LLM_DEVICE"}
    assert {name.upper() for name in serve_app.Plan.model_fields} - by_compose <= explained


def test_a_replica_is_set_up_by_the_plan_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told = plan(monkeypatch, LLM_NAME="some/model", LLM_RAY_ENGINE="openvino").environment
    monkeypatch.setenv("LLM_MODEL_SERVER_ENDPOINT", "http://the.microservices.own:8008")
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    settings = {one.key: one.value for one in read_settings(Path("/dev/null")).listing if one.section == "Model"}
    assert settings["model_server"] == "openvino"
    assert settings["model_name"] == "some/model"
    assert settings["framework"] == "native"
    assert settings["model_server_endpoint"] == ""


async def test_a_replica_has_openais_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {**plan(monkeypatch).environment, "LLM_NAME": "scripted"}
    async with running(Scripted([["alpha ", "beta"]]), monkeypatch, told) as service:
        text = await service.post({"prompt": "a", "echo": True}, COMPLETIONS)
        chat = await service.post({"messages": [{"role": "user", "content": "a"}]})
        wrong = await service.post(b"no JSON")
        listed = await service.get("/v1/models")
    assert text.json["choices"] == [{"index": 0, "text": "alpha beta", "logprobs": None, "finish_reason": "stop"}]
    assert text.headers["x-ignored-params"] == "echo"
    assert chat.json["choices"][0]["message"]["content"] == "alpha beta"
    assert wrong.json["error"]["param"] == "body"
    assert listed.json["data"][0]["id"] == "scripted"


def test_a_gaudi_is_asked_for_by_its_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    config = serve_app.vllm_config(plan(monkeypatch, LLM_DEVICE="HPU", VLLM_TP_SIZE="8"))
    assert config["placement_group_config"]["bundle_per_worker"]["HPU"] == 1
    assert config["engine_kwargs"]["tensor_parallel_size"] == 8
    assert "accelerator_type" not in config


def test_a_gpu_may_be_chosen_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    config = serve_app.vllm_config(plan(monkeypatch, LLM_DEVICE="GPU", LLM_RAY_ACCELERATOR_TYPE="H100"))
    assert config["accelerator_type"] == "H100"
    assert "placement_group_config" not in config
