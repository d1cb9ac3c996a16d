"""What every kind of configuration file is read into."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from comps.core.errors import SettingsError
from comps.core.types import JSON


@dataclass(frozen=True, slots=True)
class Said:
    """A value, and where it stands."""

    value: JSON
    source: str


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a configuration file says; as text, it is its path."""

    path: Path | None = None
    """None: there is no file, and nothing is said."""
    sections: Mapping[str, Mapping[str, Said]] = field(default_factory=dict)
    """The values by heading and key, each a text as config.ini would have it."""
    engine: Mapping[str, Said] = field(default_factory=dict)
    """The settings of the engine of `[Model]`, with their types, of a file that has them in a place of their own; in
    config.ini they are keys of the section."""
    files_of_model: Collection[str] = ()
    """Those of `engine` that say where the files of the file's own model are."""
    without_effect: tuple[str, ...] = ()
    """What is there and does nothing here, with the reason; a sentence each."""
    first_dialect: str = ""
    """The dialect of the service that the file was written for; empty: ours."""

    def __str__(self) -> str:
        return str(self.path)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        SettingsError: It cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: cannot be read: it is not UTF-8 text") from None


def nearest(name: str, known: Collection[str]) -> str:
    """The end of an error about a name that nobody knows: the one that may have been meant, or all that there are."""
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.5) or get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if known else ""
