"""Environment variables of a key. A secret also has variables with the path of a file that contains it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo

from comps.core.errors import SettingsError


def environment_names(info: FieldInfo) -> Iterator[str]:
    """Yields the environment variables of a key. The first one that is set is used."""
    assert isinstance(info.validation_alias, AliasChoices)
    yield from map(str, info.validation_alias.choices)


def file_names(info: FieldInfo) -> Iterator[str]:
    """Yields, for a secret, the variables with the path of a file, one for each of `environment_names`."""
    if info.annotation is SecretStr:
        yield from map(of_file, environment_names(info))


def of_file(variable: str) -> str:
    """Returns the variable with the path of a file that contains the value of `variable`."""
    name, two, ending = variable.partition("__")
    return f"{name}_FILE{two}{ending}"


def variable_of(info: FieldInfo, ending: str = "") -> str | None:
    """Returns the environment variable that sets a key; None if no variable does.

    Args:
        info: The field.
        ending: The suffix of the variables of a further model.

    Raises:
        SettingsError: A secret is set by a variable and by a file.
    """
    for name in environment_names(info):
        with_value, with_path = name + ending, of_file(name + ending)
        if info.annotation is SecretStr and with_path in os.environ:
            if with_value in os.environ:
                raise SettingsError(f"environment {with_value} and {with_path}: both are set; one of them must go")
            return with_path
        if with_value in os.environ:
            return with_value
    return None
