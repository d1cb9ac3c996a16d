"""One file per way of writing settings: what a configuration file says, as sections of keys, whoever's file it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from comps.config_files.base import ConfigFile
from comps.config_files.ini import read_ini
from comps.config_files.llm_api import read_llm_api, without_config_yaml


def read_config_file(path: Path | None) -> ConfigFile:
    """A file of ours, or, if its name ends in `.yaml` or `.yml`, of llm-api; nothing is checked but how it is written.

    Raises:
        SettingsError: It cannot be read, or what it says cannot be said in our sections.
    """
    if path and path.suffix.lower() in (".yaml", ".yml"):
        return read_llm_api(path)
    file = read_ini(path) if path else ConfigFile()
    return replace(file, without_effect=without_config_yaml())
