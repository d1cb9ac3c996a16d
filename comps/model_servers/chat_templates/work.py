"""The work of rendering a chat template: what is left of it, and the sizes of the values that the template makes.

Work is counted in characters that are read or written, and a few more for each item and each round of a loop. It limits
the time and the memory of a rendering, so it is taken before an operation, and a value that is made is never larger.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any

import jinja2

_CHARACTERS, _TIMES = 1_000_000, 4
"""Characters of the output, and of each value on its way: of any template, and more for each that is filled in."""
_WORK, _WORK_TIMES = 100_000_000, 32
"""The work: of any template, and more for each character that is filled in."""
_ITEM = 32
"""The work of an item, of an operation, and of a round of a loop."""
_COPIED = 8
"""The characters that are copied with the work of one that is looked at."""
CALL = 1_000
"""The work of a call of a macro, or of anything else that a template can call."""
_BITS = 10_000
_LEVELS = 100
_CONTAINERS: Any = (
    list,
    tuple,
    dict,
    set,
    frozenset,
    range,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
_SEQUENCES = (str, list, tuple)
_UNREAD = frozenset(("batch", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice"))
"""Filters that do not read what is in the items."""
_WIDTH = re.compile(r"\d{1,4}")
_LARGE_WIDTH = re.compile(r"[%)][-#0 +]*\d{0,4}\.?(?:\*|\d{5})")
"""In a format for `%`: a width or precision of five digits, or one that is among the values."""
_LARGE_SPEC = re.compile(r"\d{5}|\{")
"""The same in the specification of a field for `str.format`."""


class TooMuchWork(jinja2.TemplateError):
    """A rendering takes more work than it may."""


class Work:
    """The work that is left to one rendering.

    Args:
        filled: The characters that may be filled in.
        most: The most work; None: as much as a template may take for so many characters.
    """

    def __init__(self, filled: int, most: int | None = None) -> None:
        self.most = _CHARACTERS + _TIMES * filled
        """The characters that the output, or any value, may have."""
        self._left = _WORK + _WORK_TIMES * filled if most is None else most
        self._containers: dict[int, tuple[Any, int, int]] = {}
        """Of each container, by its id: itself, so that no other one gets the id, its size, and its levels."""

    def spend(self, work: int) -> None:
        """Take work from what is left.

        Raises:
            TooMuchWork: So much is not left.
        """
        self._left -= work + _ITEM
        if self._left < 0:
            raise TooMuchWork("it takes too much work")

    def check(self, size: int) -> None:
        """Raises:
        jinja2.TemplateError: A value of this size, in characters, is too large.
        """
        if size > self.most:
            raise jinja2.TemplateError(f"it makes more than {self.most} characters of this conversation")

    def made(self, value: Any) -> Any:
        """Returns a value that has been made of others: the work is that of writing its characters, or its items."""
        if isinstance(value, str):
            length = len(value)
            if length > self.most:
                self.check(length)
            self.spend(length // _COPIED)
        elif isinstance(value, _CONTAINERS):
            self.check(self.size(value))
            self.spend(_ITEM * len(value))
        elif isinstance(value, int):
            self.number(value)
        return value

    def read(self, value: Any) -> Any:
        """Returns a value that is read with all that is in it."""
        self.spend(len(value) if isinstance(value, str) else self._measured(value)[0])
        return value

    def size(self, value: Any) -> int:
        """Returns the characters of a value with all that is in it.

        Raises:
            jinja2.TemplateError: It is too large, or has too many levels.
        """
        return len(value) if isinstance(value, str) else self._measured(value)[0]

    def _measured(self, value: Any) -> tuple[int, int]:
        """Returns the size of a value that is no text, and its levels."""
        if isinstance(value, range):
            return _ITEM * len(value), 1
        if not isinstance(value, _CONTAINERS):
            return _ITEM, 0
        if known := self._containers.get(id(value)):
            return known[1:]
        size, levels = _ITEM * (len(value) + 1), 0
        self.check(size)
        for one in (*value, *value.values()) if isinstance(value, dict) else value:
            if isinstance(one, str):
                size += len(one)
            else:
                further, within = self._measured(one)
                size, levels = size + further, max(levels, within)
        self.check(size)
        return self._known(value, size, levels + 1)

    def _known(self, value: Any, size: int, levels: int) -> tuple[int, int]:
        if levels > _LEVELS:
            raise jinja2.TemplateError(f"it nests more than {_LEVELS} lists")
        self._containers[id(value)] = value, size, levels
        return size, levels

    def number(self, value: int) -> int:
        """Returns a whole number that is not too large."""
        if value.bit_length() > _BITS:
            raise jinja2.TemplateError("a number in it is too large")
        return value

    def operation(self, operator: str, left: Any, right: Any) -> None:
        """Take the work of an operator.

        Args:
            operator: `+`, `*`, `**` or `%`.
            left: The value before it.
            right: The value behind it.
        """
        if type(left) is str and type(right) is str and operator == "+":
            length = len(left) + len(right)
            self.check(length)
            self.spend(length // _COPIED)
        elif operator == "+" and isinstance(left, _SEQUENCES) and isinstance(right, _SEQUENCES):
            self.check(self.size(left) + self.size(right))
            self.spend((len(left) + len(right)) * _ITEM)
        elif operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(one, _SEQUENCES) and isinstance(times, int):
                    self.check(self.size(one) * times)
                    self.spend(self.size(one) * max(times, 0))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > _BITS:
                raise jinja2.TemplateError("a number in it is too large")
        elif operator == "%" and isinstance(left, str):
            self._formatted(left, right)

    def _formatted(self, text: str, values: Any) -> None:
        """Take the work of `text % values`."""
        if _LARGE_WIDTH.search(text):
            raise jinja2.TemplateError("a width in it is too large")
        self._fields(text, 1 if isinstance(values, tuple) else text.count("%"), values)

    def _in_fields(self, text: str, values: Any) -> None:
        """Take the work of `text.format(*values)`."""
        specs = [spec for _, _, spec, _ in Formatter().parse(text) if spec is not None]
        if any(_LARGE_SPEC.search(spec) for spec in specs):
            raise jinja2.TemplateError("a width in it is too large")
        self._fields(text, len(specs), values)

    def _fields(self, text: str, uses: int, values: Any) -> None:
        """Take the work of a text with values in it, each used as often, and widths."""
        length = len(text) + uses * self.size(values) + sum(map(int, _WIDTH.findall(text)))
        self.spend(length)

    def call(self, name: str, values: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Take the work of a filter, or of a method.

        Args:
            name: Its name; `%` for the filter `format`.
            values: What it is applied to, and the arguments.
            named: Further arguments.
        """
        first = values[0]
        if isinstance(first, str):
            self.spend(len(first))
        elif name in _UNREAD:
            self.spend(_ITEM * _length(first))
        elif not isinstance(first, dict):
            self.spend(self.size(first))
        if len(values) > 1 or named:
            self._arguments(name, values, named)

    def _arguments(self, name: str, values: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Take the work of the arguments, and of what they do."""
        if name == "%":
            self._formatted(str(values[0]), named or tuple(values[1:]))
        elif name in ("format", "format_map"):
            self._in_fields(values[0], (*values[1:], named))
        else:
            if count := _LENGTHS.get(name):
                self.spend(count(*values, **named))
            for one in (*values[1:], *named.values()):
                if not isinstance(one, str) or len(one) > _ITEM:
                    self.spend(max(one, 0) if isinstance(one, int) else self.size(one))


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else len(str(value))


def _indented(text: Any, width: Any = 4, *_: Any, **__: Any) -> int:
    return len(str(text).splitlines()) * (max(width, 0) if isinstance(width, int) else _length(width))


_LENGTHS: dict[str, Callable[..., int]] = {
    "indent": _indented,
    "join": lambda one, other="", *_, **named: _length(one) * _length(named.get("d", other)),
    "replace": lambda text, old, new, *_, **__: str(text).count(str(old)) * _length(new),
    "round": lambda number, precision=0, *_, **__: precision * precision,
    "sum": lambda items, attribute=None, start=0: _length(items) ** 2 if hasattr(start, "__len__") else 0,
}
"""What filters and methods make of their arguments, in characters, where it may be more than they are given."""
