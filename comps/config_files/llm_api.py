"""config.yaml of 1b5d's llm-api: its keys, its `LLM_API_` environment and its defaults, in our sections.

The environment goes before the file, and an object in it is merged into the file's. Source:
https://github.com/1b5d/llm-api, app/config.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from comps.config_files.base import ConfigFile, nearest, read_text
from comps.config_files.llm_api_models import (
    DEFAULT,
    FAMILIES,
    OLDER,
    Keys,
    Said,
    merged,
    model_settings,
    without_effect,
)
from comps.core.errors import SettingsError
from comps.core.types import JSON

PREFIX = "LLM_API_"

_DEFAULTS: Mapping[str, JSON] = {"models_dir": "./models", "host": "0.0.0.0", "port": 8000, "log_level": "info"}
_OBJECTS = ("setup_params", "model_params")
_KEYS = (*_DEFAULTS, "model_family", "model_name", *_OBJECTS)
_LEVELS: Mapping[JSON, str] = {"trace": "debug"}
"""What only uvicorn's log has."""


def read_llm_api(path: Path) -> ConfigFile:
    """What a config.yaml and the `LLM_API_` environment say.

    Raises:
        SettingsError: The file cannot be read, a key of it is unknown, or what a model needs is missing.
    """
    said = _all(path)
    lost: list[str] = []
    if name := said.get("model_name"):
        lost.append(without_effect(name, "setup_params says which model it is"))
    family = _family(path, said)
    level = said["log_level"]
    values = {
        ("Logging", "log_level"): Said(_LEVELS.get(level.value, level.value), level.source),
        ("OPEA_Microservice", "host"): said["host"],
        ("OPEA_Microservice", "port"): said["port"],
        ("Dialects", "llm_api_family"): family,
    }
    values |= {("Model", key): one for key, one in model_settings(path, said, family, lost).items()}
    sections: dict[str, dict[str, str]] = {}
    for (heading, key), one in values.items():
        sections.setdefault(heading, {})[key] = str(one.value)
    sources = {where: one.source for where, one in values.items()}
    return ConfigFile(path, sections, sources, tuple(lost), first_dialect="llm_api")


def _family(path: Path, said: Keys) -> Said:
    if "model_family" not in said:
        raise SettingsError(f"{path}: model_family: missing; known: {', '.join(FAMILIES)}")
    named = said["model_family"]
    family = OLDER.get(str(named.value), str(named.value))
    if family not in FAMILIES:
        raise SettingsError(f"{named.source}: model_family = {family}: unknown{nearest(family, FAMILIES)}")
    return Said(family, named.source)


def _all(path: Path) -> Keys:
    """Every key that is set, the members of an object as `object.member`."""
    said = {key: Said(value, DEFAULT) for key, value in _DEFAULTS.items()}
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
            said[whole] = Said(merged(below, value), f"{one.source}.{name}")
    return said


def _written(path: Path) -> Iterator[tuple[str, Said]]:
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
        yield name, Said(_plain(value, f"{path} {key}"), f"{path} {key}")


def _variables() -> Iterator[tuple[str, Said]]:
    """The keys of the environment, in capitals or not; other variables that begin so are llm-api's clients'."""
    for variable, text in os.environ.items():
        key = variable.lower().removeprefix(PREFIX.lower())
        if variable.upper().startswith(PREFIX) and key in _KEYS:
            yield key, Said(_object(text, variable) if key in _OBJECTS else text, f"environment {variable}")


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
