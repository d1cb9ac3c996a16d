"""A config.yaml of llm-api, and what that service has left in its models_dir: served as it is, without a network."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from hashlib import md5
from pathlib import Path

import pytest
import yaml

from comps.core.types import JSON
from comps.model_servers.embedded.model_files import BUNDLED_MODEL, find_model
from tests.process import PATIENCE, Running, command, serving

pytestmark = pytest.mark.live

OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def kept_in(models_dir: Path, family: str, name: str) -> Path:
    """The folder of a model, called as llm-api calls it."""
    digits = str(int(md5(name.encode()).hexdigest(), 16))[:12]
    folder = models_dir / f"{family}_{digits}"
    folder.mkdir(parents=True)
    return folder


def written(file: Path, said: JSON) -> Path:
    file.write_text(yaml.safe_dump(said))
    return file


def generated(service: Running, params: Mapping[str, JSON]) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
    try:
        body = json.dumps({"prompt": "Once upon a time", "params": params})
        connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            assert response.status == 200
            text = json.loads(response.read())
    finally:
        connection.close()
    assert isinstance(text, str)
    return text


def test_a_model_of_llama_runs_in_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    name = "ggml-model-q4_1.bin"  # A GGUF file whatever it is called.
    (kept_in(tmp_path, "llama", name) / name).symlink_to(find_model(BUNDLED_MODEL))
    said = {
        "models_dir": str(tmp_path),
        "model_family": "llama",
        "setup_params": {"repo_id": "user/repo", "filename": name, "convert": False},
        "model_params": {
            "n_ctx": 512,
            "n_parts": -1,
            "num_threads": 1,
            "batch_size": 128,
            "seed": 1337,
            "use_mmap": True,
        },
    }
    file = str(written(tmp_path / "config.yaml", said))
    done = command("check", "--config", file, environment=OFFLINE)
    assert done.returncode == 0, done.stderr
    assert f"answers with user/repo/{name}, context window 512 tokens" in done.stdout
    assert "model_params.n_parts: no effect here" in done.stderr
    asked = command("ask", "Hi", "--max-tokens", "4", "--config", file, environment=OFFLINE)
    assert asked.returncode == 0
    assert asked.stdout.strip()
    with serving("-m", "comps", "serve", "--config", file, **OFFLINE) as service:
        greedy = generated(service, {"max_tokens": 8, "temperature": 0})
        assert greedy == generated(service, {"n_predict": 8, "temp": 0})
        # The seed of the file counts where a request has none.
        drawn = [generated(service, {"max_tokens": 24, "temperature": 2.0, **own}) for own in ({}, {}, {"seed": 1})]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_model_of_huggingface_runs_in_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    repository = kept_in(tmp_path, "huggingface", "user/tiny") / "models--user--tiny"
    snapshot = repository / "snapshots" / "c0ffee"
    subprocess.run(
        [sys.executable, "-m", "tests.model_servers.embedded.tiny_model", str(snapshot)], check=True, timeout=300
    )
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    said = {
        "models_dir": str(tmp_path),
        "model_family": "huggingface",
        "setup_params": {
            "repo_id": "user/tiny",
            "tokenizer_repo_id": "user/tiny",
            "trust_remote_code": True,
            "config_params": {"init_device": "cpu", "max_position_embeddings": 96},
        },
        "model_params": {"device_map": "cpu", "trust_remote_code": True, "torch_dtype": "torch.bfloat16"},
    }
    file = str(written(tmp_path / "config.yaml", said))
    done = command("check", "--config", file, environment=OFFLINE)
    assert done.returncode == 0, done.stderr
    assert "answers with user/tiny, context window 96 tokens" in done.stdout
    with serving("-m", "comps", "serve", "--config", file, **OFFLINE) as service:
        assert generated(service, {"max_new_tokens": 8}) == generated(
            service, {"max_new_tokens": 8, "do_sample": False}
        )
        short, long = generated(service, {}), generated(service, {"max_length": 40})
    # The library's own default: 20 tokens, the prompt's among them.
    assert long.startswith(short)
    assert len(short) < len(long)


def test_weights_of_gptq_llama_are_found_and_what_reads_them_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    name = "four-bit.safetensors"
    folder = kept_in(tmp_path, "gptq_llama", name)
    subprocess.run(
        [sys.executable, "-m", "tests.model_servers.embedded.tiny_model", str(folder)], check=True, timeout=300
    )
    shutil.move(folder / "model.safetensors", folder / name)
    said = {
        "models_dir": str(tmp_path),
        "model_family": "gptq_llama",
        "setup_params": {"repo_id": "user/tiny", "filename": name},
        "model_params": {"group_size": 128, "wbits": 4, "cuda_visible_devices": "0", "device": "cpu"},
    }
    done = command("check", "--config", str(written(tmp_path / "config.yaml", said)), environment=OFFLINE)
    assert done.returncode == 2
    assert "Loading a GPTQ quantized model requires" in done.stderr.splitlines()[-1]
