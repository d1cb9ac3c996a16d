"""What benchmarks write into `docs/`: tables in Markdown, and pictures."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.process import ROOT

DOCS = ROOT / "docs"
PLOTTING = ROOT / ".venv-bench" / "plot" / "bin" / "python"
"""Has matplotlib, in an environment of its own."""


def row(*fields: object) -> str:
    return "| " + " | ".join(map(str, fields)) + " |"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [row(*head), "|" + "---|" * len(head), *(row(*fields) for fields in rows), ""]


def draw(program: Path, data: Path, picture: Path) -> None:
    """Draw a picture of some data, where there is something to draw with."""
    if not PLOTTING.exists():
        print("No picture is drawn: matplotlib is not installed in .venv-bench/plot.")
        return
    subprocess.run([PLOTTING, program, data, picture], check=True)
