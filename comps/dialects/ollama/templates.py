"""The prompt templates of Ollama's completions, as far as they only fill in texts.

https://docs.ollama.com/template, https://pkg.go.dev/text/template
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from comps.core.errors import InvalidRequest, shown_name

_ACTION = re.compile(r"{{(-\s)?([^{}]*?)(\s-)?}}")
_CONDITION = re.compile(r"if +\.(\w+)")
_ANSWER = ".Response"
_REPEATED = 1_000_000
"""The characters that a template may make of short texts by repeating them; of long ones, four times their length."""


def fill(template: str, values: Mapping[str, str]) -> str:
    """A template with its variables filled in, up to `.Response`, where the answer begins.

    It may have variables (`{{ .Prompt }}`), conditions on them (`{{ if .System }}`, `{{ else }}`, `{{ end }}`), and
    hyphens that trim the spaces around (`{{-`, `-}}`).

    Args:
        template: The template.
        values: The variables' values by their names.

    Raises:
        InvalidRequest: It has something else, such as `range`.
    """
    written: list[str] = []
    holds = [True]
    """Whether all conditions hold that surround the place, behind each of them, the innermost last."""
    place, is_trimmed = 0, False
    room = _REPEATED + 4 * sum(map(len, values.values()))
    for found in _ACTION.finditer(template):
        text, action = _checked(template[place : found.start()]), found[2].strip()
        _write(written, text.rstrip() if found[1] else text, holds, is_trimmed)
        place, is_trimmed = found.end(), bool(found[3])
        condition = _CONDITION.fullmatch(action)
        if condition and condition[1] in values:
            holds.append(holds[-1] and bool(values[condition[1]]))
        elif action in ("else", "end") and len(holds) > 1:
            innermost = holds.pop()
            holds += [holds[-1] and not innermost] if action == "else" else []
        elif action == _ANSWER:
            if holds[-1]:
                return "".join(written)
        elif action[:1] == "." and action[1:] in values:
            value = values[action[1:]]
            room -= len(value)
            if room < 0:
                raise InvalidRequest("it repeats its texts too often for texts as long as these", "template")
            _write(written, value, holds)
        else:
            raise _unknown(action, values)
    if len(holds) > 1:
        raise InvalidRequest("an if has no end", "template")
    _write(written, _checked(template[place:]), holds, is_trimmed)
    return "".join(written)


def _write(written: list[str], text: str, holds: list[bool], is_trimmed: bool = False) -> None:
    """Write a text of the template, if the conditions around it hold."""
    if holds[-1]:
        written.append(text.lstrip() if is_trimmed else text)


def _checked(text: str) -> str:
    if "{{" in text:
        raise InvalidRequest("an action is not closed, or has braces in it", "template")
    return text


def _unknown(action: str, values: Mapping[str, str]) -> InvalidRequest:
    known = ", ".join(f".{name}" for name in values)
    said = shown_name(action.partition(" ")[0])
    return InvalidRequest(f"{said} is not read here; what is: {known}, {_ANSWER}, if, else and end", "template")
