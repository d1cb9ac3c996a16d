"""Whitespace of documents that costs tokens and says nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from comps.core.types import Document

_LINE_BREAK = re.compile(r"\r\n?")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$", re.MULTILINE)


def tidied(document: Document) -> Document:
    """Returns the document without blank lines and spaces at the ends of lines, and with its title in one line.

    What is within a code block between fences stays as it is, as does a blank line before or after a table. Single line
    breaks, tabs, and all spaces before and within a line stay, since tables, lists and code need them.
    """
    text = document.text
    tidy = _tidied(text) if "\n" in text or "\r" in text else text
    tidy = tidy.rstrip()
    title = " ".join(document.title.split())
    return document if tidy == text and title == document.title else replace(document, text=tidy, title=title)


def _tidied(text: str) -> str:
    if "\r" in text:
        text = _LINE_BREAK.sub("\n", text)
    pieces = []
    end = 0
    for first, last in _code_blocks(text) if "```" in text or "~~~" in text else ():
        pieces += [_without_blank_lines(text[end:first]), text[first:last]]
        end = last
    pieces.append(_without_blank_lines(text[end:]))
    return "".join(pieces).lstrip("\n")


def _code_blocks(text: str) -> Iterator[tuple[int, int]]:
    """Yields the spans of code blocks between fences: https://spec.commonmark.org/0.31.2/#fenced-code-blocks."""
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence[1].startswith(opened[1]) and not fence[2].strip():
            yield opened.start(), fence.end()
            opened = None
    if opened:
        yield opened.start(), len(text)


def _without_blank_lines(text: str) -> str:
    # A pattern with spaces before a line break takes quadratic time where many spaces are followed by something else.
    return _BLANK_LINES.sub(_break, "\n".join([line.rstrip(" ") for line in text.split("\n")]))


def _break(found: re.Match[str]) -> str:
    """Returns the line break that takes the place of blank lines: one of them stays beside a row of a table."""
    text, start, end = found.string, found.start(), found.end()
    return "\n\n" if text[start - 1 : start] == "|" or text[end : end + 1] == "|" else "\n"
