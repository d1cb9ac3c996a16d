"""Loads the settings. Flags override the environment, which overrides the configuration file, which overrides the
defaults.

For a further model, `[Model.<name>]`, a subclass of `Model` is created: its environment variables end in the model's
name, and its defaults are the values of `[Model]`. The dialect that uses conversation templates checks the keys of
`[Conversation.<name>]`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from pydantic import SecretStr, create_model

from comps.config_files import read_config_file
from comps.config_files.base import ConfigFile, ConfigValue, nearest
from comps.core.errors import SettingsError, SettingsProblems
from comps.core.types import JSON
from comps.settings.engines import ENGINE, engine_of_file, engine_settings
from comps.settings.field_types import key_of
from comps.settings.loaded_section import LoadedSection, Setting, load_section
from comps.settings.microservice import Microservice
from comps.settings.openai_key import without_openai_key
from comps.settings.sections import ALL, SECTIONS, Dialects, Logging, Model
from comps.settings.unknown_variables import unknown_variables
from comps.settings.variables import environment_names, file_names, variable_of

CONFIG_FILE = "config.ini"
"""The default configuration file, in the current folder."""
FURTHER = "Model."
"""The prefix of the headings of further models; the rest is the model's name."""
CONVERSATION = "Conversation."
"""The prefix of the headings of conversation templates; the rest is the template's name."""

Flags: TypeAlias = Mapping[str, Mapping[str, ConfigValue]]
"""Settings of the command line, by heading and key; the source of each is its flag."""

_SCRIPTED = "scripted"
"""The kind of model server that has no model, and the name of what it has."""
_OF_ONE_MODEL = frozenset(("model_name", "context_window"))
"""The keys that a further model never inherits from [Model]."""
_OF_ONE_SERVER = frozenset(
    (
        "model_server_endpoint",
        "api_key",
        "token_url",
        "client_id",
        "client_secret",
        "tls_skip_verify",
        "ca_file",
        "client_certificate",
        "client_key",
    )
)
"""The keys that a model at another model server does not inherit either, so that no credential goes to it."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The settings of one served model."""

    section: str
    """The heading of its section."""
    model: Model
    engine: Mapping[str, JSON] = field(repr=False)
    """The settings of its engine."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a service."""

    logging: Logging
    microservice: Microservice
    model: Model
    dialects: Dialects
    models: Mapping[str, ServedModel]
    """All models by their public names. The first is that of [Model], the default model."""
    conversations: Mapping[str, Mapping[str, str]]
    """The unparsed keys of the conversation templates, by the template's name."""
    listing: tuple[Setting, ...]
    """All settings with their sources."""
    without_effect: tuple[str, ...] = ()
    """One message for each setting that has no effect, with the reason."""


def load_settings(
    file: Path | None,
    kinds: Collection[str],
    dialects: Collection[str],
    without_engine: Collection[str],
) -> Settings:
    """Loads and checks the settings.

    Args:
        file: The configuration file, ours or llm-api's (`.yaml`, `.yml`); None: config.ini in the current folder, if it
            exists.
        kinds: The names of all model servers.
        dialects: The names of all dialects.
        without_engine: The model servers that have no engine settings. For the others, an unknown key is an engine
            setting.

    Raises:
        SettingsError: A setting is unknown, missing or wrong. The message names the file or variable, the key and the
            value.
    """
    problems = SettingsProblems()
    settings = gather_settings(file, kinds, dialects, without_engine, problems)
    problems.raise_if_any()
    return settings


