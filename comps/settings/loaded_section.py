"""Loads one section: flags override the environment, which overrides the file, which overrides the defaults. Each value
has its source."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from comps.config_files.base import ConfigValue, nearest, read_text
from comps.core.errors import SettingsError, SettingsProblems
from comps.settings.engine_values import masked, may_be_secret, written
from comps.settings.section import Section
from comps.settings.variables import environment_names, of_file, variable_of


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting for the listing of `opea-llm check`."""

    section: str
    key: str
    value: str
    """The value as text, with secrets masked."""
    source: str
    """`--port`, `environment USVC_PORT`, the file's path, `[Model]` if a further model inherits it, or `default`."""


@dataclass(frozen=True, slots=True)
class LoadedSection:
    """A section with the sources of its values."""

    name: str
    """The heading."""
    values: Any
    """The section: an instance of its class."""
    sources: Mapping[str, str]
    """The source of each value, by key."""
    others: Mapping[str, ConfigValue]
    """The values in the file whose keys the section does not have."""
    ending: str = ""
    """The suffix of the environment variables of a further model."""
    engine: Mapping[str, ConfigValue] = field(default_factory=dict)
    """The engine settings of a model; see `comps.settings.engines`."""
    invalid: Collection[str] = ()
    """The keys whose values are invalid, and have been replaced by their defaults."""

    def check_known(self, key: str, value: str, known: Collection[str]) -> None:
        """Raise a SettingsError if the value is not one of `known`."""
        if value not in known:
            raise self.wrong(key, f" = {value}: unknown{nearest(value, known)}")

    def check_no_others(self) -> None:
        """Raise a SettingsError if the file has keys that the section does not have."""
        if self.others:
            raise SettingsError(*(str(self.unknown(key)) for key in self.others))

    def unknown(self, key: str) -> SettingsError:
        """Returns the error about an unknown key, one of `others`."""
        given = self.others[key]
        shown = "***" if may_be_secret(key) else given.value
        return SettingsError(f"{given.source}: unknown key [{self.name}] {key} = {shown}{nearest(key, self.sources)}")

    def wrong(self, key: str, what: str) -> SettingsError:
        """Returns the error about the value of a key."""
        return _wrong(self.sources[key], self.name, key, what)

    def listing(self) -> Iterator[Setting]:
        """Yields all settings of the section, then those of its engine."""
        for key, source in self.sources.items():
            yield Setting(self.name, key, written(getattr(self.values, key)), source)
        for key, given in self.engine.items():
            yield Setting(self.name, key, written(masked(key, given.value)), given.source)


def load_section(
    name: str,
    kind: type[Section],
    given: Mapping[str, ConfigValue],
    problems: SettingsProblems,
    *,
    ending: str = "",
    inherited: Collection[str] = (),
    flags: Mapping[str, ConfigValue] = MappingProxyType({}),
) -> LoadedSection:
    """Loads a section and checks each value. An invalid value is a problem, and is replaced by its default.

    Args:
        name: The heading.
        kind: The class of the section; a further model has one of its own.
        given: The file's values under this heading.
        problems: A problem is added for each value that is invalid.
        ending: The suffix of the environment variables of a further model.
        inherited: The keys whose defaults come from [Model].
        flags: The values of the command line.
    """
    fields = kind.model_fields
    sources: dict[str, str] = {}
    values: dict[str, str | SecretStr] = {}
    invalid: set[str] = set()
    for key, info in fields.items():
        try:
            if flag := flags.get(key):
                sources[key] = flag.source
                values[next(environment_names(info))] = flag.value
                continue
            sources[key] = _source(info, given.get(key), "[Model]" if key in inherited else "default")
            values.update(_given(name, key, info, given))
        except SettingsError as error:
            problems.add(error)
            invalid.add(key)
    section = _validated(name, kind, values, sources, invalid, problems)
    others = {key: one for key, one in given.items() if key not in fields}
    return LoadedSection(name, section, sources, others, ending, invalid=invalid)


def _validated(
    name: str,
    kind: type[Section],
    values: Mapping[str, str | SecretStr],
    sources: Mapping[str, str],
    invalid: set[str],
    problems: SettingsProblems,
) -> Section:
    """Returns the section. Invalid values are added to `invalid` and `problems`, and replaced by their defaults."""
    fields = kind.model_fields
    try:
        return kind(**dict(values))
    except ValidationError as error:
        for one in error.errors(include_url=False, include_context=False):
            key = str(one["loc"][0])
            if key not in invalid:
                value = "***" if fields[key].annotation is SecretStr else one["input"]
                what = f" = {value!s}: {one['msg'].removeprefix('Value error, ')}"
                problems.add(_wrong(sources[key], name, key, what))
                invalid.add(key)
    defaults = {next(environment_names(fields[key])): fields[key].default for key in invalid}
    return kind(**{**values, **defaults})


def _source(info: FieldInfo, given: ConfigValue | None, default: str) -> str:
    if variable := variable_of(info):
        return f"environment {variable}"
    return given.source if given else default


def _given(name: str, key: str, info: FieldInfo, given: Mapping[str, ConfigValue]) -> dict[str, str | SecretStr]:
    """Returns the value of a key in the file, or of a secret in a file that a variable names; pydantic reads other
    variables."""
    # Keyed by its variable, and only if no variable is set: so each value has one source.
    own, variable = next(environment_names(info)), variable_of(info)
    if key in given and info.annotation is SecretStr:
        why = f"a secret comes from the environment only: {own}, or {of_file(own)} with the path of a file"
        raise _wrong(given[key].source, name, key, f": {why}")
    if variable and variable not in environment_names(info):
        return {own: _secret(name, key, variable)}
    return {own: given[key].value} if key in given and not variable else {}


def _secret(name: str, key: str, variable: str) -> SecretStr:
    path = os.environ[variable]
    try:
        text = read_text(Path(path), f"the file {path}").removesuffix("\n")
    except SettingsError as error:
        raise _wrong(f"environment {variable}", name, key, f": {error}") from None
    if not text:
        raise _wrong(f"environment {variable}", name, key, f": the file {path} is empty")
    return SecretStr(text)


def _wrong(source: str, name: str, key: str, what: str) -> SettingsError:
    return SettingsError(f"{source}: [{name}] {key}{what}")
