"""The settings of a model's engine: from the environment, from the keys of its section that are none of ours, or from
where a file has them apart."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches

from comps.config_files.base import ConfigFile, Said
from comps.core.errors import SettingsError
from comps.settings.engine_values import is_secret, typed
from comps.settings.part import Part

ENGINE = "LLM_ENGINE_"
"""How the environment variable of an engine's own setting begins; the setting is the rest, in small letters."""

_SLIP = 0.8
"""How alike a key that is none of ours must be to one of ours to be taken for a slip of the pen."""


def engine_of_file(file: ConfigFile, model: Part, lost: list[str]) -> dict[str, Said]:
    """The engine's settings that a file has in a place of their own, as far as they are for the model that there is;
    what has no effect is added to `lost`."""
    if not file.engine:
        return {}
    own = {key: file.sections[model.name][key].value for key in ("model_server", "model_name")}
    if model.values.model_server != own["model_server"]:
        lost.append(_of_another(file, "its settings", model, "model_server", own))
        return {}
    engine = dict(file.engine)
    if model.values.model_name != own["model_name"]:
        left = [key for key in file.files_of_model if engine.pop(key, None)]
        if left:
            lost.append(_of_another(file, f"its {' and '.join(left)}", model, "model_name", own))
    return engine


def _of_another(file: ConfigFile, what: str, model: Part, key: str, own: Mapping[str, str]) -> str:
    now = f"{model.sources[key]} has {getattr(model.values, key)}"
    return f"{file}: no effect here: {what} of {own[key]}; {now}"


def engine_settings(part: Part, above: Mapping[str, Said], without_engine: Collection[str]) -> dict[str, Said]:
    """All settings of a model's engine: those of the environment before those of the section before those above it.

    Raises:
        SettingsError: One of them is wrong, or the model server is among those that have no engine.
    """
    if part.values.model_server in without_engine:
        part.check_no_others()
        for variable, key in _engine_variables(part.ending):
            why = f"{part.values.model_server} has no engine that could be set"
            raise SettingsError(f"environment {variable}: [{part.name}] {key}: {why}")
        return {}
    for key, said in part.others.items():
        if get_close_matches(key, part.sources, n=1, cutoff=_SLIP):
            raise part.unknown(key)
        if is_secret(key):
            why = f"a secret comes from the environment only: {ENGINE}{key.upper()}{part.ending}"
            raise SettingsError(f"{said.source}: [{part.name}] {key}: {why}")
    variables = {key: Said(os.environ[name], f"environment {name}") for name, key in _engine_variables(part.ending)}
    return {**above, **_typed(part.name, part.others), **_typed(part.name, variables)}


def _engine_variables(ending: str) -> Iterator[tuple[str, str]]:
    for variable in os.environ:
        key, two, rest = variable.removeprefix(ENGINE).partition("__")
        if variable.startswith(ENGINE) and key and two + rest == ending:
            yield variable, key.lower()


def _typed(name: str, texts: Mapping[str, Said]) -> dict[str, Said]:
    values = {}
    for key, said in texts.items():
        try:
            values[key] = Said(typed(said.value), said.source)
        except ValueError as error:
            shown = "***" if is_secret(key) else said.value
            raise SettingsError(f"{said.source}: [{name}] {key} = {shown}: {error}") from None
    return values
