"""What the Ray Serve application makes of the environment, and its /v1/completions; Ray itself: tests/live."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvicorn

from comps.app import make_app, read_settings
from comps.core.errors import SettingsError
from tests.service import PATIENCE, Announced, Service

FOLDER = Path(__file__).parents[2] / "impl" / "model_server" / "ray"
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def serve_app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serve_app", FOLDER / "serve_app.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve_app"] = module
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture(autouse=True)
def no_plan(monkeypatch: pytest.MonkeyPatch, serve_app: ModuleType) -> None:
    for name in serve_app.Plan.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def plan(serve_app: ModuleType, monkeypatch: pytest.MonkeyPatch, **environment: str) -> Any:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return serve_app.read_plan()


@pytest.mark.parametrize(("device", "engine"), [("CPU", "openvino"), ("gpu", "vllm"), ("HPU", "vllm")])
def test_the_device_chooses_the_engine(
    serve_app: ModuleType, monkeypatch: pytest.MonkeyPatch, device: str, engine: str
) -> None:
    assert plan(serve_app, monkeypatch, LLM_DEVICE=device).engine == engine


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
def test_a_wrong_variable_is_named(
    serve_app: ModuleType, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], named: str
) -> None:
    with pytest.raises(SettingsError, match=re.escape(named)):
        plan(serve_app, monkeypatch, **environment)


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


def test_every_variable_of_the_application_is_in_its_env_file(serve_app: ModuleType) -> None:
    explained = set(re.findall(r"^(\w+)=", (FOLDER / ".env").read_text("utf-8"), re.MULTILINE))
    by_compose = {"LLM_DEVICE"}
    assert {name.upper() for name in serve_app.Plan.model_fields} - by_compose <= explained


def test_a_replica_is_set_up_by_the_plan_alone(serve_app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    told = plan(serve_app, monkeypatch, LLM_NAME="some/model", LLM_RAY_ENGINE="openvino").environment
    monkeypatch.setenv("LLM_MODEL_SERVER_ENDPOINT", "http://the.microservices.own:8008")
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    settings = {one.key: one.value for one in read_settings(Path("/dev/null")).listing if one.section == "Model"}
    assert settings["model_server"] == "openvino"
    assert settings["model_name"] == "some/model"
    assert settings["framework"] == "native"
    assert settings["model_server_endpoint"] == ""


def test_a_gaudi_is_asked_for_by_its_resource(serve_app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    config = serve_app.vllm_config(plan(serve_app, monkeypatch, LLM_DEVICE="HPU", VLLM_TP_SIZE="8"))
    assert config["placement_group_config"]["bundle_per_worker"]["HPU"] == 1
    assert config["engine_kwargs"]["tensor_parallel_size"] == 8
    assert "accelerator_type" not in config


def test_a_gpu_may_be_chosen_by_its_type(serve_app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    config = serve_app.vllm_config(plan(serve_app, monkeypatch, LLM_DEVICE="GPU", LLM_RAY_ACCELERATOR_TYPE="H100"))
    assert config["accelerator_type"] == "H100"
    assert "placement_group_config" not in config


async def ask(serve_app: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *bodies: Any) -> list[Any]:
    """What a replica's service answers, over a socket; its model says what is written here."""
    script = folder / "answers.json"
    script.write_text(json.dumps([["alpha ", "beta"]]), "utf-8")
    settings = {"MODEL_SERVER": "scripted", "LLM_NAME": "scripted", "FRAMEWORK": "native"}
    for name, value in {**settings, "LLM_MODEL_SERVER_ENDPOINT": str(script)}.items():
        monkeypatch.setenv(name, value)
    app = await asyncio.to_thread(lambda: make_app(read_settings(None), further=[serve_app.COMPLETIONS]))
    config = uvicorn.Config(app, port=0, host="127.0.0.1", http="httptools", log_config=None, access_log=False)
    running = Announced(config)
    serving = asyncio.ensure_future(running.serve())
    try:
        await asyncio.wait_for(running.listening.wait(), PATIENCE)
        service = Service(app, running, running.servers[0].sockets[0].getsockname()[1])
        return [await service.post(body, COMPLETIONS) for body in bodies]
    finally:
        running.should_exit = True
        await asyncio.wait_for(serving, PATIENCE)


async def test_a_completion_is_openai_s(serve_app: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one, two = await ask(serve_app, monkeypatch, tmp_path, {"prompt": "a", "echo": True}, {"prompt": ["a", "b"]})
    assert one.json["object"] == "text_completion"
    assert one.json["choices"] == [{"index": 0, "text": "alpha beta", "logprobs": None, "finish_reason": "stop"}]
    assert one.headers["x-ignored-params"] == "echo"
    assert [choice["index"] for choice in two.json["choices"]] == [0, 1]
    usages = [answer.json["usage"]["completion_tokens"] for answer in (one, two)]
    assert usages[1] == 2 * usages[0] > 0


async def test_a_streamed_completion_is_openai_s(
    serve_app: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}
    (answer,) = await ask(serve_app, monkeypatch, tmp_path, body)
    items = [chunk.removeprefix(b"data: ").strip() for chunk in answer.chunks]
    assert items.pop() == b"[DONE]"
    *pieces, usage = map(json.loads, items)
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == "alpha beta"
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] > 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": ["a", "b"], "stream": True}, "prompt"),
        (b"no JSON", "body"),
    ],
)
async def test_an_error_is_openai_s(
    serve_app: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: Any, field: str
) -> None:
    (answer,) = await ask(serve_app, monkeypatch, tmp_path, body)
    assert answer.status == 400
    assert answer.json["error"]["param"] == field
