"""A section as it is read: the environment before the file before the defaults, each value with its source."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from comps.config_files.base import Said, nearest
from comps.core.errors import SettingsError
from comps.settings.engine_values import masked, may_be_secret, written
from comps.settings.sections import Section
from comps.settings.variables import environment_names, of_file, variable_of


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it stands, for whoever looks for the reason of something."""

    section: str
    key: str
    value: str
    """Secrets are masked."""
    source: str
    """`environment USVC_PORT`, the file's path, `[Model]` where a further model has its value, or `default`."""


@dataclass(frozen=True, slots=True)
class Part:
    """A section as it is read."""

    name: str
    """Its heading."""
    values: Any
    """The section itself."""
    sources: Mapping[str, str]
    """Where the value of each key comes from."""
    others: Mapping[str, Said]
    """What the file says under keys that the section does not have."""
    ending: str = ""
    """Of the environment variables of a further model."""
    engine: Mapping[str, Said] = field(default_factory=dict)
    """What is set that only the engine of a model understands; `engines` reads it."""

    def check_known(self, key: str, value: str, known: Collection[str]) -> None:
        """Raise if the value is none of those that there are."""
        if value not in known:
            raise self.wrong(key, f" = {value}: unknown{nearest(value, known)}")

    def check_no_others(self) -> None:
        """Raise if the file has a key that the section does not have."""
        if self.others:
            raise self.unknown(next(iter(self.others)))

    def unknown(self, key: str) -> SettingsError:
        """The error about a key of `others` that should not be there."""
        said = self.others[key]
        shown = "***" if may_be_secret(key) else said.value
        return SettingsError(f"{said.source}: unknown key [{self.name}] {key} = {shown}{nearest(key, self.sources)}")

    def wrong(self, key: str, what: str) -> SettingsError:
        """The error about the value of a key."""
        return _wrong(self.sources[key], self.name, key, what)

    def listing(self) -> Iterator[Setting]:
        """Every setting of the section."""
        for key, source in self.sources.items():
            yield Setting(self.name, key, written(getattr(self.values, key)), source)
        for key, said in self.engine.items():
            yield Setting(self.name, key, written(masked(key, said.value)), said.source)


def read_part(
    name: str, kind: type[Section], said: Mapping[str, Said], *, ending: str = "", inherited: Collection[str] = ()
) -> Part:
    """A section, checked key by key.

    Args:
        name: Its heading.
        kind: Its keys; a further model has a class of its own.
        said: What the file says under this heading.
        ending: Of the environment variables of a further model.
        inherited: The keys whose defaults come from [Model].

    Raises:
        SettingsError: A value is wrong.
    """
    fields = kind.model_fields
    sources = {
        key: _source(info, said.get(key), "[Model]" if key in inherited else "default") for key, info in fields.items()
    }
    try:
        values = kind(**dict(_given(name, fields, said)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = str(first["loc"][0])
        value = "***" if fields[key].annotation is SecretStr else first["input"]
        what = f" = {value!s}: {first['msg'].removeprefix('Value error, ')}"
        raise _wrong(sources[key], name, key, what) from None
    return Part(name, values, sources, {key: one for key, one in said.items() if key not in fields}, ending)


def _source(info: FieldInfo, said: Said | None, default: str) -> str:
    if variable := variable_of(info):
        return f"environment {variable}"
    return said.source if said else default


def _given(
    name: str, fields: Mapping[str, FieldInfo], said: Mapping[str, Said]
) -> Iterator[tuple[str, str | SecretStr]]:
    """What the file says, and the files that the environment names; the rest is in the environment itself."""
    for key, info in fields.items():
        # Under the name of its variable, and only where none is set: so each value has one source.
        own, variable = next(environment_names(info)), variable_of(info)
        if key in said and info.annotation is SecretStr:
            why = f"a secret comes from the environment only: {own}, or {of_file(own)} with the path of a file"
            raise _wrong(said[key].source, name, key, f": {why}")
        if variable and variable not in environment_names(info):
            yield own, _secret(name, key, variable)
        elif key in said and not variable:
            yield own, said[key].value


def _secret(name: str, key: str, variable: str) -> SecretStr:
    path = os.environ[variable]
    try:
        text = Path(path).read_text("utf-8").removesuffix("\n")
        what = "" if text else "is empty"
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        what = "cannot be read: it is not UTF-8 text"
    if what:
        raise _wrong(f"environment {variable}", name, key, f": the file {path} {what}")
    return SecretStr(text)


def _wrong(source: str, name: str, key: str, what: str) -> SettingsError:
    return SettingsError(f"{source}: [{name}] {key}{what}")
