"""Engine settings of a model: environment variables `LLM_ENGINE_…`, the other keys of its section, or a part of their
own in the file."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches

from comps.config_files.base import ConfigFile, ConfigValue
from comps.core.errors import SettingsError, SettingsProblems
from comps.settings.engine_values import is_secret, typed
from comps.settings.loaded_section import LoadedSection

ENGINE = "LLM_ENGINE_"
"""The prefix of the environment variables of engine settings; the rest, in lower case, is the key."""

_SLIP = 0.8
"""The similarity, from 0 to 1, at which an unknown key is taken for a misspelled key of ours."""


def engine_of_file(file: ConfigFile, model: LoadedSection, lost: list[str]) -> dict[str, ConfigValue]:
    """Returns the engine settings that the file has apart from its sections, if they apply to the given model.

    Args:
        file: The configuration file.
        model: The section [Model].
        lost: A message is added for each setting that has no effect.
    """
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


def _of_another(file: ConfigFile, what: str, model: LoadedSection, key: str, own: Mapping[str, str]) -> str:
    now = f"{model.sources[key]} has {getattr(model.values, key)}"
    return f"{file}: no effect here: {what} of {own[key]}; {now}"


def engine_settings(
    section: LoadedSection,
    above: Mapping[str, ConfigValue],
    without_engine: Collection[str],
    problems: SettingsProblems,
) -> dict[str, ConfigValue]:
    """Returns all settings of a model's engine. The environment overrides the section, which overrides `above`.

    Args:
        section: The model's section.
        above: Inherited settings.
        without_engine: The model servers that have no engine settings.
        problems: A problem is added for each setting that is invalid, or that the model server does not have.
    """
    variables = dict(_engine_variables(section.ending))
    if section.values.model_server in without_engine:
        with problems.caught():
            section.check_no_others()
        for variable, key in variables.items():
            why = f"{section.values.model_server} has no engine that could be set"
            problems.add(SettingsError(f"environment {variable}: [{section.name}] {key}: {why}"))
        return {}
    given = {}
    for key, one in section.others.items():
        if get_close_matches(key, section.sources, n=1, cutoff=_SLIP):
            problems.add(section.unknown(key))
        elif is_secret(key):
            why = f"a secret comes from the environment only: {ENGINE}{key.upper()}{section.ending}"
            problems.add(SettingsError(f"{one.source}: [{section.name}] {key}: {why}"))
        else:
            given[key] = one
    set_here = {key: ConfigValue(os.environ[name], f"environment {name}") for name, key in variables.items()}
    return {**above, **_typed(section.name, given, problems), **_typed(section.name, set_here, problems)}


def _engine_variables(ending: str) -> Iterator[tuple[str, str]]:
    for variable in os.environ:
        key, two, rest = variable.removeprefix(ENGINE).partition("__")
        if variable.startswith(ENGINE) and key and two + rest == ending:
            yield variable, key.lower()


def _typed(name: str, texts: Mapping[str, ConfigValue], problems: SettingsProblems) -> dict[str, ConfigValue]:
    values = {}
    for key, given in texts.items():
        try:
            values[key] = ConfigValue(typed(given.value), given.source)
        except ValueError as error:
            shown = "***" if is_secret(key) else given.value
            problems.add(SettingsError(f"{given.source}: [{name}] {key} = {shown}: {error}"))
    return values
