"""A picture of `docs/answers.json`: a panel for each set of questions, in an environment that has matplotlib.

Run as `python plot.py <answers.json> <picture.png>`.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLOURS = {"best": "#0b6e99", "shuffled": "#6aa84f", "last": "#c27a00"}


def panel(axes: Any, run: dict[str, Any]) -> None:
    """Right of all questions, by prompt and order, with standard errors; and refusals where no document says it."""
    rows = run["rows"]
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    orders = [order for order in COLOURS if any(row["order"] == order for row in rows)]
    height = 0.8 / len(orders)
    for index, order in enumerate(orders):
        own = [row for row in rows if row["order"] == order]
        places = [prompts.index(row["prompt"]) + (index - (len(orders) - 1) / 2) * height for row in own]
        shares = [row["overall"] for row in own]
        errors = [(share["error"] or 0) * 100 for share in shares]
        means = [share["mean"] * 100 for share in shares]
        axes.barh(places, means, height, xerr=errors, color=COLOURS[order], label=order, error_kw={"lw": 1})
        declined = [(row["declined"], place) for row, place in zip(own, places, strict=True) if row["declined"]]
        points = [share["mean"] * 100 for share, _ in declined], [place for _, place in declined]
        axes.plot(*points, "kD", ms=4, clip_on=False, label=None if index else "refused where nothing says it")
    axes.set_yticks(range(len(prompts)), prompts, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    shown = ", ".join(filter(None, (run["name"].replace("_", "-"), run["model"])))
    axes.set_title(f"{shown}: right answers in %, ± standard error", fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = list(json.loads(Path(sys.argv[1]).read_text("utf-8")).values())
    rows = [len({row["prompt"] for row in run["rows"]}) for run in runs]
    figure, grid = pyplot.subplots(
        *(len(runs), 1),
        figsize=(9, 1.5 * len(runs) + 0.5 * sum(rows)),
        constrained_layout=True,
        squeeze=False,
        height_ratios=[count + 1 for count in rows],
    )
    for axes, run in zip(grid.flat, runs, strict=True):
        panel(axes, run)
    grid.flat[0].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(sys.argv[2], dpi=110)


if __name__ == "__main__":
    main()
