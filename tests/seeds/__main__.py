"""`python -m tests.seeds http://localhost:9000`: all printed examples against a running service, as a table."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from tests.seeds import EXAMPLES, Example, run

_SHOWN = 100
"""Bytes of an answer."""


def table(url: str, examples: Sequence[Example] = EXAMPLES) -> Iterator[str]:
    """The lines of the table; an example that has to be mended is there as printed and as mended."""
    yield "| example | command as it ran | status | first bytes of the answer |"
    yield "|---|---|---|---|"
    for example in examples:
        yield _row(example, str(example), url)
        if example.mends:
            yield _row(example.mended(), f"{example}, mended", url)


def _row(example: Example, name: str, url: str) -> str:
    command = example.command(url)
    answer = run(command)
    return f"| {name} | {_cell(command)} | {answer.status} | {_cell(repr(answer.body[:_SHOWN])[2:-1])} |"


def _cell(text: str) -> str:
    shown = " ".join(text.split()).replace("|", "\\|")
    return f"`` {shown} ``" if shown else "(empty)"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for line in table(sys.argv[1].rstrip("/")):
        print(line, flush=True)
