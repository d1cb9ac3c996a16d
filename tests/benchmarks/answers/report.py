"""The figures as tables, and the page and the picture in `docs/`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks.answers.figures import Group, Row, Run, Share
from tests.benchmarks.answers.questions import SETS
from tests.benchmarks.pages import draw, table

HEAD = (
    *("prompt", "documents", "right", "refused", "made up", "no answer: refused", "all right", "to the first prompt"),
    *("tokens of a prompt", "of an answer"),
)
ABOUT = """# Questions answered from documents

`make bench-answers OPTIONS=--save` writes this page, one section for each set of questions and each model.

![Right answers by prompt and order of the documents](answers.png)

Each question comes with eight documents; the facts are invented. *best*: the documents that say it come first;
*shuffled*: anywhere; *last*: behind all others. `right`, `refused` and `made up` are shares of the questions that a
document answers: an answer is right if it has the fact in an accepted form, and nothing that a distractor says instead;
`made up` is any other answer that does not refuse. `no answer: refused` is the share of refusals where no document says
it; all other answers to these are made up. `all right` takes both together.

Behind each share is its standard error over the questions, the draws of a shuffle averaged for each question first.
`to the first prompt` is the difference of `all right`, question by question, with its own standard error: less than
twice of it may be chance. A share of 0 % or 100 %, or of one question,
has none.
"""
TITLES = {
    "tuning": "## Tuning set\n\nPrompts, orders and settings are chosen on it, so what is best here is flattered.",
    "held_out": "## Held-out set\n\nOther facts and topics, asked only with what was already chosen.",
}


def percent(share: Share | None, sign: str = "") -> str:
    """A share with its standard error, if that is known, in percent; a gain with its sign."""
    if share is None:
        return "–"
    error = f" ± {share.error * 100:.0f}" if share.error else ""
    return f"{share.mean * 100:{sign}.0f}{error} %"


def first_table(rows: Sequence[Row]) -> list[str]:
    """By prompt and order."""
    fields = [
        (
            *(row.prompt, row.order),
            *map(percent, (row.right, row.refused, row.wrong, row.declined, row.overall)),
            *(percent(row.gain, "+"), f"{row.prompt_tokens:.0f}", f"{row.answer_tokens:.0f}"),
        )
        for row in rows
    ]
    return table(HEAD, fields)


def second_table(groups: Sequence[Group]) -> list[str]:
    """By shape, language and words of the question; where no document says it, `right` are the refusals."""
    lines = []
    for prompt in dict.fromkeys(group.prompt for group in groups):
        own = [group for group in groups if group.prompt == prompt]
        fields = [(one.name, one.questions, *map(percent, (one.right, one.refused, one.wrong))) for one in own]
        lines += table([f"{prompt}, all orders", "questions", "right", "refused", "made up"], fields)
    return lines


def tables(run: Run) -> str:
    """All of a run."""
    notes = [f"- {note}" for note in run.notes]
    return "\n".join([*first_table(run.rows), *second_table(run.groups), *notes, ""])


def page(runs: dict[str, Run]) -> str:
    """The page in `docs/`."""
    ordered = sorted(runs.values(), key=lambda run: (run.model, SETS.index(run.name)))
    return "\n".join([ABOUT, *(f"{_title(run)}\n\n{tables(run)}" for run in ordered)])


def _title(run: Run) -> str:
    """The heading of a run; what the set is for is said once, with the bundled model."""
    return f"{TITLES[run.name].splitlines()[0]}: {run.model}" if run.model else TITLES[run.name]


def loaded(file: Path) -> dict[str, Run]:
    """The runs that were saved."""
    if not file.exists():
        return {}
    return {name: _run(saved) for name, saved in json.loads(file.read_text("utf-8")).items()}


def _run(saved: dict[str, object]) -> Run:
    def shares(fields: dict[str, object]) -> dict[str, object]:
        return {key: Share(**value) if isinstance(value, dict) else value for key, value in fields.items()}

    rows, groups, notes = saved["rows"], saved["groups"], saved["notes"]
    assert isinstance(rows, list)
    assert isinstance(groups, list)
    assert isinstance(notes, list)
    return Run(
        str(saved["name"]),
        tuple(notes),
        tuple(Row(**shares(fields)) for fields in rows),  # type: ignore[arg-type]
        tuple(Group(**shares(fields)) for fields in groups),  # type: ignore[arg-type]
        str(saved["model"]),
    )


def save(run: Run, folder: Path) -> None:
    """Put the figures into a folder, in place of those of the same set and model: `answers.json`, and made of it
    `answers.md` and `answers.png`."""
    folder.mkdir(exist_ok=True)
    data = folder / "answers.json"
    runs = {**loaded(data), run.key: run}
    data.write_text(json.dumps({name: asdict(one) for name, one in runs.items()}, indent=1) + "\n", "utf-8")
    (folder / "answers.md").write_text(page(runs), "utf-8")
    draw(Path(__file__).with_name("plot.py"), data, folder / "answers.png")
