"""Settings: the environment before the configuration file before the defaults, read once and frozen.

A further model, `[Model.<name>]`, has a class made for it: the keys of `[Model]`, whose variables end in its name and
whose defaults are what `[Model]` says. What a `[Conversation.<name>]` says, the dialect that knows conversation
templates reads.
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
from comps.config_files.base import ConfigFile, Said, nearest
from comps.core.errors import SettingsError
from comps.core.types import JSON
from comps.settings.engines import ENGINE, engine_of_file, engine_settings
from comps.settings.part import Part, Setting, read_part
from comps.settings.sections import SECTIONS, Dialects, Logging, Microservice, Model, key_of
from comps.settings.variables import environment_names, file_names, variable_of

CONFIG_FILE = "config.ini"
"""Read from the current folder if no other file is named and it is there."""
FURTHER = "Model."
"""How the heading of a further model begins; its name is the rest."""
CONVERSATION = "Conversation."
"""How the heading of a conversation template begins; its name is the rest."""

_OF_ONE_MODEL = frozenset(("model_name", "context_window"))
"""What another model never takes from [Model]."""
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
"""What a model at another model server does not take either: no credential goes to a server that it is not for."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model that is served."""

    section: str
    """Where it is set."""
    model: Model
    engine: Mapping[str, JSON] = field(repr=False)
    """What is set that only its engine understands."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a service."""

    logging: Logging
    microservice: Microservice
    model: Model
    dialects: Dialects
    models: Mapping[str, Served]
    """Every model by the name that callers ask for; the first is [Model]'s, and answers where no name is given."""
    conversations: Mapping[str, Mapping[str, str]]
    """The keys of every conversation template, by the template's name, as they are written."""
    listing: tuple[Setting, ...]
    """Every setting with its source."""
    without_effect: tuple[str, ...] = ()
    """What is said and does nothing here, with the reason; a sentence each."""


def load_settings(
    file: Path | None,
    kinds: Collection[str],
    dialects: Collection[str],
    without_engine: Collection[str],
) -> Settings:
    """The settings, checked.

    Args:
        file: The configuration file, ours or llm-api's (`.yaml`, `.yml`); None takes config.ini from the current folder
            if there is one.
        kinds: The model servers there are, by name.
        dialects: The dialects there are, by name.
        without_engine: Those of the kinds for which a key that is none of ours is a mistake. For the others it is a
            setting of their engine.

    Raises:
        SettingsError: Something is unknown, missing or wrong; it names the file or variable, the key and the value.
    """
    if file is None and Path(CONFIG_FILE).exists():
        file = Path(CONFIG_FILE)
    read = _read(file)
    parts = {name: read_part(name, kind, read.sections.get(name, {})) for name, kind in SECTIONS.items()}
    endings = _endings([heading for heading in read.sections if heading.startswith(FURTHER)], read)
    _refuse_variables_of_nobody(endings)
    lost = list(read.without_effect)
    above = engine_of_file(read, parts["Model"], lost)
    parts["Model"] = _with_engine(parts["Model"], above, kinds, without_engine)
    for ending, heading in endings.items():
        part, above = _further(parts["Model"], heading, ending, read.sections[heading])
        parts[heading] = _with_engine(part, above, kinds, without_engine)
    for part in parts.values():
        if not isinstance(part.values, Model):
            part.check_no_others()
    for dialect in parts["Dialects"].values.enabled:
        parts["Dialects"].check_known("enabled", dialect, dialects)
    listing = [setting for part in parts.values() for setting in part.listing()]
    conversations = {
        _name_of(heading): keys for heading, keys in read.sections.items() if heading.startswith(CONVERSATION)
    }
    for name, keys in conversations.items():
        listing += [Setting(CONVERSATION + name, key, one.value, one.source) for key, one in keys.items()]
    templates = {name: {key: one.value for key, one in keys.items()} for name, keys in conversations.items()}
    logging, microservice, model, chosen = (parts[name].values for name in SECTIONS)
    served = _served(parts.values(), read)
    return Settings(logging, microservice, model, chosen, served, templates, tuple(listing), tuple(lost))


