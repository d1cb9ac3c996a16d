"""config.yaml of 1b5d's llm-api: its keys, its `LLM_API_` environment and its defaults, in our sections.

The environment goes before the file, and an object in it is merged into the file's. What llm-api made of each key is
read in https://github.com/1b5d/llm-api, app/config.py and app/llms; a key that it did not know goes to the engine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path
from typing import TypeAlias

import yaml

from comps.config_files.base import ConfigFile, nearest, read_text
from comps.core.errors import SettingsError
from comps.core.types import JSON

PREFIX = "LLM_API_"
DEFAULT = "default of llm-api"
"""Where a value comes from that is neither in the file nor in the environment."""

_DEFAULTS: Mapping[str, JSON] = {"models_dir": "./models", "host": "0.0.0.0", "port": 8000, "log_level": "info"}
_OBJECTS = ("setup_params", "model_params")
_KEYS = (*_DEFAULTS, "model_family", "model_name", *_OBJECTS)
_LEVELS: Mapping[JSON, str] = {"trace": "debug"}
"""What only uvicorn's log has."""


@dataclass(frozen=True, slots=True)
class _Said:
    """A value, and where it stands."""

    value: JSON
    source: str


_Keys: TypeAlias = dict[str, _Said]


@dataclass(frozen=True, slots=True)
class _Family:
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

_FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(
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
    "huggingface": _Family(
        "transformers",
        named_by=("repo_id",),
        folders=("cache_dir",),
        names={"tokenizer_repo_id": "tokenizer"},
        lost={**_HUB, "low_cpu_mem_usage": "weights are always read that way"},
        setup=True,
    ),
    "gptq_llama": _Family(
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
    "autoawq": _Family(
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
_OLDER = {"alpaca": "llama", "vicuna": "llama"}
"""What the family was called until 0.0.4."""


def read_llm_api(path: Path) -> ConfigFile:
    """What a config.yaml and the `LLM_API_` environment say.

    Raises:
        SettingsError: The file cannot be read, a key of it is unknown, or what a model needs is missing.
    """
    said = _said(path)
    lost: list[str] = []
    if name := said.get("model_name"):
        lost.append(_lost(name, "setup_params says which model it is"))
    family = _family(path, said)
    level = said["log_level"]
    values = {
        ("Logging", "log_level"): _Said(_LEVELS.get(level.value, level.value), level.source),
        ("OPEA_Microservice", "host"): said["host"],
        ("OPEA_Microservice", "port"): said["port"],
        ("Dialects", "llm_api_family"): family,
    }
    values |= {("Model", key): one for key, one in _model(path, said, family, lost).items()}
    sections: dict[str, dict[str, str]] = {}
    for (heading, key), one in values.items():
        sections.setdefault(heading, {})[key] = str(one.value)
    sources = {where: one.source for where, one in values.items()}
    return ConfigFile(path, sections, sources, tuple(lost), first_dialect="llm_api")


def _family(path: Path, said: _Keys) -> _Said:
    if "model_family" not in said:
        raise SettingsError(f"{path}: model_family: missing; known: {', '.join(_FAMILIES)}")
    named = said["model_family"]
    family = _OLDER.get(str(named.value), str(named.value))
    if family not in _FAMILIES:
        raise SettingsError(f"{named.source}: model_family = {family}: unknown{nearest(family, _FAMILIES)}")
    return _Said(family, named.source)


def _model(path: Path, said: _Keys, family: _Said, lost: list[str]) -> _Keys:
    """The keys of `[Model]`, its engine's among them; what has no effect is added to `lost`."""
    how = _FAMILIES[str(family.value)]
    setup, params = _members(said, "setup_params"), _members(said, "model_params")
    named = {key: setup.pop(key, _Said(None, "")) for key in how.named_by}
    for key, one in named.items():
        if not one.value:
            raise SettingsError(f"{path}: setup_params.{key}: missing; {family.value} needs it")
    if not how.setup:
        for key in set(setup) - {*how.names, *how.lost}:
            lost.append(_lost(setup.pop(key), f"{family.value} looks at no such key"))
    folder = _folder(said, str(one.value))
    engine = {name: _Said(value, DEFAULT) for name, value in how.defaults.items()}
    engine |= dict.fromkeys(how.folders, folder)
    engine |= _engine(how, [*params.items(), *setup.items()], lost)
    return {
        "model_name": _Said("/".join(str(one.value) for one in named.values()), _together(named.values())),
        "model_server": _Said(how.kind, family.source),
        **_as_settings(engine),
    }


def _folder(said: _Keys, digested: str) -> _Said:
    """Where llm-api keeps a model: in a folder that is called by the family and digits of an MD5."""
    digits = str(int(md5(digested.encode(), usedforsecurity=False).hexdigest(), 16))[:12]
    models_dir = said["models_dir"]
    return _Said(f"{models_dir.value}/{said['model_family'].value}_{digits}", models_dir.source)


def _engine(how: _Family, given: Iterable[tuple[str, _Said]], lost: list[str]) -> _Keys:
    """What is given, under the engine's names; what has no effect is added to `lost`."""
    order = {key: place for place, key in enumerate(how.names)}
    engine: _Keys = {}
    for key, one in sorted(given, key=lambda item: order.get(item[0], len(order))):
        name = how.names.get(key, key)
        if key in how.lost:
            lost.append(_lost(one, how.lost[key]))
        elif name not in engine and one.value is not None:
            engine[name] = one
        elif one.value is not None and one.value != engine[name].value:
            lost.append(_lost(one, f"{engine[name].source} goes before it"))
    return engine


def _as_settings(engine: _Keys) -> _Keys:
    """Engine's settings as config.ini has them: an object whole, and text in quotes, so that it stays text."""
    whole: dict[str, JSON] = {}
    parts: dict[str, list[_Said]] = {}
    for name, one in engine.items():
        first, *inner = name.split(".")
        value = one.value
        for member in reversed(inner):
            value = {member: value}
        whole = _merged(whole, {first: value})
        parts.setdefault(first, []).append(one)
    return {
        name: _Said(f'"{value}"' if isinstance(value, str) else json.dumps(value), _together(parts[name]))
        for name, value in whole.items()
    }


def _together(parts: Iterable[_Said]) -> str:
    """Where a value comes from that is made of several."""
    sources = list(dict.fromkeys(part.source for part in parts))
    return ", ".join([source for source in sources if source != DEFAULT] or sources)


def _lost(one: _Said, why: str) -> str:
    return f"{one.source}: no effect here: {why}"


def _members(said: _Keys, name: str) -> _Keys:
    return {key.removeprefix(f"{name}."): one for key, one in said.items() if key.startswith(f"{name}.")}


def _said(path: Path) -> _Keys:
    """Every key that is set, the members of an object as `object.member`."""
    said = {key: _Said(value, DEFAULT) for key, value in _DEFAULTS.items()}
    for key, one in (*_written(path), *_variables()):
        if one.value is None:
            continue
        if (key in _OBJECTS) != isinstance(one.value, dict) or isinstance(one.value, list):
            raise SettingsError(
                f"{one.source} = {one.value}: not {'an object' if key in _OBJECTS else 'a single value'}"
            )
        if key not in _OBJECTS:
            said[key] = one
            continue
        for name, value in one.value.items():
            whole = f"{key}.{name}"
            below = said[whole].value if whole in said else None
            said[whole] = _Said(_merged(below, value), f"{one.source}.{name}")
    return said


def _written(path: Path) -> Iterator[tuple[str, _Said]]:
    """The keys of the file."""
    try:
        documents = [document for document in yaml.safe_load_all(read_text(path)) if document is not None]
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise SettingsError(f"{path}: cannot be read: {line}{error.problem}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if len(documents) > 1:
        raise SettingsError(
            f"{path}: {len(documents)} documents, separated by ---, as in llm-api's collection of examples; keep one"
        )
    document = documents[0] if documents else {}
    if not isinstance(document, dict):
        raise SettingsError(f"{path}: no keys and values; known: {', '.join(_KEYS)}")
    for key, value in document.items():
        if (name := str(key).lower()) not in _KEYS:
            raise SettingsError(f"{path}: unknown key {key}{nearest(str(key), _KEYS)}")
        yield name, _Said(_plain(value, f"{path} {key}"), f"{path} {key}")


def _variables() -> Iterator[tuple[str, _Said]]:
    """The keys of the environment, in capitals or not; other variables that begin so are llm-api's clients'."""
    for variable, text in os.environ.items():
        key = variable.lower().removeprefix(PREFIX.lower())
        if variable.upper().startswith(PREFIX) and key in _KEYS:
            yield key, _Said(_object(text, variable) if key in _OBJECTS else text, f"environment {variable}")


def _object(text: str, variable: str) -> JSON:
    try:
        return json.loads(text)
    except ValueError:
        raise SettingsError(f"environment {variable}: not the JSON of an object") from None


def _plain(value: object, where: str) -> JSON:
    """What YAML has said, as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(member, f"{where}.{key}") for key, member in value.items()}
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise SettingsError(f"{where}: a {type(value).__name__}; if it is meant as text, it stands in quotes")


def _merged(below: JSON, above: JSON) -> JSON:
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}
    return above
