"""Deltas: joins the extra fields of an answer's deltas."""

from __future__ import annotations

from collections.abc import Mapping

from comps.core.tool_calls import KnownCalls, pieces_of
from comps.core.types import JSON


class JoinedExtra:
    """The extra fields of successive deltas, joined. Each delta costs no more time than its own length.

    Strings (reasoning) and lists (logprobs) are concatenated, objects are joined by field, and tool calls by call. Of
    other values the last one is used.
    """

    def __init__(self) -> None:
        self._values: dict[str, _Value] = {}

    def add(self, extra: Mapping[str, JSON]) -> None:
        """Join the extra fields of the next delta."""
        for name, value in extra.items():
            before = self._values.get(name)
            if before is None or not before.goes_on(value):
                before = self._values[name] = _Calls() if name == "tool_calls" and value is not None else _of(value)
            before.add(value)

    def extra(self) -> dict[str, JSON]:
        """Returns the joined fields."""
        return {name: value.whole() for name, value in self._values.items()}


def join_extra(so_far: Mapping[str, JSON], extra: Mapping[str, JSON]) -> dict[str, JSON]:
    """Returns the extra fields of two successive deltas, joined as by `JoinedExtra`.

    Args:
        so_far: The extra fields of all deltas before.
        extra: Those of the next delta.
    """
    joined = JoinedExtra()
    joined.add(so_far)
    joined.add(extra)
    return joined.extra()


class _Value:
    """A value of no kind that is joined: the last one that is not null."""

    _value: JSON = None

    def goes_on(self, value: JSON) -> bool:
        """Whether a further value is joined with those before."""
        return value is None

    def add(self, value: JSON) -> None:
        """Join a further value."""
        if value is not None:
            self._value = value

    def whole(self) -> JSON:
        """Returns the joined value."""
        return self._value


class _Text(_Value):
    def __init__(self) -> None:
        self._pieces: list[str] = []

    def goes_on(self, value: JSON) -> bool:
        return isinstance(value, str | None)

    def add(self, value: JSON) -> None:
        if value is not None:
            self._pieces.append(value)

    def whole(self) -> JSON:
        return "".join(self._pieces)


class _List(_Value):
    def __init__(self) -> None:
        self._items: list[JSON] = []

    def goes_on(self, value: JSON) -> bool:
        return isinstance(value, list | None)

    def add(self, value: JSON) -> None:
        self._items.extend(value or ())

    def whole(self) -> JSON:
        return list(self._items)


class _Object(_Value):
    def __init__(self) -> None:
        self._fields = JoinedExtra()

    def goes_on(self, value: JSON) -> bool:
        return isinstance(value, dict | None)

    def add(self, value: JSON) -> None:
        self._fields.add(value or {})

    def whole(self) -> JSON:
        return self._fields.extra()


class _Calls(_Value):
    """Tool calls. Arguments are concatenated; ids and names may repeat."""

    def __init__(self) -> None:
        self._known = KnownCalls()

    def goes_on(self, value: JSON) -> bool:
        return True

    def add(self, value: JSON) -> None:
        for piece in pieces_of(value) if value is not None else ():
            self._known.of(piece).add(piece)

    def whole(self) -> JSON:
        return [call.whole() for call in self._known.calls]


def _of(value: JSON) -> _Value:
    """What joins values of this kind."""
    kinds: dict[type, type[_Value]] = {str: _Text, list: _List, dict: _Object}
    return kinds.get(type(value), _Value)()
