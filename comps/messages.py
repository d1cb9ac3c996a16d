"""Lines for the operator, on standard error."""

from __future__ import annotations

import sys
from contextlib import suppress

from comps.logs import as_logged


def message(text: str) -> None:
    """Print a line for the operator, on standard error, in the form of the log.

    It is one write, so that lines of several workers do not mix: with PYTHONUNBUFFERED, `print` makes two.
    """
    with suppress(OSError):  # A full disk, or a reader that has left, ends no service.
        sys.stderr.write(f"{as_logged(text)}\n")
        sys.stderr.flush()
