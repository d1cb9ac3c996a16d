"""`python -m tests.seeds http://localhost:9000`: all printed examples against a running service, as a table.

It says which answers are empty or garbage; if there is one, or an answer has another status than it should, it ends
with 1. A sampled answer may be garbage by chance, so a faulty one is asked for up to three times.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.seeds import EXAMPLES, Example, Printed, run
from tests.seeds.judgement import faults

_TRIES = 3
_SHOWN = 100
"""Bytes of an answer."""


@dataclass(frozen=True)
class Row:
    """An example that was run."""

    name: str
    command: str
    answer: Printed
    fault: str
    """What is wrong with the answer, each time that it was asked for; empty: nothing."""
    tries: int = 1

    def __str__(self) -> str:
        shown = _cell(repr(self.answer.body[:_SHOWN])[2:-1])
        fine = "fine" if self.tries == 1 else f"fine at try {self.tries}"
        return f"| {self.name} | {_cell(self.command)} | {self.answer.status} | {self.fault or fine} | {shown} |"


HEAD = ("| example | command as it ran | status | answer | its first bytes |", "|---|---|---|---|---|")


def rows(url: str, examples: Sequence[Example] = EXAMPLES) -> Iterator[Row]:
    """The examples, one after the other; one that has to be mended is there as printed and as mended."""
    for example in examples:
        yield _row(example, str(example), url, 422 if example.mends else 200)
        if example.mends:
            yield _row(example.mended(), f"{example}, mended", url, 200)


def _row(example: Example, name: str, url: str, status: int) -> Row:
    command = example.command(url)
    path = example.path.strip()
    expected = {status, 403} if path == "/shutdown" else {status}  # Which has to be allowed.
    for tries in range(1, _TRIES + 1):
        answer = run(command)
        if answer.status not in expected:
            return Row(name, command, answer, f"status {answer.status}", tries)
        found = faults(path, example.body, answer.body) if answer.status == 200 else []
        if not found:
            break
    return Row(name, command, answer, "; ".join(found), tries)


def _cell(text: str) -> str:
    shown = " ".join(text.split()).replace("|", "\\|")
    return f"`` {shown} ``" if shown else "(empty)"


def main(url: str, examples: Sequence[Example] = EXAMPLES) -> int:
    """Print the table, and below it what is wrong; returns the exit status."""
    print(*HEAD, sep="\n", flush=True)
    wrong = []
    for row in rows(url.rstrip("/"), examples):
        print(row, flush=True)
        if row.fault:
            wrong.append(f"{row.name}: {row.fault}")
    print("", *wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
