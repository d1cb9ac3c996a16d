"""Documents whose text is there already."""

from __future__ import annotations

from typing import Any

import pytest

from comps.core.planning import Planner
from comps.core.prompts import build_prompt, numbered
from comps.core.repetitions import once_each
from comps.core.types import Document, DocumentUse, GenerationRequest, Message
from comps.model_servers.scripted import Scripted

AGAIN = "document 1 has the same text"


def fates(*documents: Document) -> list[str]:
    return [document.left_out for document in once_each(documents)]


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([Document("a"), Document("b"), Document("a")], ["", "", AGAIN]),
        ([Document("a"), Document(" a\n")], ["", AGAIN]),
        ([Document("a b"), Document("a  b")], ["", ""]),
        ([Document("a", "T"), Document("a")], ["", AGAIN]),
        ([Document("a"), Document("a", "T"), Document("a", "U")], ["", AGAIN, ""]),
        ([Document("96", "Memory"), Document("96", "Price")], ["", ""]),
        ([Document(""), Document("  ")], ["", ""]),
        ([Document("", "T"), Document("", "T")], ["", AGAIN]),
        (
            [Document("a", left_out="why"), Document("a"), Document("a")],
            ["document 2 has the same text", "", "document 2 has the same text"],
        ),
        ([Document("a", left_out="why"), Document("a", left_out="why")], ["why", "why"]),
    ],
)
def test_a_text_that_is_there_already_is_left_out(documents: list[Document], expected: list[str]) -> None:
    assert fates(*documents) == expected


def test_what_a_repetition_says_besides_is_added_to_the_original() -> None:
    first, *_ = once_each(
        [
            Document("a", metadata={"score": 1}),
            Document("a", "T", {"url": "u", "score": 2}),
            Document("a", metadata={"page": 3}, left_out="why"),
        ]
    )
    assert first == Document("a", "T", {"score": 1, "url": "u", "page": 3})


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ((None, None, None), [1, None, 3]),
        ((7, None, 9), [7, None, 9]),
        ((None, 7, 9), [7, None, 9]),
        ((7, 7, 7), [1, None, 3]),
    ],
)
def test_numbers_are_the_places_of_the_caller_or_the_ids_of_those_that_are_left(
    ids: tuple[int | None, ...], expected: list[int | None]
) -> None:
    texts = zip(("a", "a", "b"), ids, strict=True)
    given = numbered([Document(text, metadata={"citation_id": own} if own else {}) for text, own in texts])
    assert [document.number for document in given] == expected


@pytest.mark.parametrize("to_the_token", [False, True])
@pytest.mark.parametrize("window", [None, 100_000])
async def test_the_report_says_where_a_repetition_is_and_the_places_of_the_others_stay(
    window: int | None, to_the_token: bool
) -> None:
    documents = (Document("one"), Document(" one"), Document(""), Document("two", left_out="why"), Document("three"))
    request = GenerationRequest((Message("user", "?"),), documents)
    plan = await Planner(Scripted(), citations="on").plan(request, window, to_the_token=to_the_token)
    assert [(use.number, use.fate, use.reason) for use in plan.report.documents] == [
        (1, "kept", ""),
        (2, "dropped", AGAIN),
        (3, "dropped", "it is empty"),
        (4, "dropped", "why"),
        (5, "kept", ""),
    ]
    assert [source.number for source in plan.sources] == [1, 5]
    written: Any = plan.prompt[-1]
    assert written.content.count("one") == 1
    assert "[5]" in written.content
    assert "two" not in written.content


@pytest.mark.parametrize(("quoted", "expected"), [((Document("one"),), False), ((), True)])
async def test_where_the_messages_quote_documents_something_was_found(
    quoted: tuple[Document, ...], expected: bool
) -> None:
    request = GenerationRequest((Message("user", "?"),), (Document("two", left_out="why"),), quoted=quoted)
    plan = await Planner(Scripted()).plan(request, None)
    assert plan.report.nothing_found is expected
    assert plan.report.documents == (DocumentUse(1, "dropped", "why", None, 0),)


def test_a_prompt_without_a_plan_has_each_text_once_too() -> None:
    prompt: Any = build_prompt(GenerationRequest((Message("user", "?"),), (Document("one"), Document("one"))))
    assert prompt[0].content.count("one") == 1


def test_many_titles_of_one_text_are_told_apart_without_delay() -> None:
    """Ten thousand took five seconds."""
    documents = [Document("text", str(place)) for place in range(20_000)]
    assert [one.left_out for one in once_each([*documents, *documents])[-1:]] == ["document 20000 has the same text"]


def test_an_untitled_text_is_one_of_its_first_title_and_no_other() -> None:
    first, second, third, fourth = once_each(
        [Document("a"), Document("a", "T"), Document("a", "U"), Document("a", score=2.0)]
    )
    assert (first.title, first.score) == ("T", 2.0)
    assert [one.left_out for one in (second, third, fourth)] == [AGAIN, "", AGAIN]
