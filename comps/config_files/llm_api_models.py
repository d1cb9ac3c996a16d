"""Model families of llm-api: maps their keys to settings of our engines, and finds the folders of their files.

Source: https://github.com/1b5d/llm-api, app/llms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path
from typing import TypeAlias

from comps.config_files.base import ConfigValue
from comps.core.errors import SettingsError
from comps.core.types import JSON

DEFAULT = "default of llm-api"
"""The source of a value that is neither in the file nor in the environment."""

Keys: TypeAlias = dict[str, ConfigValue]
"""Values by key."""
SettingPath: TypeAlias = tuple[str, ...]
"""The path of an engine setting: its key, then the members within an object."""


@dataclass(frozen=True, slots=True)
class Config:
    """The merged values of file and environment."""

    keys: Keys
    setup_params: Keys
    model_params: Keys


@dataclass(frozen=True, slots=True)
class Family:
    """The mapping of one model family to an engine."""

    kind: str
    """The model server that runs its models."""
    named_by: tuple[str, ...]
    """The keys of `setup_params` that identify the model. llm-api derives the folder's name from the last one."""
    folders: tuple[str, ...]
    """The engine settings that have the path of this folder."""
    defaults: Mapping[str, JSON] = field(default_factory=dict)
    """The engine settings by default, as far as they affect answers."""
    setup: Mapping[str, SettingPath] = field(default_factory=dict)
    """The engine setting for each other key of `setup_params`."""
    params: Mapping[str, SettingPath] = field(default_factory=dict)
    """The engine setting for each key of `model_params`. If several keys map to one setting, the first is used."""
    other_setup: SettingPath | None = None
    """The setting that contains all other keys of `setup_params`; None: they have no effect."""
    other_params: SettingPath | None = None
    """The same for `model_params`; empty: each key is a setting of its own."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """The keys that have no effect, with the reason."""


def _same(*keys: str) -> dict[str, SettingPath]:
    """Maps keys to engine settings of the same name."""
    return {key: (key,) for key in keys}


_TOKEN = "the environment has the token for the Hugging Face hub: HF_TOKEN"
_OLD_FORMAT = "llama.cpp reads GGUF files alone; it has scripts that convert older ones, once"
_QUANTISED = ("config_params", "quantization_config")
_KERNELS = "transformers chooses the kernels"
_NEVER_CUT = "texts are neither padded nor cut"
_AS_ITS_FILES_SAY = "the tokenizer is as its files say"
_PASSED_ON = {
    **dict.fromkeys(("token", "use_auth_token", "hf_token"), _TOKEN),
    "proxies": "the environment has the proxies: HTTPS_PROXY",
    "resume_download": "a download is always resumed",
    **dict.fromkeys(("padding_side", "truncation_side", "return_token_type_ids"), _NEVER_CUT),
    **dict.fromkeys(("use_fast", "legacy", "model_max_length", "clean_up_tokenization_spaces"), _AS_ITS_FILES_SAY),
    **dict.fromkeys(("add_bos_token", "add_eos_token", "add_prefix_space"), _AS_ITS_FILES_SAY),
    **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), _AS_ITS_FILES_SAY),
}
"""Keys that llm-api passed to the hub and to the tokenizer, with the reason why they have no effect."""

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        "llama_cpp",
        named_by=("repo_id", "filename"),
        folders=("local_dir",),
        defaults={"n_ctx": 2000, "last_n_tokens_size": 64, "embedding": True},
        params={
            "n_ctx": ("n_ctx",),
            "ctx_size": ("n_ctx",),
            "num_threads": ("n_threads",),
            "n_threads": ("n_threads",),
            "batch_size": ("n_batch",),
            "n_batch": ("n_batch",),
            **_same("n_gpu_layers", "seed", "use_mmap", "last_n_tokens_size", "lora_base", "lora_path"),
            **_same("tensor_split", "rope_freq_base", "rope_freq_scale", "verbose"),
        },
        lost={
            "n_parts": "llama.cpp finds the parts of a model itself",
            "low_vram": "llama.cpp has no such mode any more",
            "convert": _OLD_FORMAT,
            "migrate": _OLD_FORMAT,
        },
    ),
    "huggingface": Family(
        "transformers",
        named_by=("repo_id",),
        folders=("cache_dir",),
        setup={
            "tokenizer_repo_id": ("tokenizer",),
            **_same("cache_dir", "force_download", "local_files_only", "revision", "subfolder"),
            **_same("trust_remote_code", "code_revision", "config_params"),
        },
        other_setup=("config_params",),
        other_params=(),
        lost={
            **_PASSED_ON,
            "low_cpu_mem_usage": "weights are always read that way",
            "offload_state_dict": "weights go straight to the device",
            "use_flash_attention_2": "attn_implementation says how attention is computed",
        },
    ),
    "gptq_llama": Family(
        "transformers",
        named_by=("repo_id", "filename"),
        folders=("local_dir", "cache_dir"),
        defaults={
            "config_params": {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
            "device_map": "cuda:0",
        },
        params={
            "wbits": (*_QUANTISED, "bits"),
            "group_size": (*_QUANTISED, "group_size"),
            "device": ("device_map",),
            **_same("cuda_visible_devices"),
        },
        lost={"st_device": "weights go straight to the device"},
    ),
    "autoawq": Family(
        "transformers",
        named_by=("repo_id", "filename"),
        folders=("local_dir", "cache_dir"),
        defaults={"config_params": {"quantization_config": {"quant_method": "awq"}}, "device_map": "cuda:0"},
        setup={"tokenizer_repo_id": ("tokenizer",)},
        other_params=(),
        lost={
            **_PASSED_ON,
            "fuse_layers": "transformers fuses no layers",
            "use_exllama": _KERNELS,
            "use_exllama_v2": _KERNELS,
            "safetensors": "filename says what the weights are in",
            "batch_size": "a request's cache grows with its answer",
            "max_new_tokens": "a request's cache grows with its answer",
        },
    ),
}
OLDER = {"alpaca": "llama", "vicuna": "llama"}
"""The names of the family up to llm-api 0.0.4."""


def model_of(path: Path, config: Config, family: ConfigValue) -> Keys:
    """Returns the values of `[Model]`.

    Raises:
        SettingsError: A key that identifies the model is missing.
    """
    how = FAMILIES[family.value]
    named = {key: config.setup_params.get(key, ConfigValue(None, "")) for key in how.named_by}
    for key, one in named.items():
        if not one.value:
            raise SettingsError(f"{path}: setup_params.{key}: missing; {family.value} needs it")
    return {
        "model_name": ConfigValue("/".join(str(one.value) for one in named.values()), _together(named.values())),
        "model_server": ConfigValue(how.kind, family.source),
    }


def engine_of(config: Config, family: ConfigValue, lost: list[str]) -> Keys:
    """Returns the engine settings; a message is added to `lost` for each key without effect."""
    how = FAMILIES[family.value]
    given: dict[SettingPath, ConfigValue] = {
        (name,): ConfigValue(value, DEFAULT) for name, value in how.defaults.items()
    }
    given |= dict.fromkeys(((name,) for name in how.folders), _folder(config, how))
    given |= _placed(config, family, lost)
    return _whole(given)


def files_of(family: ConfigValue) -> tuple[str, ...]:
    """Returns the keys of the engine settings that locate the model's files."""
    return (*FAMILIES[family.value].folders, "tokenizer")


