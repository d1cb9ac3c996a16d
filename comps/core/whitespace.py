"""Whitespace of documents that costs tokens and says nothing."""

from __future__ import annotations

import re
from dataclasses import replace

from comps.core.types import Document

_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_FENCE = re.compile(r"\s*(?:`{3,}|~{3,})")


def tidied(document: Document) -> Document:
    """Returns the document without blank lines, and without spaces at the ends of lines.

    What is within a code block between fences stays as it is, and so do single line breaks and all spaces before and
    within a line, since tables, lists and code need them.
    """
    text = document.text
    has_lines = "\n" in text or "\r" in text
    tidy = _without_blank_lines(text) if has_lines else text.strip()
    return document if tidy == text else replace(document, text=tidy)


def _without_blank_lines(text: str) -> str:
    lines = []
    in_code = False
    for line in _LINE_BREAK.split(text):
        is_fence = bool(_FENCE.match(line))
        if in_code and not is_fence:
            lines.append(line)
        elif stripped := line.rstrip():
            lines.append(stripped)
        in_code ^= is_fence
    return "\n".join(lines)
