"""Configuration file formats, one module each. All are read into a `ConfigFile`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from comps.config_files.base import ConfigFile
from comps.config_files.ini import read_ini
from comps.config_files.llm_api import read_llm_api, without_config_yaml


def read_config_file(path: Path | None) -> ConfigFile:
    """Reads a config.ini, or an llm-api config.yaml (its name ends in `.yaml` or `.yml`). Only the syntax is checked.

    Args:
        path: The path of the file; None: no file, which gives an empty `ConfigFile`.

    Raises:
        SettingsError: The file cannot be read or parsed, or it cannot be expressed in our sections.
    """
    if path and path.suffix.lower() in (".yaml", ".yml"):
        return read_llm_api(path)
    file = read_ini(path) if path else ConfigFile()
    return replace(file, without_effect=without_config_yaml())