def gather_settings(
    file: Path | None,
    kinds: Collection[str],
    dialects: Collection[str],
    without_engine: Collection[str],
    problems: SettingsProblems,
    flags: Flags = MappingProxyType({}),
) -> Settings:
    """Loads the settings as `load_settings` does, but adds to `problems` what is wrong with them.

    What is wrong is replaced by its default, or left out, so that the rest can be checked. `flags` are the settings of
    the command line.
    """
    if file is None and Path(CONFIG_FILE).exists():
        file = Path(CONFIG_FILE)
    read = ConfigFile(file)
    with problems.caught():
        read = _read(file, problems)
    sections = {
        name: load_section(name, kind, read.sections.get(name, {}), problems, flags=flags.get(name, {}))
        for name, kind in SECTIONS.items()
    }
    sections["Model"] = _with_own_name(sections["Model"])
    endings = _endings([heading for heading in read.sections if heading.startswith(FURTHER)], read, problems)
    lost = list(read.without_effect)
    if read.sections or not file:  # Otherwise its models are unknown.
        _check_variables_of_models(endings, problems)
    lost += unknown_variables(endings)
    above = engine_of_file(read, sections["Model"], lost)
    model = _with_engine(sections["Model"], above, kinds, without_engine, problems)
    sections["Model"] = without_openai_key(model, lost)
    for ending, heading in endings.items():
        section, above = _further(sections["Model"], heading, ending, read.sections[heading], problems)
        section = _with_engine(section, above, kinds, without_engine, problems)
        sections[heading] = without_openai_key(section, lost)
    for section in sections.values():
        if not isinstance(section.values, Model):
            with problems.caught():
                section.check_no_others()
    sections["Dialects"] = _with_dialects(sections["Dialects"], dialects, problems)
    return _assembled(sections, read, lost, problems)


def _with_own_name(section: LoadedSection) -> LoadedSection:
    """Returns the section of the first model. Answers written beforehand have a name of their own, where nothing names
    them, or only the file does, which has the default of each key: that is the bundled model's."""
    key, source = "model_name", section.sources["model_name"]
    is_chosen = section.values.model_name != Model.model_fields[key].default
    if section.values.model_server != _SCRIPTED or is_chosen or source.startswith(("environment", "--")):
        return section
    values = section.values.model_copy(update={key: _SCRIPTED})
    return replace(section, values=values, sources={**section.sources, key: "default"})


def _with_dialects(section: LoadedSection, known: Collection[str], problems: SettingsProblems) -> LoadedSection:
    """Returns the section with the names of all enabled dialects in place of `all`, and without unknown ones."""
    named = section.values.enabled
    for dialect in named:
        with problems.caught():
            section.check_known("enabled", dialect, (*known, ALL))
    others = [dialect for dialect in known if dialect not in named]
    expanded = [one for name in named for one in (others if name == ALL else (name,))]
    enabled = tuple(dict.fromkeys(dialect for dialect in expanded if dialect in known))
    return replace(section, values=section.values.model_copy(update={"enabled": enabled}))


def _assembled(
    sections: Mapping[str, LoadedSection], read: ConfigFile, lost: Iterable[str], problems: SettingsProblems
) -> Settings:
    """Returns the settings in these sections, and in those of the file's conversation templates."""
    listing = [setting for section in sections.values() for setting in section.listing()]
    conversations = {
        _name_of(heading): keys for heading, keys in read.sections.items() if heading.startswith(CONVERSATION)
    }
    for name, keys in conversations.items():
        listing += [Setting(CONVERSATION + name, key, one.value, one.source) for key, one in keys.items()]
    templates = {name: {key: one.value for key, one in keys.items()} for name, keys in conversations.items()}
    logging, microservice, model, chosen = (sections[name].values for name in SECTIONS)
    served = _served(sections.values(), read, problems)
    return Settings(logging, microservice, model, chosen, served, templates, tuple(listing), tuple(lost))


def _with_engine(
    section: LoadedSection,
    above: Mapping[str, ConfigValue],
    kinds: Collection[str],
    without_engine: Collection[str],
    problems: SettingsProblems,
) -> LoadedSection:
    """Checks the section of a model and adds its engine settings; `above` are the inherited ones."""
    _check_credentials(section, problems)
    try:
        section.check_known("model_server", section.values.model_server, kinds)
    except SettingsError as error:
        if section.sources["model_server"] != "[Model]":  # There it has been told already.
            problems.add(error)
        return replace(section, invalid={*section.invalid, "model_server"})
    return replace(section, engine=engine_settings(section, above, without_engine, problems))


def _check_credentials(section: LoadedSection, problems: SettingsProblems) -> None:
    """Add a problem for each setting that is there without another that it needs."""
    for whole, needs in (
        ("token_url", ("client_id", "client_secret")),
        ("client_id", ("token_url",)),
        ("client_secret", ("token_url",)),
        ("client_key", ("client_certificate",)),
    ):
        for other in needs:
            alone = _is_set(section.values, whole) and not _is_set(section.values, other)
            if alone and other not in section.invalid and section.sources[whole] != "[Model]":
                own = next(environment_names(type(section.values).model_fields[other]))
                problems.add(section.wrong(whole, f": needs {other} ({own}) as well"))
                break


