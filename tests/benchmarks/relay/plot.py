"""A picture of `build/bench.json`: a panel for each cell, a bar for each target, in an environment that has matplotlib.

Run as `python plot.py <bench.json> <picture.png>`.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLOURS = {"native": "#0b6e99", "langchain": "#6aa84f", "relay": "#555555"}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def panel(axes: Any, cell: dict[str, Any]) -> None:
    """The ratios of one cell, with their ranges, and a mark where a goal is."""
    bars = cell["bars"]
    names = [bar["name"] for bar in bars]
    values = [bar["median"] for bar in bars]
    spread = [[bar["median"] - bar["low"] for bar in bars], [bar["high"] - bar["median"] for bar in bars]]
    colours = [COLOURS.get(name, "#b0b0b0") for name in names]
    axes.barh(names, values, xerr=spread, color=colours, height=0.6, error_kw={"lw": 1})
    for place, bar in enumerate(bars):
        free = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(bar["high"] * 1.1, place, f"{bar['median']:.3g}", va="center", fontsize=8, bbox=free)
        if bar["goal"]:
            axes.plot([bar["goal"]] * 2, [place - 0.4, place + 0.4], color="#c00000", lw=2)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_xlim(0.1, max(values) * 2.5)
    axes.axvline(1, color="#555555", lw=0.8, ls=":")
    axes.invert_yaxis()
    axes.set_title(f"{cell['name']}: {cell['means']}", fontsize=9, loc="left", wrap=True)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = json.loads(Path(sys.argv[1]).read_text("utf-8"))["plot"]
    figure, grid = pyplot.subplots(2, 2, figsize=(11, 6), constrained_layout=True)
    for axes, cell in zip(grid.flat, cells, strict=True):
        panel(axes, cell)
    figure.suptitle("Processor time, x of a bare uvicorn + aiohttp relay; red: the goal", fontsize=10)
    figure.savefig(sys.argv[2], dpi=110)


if __name__ == "__main__":
    main()
