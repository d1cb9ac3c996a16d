"""How llm-api's model families run here: their keys under the names of our engines, and the folders of their files.

What llm-api made of each key is read in https://github.com/1b5d/llm-api, app/llms. A key that it did not know goes to
the engine as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path
from typing import TypeAlias

from comps.core.errors import SettingsError
from comps.core.types import JSON

DEFAULT = "default of llm-api"
"""Where a value comes from that is neither in the file nor in the environment."""


@dataclass(frozen=True, slots=True)
class Said:
    """A value, and where it stands."""

    value: JSON
    source: str


Keys: TypeAlias = dict[str, Said]
"""Keys that are set; a member of an object is `object.member`."""


@dataclass(frozen=True, slots=True)
class Family:
    """How the models of a family run here. An engine's setting may be part of another one: `object.member`."""

    kind: str
    """The model server that runs them."""
    named_by: tuple[str, ...]
    """The keys of `setup_params` that say which model it is; by the last of them llm-api names its folder."""
    folders: tuple[str, ...]
    """The engine's settings that are this folder."""
    defaults: Mapping[str, JSON] = field(default_factory=dict)
    """The engine's settings where nothing is said, as far as an answer depends on them."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Keys by what the engine calls them, if that is another name; of several for the same, the first counts."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """The keys that have no effect here, and why."""
    setup: bool = False
    """Whether the other keys of `setup_params` are the engine's too; else llm-api looked at none of them."""


_TOKEN = "the environment has the token for the Hugging Face hub: HF_TOKEN"
_HUB = {"token": _TOKEN, "use_auth_token": _TOKEN}
_OLD_FORMAT = "llama.cpp reads GGUF files alone; it has scripts that convert older ones, once"
_QUANTISED = "config_params.quantization_config"

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        "llama_cpp",
        named_by=("repo_id", "filename"),
        folders=("local_dir",),
        defaults={"n_ctx": 2000, "last_n_tokens_size": 64, "embedding": True},
        names={
            "n_ctx": "n_ctx",
            "ctx_size": "n_ctx",
            "num_threads": "n_threads",
            "n_threads": "n_threads",
            "batch_size": "n_batch",
            "n_batch": "n_batch",
        },
        lost={
            "n_parts": "llama.cpp finds the parts of a model itself",
            "low_vram": "llama.cpp has no such mode any more",
            "f16_kv": "type_k and type_v say how the context is kept, and f16 is their default",
            "convert": _OLD_FORMAT,
            "migrate": _OLD_FORMAT,
        },
    ),
    "huggingface": Family(
        "transformers",
        named_by=("repo_id",),
        folders=("cache_dir",),
        names={"tokenizer_repo_id": "tokenizer"},
        lost={**_HUB, "low_cpu_mem_usage": "weights are always read that way"},
        setup=True,
    ),
    "gptq_llama": Family(
        "transformers",
        named_by=("repo_id", "filename"),
        folders=("local_dir", "cache_dir"),
        defaults={
            f"{_QUANTISED}.quant_method": "gptq",
            f"{_QUANTISED}.bits": 4,
            f"{_QUANTISED}.group_size": 128,
            "device_map": "cuda:0",
        },
        names={"wbits": f"{_QUANTISED}.bits", "group_size": f"{_QUANTISED}.group_size", "device": "device_map"},
        lost={**_HUB, "st_device": "weights go straight to the device"},
    ),
    "autoawq": Family(
        "transformers",
        named_by=("repo_id", "filename"),
        folders=("local_dir", "cache_dir"),
        defaults={f"{_QUANTISED}.quant_method": "awq", "device_map": "cuda:0"},
        names={"tokenizer_repo_id": "tokenizer"},
        lost={
            **_HUB,
            "fuse_layers": "transformers fuses no layers",
            "safetensors": "filename says what the weights are in",
            "batch_size": "a request's cache grows with its answer",
            "max_new_tokens": "a request's cache grows with its answer",
        },
    ),
}
OLDER = {"alpaca": "llama", "vicuna": "llama"}
"""What the family was called until 0.0.4."""


def model_settings(path: Path, said: Keys, family: Said, lost: list[str]) -> Keys:
    """The keys of `[Model]`, its engine's among them; what has no effect is added to `lost`.

    Raises:
        SettingsError: It is not said which model it is.
    """
    how = FAMILIES[str(family.value)]
    setup, params = _members(said, "setup_params"), _members(said, "model_params")
    named = {key: setup.pop(key, Said(None, "")) for key in how.named_by}
    for key, one in named.items():
        if not one.value:
            raise SettingsError(f"{path}: setup_params.{key}: missing; {family.value} needs it")
    if not how.setup:
        for key in [key for key in setup if key not in (*how.names, *how.lost)]:
            lost.append(without_effect(setup.pop(key), f"{family.value} looks at no such key"))
    folder = _folder(said, str(named[how.named_by[-1]].value))
    engine = {name: Said(value, DEFAULT) for name, value in how.defaults.items()}
    engine |= dict.fromkeys(how.folders, folder)
    engine |= _engine(how, [*params.items(), *setup.items()], lost)
    return {
        **_as_settings(engine),
        "model_name": Said("/".join(str(one.value) for one in named.values()), _together(named.values())),
        "model_server": Said(how.kind, family.source),
    }


def _folder(said: Keys, digested: str) -> Said:
    """Where llm-api keeps a model: in a folder that is called by the family and digits of an MD5."""
    digits = str(int(md5(digested.encode(), usedforsecurity=False).hexdigest(), 16))[:12]
    models_dir = said["models_dir"]
    return Said(f"{models_dir.value}/{said['model_family'].value}_{digits}", models_dir.source)


def _engine(how: Family, given: Iterable[tuple[str, Said]], lost: list[str]) -> Keys:
    """What is given, under the engine's names; what has no effect is added to `lost`."""
    order = {key: place for place, key in enumerate(how.names)}
    engine: Keys = {}
    for key, one in sorted(given, key=lambda item: order.get(item[0], len(order))):
        name = how.names.get(key, key)
        if key in how.lost:
            lost.append(without_effect(one, how.lost[key]))
        elif one.value is None:
            continue
        elif name not in engine:
            engine[name] = one
        elif one.value == engine[name].value:
            engine[name] = Said(one.value, _together((engine[name], one)))
        else:
            lost.append(without_effect(one, f"{engine[name].source} goes before it"))
    return engine


def _as_settings(engine: Keys) -> Keys:
    """Engine's settings as config.ini has them: an object whole, and text in quotes, so that it stays text."""
    whole: dict[str, JSON] = {}
    parts: dict[str, list[Said]] = {}
    for name, one in engine.items():
        first, *inner = name.split(".")
        value = one.value
        for member in reversed(inner):
            value = {member: value}
        whole = merged(whole, {first: value})
        parts.setdefault(first, []).append(one)
    return {
        name: Said(f'"{value}"' if isinstance(value, str) else json.dumps(value), _together(parts[name]))
        for name, value in whole.items()
    }


def _together(parts: Iterable[Said]) -> str:
    """Where a value comes from that is made of several."""
    sources = list(dict.fromkeys(part.source for part in parts))
    return ", ".join([source for source in sources if source != DEFAULT] or sources)


def without_effect(one: Said, why: str) -> str:
    return f"{one.source}: no effect here: {why}"


def _members(said: Keys, name: str) -> Keys:
    return {key.removeprefix(f"{name}."): one for key, one in said.items() if key.startswith(f"{name}.")}


def merged(below: JSON, above: JSON) -> JSON:
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}
    return above
