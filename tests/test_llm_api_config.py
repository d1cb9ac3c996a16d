"""config.yaml of llm-api: the same model in our engines, the same address, and no key lost without a word."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from comps.core.errors import SettingsError
from comps.settings import Settings, load_settings
from tests.process import PATIENCE, command, serving

KINDS = ("openvino", "llama_cpp", "transformers", "scripted")
DIALECTS = ("opea", "openai", "llm_api")
SEED = (Path(__file__).parent / "seeds" / "llm-api.md").read_text("utf-8")
PRINTED = [block for block in re.findall(r"^```\n(.*?)^```", SEED, re.DOTALL | re.MULTILINE) if "models_dir:" in block]
SKELETON, *EXAMPLES = PRINTED
"""The first shows what there is, with `key: value` where a model's own keys are."""

LLAMA = "model_family: llama\nsetup_params: {repo_id: user/repo, filename: a.gguf}\n"
HUGGINGFACE = "model_family: huggingface\nsetup_params: {repo_id: user/repo, tokenizer_repo_id: user/words}\n"
GPTQ = "model_family: gptq_llama\nsetup_params: {repo_id: user/repo, filename: a.safetensors}\n"
AWQ = (
    "model_family: autoawq\n"
    "setup_params: {repo_id: user/repo, tokenizer_repo_id: user/words, filename: a.safetensors}\n"
)

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(content: str) -> Path:
        file = tmp_path / "config.yaml"
        file.write_text(content, "utf-8")
        return file

    return written


def load(file: Path | None) -> Settings:
    return load_settings(file, KINDS, DIALECTS, ("openvino", "scripted"))


def engine(settings: Settings) -> dict[str, Any]:
    [served] = settings.models.values()
    return dict(served.engine)


def source(settings: Settings, key: str) -> str:
    [found] = [one.source for one in settings.listing if one.key == key]
    return found


def mistake(file: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        load(file)
    return str(caught.value)


# What the seed prints


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: block.split()[3])
def test_an_example_of_the_seed_is_read_and_every_key_of_it_counts_or_is_said_not_to(write: Write, block: str) -> None:
    file = write(block)
    settings = load(file)
    said = yaml.safe_load(block)
    counts = [where for one in settings.listing for where in one.source.split(", ")]
    lost = [sentence.partition(": no effect here: ")[0] for sentence in settings.without_effect]
    assert all(reason for _, _, reason in (one.partition(": no effect here: ") for one in settings.without_effect))
    for name in ("setup_params", "model_params"):
        for key, value in said[name].items():
            assert value is None or f"{file} {name}.{key}" in (*counts, *lost), key
    assert settings.dialects.llm_api_family == said["model_family"]


def test_the_seed_has_an_example_for_each_of_its_families() -> None:
    families = [yaml.safe_load(block)["model_family"] for block in EXAMPLES]
    assert sorted(families) == ["gptq_llama", "huggingface", "llama"]


def test_what_the_seed_leaves_to_be_filled_in_is_asked_for_by_its_name(write: Write) -> None:
    file = write(SKELETON)
    assert mistake(file) == f"{file}: setup_params.repo_id: missing; llama needs it"


def test_the_seed_s_llama_runs_in_llama_cpp(write: Write) -> None:
    settings = load(write(next(block for block in EXAMPLES if "model_family: llama" in block)))
    assert (settings.model.model_server, settings.model.model_name) == (
        "llama_cpp",
        "user/repo_id/ggml-model-q4_0.bin",
    )
    assert engine(settings) == {
        "n_ctx": 512,
        "n_gpu_layers": 0,
        "seed": -1,
        "use_mmap": True,
        "n_threads": 8,
        "n_batch": 2048,
        "last_n_tokens_size": 64,
        "rope_freq_base": 10000.0,
        "rope_freq_scale": 1.0,
        "verbose": True,
        "embedding": True,
        "local_dir": "/models/llama_601507219781",
    }
    assert [sentence.split()[1] for sentence in settings.without_effect] == [
        "model_params.n_parts:",
        "model_params.low_vram:",
    ]


