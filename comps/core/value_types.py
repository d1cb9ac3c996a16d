"""`value_type`: the decorator of dataclasses that are made for every request."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

__all__ = ["value_type"]

if TYPE_CHECKING:
    from dataclasses import dataclass as value_type
else:

    def value_type(*, frozen: bool, slots: bool) -> Callable[[type], type]:
        """Returns `dataclass`, with `frozen` checked by the type checker alone.

        At run time, the constructor of a frozen dataclass sets each field by `object.__setattr__`, which takes three
        times as long: https://docs.python.org/3/library/dataclasses.html#frozen-instances. The classes are hashable
        all the same.
        """
        return dataclasses.dataclass(slots=slots, unsafe_hash=frozen)
