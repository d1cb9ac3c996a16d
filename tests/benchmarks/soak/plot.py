"""A picture of what `make soak` measured over time: memory, gauges and file descriptors.

Run as `python plot.py <soak.json> <picture.png>` in an environment that has matplotlib.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PANELS = (
    ("memory of its own, MB", ("megabytes",)),
    ("requests in flight and waiting", ("in_flight", "waiting")),
    ("open file descriptors", ("files",)),
)


def panel(axes: Any, title: str, names: tuple[str, ...], looks: list[dict[str, float]]) -> None:
    """One of the figures over the minutes."""
    for name in names:
        axes.plot([look["minutes"] for look in looks], [look[name] for look in looks], lw=1, label=name)
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    looks = json.loads(Path(sys.argv[1]).read_text("utf-8"))["endured"]["looks"]
    figure, grid = pyplot.subplots(len(PANELS), 1, figsize=(9, 6), sharex=True, constrained_layout=True)
    for axes, (title, names) in zip(grid, PANELS, strict=True):
        panel(axes, title, names, looks)
    grid[-1].set_xlabel("minutes", fontsize=8)
    figure.savefig(sys.argv[2], dpi=110)


if __name__ == "__main__":
    main()
