"""Lines for the operator, on standard error."""

from __future__ import annotations

import sys
from contextlib import suppress


def message(text: str) -> None:
    """Print a line for the operator, on standard error."""
    with suppress(OSError):  # A full disk, or a reader that has left, ends no service.
        print(text, file=sys.stderr, flush=True)
