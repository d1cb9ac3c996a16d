"""A prompt is posted as it is named: left to the service, as a template, or as messages."""

from __future__ import annotations

import pytest

from tests.benchmarks.answers.prompts import LAYOUTS, SENTENCE, TEMPLATES, Layout, body
from tests.benchmarks.answers.questions import Document

DOCUMENTS = [Document("Pier", "It is long.\n\n| a | b |"), Document("Tower", "It is high.")]
SYSTEM = {"role": "system", "content": SENTENCE}
LINES = "Context:\nPier: It is long.\n| a | b |\nTower: It is high.\n\n"


@pytest.mark.parametrize(
    ("name", "system", "turn"),
    [
        ("system+lines", SENTENCE, f"{LINES}How high?"),
        ("own+lines", None, f"{LINES}How high?"),
        ("empty+lines", "", f"{LINES}How high?"),
        ("user+lines", None, f"{SENTENCE}\n\n{LINES}How high?"),
        ("system+lines+question", SENTENCE, f"{LINES}Question: How high?"),
        ("system+lines+according", SENTENCE, f"{LINES}According to the context above, How high?"),
        ("system+lines+twice", SENTENCE, f"Question: How high?\n\n{LINES}Question: How high?"),
        (
            "system+lines+numbered",
            SENTENCE,
            "Context:\n[1] Pier: It is long.\n| a | b |\n[2] Tower: It is high.\n\nHow high?",
        ),
        (
            "house+blocks+numbered",
            None,
            "Answer the question from these search results.\n\n[1] Pier\nIt is long.\n\n| a | b |\n\n"
            "[2] Tower\nIt is high.\n\nHow high?",
        ),
    ],
)
def test_a_layout_is_posted_as_the_messages_that_its_name_says(name: str, system: str | None, turn: str) -> None:
    posted = body(name, DOCUMENTS, "How high?", {"seed": 1})
    expected = [] if system is None else [{"role": "system", "content": system}]
    assert posted == {"messages": [*expected, {"role": "user", "content": turn}], "stream": False, "seed": 1}


def test_the_penalty_of_a_layout_goes_before_that_of_all_bodies() -> None:
    greedy = {"temperature": 0, "repetition_penalty": 1}
    assert body("system+lines", [], "", greedy)["repetition_penalty"] == 1
    assert body("system+lines+penalty", [], "", greedy)["repetition_penalty"] == 1.03


def test_documents_go_to_the_service_in_their_order_with_further_fields() -> None:
    posted = body("service", DOCUMENTS, "How high?", {"order": "relevance"})
    assert [one["title"] for one in posted["documents"]] == ["Pier", "Tower"]
    assert (posted["query"], posted["order"]) == ("How high?", "relevance")
    assert "chat_template" not in posted
    assert body("cite", DOCUMENTS, "How high?", {})["chat_template"] == TEMPLATES["cite"]


@pytest.mark.parametrize(
    "name",
    ["", "system", "lines", "system+lines+nothing", "system+lines+question+twice", "system+lines+numbered+numbered"],
)
def test_a_name_that_is_no_prompt_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ValueError, match=r"no prompt is called .*house.*\+numbered"):
        Layout.parse(name)


def test_all_layouts_that_are_compared_together_are_different() -> None:
    assert len({Layout.parse(name) for name in LAYOUTS}) == len(LAYOUTS)


def test_a_template_says_where_documents_and_question_go() -> None:
    for template in TEMPLATES.values():
        assert template.count("{context}") == 1
        assert "{question}" in template
