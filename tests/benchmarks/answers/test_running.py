"""A run asks what its options say, of any model of the service; only the held-out set is not for everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.answers import __main__ as program
from tests.benchmarks.answers.figures import Share
from tests.benchmarks.answers.questions import DOCUMENTS, ORDERS, read


def test_the_held_out_set_is_only_for_what_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    for further in (
        ["--show"],
        ["--fields", "{}", '{"top_k": 1}', '{"top_k": 2}'],
        ["--prompt", "service", "house", "cite"],
        ["--prompt", "layouts"],
    ):
        with pytest.raises(SystemExit):
            program.parsed(["--set", "held_out", *further])
        assert "two variants at most" in capsys.readouterr().err
    assert program.parsed(["--set", "held_out", "--prompt", "service", "house"]).set == "held_out"
    assert program.parsed([]).set == "tuning"


@pytest.mark.parametrize("wrong", [["--fields", "[1]"], ["--fields", "{"], ["--prompt", "nothing"]])
def test_a_wrong_option_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.parsed(wrong)
    assert wrong[0].removeprefix("--")[:6] in capsys.readouterr().err


async def test_any_model_of_the_service_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([["It is", " 742."]]), "utf-8")
    arguments = ["--questions", "2", "--shape", "number", "--language", "en", "--model", "m", "--server", "scripted"]
    arguments += ["--endpoint", str(answers), "--prompt", "service", "cite", "system+lines"]
    run = await program.evaluate(
        program.parsed([*arguments, "--show", "--fields", '{"language": "en"}', "{}"]), monkeypatch
    )
    assert [(row.prompt, row.order) for row in run.rows] == [
        (f"{prompt}{fields}", order)
        for prompt in ("service", "cite", "system+lines")
        for fields in (', language = "en"', "")
        for order in ORDERS
    ]
    asked = [question for question in read("tuning") if (question.shape, question.language) == ("number", "en")]
    right = sum("742" in forms for forms in (asked[0].accepted[0], asked[len(asked) // 2].accepted[0]))
    assert {row.right for row in run.rows} == {Share.of([1.0] * right + [0.0] * (2 - right))}
    assert all(row.prompt_tokens > 400 and row.answer_tokens == 2 for row in run.rows)
    assert run.notes[0] == f"m; 2 of 102 questions, each with {DOCUMENTS} documents; 3 shuffles"
    assert run.notes[1].endswith("ignored: seed, temperature")
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(shown) == 3 * 2 * 2 * 5
    assert {line[4:].partition(" [")[0] for line in shown} == {asked[0].question, asked[len(asked) // 2].question}
    assert sum(line.startswith("  + ") for line in shown) == right * 30


async def test_a_field_that_the_service_would_ignore_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([["It is", " 742."]]), "utf-8")
    arguments = ["--questions", "1", "--model", "m", "--server", "scripted", "--endpoint", str(answers)]
    options = program.parsed([*arguments, "--fields", '{"ordre": "relevance"}'])
    with pytest.raises(AssertionError, match="ignores ordre"):
        await program.evaluate(options, monkeypatch)