def _is_set(model: Model, key: str) -> bool:
    value = getattr(model, key)
    return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)


def _served(sections: Iterable[LoadedSection], file: ConfigFile, problems: SettingsProblems) -> dict[str, ServedModel]:
    models: dict[str, ServedModel] = {}
    for section in sections:
        if isinstance(section.values, Model) and "model_server" not in section.invalid:
            name = _name_of(section.name) if section.ending else section.values.model_name
            if name in models:
                problems.add(SettingsError(f"{file}: [{section.name}]: the model of [Model] has that name"))
            engine = {key: one.value for key, one in section.engine.items()}
            models[name] = ServedModel(section.name, section.values, engine)
    return models


def _further(
    model: LoadedSection, heading: str, ending: str, given: Mapping[str, ConfigValue], problems: SettingsProblems
) -> tuple[LoadedSection, dict[str, ConfigValue]]:
    """Returns the section of a further model, and the engine settings that it inherits.

    Defaults come from [Model], except for `_OF_ONE_MODEL` and, at another model server, `_OF_ONE_SERVER`.
    """
    elsewhere = any(
        key in given or variable_of(Model.model_fields[key], ending)
        for key in ("model_server", "model_server_endpoint")
    )
    fields: dict[str, Any] = {}
    inherited: set[str] = set()
    for key, info in Model.model_fields.items():
        default = info.default
        if not (key in _OF_ONE_MODEL or (elsewhere and key in _OF_ONE_SERVER)):
            default = getattr(model.values, key)
            inherited.add(key)
        elif key == "model_name":
            default = _name_of(heading)
        names = (f"{name}{ending}" for name in environment_names(info))
        fields[key] = (info.rebuild_annotation(), key_of(default, info.description or "", *names))
    kind: type[Model] = create_model(heading, __base__=Model, **fields)
    above = {} if elsewhere else {key: ConfigValue(one.value, f"[{model.name}]") for key, one in model.engine.items()}
    return load_section(heading, kind, given, problems, ending=ending, inherited=inherited), above


def _read(path: Path | None, problems: SettingsProblems) -> ConfigFile:
    """Reads the file and checks its headings. Its `first_dialect` is enabled before the others."""
    file = read_config_file(path)
    problems.add(SettingsError(*file.problems))
    for heading in file.sections:
        if not _is_known(heading):
            problems.add(SettingsError(f"{file}: unknown section [{heading}]{nearest(heading, SECTIONS)}"))
    file = replace(file, sections={heading: keys for heading, keys in file.sections.items() if _is_known(heading)})
    if file.first_dialect:
        enabled = (file.first_dialect, ALL)
        dialects = {"enabled": ConfigValue(", ".join(enabled), str(file)), **file.sections.get("Dialects", {})}
        file = replace(file, sections={**file.sections, "Dialects": dialects})
    return file


def _is_known(heading: str) -> bool:
    return heading in SECTIONS or (heading.startswith((FURTHER, CONVERSATION)) and bool(_name_of(heading)))


def _name_of(heading: str) -> str:
    return heading.partition(".")[2].strip()


def _endings(headings: Iterable[str], file: ConfigFile, problems: SettingsProblems) -> dict[str, str]:
    """Returns the headings of further models, by the suffix of their environment variables."""
    endings: dict[str, str] = {}
    for heading in headings:
        ending = "__" + re.sub("[^A-Z0-9]", "_", _name_of(heading).upper())
        if other := endings.get(ending):
            why = f"the variables of both would end in {ending}; rename one of them"
            problems.add(SettingsError(f"{file}: [{heading}] and [{other}]: {why}"))
            continue
        endings[ending] = heading
    return endings


def _check_variables_of_models(endings: Collection[str], problems: SettingsProblems) -> None:
    """Add a problem for each environment variable with the suffix of a model that does not exist."""
    known = {name for info in Model.model_fields.values() for name in (*environment_names(info), *file_names(info))}
    for variable in os.environ:
        head, two, name = variable.partition("__")
        if two and (head in known or head.startswith(ENGINE)) and two + name not in endings:
            why = f"no section [{FURTHER}<name>] has variables that end in {two}{name}"
            problems.add(SettingsError(f"environment {variable}: {why}{nearest(two + name, endings)}"))
