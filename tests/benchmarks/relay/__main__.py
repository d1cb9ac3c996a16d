"""`make bench` and `make bench-compare`: measure, print, and keep what was found in `build/`."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.pages import DOCS, draw
from tests.benchmarks.relay.cells import CELLS, GOALS
from tests.benchmarks.relay.report import bench, compared, ratios
from tests.benchmarks.relay.rig import Found, run
from tests.benchmarks.relay.targets import Failed
from tests.process import ROOT

BUILD = ROOT / "build"
TITLE = "# What the service costs\n\n`make bench` writes this page.\n\n![The ratios of the first table](bench.png)\n\n"


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A revision in a work tree of its own, until the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "checkout")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(place), revision], check=True)
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


def bars(found: Found) -> list[dict[str, Any]]:
    """What the plot shows."""
    to_relay = ratios(found.vllm)
    return [
        {
            "name": cell.name,
            "means": cell.means,
            "bars": [
                {"name": name, "goal": GOALS.get(name, {}).get(cell.name), **asdict(cells[cell.name])}
                for name, cells in to_relay.items()
            ],
        }
        for cell in CELLS
    ]


def keep(name: str, text: str, found: Found) -> None:
    """Write what was found to `build/`."""
    BUILD.mkdir(exist_ok=True)
    (BUILD / f"{name}.md").write_text(text, "utf-8")
    (BUILD / f"{name}.json").write_text(json.dumps({**asdict(found), "plot": bars(found)}), "utf-8")


def save(text: str) -> None:
    """Put the table and the picture into `docs/`."""
    DOCS.mkdir(exist_ok=True)
    picture = BUILD / "bench.png"
    if picture.exists():
        shutil.copy(picture, DOCS / picture.name)
    (DOCS / "bench.md").write_text(f"{TITLE}{text}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.relay", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="how often each figure is measured")
    parser.add_argument("--save", action="store_true", help="copy the table and the picture to docs/")
    parser.add_argument("--base", default="", help="a revision to compare this checkout with")
    options = parser.parse_args()
    if options.base:
        suffix = f" @{options.base}"
        with checked_out(options.base) as base:
            found = run({suffix: base, "": ROOT}, options.rounds)
        name, text = "bench-compare", compared(found, suffix)
    else:
        found = run({"": ROOT}, options.rounds)
        name, text = "bench", bench(found)
    keep(name, text, found)
    print(text)
    if not options.base:
        draw(Path(__file__).with_name("plot.py"), BUILD / "bench.json", BUILD / "bench.png")
        if options.save:
            save(text)


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(f"The run is void. {failed}")
