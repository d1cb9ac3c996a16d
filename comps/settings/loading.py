"""Loads the settings. The environment overrides the configuration file, which overrides the defaults.

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
from typing import Any

from pydantic import SecretStr, create_model

from comps.config_files import read_config_file
from comps.config_files.base import ConfigFile, ConfigValue, nearest
from comps.core.errors import SettingsError
from comps.core.types import JSON
from comps.settings.engines import ENGINE, engine_of_file, engine_settings
from comps.settings.loaded_section import LoadedSection, Setting, load_section
from comps.settings.sections import SECTIONS, Dialects, Logging, Microservice, Model, key_of
from comps.settings.variables import environment_names, file_names, variable_of

CONFIG_FILE = "config.ini"
"""The default configuration file, in the current folder."""
FURTHER = "Model."
"""The prefix of the headings of further models; the rest is the model's name."""
CONVERSATION = "Conversation."
"""The prefix of the headings of conversation templates; the rest is the template's name."""

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
    if file is None and Path(CONFIG_FILE).exists():
        file = Path(CONFIG_FILE)
    read = _read(file)
    sections = {name: load_section(name, kind, read.sections.get(name, {})) for name, kind in SECTIONS.items()}
    endings = _endings([heading for heading in read.sections if heading.startswith(FURTHER)], read)
    _check_variables_of_models(endings)
    lost = list(read.without_effect)
    above = engine_of_file(read, sections["Model"], lost)
    sections["Model"] = _with_engine(sections["Model"], above, kinds, without_engine)
    for ending, heading in endings.items():
        section, above = _further(sections["Model"], heading, ending, read.sections[heading])
        sections[heading] = _with_engine(section, above, kinds, without_engine)
    for section in sections.values():
        if not isinstance(section.values, Model):
            section.check_no_others()
    for dialect in sections["Dialects"].values.enabled:
        sections["Dialects"].check_known("enabled", dialect, dialects)
    listing = [setting for section in sections.values() for setting in section.listing()]
    conversations = {
        _name_of(heading): keys for heading, keys in read.sections.items() if heading.startswith(CONVERSATION)
    }
    for name, keys in conversations.items():
        listing += [Setting(CONVERSATION + name, key, one.value, one.source) for key, one in keys.items()]
    templates = {name: {key: one.value for key, one in keys.items()} for name, keys in conversations.items()}
    logging, microservice, model, chosen = (sections[name].values for name in SECTIONS)
    served = _served(sections.values(), read)
    return Settings(logging, microservice, model, chosen, served, templates, tuple(listing), tuple(lost))


def _with_engine(
    section: LoadedSection, above: Mapping[str, ConfigValue], kinds: Collection[str], without_engine: Collection[str]
) -> LoadedSection:
    """Checks the section of a model and adds its engine settings; `above` are the inherited ones."""
    section.check_known("model_server", section.values.model_server, kinds)
    _check_credentials(section)
    return replace(section, engine=engine_settings(section, above, without_engine))


def _check_credentials(section: LoadedSection) -> None:
    """Raise if a setting is there without another that it needs."""
    for whole, needs in (
        ("token_url", ("client_id", "client_secret")),
        ("client_id", ("token_url",)),
        ("client_secret", ("token_url",)),
        ("client_key", ("client_certificate",)),
    ):
        for other in needs:
            if _is_set(section.values, whole) and not _is_set(section.values, other):
                own = next(environment_names(type(section.values).model_fields[other]))
                raise section.wrong(whole, f": needs {other} ({own}) as well")


def _is_set(model: Model, key: str) -> bool:
    value = getattr(model, key)
    return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)


def _served(sections: Iterable[LoadedSection], file: ConfigFile) -> dict[str, ServedModel]:
    models: dict[str, ServedModel] = {}
    for section in sections:
        if isinstance(section.values, Model):
            name = _name_of(section.name) if section.ending else section.values.model_name
            if name in models:
                raise SettingsError(f"{file}: [{section.name}]: the model of [Model] has that name")
            engine = {key: one.value for key, one in section.engine.items()}
            models[name] = ServedModel(section.name, section.values, engine)
    return models


def _further(
    model: LoadedSection, heading: str, ending: str, given: Mapping[str, ConfigValue]
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
    return load_section(heading, kind, given, ending=ending, inherited=inherited), above


def _read(path: Path | None) -> ConfigFile:
    """Reads the file and checks its headings. Its `first_dialect` is enabled before the others."""
    file = read_config_file(path)
    for heading in file.sections:
        if heading not in SECTIONS and not (heading.startswith((FURTHER, CONVERSATION)) and _name_of(heading)):
            raise SettingsError(f"{file}: unknown section [{heading}]{nearest(heading, SECTIONS)}")
    if file.first_dialect:
        enabled = dict.fromkeys((file.first_dialect, *Dialects.model_fields["enabled"].default))
        dialects = {"enabled": ConfigValue(", ".join(enabled), str(file)), **file.sections.get("Dialects", {})}
        file = replace(file, sections={**file.sections, "Dialects": dialects})
    return file


def _name_of(heading: str) -> str:
    return heading.partition(".")[2].strip()


def _endings(headings: Iterable[str], file: ConfigFile) -> dict[str, str]:
    """Returns the headings of further models, by the suffix of their environment variables."""
    endings: dict[str, str] = {}
    for heading in headings:
        ending = "__" + re.sub("[^A-Z0-9]", "_", _name_of(heading).upper())
        if other := endings.get(ending):
            raise SettingsError(
                f"{file}: [{heading}] and [{other}]: the variables of both would end in {ending}; rename one of them"
            )
        endings[ending] = heading
    return endings


def _check_variables_of_models(endings: Collection[str]) -> None:
    """Raise if an environment variable has the suffix of a model that does not exist."""
    known = {name for info in Model.model_fields.values() for name in (*environment_names(info), *file_names(info))}
    for variable in os.environ:
        head, two, name = variable.partition("__")
        if two and (head in known or head.startswith(ENGINE)) and two + name not in endings:
            why = f"no section [{FURTHER}<name>] has variables that end in {two}{name}"
            raise SettingsError(f"environment {variable}: {why}{nearest(two + name, endings)}")
