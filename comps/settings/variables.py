"""The environment variables of a key: its own, and for a secret also those that hold the path of a file with it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo

from comps.core.errors import SettingsError


def environment_names(info: FieldInfo) -> Iterator[str]:
    """The environment variables of a key, the first that is set being the one that counts."""
    assert isinstance(info.validation_alias, AliasChoices)
    yield from map(str, info.validation_alias.choices)


def file_names(info: FieldInfo) -> Iterator[str]:
    """The variables of a secret that hold the path of a file with it, one for each of `environment_names`."""
    if info.annotation is SecretStr:
        yield from map(of_file, environment_names(info))


def of_file(variable: str) -> str:
    """The variable with the path of a file that has what another variable would have."""
    name, two, ending = variable.partition("__")
    return f"{name}_FILE{two}{ending}"


def variable_of(info: FieldInfo, ending: str = "") -> str | None:
    """The variable that a key has its value from, if it is one."""
    for name in environment_names(info):
        with_value, with_path = name + ending, of_file(name + ending)
        if info.annotation is SecretStr and with_path in os.environ:
            if with_value in os.environ:
                raise SettingsError(f"environment {with_value} and {with_path}: both are set; one of them must go")
            return with_path
        if with_value in os.environ:
            return with_value
    return None
