"""Shares, standard errors and tables are right, and what is saved is what was measured."""

from __future__ import annotations

import subprocess
import sys
from math import sqrt
from pathlib import Path

import pytest

from tests.benchmarks.answers import report
from tests.benchmarks.answers.asking import Asked
from tests.benchmarks.answers.citing import Cited, summary
from tests.benchmarks.answers.figures import Run, Share, averages, groups, rows
from tests.benchmarks.answers.questions import Question
from tests.benchmarks.answers.report import loaded, page, percent, save, tables

QUESTIONS = [
    *(Question("topic", "en", "name", f"{number}", (("fact",),)) for number in range(4)),
    Question("topic", "de", "unanswerable", "no"),
]
FIRST = Asked("a", "best", (("right",), ("right",), ("refused",), ("wrong",), ("right",)), 900.4, 12)
SECOND = Asked("b", "best", (("right",), ("wrong",), ("wrong",), ("wrong",), ("wrong",)), 800, 20)
SHUFFLED = Asked("a", "shuffled", (("right", "wrong"), *(("wrong", "wrong"),) * 3, ("right", "right")), 900, 12)
ASKED = [FIRST, SECOND, SHUFFLED]


def test_the_standard_error_of_one_draw_is_the_binomial_one() -> None:
    share = Share.of([1.0] * 30 + [0.0] * 70)
    assert share
    assert share.mean == pytest.approx(0.3)
    assert share.error == pytest.approx(sqrt(0.3 * 0.7 / 99))


def test_draws_of_the_same_question_are_no_further_questions() -> None:
    once = Share.of(averages([("right",), ("wrong",), ("right",), ("wrong",)], "right"))
    same_again = Share.of(averages([("right",) * 3, ("wrong",) * 3, ("right",) * 3, ("wrong",) * 3], "right"))
    assert once == same_again
    mixed = averages([("right", "wrong", "wrong"), ("wrong", "right", "wrong")], "right")
    assert mixed == pytest.approx([1 / 3, 1 / 3])
    assert Share.of([0.5, 0.5]) == Share(0.5, 0)


def test_of_one_question_there_is_no_error_and_of_none_no_share() -> None:
    assert Share.of([1.0]) == Share(1.0, None)
    assert Share.of([]) is None


def test_a_row_has_the_three_outcomes_of_the_answerable_and_the_refusals_of_the_others() -> None:
    first, second, shuffled = rows(QUESTIONS, ASKED)
    means = [share and share.mean for share in (first.right, first.refused, first.wrong, first.declined, first.overall)]
    assert means == [0.5, 0.25, 0.25, 1.0, 0.6]
    assert shuffled.right == Share(0.125, 0.125)
    assert (first.gain, shuffled.gain) == (None, None)
    assert second.gain
    assert second.gain.mean == pytest.approx(-0.4)
    assert second.gain.error == pytest.approx(sqrt((2 * 0.6**2 + 3 * 0.4**2) / 4 / 5))


def test_groups_take_all_orders_of_a_prompt_together() -> None:
    found = {(group.prompt, group.name): group for group in groups(QUESTIONS, ASKED)}
    name = found["a", "name"]
    assert name.questions == 4
    assert name.right
    assert name.right.mean == pytest.approx((2 / 3 + 1 / 3) / 4)
    assert found["a", "German"].questions == found["b", "unanswerable"].questions == 1
    assert ("a", "table") not in found
    assert sum(group.questions for group in found.values() if group.prompt == "b" and "words" in group.name) == 4


def run(name: str, model: str = "") -> Run:
    return Run(name, ("a note",), tuple(rows(QUESTIONS, ASKED)), tuple(groups(QUESTIONS, ASKED)), model)


def test_the_tables_have_shares_with_errors() -> None:
    lines = tables(run("tuning")).splitlines()
    assert "| a | best | 50 ± 29 % | 25 ± 25 % | 25 ± 25 % | 100 % | 60 ± 24 % | – | 900 | 12 |" in lines
    assert "| b | best | 25 ± 25 % | 0 % | 75 ± 25 % | 0 % | 20 ± 20 % | -40 ± 24 % | 800 | 20 |" in lines
    assert "| unanswerable | 1 | 100 % | 0 % | 0 % |" in lines
    assert lines[-1] == "- a note"
    assert percent(Share(0.126, 0.01), "+") == "+13 ± 1 %"


def test_a_saved_run_takes_the_place_of_its_set_and_model_and_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Path, ...]] = []
    monkeypatch.setattr(report, "draw", lambda *paths: drawn.append(paths))
    for one in (run("tuning", "m"), run("held_out"), run("tuning"), run("tuning"), run("tuning", "m")):
        save(one, tmp_path)
    saved = {"tuning, m": run("tuning", "m"), "held_out": run("held_out"), "tuning": run("tuning")}
    assert loaded(tmp_path / "answers.json") == saved
    text = (tmp_path / "answers.md").read_text("utf-8")
    assert text == page(dict(reversed(saved.items())))
    assert text.index("## Tuning set\n") < text.index("## Held-out set\n") < text.index("## Tuning set: m\n")
    assert text.count("| a | best |") == 3
    assert drawn[-1][1:] == (tmp_path / "answers.json", tmp_path / "answers.png")


FAKED = """
import sys
class Axes:
    def __getattr__(self, name):
        def call(*values, **named):
            print(name, [list(value) for value in values if isinstance(value, (list, range))])
        return call
    @property
    def spines(self):
        return {"top": Axes(), "right": Axes()}
sys.path.insert(0, sys.argv[2])
import json, plot
for run in json.load(open(sys.argv[1])).values():
    plot.panel(Axes(), run)
"""


def test_the_picture_has_a_bar_for_each_prompt_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "draw", lambda *paths: None)
    save(run("tuning"), tmp_path)
    command = [sys.executable, "-c", FAKED, str(tmp_path / "answers.json"), str(Path(report.__file__).parent)]
    drawn = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    bars = [line for line in drawn if line.startswith("barh")]
    assert bars == ["barh [[-0.2, 0.8], [60.0, 20.0]]", "barh [[0.2], [30.0]]"]
    assert "plot [[100.0, 0.0], [-0.2, 0.8]]" in drawn


def test_citations_are_counted_of_right_answers_alone() -> None:
    own = frozenset((2, 5))
    answers = [Cited((2, 1), own), Cited((), own), None, Cited((5,), own)]
    assert summary("on", answers) == (
        "citations = on: 3 of 4 answers are right; 2 of these cite; 2 of their 3 citations name a document that says it"
    )
