"""Format of config.yaml of 1b5d's llm-api: maps its keys, its `LLM_API_` variables and its defaults to our sections.

The environment overrides the file; an object in the environment is merged into that of the file. Source:
https://github.com/1b5d/llm-api, app/config.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from comps.config_files.base import ConfigFile, ConfigValue, nearest, read_text
from comps.config_files.llm_api_models import (
    DEFAULT,
    FAMILIES,
    OLDER,
    Config,
    Keys,
    engine_of,
    files_of,
    merged,
    model_of,
    without_effect,
)
from comps.core.errors import SettingsError, SettingsProblems
from comps.core.types import JSON

PREFIX = "LLM_API_"

_DEFAULTS: Mapping[str, JSON] = {"models_dir": "./models", "host": "0.0.0.0", "port": 8000, "log_level": "info"}
_OBJECTS = ("setup_params", "model_params")
_KEYS = (*_DEFAULTS, "model_family", "model_name", *_OBJECTS)
_LEVELS: Mapping[JSON, str] = {"trace": "debug"}
"""Log levels that only uvicorn has, and ours in their place."""


def read_llm_api(path: Path) -> ConfigFile:
    """Reads a config.yaml and the `LLM_API_` environment variables.

    Raises:
        SettingsError: The file cannot be read, a key is unknown, or a key that the model needs is missing.
    """
    problems = SettingsProblems()
    config = _config(path, problems)
    lost: list[str] = []
    if name := config.keys.get("model_name"):
        lost.append(without_effect(name, "setup_params says which model it is"))
    try:
        family = _family(path, config.keys)
        model = model_of(path, config, family)
    except SettingsError as error:
        raise SettingsError(*problems.found, *error.problems) from None
    level = config.keys["log_level"]
    sections = {
        "Logging": {"log_level": ConfigValue(_LEVELS.get(level.value, level.value), level.source)},
        "OPEA_Microservice": {"host": config.keys["host"], "port": config.keys["port"]},
        "Model": model,
        "Dialects": {"llm_api_family": family},
    }
    return ConfigFile(
        path,
        {heading: {key: _as_text(one) for key, one in keys.items()} for heading, keys in sections.items()},
        engine_of(config, family, lost),
        files_of(family),
        tuple(lost),
        problems.found,
        first_dialect="llm_api",
    )


def without_config_yaml() -> tuple[str, ...]:
    """Returns a message about `LLM_API_` variables that have no effect, because no config.yaml is read."""
    variables = ", ".join(variable for variable, _ in _set_variables())
    why = "llm-api's variables go with its config.yaml, which may be empty: --config config.yaml"
    return (without_effect(ConfigValue(None, f"environment {variables}"), why),) if variables else ()


def _as_text(one: ConfigValue) -> ConfigValue:
    return ConfigValue(str(one.value), one.source)


def _family(path: Path, keys: Keys) -> ConfigValue:
    if "model_family" not in keys:
        raise SettingsError(f"{path}: model_family: missing; known: {', '.join(FAMILIES)}")
    named = keys["model_family"]
    family = OLDER.get(str(named.value), str(named.value))
    if family not in FAMILIES:
        raise SettingsError(f"{named.source}: model_family = {family}: unknown{nearest(family, FAMILIES)}")
    return ConfigValue(family, named.source)


def _config(path: Path, problems: SettingsProblems) -> Config:
    """Returns all keys that are set: in the environment, in the file, or by llm-api's defaults.

    A problem is added for each key that is unknown or has a wrong type.
    """
    config = Config({key: ConfigValue(value, DEFAULT) for key, value in _DEFAULTS.items()}, {}, {})
    objects = {"setup_params": config.setup_params, "model_params": config.model_params}
    for key, one in (*_written(path, problems), *_variables(problems)):
        if one.value is None:
            continue
        if (key in objects) != isinstance(one.value, dict) or isinstance(one.value, list):
            kind = "an object" if key in objects else "a single value"
            problems.add(SettingsError(f"{one.source} = {one.value}: not {kind}"))
            continue
        if key not in objects:
            config.keys[key] = one
            continue
        members = objects[key]
        for name, value in one.value.items():
            below = members[name].value if name in members else None
            members[name] = ConfigValue(merged(below, value), f"{one.source}.{name}")
    return config


def _written(path: Path, problems: SettingsProblems) -> Iterator[tuple[str, ConfigValue]]:
    """Yields the keys in the file."""
    import yaml  # Most services have no such file, and 1 MB less without it.

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
            problems.add(SettingsError(f"{path}: unknown key {key}{nearest(str(key), _KEYS)}"))
            continue
        plain: JSON = None
        with problems.caught():
            plain = _plain(value, f"{path} {key}")
        yield name, ConfigValue(plain, f"{path} {key}")


def _variables(problems: SettingsProblems) -> Iterator[tuple[str, ConfigValue]]:
    """Yields the keys in the environment."""
    for variable, key in _set_variables():
        value: JSON = os.environ[variable]
        if key in _OBJECTS:
            text, value = os.environ[variable], None
            with problems.caught():
                value = _object(text, variable)
        yield key, ConfigValue(value, f"environment {variable}")


def _set_variables() -> Iterator[tuple[str, str]]:
    """Yields the variables that are set, in any case, with their keys. Other `LLM_API_` variables belong to clients."""
    for variable in os.environ:
        key = variable.lower().removeprefix(PREFIX.lower())
        if variable.upper().startswith(PREFIX) and key in _KEYS:
            yield variable, key


def _object(text: str, variable: str) -> JSON:
    try:
        return json.loads(text)
    except ValueError:
        raise SettingsError(f"environment {variable}: not the JSON of an object") from None


def _plain(value: object, where: str) -> JSON:
    """Returns a YAML value as a JSON value.

    Raises:
        SettingsError: It is of a type that JSON lacks, such as a date.
    """
    if isinstance(value, dict):
        return {str(key): _plain(member, f"{where}.{key}") for key, member in value.items()}
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise SettingsError(f"{where}: a {type(value).__name__}; if it is meant as text, it stands in quotes")