def _folder(config: Config, how: Family) -> ConfigValue:
    """Returns the folder in which llm-api stores a model. Its name is the family and digits of an MD5."""
    digested = str(config.setup_params[how.named_by[-1]].value)
    digits = str(int(md5(digested.encode(), usedforsecurity=False).hexdigest(), 16))[:12]
    models_dir = config.keys["models_dir"]
    return ConfigValue(f"{models_dir.value}/{config.keys['model_family'].value}_{digits}", models_dir.source)


def _placed(config: Config, family: ConfigValue, lost: list[str]) -> dict[SettingPath, ConfigValue]:
    """Returns the values by engine setting; a message is added to `lost` for each key without effect."""
    placed: dict[SettingPath, ConfigValue] = {}
    for place, key, one in _places(config, FAMILIES[family.value]):
        why = FAMILIES[family.value].lost.get(key)
        if why or place is None:
            lost.append(without_effect(one, why or f"{family.value} looks at no such key"))
        elif one.value is None:
            continue
        elif place not in placed:
            placed[place] = one
        elif one.value == placed[place].value:
            placed[place] = ConfigValue(one.value, _together((placed[place], one)))
        else:
            lost.append(without_effect(one, f"{placed[place].source} goes before it"))
    return placed


def _places(config: Config, how: Family) -> Iterator[tuple[SettingPath | None, str, ConfigValue]]:
    """Yields each key with its engine setting; None if llm-api ignored the key.

    Keys with precedence come first. Members of a setting come before the setting, as in llm-api.
    """
    setup = {key: one for key, one in config.setup_params.items() if key not in how.named_by}
    for keys, known, others in (
        (config.model_params, how.params, how.other_params),
        (setup, how.setup, how.other_setup),
    ):
        for key in [key for key in keys if key not in known]:
            yield None if others is None else (*others, key), key, keys[key]
        for key in [key for key in known if key in keys]:
            yield known[key], key, keys[key]


def _whole(given: Mapping[SettingPath, ConfigValue]) -> Keys:
    """Returns the settings, with members merged into their objects."""
    whole: Keys = {}
    for (name, *members), one in given.items():
        value = one.value
        for member in reversed(members):
            value = {member: value}
        below = whole.get(name)
        whole[name] = (
            ConfigValue(merged(below.value, value), _together((below, one)))
            if below
            else ConfigValue(value, one.source)
        )
    return whole


def _together(parts: Iterable[ConfigValue]) -> str:
    """Returns the source of a value that is merged from several."""
    sources = list(dict.fromkeys(part.source for part in parts))
    return ", ".join([source for source in sources if source != DEFAULT] or sources)


def without_effect(one: ConfigValue, why: str) -> str:
    return f"{one.source}: no effect here: {why}"


def merged(below: JSON, above: JSON) -> JSON:
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}
    return above
