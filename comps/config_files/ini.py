"""Format of config.ini: sections with keys. A comment has a line of its own."""

from __future__ import annotations

import json
import re
from configparser import ConfigParser, DuplicateOptionError, Error, MissingSectionHeaderError, ParsingError
from pathlib import Path

from comps.config_files.base import ConfigFile, ConfigValue, read_text
from comps.core.errors import SettingsError, SettingsProblems

_COMMENT = re.compile(r"(?:^|\s)[#;]")
"""The beginning of a comment behind a value. A `#` within a word, as in a URL, is none."""
_QUOTED = re.compile(r"""(["'])(?:(?!\1).)*\1""", re.DOTALL)
_WITH_SEPARATORS = "Conversation."
"""The beginning of the headings whose values have `###` in them, unquoted."""


def read_ini(path: Path) -> ConfigFile:
    """Reads a config.ini.

    A value with a comment behind it is a problem, since nobody can tell whether the comment belongs to the value.

    Raises:
        SettingsError: The file cannot be read, or its sections cannot be told apart.
    """
    text, problems = read_text(path), SettingsProblems()
    parser = _parsed(path, text, problems)
    sections: dict[str, dict[str, ConfigValue]] = {}
    for heading in parser.sections():
        sections[heading] = {}
        for key, value in parser[heading].items():
            comment = None if heading.startswith(_WITH_SEPARATORS) else _comment_in(value)
            if comment:
                where = f"{path}: line {_line_of(text, heading, key)}: [{heading}] {key}"
                why = (
                    f"a comment needs a line of its own; if {comment[0].strip()} is part of the value, it needs quotes"
                )
                problems.add(SettingsError(f"{where}: {why}"))
                value = value[: comment.start()]
            sections[heading][key] = ConfigValue(value, str(path))
    return ConfigFile(path, sections, problems=problems.found)


def _parsed(path: Path, text: str, problems: SettingsProblems) -> ConfigParser:
    """Parses the text. A line that cannot be parsed is a problem, and is left out."""
    lines = text.split("\n")
    while True:
        parser = ConfigParser(interpolation=None, default_section="")
        try:
            parser.read_string("\n".join(lines), source=str(path))
            return parser
        except DuplicateOptionError as error:
            wrong = {error.lineno or 0: f"[{error.section}] {error.option} is there twice"}
        except MissingSectionHeaderError as error:
            first = SettingsError(f"{path}: cannot be read: line {error.lineno}: it is in no [section]")
            raise SettingsError(*problems.found, *first.problems) from None
        except ParsingError as error:
            wrong = {number: "neither a [section] nor key = value" for number, _ in error.errors}
        except Error as error:
            raise SettingsError(*problems.found, f"{path}: cannot be read: {' '.join(str(error).split())}") from None
        for number, why in wrong.items():
            problems.add(SettingsError(f"{path}: cannot be read: line {number}: {why}"))
            lines[number - 1] = ""


def _comment_in(value: str) -> re.Match[str] | None:
    """Returns where a comment begins in a value; None if there is none, or the value is quoted or JSON."""
    comment = _COMMENT.search(value)
    if comment is None or _QUOTED.fullmatch(value):
        return None
    if value.startswith(("[", "{")):
        try:
            json.loads(value)
            return None
        except ValueError:
            pass
    return comment


def _line_of(text: str, heading: str, key: str) -> int:
    """Returns the number of the line with a key, from 1."""
    within = ""
    for number, line in enumerate(text.split("\n"), 1):
        if found := re.match(r"\[(.+)\]", line):
            within = found[1]
        elif within == heading and re.split("[=:]", line, maxsplit=1)[0].strip().lower() == key:
            return number
    return 0
