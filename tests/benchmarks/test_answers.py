"""The facts are fit to ask for, and an answer is told from none; no model is asked."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.benchmarks.answers import (
    DOCUMENTS,
    PROMPTS,
    Fact,
    Tally,
    body,
    contains,
    evaluate,
    in_order,
    parsed,
    read_facts,
    some,
    with_others,
)

FACTS = read_facts()


def fact(*accepted: str) -> Fact:
    return Fact("topic", "question", accepted, "title", "text")


def test_there_are_eight_facts_of_each_of_eight_topics() -> None:
    assert list(Counter(fact.topic for fact in FACTS).values()) == [8] * 8


def test_titles_questions_and_texts_are_all_different() -> None:
    for values in zip(*((fact.title, fact.question, fact.text) for fact in FACTS), strict=True):
        assert len(set(values)) == len(FACTS)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.title)
def test_a_fact_is_in_its_own_document_and_nowhere_else(fact: Fact) -> None:
    assert [other.title for other in FACTS if contains(f"{other.title}\n{other.text}", fact)] == [fact.title]
    assert not any(contains(other.question, fact) for other in FACTS)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.title)
def test_a_fact_stands_in_the_middle_of_a_document_of_40_to_90_words(fact: Fact) -> None:
    first, *_, last = fact.text.split(". ")
    assert 40 <= len(fact.text.split()) <= 90
    assert not contains(first, fact)
    assert not contains(last, fact)


def test_a_question_has_its_document_first_and_the_others_of_its_topic() -> None:
    for fact in FACTS:
        given = with_others(fact, FACTS)
        assert given[0] is fact
        assert len({one.title for one in given}) == DOCUMENTS
        assert {one.topic for one in given} == {fact.topic}


def test_what_a_draw_shuffles_it_shuffles_the_same_way_again() -> None:
    given = with_others(FACTS[0], FACTS)
    shuffled = [in_order("shuffled", given, draw) for draw in (0, 0, 1)]
    assert shuffled[0] == shuffled[1] != shuffled[2]
    assert sorted(one.title for one in shuffled[2]) == sorted(one.title for one in given)
    assert in_order("best", given, 1) == given


def test_a_few_questions_are_of_different_topics() -> None:
    assert len({fact.topic for fact in some(FACTS, 8)}) == 8
    assert some(FACTS, len(FACTS)) == some(FACTS, 1000) == FACTS


@pytest.mark.parametrize(
    ("accepted", "answer"),
    [
        ("1,340", "It has 1340 steps."),
        ("1340", "It has 1,340 steps."),
        ("1,340", "It has 1 340 steps."),
        ("58 kg", "58kg"),
        ("6.8", "6.8m"),
        ("48.6 million", "About 48.6 Million marks"),
        ("86,500", "86,500, I think."),
        ("Alcott-Dube", "yevgenia ALCOTT DUBE."),
        ("Maiden's Russet", "Maiden’s Russet"),
        ("October 9, 1934", "on October 9 1934"),
    ],
)
def test_a_fact_is_found_however_it_is_written(accepted: str, answer: str) -> None:
    assert contains(answer, fact("nothing", accepted))


@pytest.mark.parametrize(
    ("accepted", "answer"),
    [("134", "1,340"), ("6.8", "16.8"), ("6.8", "6.85"), ("17", "17.5"), ("Quince", "Quincey"), ("8", ""), ("8", "68")],
)
def test_a_part_of_another_word_or_number_is_no_fact(accepted: str, answer: str) -> None:
    assert not contains(answer, fact(accepted))


def test_a_body_has_the_documents_in_their_order() -> None:
    given = with_others(FACTS[0], FACTS)
    asked = body(PROMPTS["short"], given, given[0].question, {"seed": 1})
    assert [one["title"] for one in asked["documents"]] == [one.title for one in given]
    assert (asked["query"], asked["chat_template"]) == (given[0].question, PROMPTS["short"])
    assert asked["seed"] == 1
    assert body(PROMPTS["built-in"], given, given[0].question, {})["chat_template"] is None


def test_a_template_says_where_documents_and_question_go() -> None:
    for template in filter(None, PROMPTS.values()):
        assert template.count("{context}") == 1
        assert "{question}" in template


def test_the_share_is_that_of_all_draws_and_the_spread_between_them() -> None:
    tally = Tally()
    tally.add(0, [True, True, False, False], 40)
    tally.add(1, [True, True, True, True], 80)
    assert str(tally) == "75% | 50% - 100% | 15"


async def test_any_model_of_the_service_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([["It is", " 742."]]), "utf-8")
    arguments = ["--questions", "2", "--model", "m", "--server", "scripted", "--endpoint", str(answers)]
    await evaluate(parsed([*arguments, "--prompt", "short", "cite", "--order", "all"]), monkeypatch)
    heading, _, _, _, *rows, _, took = capsys.readouterr().out.splitlines()
    assert heading == "m: 2 questions, each with 8 documents; draws: 2"
    assert rows == [
        f"| {name} | {order} | {sampling} | 50% | {spread} | 2 |"
        for name in ("short", "cite")
        for order in ("best", "shuffled")
        for sampling in ("default", "greedy")
        for spread in ["one draw" if (order, sampling) == ("best", "greedy") else "50% - 50%"]
    ]
    assert took.endswith(" s")
