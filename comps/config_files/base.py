"""`ConfigFile`: the content of a configuration file, whatever its format."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from comps.core.errors import SettingsError
from comps.core.types import JSON


@dataclass(frozen=True, slots=True)
class ConfigValue:
    """A configured value and its source, such as the path of a file or `environment NAME`."""

    value: JSON
    source: str


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The content of a configuration file. `str()` gives its path."""

    path: Path | None = None
    """None: there is no file, and all fields are empty."""
    sections: Mapping[str, Mapping[str, ConfigValue]] = field(default_factory=dict)
    """The values by heading and key; each value is text, as in config.ini."""
    engine: Mapping[str, ConfigValue] = field(default_factory=dict)
    """The typed engine settings of `[Model]`, if the format has them apart from its sections (config.ini does not)."""
    files_of_model: Collection[str] = ()
    """The keys of `engine` that locate the files of the model that this file configures."""
    without_effect: tuple[str, ...] = ()
    """One message for each setting that has no effect, with the reason."""
    problems: tuple[str, ...] = ()
    """One message for each thing that is wrong in the file, in spite of which the rest could be read."""
    first_dialect: str = ""
    """The dialect of the service whose format this is; empty: our own format."""

    def __str__(self) -> str:
        return str(self.path)


def read_text(path: Path, name: str = "") -> str:
    """Returns the text of a UTF-8 file, without a byte order mark.

    Args:
        path: The path of the file.
        name: Its name in the error message; empty: its path.

    Raises:
        SettingsError: The file cannot be read or decoded.
    """
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise SettingsError(f"{name or path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{name or path}: cannot be read: it is not UTF-8 text") from None


def nearest(name: str, known: Collection[str]) -> str:
    """Returns the end of an error message about an unknown name: the most similar known name, or all known names."""
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.5) or get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if known else ""