def test_the_seed_s_huggingface_runs_in_transformers(write: Write) -> None:
    settings = load(write(next(block for block in EXAMPLES if "model_family: huggingface" in block)))
    assert (settings.model.model_server, settings.model.model_name) == ("transformers", "<repo_id>")
    assert engine(settings) == {
        "tokenizer": "<repo_id>",
        "trust_remote_code": True,
        "config_params": {"init_device": "cuda:0", "attn_config": {"attn_impl": "triton"}},
        "device_map": "cuda:0",
        "torch_dtype": "torch.bfloat16",
        "cache_dir": "/models/huggingface_543551313058",
    }
    assert settings.without_effect == ()


def test_the_seed_s_gptq_llama_runs_in_transformers(write: Write) -> None:
    settings = load(write(next(block for block in EXAMPLES if "model_family: gptq_llama" in block)))
    assert settings.model.model_server == "transformers"
    assert engine(settings) == {
        "config_params": {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
        "cuda_visible_devices": "0",
        "device_map": "cuda:0",
        "local_dir": "/models/gptq_llama_227973036566",
        "cache_dir": "/models/gptq_llama_227973036566",
    }
    assert settings.without_effect == ()


# How a key is called here


@pytest.mark.parametrize(
    ("begins", "line", "key", "meant"),
    [
        (LLAMA, "num_threads: 3", "n_threads", 3),
        (LLAMA, "n_threads: 3", "n_threads", 3),
        (LLAMA, "batch_size: 8", "n_batch", 8),
        (LLAMA, "n_batch: 8", "n_batch", 8),
        (LLAMA, "ctx_size: 99", "n_ctx", 99),
        (LLAMA, "seed: 1337", "seed", 1337),
        (LLAMA, "lora_path: /lora.gguf", "lora_path", "/lora.gguf"),
        (LLAMA, "tensor_split: [1, 0.5]", "tensor_split", [1, 0.5]),
        (LLAMA, "use_mmap: no", "use_mmap", False),
        (LLAMA, "n_ctx: null", "n_ctx", 2000),
        (HUGGINGFACE, "load_in_8bit: True", "load_in_8bit", True),
        (HUGGINGFACE, "max_memory: {0: 10GiB, cpu: 1GiB}", "max_memory", {"0": "10GiB", "cpu": "1GiB"}),
        (HUGGINGFACE, "revision: '0123'", "revision", "0123"),
        (HUGGINGFACE, "revision: 'true'", "revision", "true"),
        (HUGGINGFACE, "variant: 'a\"b\\c'", "variant", 'a"b\\c'),
        (HUGGINGFACE, "variant: '[1'", "variant", "[1"),
        (GPTQ, "device: cuda:1", "device_map", "cuda:1"),
        (
            GPTQ,
            "wbits: 8",
            "config_params",
            {"quantization_config": {"quant_method": "gptq", "bits": 8, "group_size": 128}},
        ),
        (AWQ, "device_map: cpu", "device_map", "cpu"),
        (AWQ, "trust_remote_code: False", "trust_remote_code", False),
    ],
)
def test_a_model_s_key_is_the_engine_s_setting_with_its_type(
    write: Write, begins: str, line: str, key: str, meant: Any
) -> None:
    settings = load(write(f"{begins}model_params:\n  {line}\n"))
    assert engine(settings)[key] == meant
    assert type(engine(settings)[key]) is type(meant)
    assert settings.without_effect == ()


def test_where_a_file_is_silent_the_model_has_llm_api_s_defaults(write: Write) -> None:
    settings = load(write(LLAMA))
    folder = {"local_dir": "./models/llama_750966270660"}
    assert engine(settings) == {"n_ctx": 2000, "last_n_tokens_size": 64, "embedding": True, **folder}
    assert source(settings, "n_ctx") == source(settings, "local_dir") == "default of llm-api"
    quantised = engine(load(write(AWQ)))
    assert quantised["config_params"] == {"quantization_config": {"quant_method": "awq"}}
    assert (quantised["device_map"], quantised["tokenizer"]) == ("cuda:0", "user/words")


@pytest.mark.parametrize("name", ["alpaca", "vicuna"])
def test_the_families_of_older_versions_are_llama_s_and_keep_their_folders(write: Write, name: str) -> None:
    settings = load(write(LLAMA.replace("llama", name)))
    assert (settings.model.model_server, settings.dialects.llm_api_family) == ("llama_cpp", "llama")
    assert engine(settings)["local_dir"] == f"./models/{name}_750966270660"


@pytest.mark.parametrize(
    ("content", "lost"),
    [
        (f"{LLAMA}model_params: {{n_parts: 1}}", "model_params.n_parts: no effect here: llama.cpp finds"),
        (f"{LLAMA}model_params: {{low_vram: True}}", "model_params.low_vram: no effect here: llama.cpp has no"),
        (LLAMA.replace("}", ", convert: True}"), "setup_params.convert: no effect here: llama.cpp reads GGUF"),
        (LLAMA.replace("}", ", migrate: False}"), "setup_params.migrate: no effect here: llama.cpp reads GGUF"),
        (LLAMA.replace("}", ", other: 1}"), "setup_params.other: no effect here: llama looks at no such key"),
        (LLAMA.replace("}", ", n_ctx: 9}"), "setup_params.n_ctx: no effect here: llama looks at no such key"),
        (f"{LLAMA}model_name: 7b", "model_name: no effect here: setup_params says which model it is"),
        (f"{LLAMA}model_params: {{n_gqa: 8}}", "model_params.n_gqa: no effect here: llama looks at no such key"),
        (f"{LLAMA}model_params: {{logits_all: no}}", "model_params.logits_all: no effect here: llama looks at no such"),
        (f"{LLAMA}model_params: {{total_seconds: 5}}", "model_params.total_seconds: no effect here: llama looks at no"),
        (f"{LLAMA}model_params: {{model_server: tgi}}", "model_params.model_server: no effect here: llama looks at no"),
        (f"{LLAMA}model_params: {{hf_token: hush}}", "model_params.hf_token: no effect here: llama looks at no such"),
        (
            f"{HUGGINGFACE}model_params: {{use_auth_token: hush}}",
            "model_params.use_auth_token: no effect here: the env",
        ),
        (
            f"{HUGGINGFACE}model_params: {{hf_token: hush}}",
            "model_params.hf_token: no effect here: the environment has",
        ),
        (f"{HUGGINGFACE}model_params: {{use_fast: no}}", "model_params.use_fast: no effect here: the tokenizer is as"),
        (f"{HUGGINGFACE}model_params: {{padding_side: left}}", "model_params.padding_side: no effect here: texts are"),
        (HUGGINGFACE.replace("}", ", proxies: {}}"), "setup_params.proxies: no effect here: the environment has the"),
        (f"{GPTQ}model_params: {{act_order: True}}", "model_params.act_order: no effect here: gptq_llama looks at no"),
        (f"{GPTQ}model_params: {{st_device: 0}}", "model_params.st_device: no effect here: weights go straight"),
        (f"{AWQ}model_params: {{fuse_layers: True}}", "model_params.fuse_layers: no effect here: transformers fuses"),
    ],
)
def test_a_key_without_an_effect_is_said_with_the_reason(write: Write, content: str, lost: str) -> None:
    file = write(content)
    settings = load(file)
    [said] = settings.without_effect
    assert said.startswith(f"{file} {lost}")
    assert "hush" not in said
    assert "hush" not in str(settings.listing)


def test_of_two_keys_for_the_same_the_one_that_llm_api_reads_counts(write: Write) -> None:
    file = write(f"{LLAMA}model_params: {{n_threads: 8, num_threads: 4, n_batch: 16, batch_size: 16}}\n")
    settings = load(file)
    assert (engine(settings)["n_threads"], engine(settings)["n_batch"]) == (4, 16)
    said = f"{file} model_params.n_threads: no effect here: {file} model_params.num_threads goes before it"
    assert settings.without_effect == (said,)


@pytest.mark.parametrize("key", ["device", "context_window", "total_seconds", "framework", "model_server", "a.b"])
def test_a_key_that_is_passed_on_is_the_engine_s_alone_whatever_it_is_called(write: Write, key: str) -> None:
    settings = load(write(f"{HUGGINGFACE}model_params: {{{key}: 5}}\n"))
    assert settings.model == load(write(HUGGINGFACE)).model
    assert engine(settings)[key] == 5


def test_a_key_for_the_model_s_configuration_changes_that_and_config_params_goes_before_it(write: Write) -> None:
    begins = HUGGINGFACE.replace("}", ", rope_theta: 5, n_layer: 2, revision: main, config_params: {n_layer: 1}}")
    file = write(begins)
    settings = load(file)
    assert engine(settings)["config_params"] == {"rope_theta": 5, "n_layer": 1}
    assert engine(settings)["revision"] == "main"
    keys = ("rope_theta", "n_layer", "config_params")
    assert source(settings, "config_params") == ", ".join(f"{file} setup_params.{key}" for key in keys)
    assert settings.without_effect == ()


# The service itself


def test_the_address_and_the_log_are_llm_api_s(write: Write) -> None:
    settings = load(write(LLAMA))
    service = settings.microservice
    assert (service.host, service.port, settings.logging.log_level) == ("0.0.0.0", 8000, "INFO")
    file = write(f"{LLAMA}host: 127.0.0.1\nport: 8765\nlog_level: trace\n")
    settings = load(file)
    service = settings.microservice
    assert (service.host, service.port, settings.logging.log_level) == ("127.0.0.1", 8765, "DEBUG")
    assert source(settings, "port") == f"{file} port"


def test_llm_api_s_dialect_comes_first_and_the_others_stay(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(HUGGINGFACE)
    settings = load(file)
    assert settings.dialects.enabled == ("llm_api", "opea", "openai")
    assert settings.dialects.llm_api_family == "huggingface"
    assert source(settings, "enabled") == str(file)
    monkeypatch.setenv("LLM_DIALECTS", "opea")
    monkeypatch.setenv("LLM_API_FAMILY", "gptq_llama")
    settings = load(file)
    assert settings.dialects.enabled == ("opea",)
    assert settings.dialects.llm_api_family == "gptq_llama"
    assert settings.model.model_server == "transformers"


def test_a_file_called_yml_is_read_as_well(tmp_path: Path) -> None:
    (tmp_path / "my.yml").write_text(LLAMA)
    assert load(tmp_path / "my.yml").model.model_server == "llama_cpp"


# The environment


def test_the_environment_goes_before_the_file_and_ours_before_llm_api_s(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(f"{LLAMA}port: 1\nmodels_dir: /file\n")
    monkeypatch.setenv("LLM_API_PORT", "2")
    monkeypatch.setenv("LLM_API_MODELS_DIR", "/environment")
    settings = load(file)
    assert settings.microservice.port == 2
    assert source(settings, "port") == "environment LLM_API_PORT"
    assert engine(settings)["local_dir"].startswith("/environment/llama_")
    assert source(settings, "local_dir") == "environment LLM_API_MODELS_DIR"
    monkeypatch.setenv("USVC_PORT", "3")
    monkeypatch.setenv("LLM_NAME", "./mine.gguf")
    monkeypatch.setenv("LLM_ENGINE_N_CTX", "7")
    settings = load(file)
    assert (settings.microservice.port, settings.model.model_name, engine(settings)["n_ctx"]) == (3, "./mine.gguf", 7)
    assert source(settings, "port") == "environment USVC_PORT"


def test_an_object_of_the_environment_is_merged_into_the_file_s(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(f"{HUGGINGFACE}model_params:\n  revision: main\n  max_memory: {{cpu: 1GiB, disk: 2GiB}}\n")
    monkeypatch.setenv("LLM_API_MODEL_PARAMS", '{"max_memory": {"disk": "3GiB"}, "device_map": "auto"}')
    monkeypatch.setenv("LLM_API_SETUP_PARAMS", '{"repo_id": "user/other"}')
    settings = load(file)
    assert engine(settings)["max_memory"] == {"cpu": "1GiB", "disk": "3GiB"}
    assert (engine(settings)["revision"], engine(settings)["device_map"]) == ("main", "auto")
    assert (settings.model.model_name, engine(settings)["tokenizer"]) == ("user/other", "user/words")
    assert source(settings, "revision") == f"{file} model_params.revision"
    assert source(settings, "device_map") == "environment LLM_API_MODEL_PARAMS.device_map"
    assert source(settings, "model_name") == "environment LLM_API_SETUP_PARAMS.repo_id"


def test_another_model_server_of_the_environment_takes_none_of_the_engine_s_settings(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(f"{LLAMA}model_params: {{n_threads: 8}}\nport: 8001\n")
    monkeypatch.setenv("MODEL_SERVER", "scripted")
    settings = load(file)
    assert (settings.model.model_server, settings.microservice.port, engine(settings)) == ("scripted", 8001, {})
    said = f"{file}: no effect here: its settings of llama_cpp; environment MODEL_SERVER has scripted"
    assert settings.without_effect == (said,)


@pytest.mark.parametrize(
    ("begins", "left", "own"),
    [
        (LLAMA, "local_dir", "user/repo/a.gguf"),
        (HUGGINGFACE, "cache_dir and tokenizer", "user/repo"),
        (GPTQ, "local_dir and cache_dir", "user/repo/a.safetensors"),
        (AWQ, "local_dir and cache_dir and tokenizer", "user/repo/a.safetensors"),
    ],
)
def test_another_model_of_the_environment_is_not_looked_for_in_the_files_of_the_file_s_own(
    write: Write, monkeypatch: pytest.MonkeyPatch, begins: str, left: str, own: str
) -> None:
    file = write(begins)
    monkeypatch.setenv("LLM_NAME", own)
    assert load(file).without_effect == ()
    before = engine(load(file))
    monkeypatch.setenv("LLM_NAME", "new/repo/a.gguf")
    settings = load(file)
    assert settings.model.model_name == "new/repo/a.gguf"
    assert engine(settings) == {key: one for key, one in before.items() if key not in left.split(" and ")}
    said = f"{file}: no effect here: its {left} of {own}; environment LLM_NAME has new/repo/a.gguf"
    assert settings.without_effect == (said,)
    monkeypatch.setenv("LLM_ENGINE_CACHE_DIR", "/mine")
    assert engine(load(file))["cache_dir"] == "/mine"


def test_the_environment_alone_can_say_it_all(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_API_MODEL_FAMILY", "llama")
    monkeypatch.setenv("LLM_API_SETUP_PARAMS", json.dumps({"repo_id": "user/repo", "filename": "a.gguf"}))
    settings = load(write(""))
    assert settings.model.model_name == "user/repo/a.gguf"
    assert source(settings, "model_server") == "environment LLM_API_MODEL_FAMILY"


def test_capitals_do_not_matter_in_names(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("llm_api_Port", "8001")
    settings = load(write(LLAMA.replace("model_family", "Model_Family")))
    assert settings.microservice.port == 8001


def test_other_variables_that_begin_so_are_its_clients_and_ignored(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(LLAMA)
    before = load(file)
    for variable in ("LLM_API_API_KEY", "LLM_API_API_KEY_PATH", "LLM_API_API_BASE", "LLM_API_MODEL_PARAMS__N_CTX"):
        monkeypatch.setenv(variable, "x")
    assert load(file).listing == before.listing


@pytest.mark.parametrize("file", [None, "my.ini"])
def test_its_environment_has_no_effect_where_the_file_is_none_of_its_own_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.ini").write_text("")
    monkeypatch.setenv("LLM_API_KEY", "hush")
    monkeypatch.setenv("LLM_API_FAMILY", "llama")
    assert load(Path(file) if file else None).without_effect == ()
    monkeypatch.setenv("LLM_API_PORT", "8001")
    monkeypatch.setenv("LLM_API_MODEL_FAMILY", "llama")
    settings = load(Path(file) if file else None)
    assert settings.microservice.port == 9000
    [said] = settings.without_effect
    assert said.startswith("environment LLM_API_")
    assert "LLM_API_PORT" in said
    assert said.endswith(
        ": no effect here: llm-api's variables go with its config.yaml, which may be empty: --config config.yaml"
    )


# What is wrong


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"{LLAMA}model_parms: {{}}\n", "unknown key model_parms; did you mean model_params?"),
        (f"{LLAMA}colour: red\n", "unknown key colour; "),
        (
            f"{LLAMA}---\n{HUGGINGFACE}",
            "2 documents, separated by ---, as in llm-api's collection of examples; keep one",
        ),
        ("- a\n- b\n", "no keys and values; known: models_dir"),
        ("a: [1\nb: 2\n", "cannot be read: line 2: "),
        ("a: !!python/object:os.system {}\n", "cannot be read: line 1: could not determine a constructor"),
        ("", "model_family: missing; known: llama, huggingface, gptq_llama, autoawq"),
        ("model_family: lama\n", "model_family = lama: unknown; did you mean llama?"),
        ("model_family: llama\nsetup_params: null\n", "setup_params.repo_id: missing; llama needs it"),
        ("model_family: llama\nsetup_params: {repo_id: a/b}\n", "setup_params.filename: missing; llama needs it"),
        ("model_family: huggingface\n", "setup_params.repo_id: missing; huggingface needs it"),
        (f"{LLAMA}port: 80000\n", " port: [OPEA_Microservice] port = 80000: "),
        (f"{LLAMA}port: {{a: 1}}\n", " port = {'a': 1}: not a single value"),
        (f"{LLAMA}model_params: 3\n", " model_params = 3: not an object"),
        (f"{LLAMA}model_params: {{x: 2026-01-02}}\n", " model_params.x: a date; if it is meant as text, it stands in"),
        (f"{LLAMA}log_level: loud\n", " log_level: [Logging] log_level = LOUD: "),
    ],
)
def test_what_is_wrong_with_a_file_is_said(write: Write, content: str, said: str) -> None:
    file = write(content)
    message = mistake(file)
    assert message.startswith(str(file))
    assert said in message


def test_a_document_may_begin_and_end_with_its_marks(write: Write) -> None:
    assert load(write(f"---\n{LLAMA}---\n")).model.model_server == "llama_cpp"


def test_all_that_is_wrong_with_a_file_is_told_at_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_API_MODEL_PARAMS", "{no object")
    monkeypatch.setenv("USVC_MAX_RUNNING", "0")
    file = write(f"{LLAMA}prot: 1\nport: many\nlog_level: [1]\n")
    assert [line.partition(":")[0] + line.partition(":")[2][:20] for line in mistake(file).splitlines()] == [
        f"{file} unknown key prot; d",
        "environment LLM_API_MODEL_PARAMS not the JSON of an ",
        f"{file} log_level = [1] not a single value",
        f"{file} port [OPEA_Microservice]",
        "environment USVC_MAX_RUNNING [OPEA_Microservice]",
    ]


@pytest.mark.parametrize("text", ["n_ctx=9", "[1]", "9", ""])
def test_an_object_of_the_environment_that_is_none_is_a_mistake(
    write: Write, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("LLM_API_MODEL_PARAMS", text)
    message = mistake(write(LLAMA))
    assert message.startswith("environment LLM_API_MODEL_PARAMS")
    assert "object" in message


# The command


def test_a_service_with_such_a_file_answers_llm_api_s_clients_first(write: Write) -> None:
    file = write(HUGGINGFACE)
    with serving("-m", "comps", "serve", "--config", str(file), MODEL_SERVER="scripted") as service:
        assert any("no effect here: its settings of transformers" in line for line in service.said)
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
        try:
            connection.request("POST", "/generate", json.dumps({"prompt": "?"}), {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                assert response.status == 200
                assert isinstance(json.loads(response.read()), str)
        finally:
            connection.close()
        curl = next(line for line in service.said if "curl http" in line)
        assert "/generate " in curl


def test_check_shows_where_each_value_is_from_and_how_to_get_an_engine_that_is_missing(write: Write) -> None:
    file = write(EXAMPLES[1])
    done = command("check", "--config", str(file), environment={"LLM_API_PORT": "8123"})
    assert done.returncode == 2
    lines = [re.sub(" {2,}", "  ", line) for line in done.stdout.splitlines()]
    assert "[OPEA_Microservice] port = 8123  (environment LLM_API_PORT)" in lines
    assert f"[Model] n_threads = 8  ({file} model_params.n_threads)" in lines
    *lost, error = done.stderr.splitlines()
    assert [line.removeprefix(f"{file} ").partition(":")[0] for line in lost] == [
        "model_params.n_parts",
        "model_params.low_vram",
    ]
    assert "model_server = llama_cpp: it needs llama_cpp, not installed here" in error
    assert error.endswith("-m pip install 'opea-llm-microservice[llama_cpp]'")
