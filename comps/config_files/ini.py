"""Format of config.ini: sections with keys."""

from __future__ import annotations

from configparser import ConfigParser, Error
from pathlib import Path

from comps.config_files.base import ConfigFile, ConfigValue, read_text
from comps.core.errors import SettingsError


def read_ini(path: Path) -> ConfigFile:
    """Reads a config.ini.

    Raises:
        SettingsError: The file cannot be read or parsed.
    """
    parser = ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(read_text(path), source=str(path))
    except Error as error:
        raise SettingsError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    sections = {
        heading: {key: ConfigValue(text, str(path)) for key, text in parser[heading].items()}
        for heading in parser.sections()
    }
    return ConfigFile(path, sections)