def _with_engine(
    part: Part, above: Mapping[str, Said], kinds: Collection[str], without_engine: Collection[str]
) -> Part:
    """The section of a model, checked as a whole, with its engine's settings; `above` are those from elsewhere."""
    part.check_known("model_server", part.values.model_server, kinds)
    _check_credentials(part)
    return replace(part, engine=engine_settings(part, above, without_engine))


def _check_credentials(part: Part) -> None:
    """Raise if of what belongs together only a part is there."""
    for whole, needs in (
        ("token_url", ("client_id", "client_secret")),
        ("client_id", ("token_url",)),
        ("client_secret", ("token_url",)),
        ("client_key", ("client_certificate",)),
    ):
        for other in needs:
            if _is_set(part.values, whole) and not _is_set(part.values, other):
                own = next(environment_names(type(part.values).model_fields[other]))
                raise part.wrong(whole, f": needs {other} ({own}) as well")


def _is_set(model: Model, key: str) -> bool:
    value = getattr(model, key)
    return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)


def _served(parts: Iterable[Part], file: ConfigFile) -> dict[str, Served]:
    models: dict[str, Served] = {}
    for part in parts:
        if isinstance(part.values, Model):
            name = _name_of(part.name) if part.ending else part.values.model_name
            if name in models:
                raise SettingsError(f"{file}: [{part.name}]: the model of [Model] has that name")
            engine = {key: one.value for key, one in part.engine.items()}
            models[name] = Served(part.name, part.values, engine)
    return models


def _further(model: Part, heading: str, ending: str, said: Mapping[str, Said]) -> tuple[Part, dict[str, Said]]:
    """A further model: what it does not say itself, [Model] says, as far as that makes sense for another one. Also what
    it has of the settings of [Model]'s engine."""
    elsewhere = any(
        key in said or variable_of(Model.model_fields[key], ending) for key in ("model_server", "model_server_endpoint")
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
    above = {} if elsewhere else {key: Said(one.value, f"[{model.name}]") for key, one in model.engine.items()}
    return read_part(heading, kind, said, ending=ending, inherited=inherited), above


def _read(path: Path | None) -> ConfigFile:
    """The file, with known headings; the dialect of the service that it was written for comes before the others."""
    file = read_config_file(path)
    for heading in file.sections:
        if heading not in SECTIONS and not (heading.startswith((FURTHER, CONVERSATION)) and _name_of(heading)):
            raise SettingsError(f"{file}: unknown section [{heading}]{nearest(heading, SECTIONS)}")
    if file.first_dialect:
        enabled = dict.fromkeys((file.first_dialect, *Dialects.model_fields["enabled"].default))
        dialects = {"enabled": Said(", ".join(enabled), str(file)), **file.sections.get("Dialects", {})}
        file = replace(file, sections={**file.sections, "Dialects": dialects})
    return file


def _name_of(heading: str) -> str:
    return heading.partition(".")[2].strip()


def _endings(headings: Iterable[str], file: ConfigFile) -> dict[str, str]:
    """The headings of further models by what their environment variables end in."""
    endings: dict[str, str] = {}
    for heading in headings:
        ending = "__" + re.sub("[^A-Z0-9]", "_", _name_of(heading).upper())
        if other := endings.get(ending):
            raise SettingsError(
                f"{file}: [{heading}] and [{other}]: the variables of both would end in {ending}; rename one of them"
            )
        endings[ending] = heading
    return endings


def _refuse_variables_of_nobody(endings: Collection[str]) -> None:
    """A variable for a further model that there is not would be lost without a word."""
    known = {name for info in Model.model_fields.values() for name in (*environment_names(info), *file_names(info))}
    for variable in os.environ:
        head, two, name = variable.partition("__")
        if two and (head in known or head.startswith(ENGINE)) and two + name not in endings:
            said = f"no section [{FURTHER}<name>] has variables that end in {two}{name}"
            raise SettingsError(f"environment {variable}: {said}{nearest(two + name, endings)}")
