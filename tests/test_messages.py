"""Lines for the operator."""

from __future__ import annotations

import io
import sys

import pytest

from comps.messages import message


class Written(io.RawIOBase):
    """A file without a buffer, which keeps each write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.writes.append(bytes(data))  # type: ignore[call-overload]
        return len(self.writes[-1])


def test_a_line_is_one_write_so_that_those_of_several_workers_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Written()
    # As Python makes it with PYTHONUNBUFFERED.
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(file, write_through=True))  # type: ignore[type-var]
    message("ready")
    assert file.writes == [b"ready\n"]
