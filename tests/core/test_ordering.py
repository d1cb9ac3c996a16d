"""Which documents are used, in which order, and what the report says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from comps.core.ordering import Ordering, at_the_ends, basis_of
from comps.core.planning import Plan, Planner
from comps.core.types import JSON, Document, GenerationRequest, Message
from comps.core.whitespace import tidied
from comps.core.words import words
from comps.dialects.shared.bodies import DocumentBody
from comps.model_servers.scripted import Scripted
from comps.relevance import by_relevance
from tests.events import texts

ORDERING = Ordering(by_relevance=by_relevance)
QUESTION = "When was the harbour bridge of Velmora opened?"
TEXTS = (
    "Herring is sold at the market on Fridays.",
    "The old bridge over the Brune has nine arches.",
    "The harbour bridge of Velmora was opened in 1931.",
    "Velmora is a town with a harbour.",
)


def scored(*scores: JSON, field: str = "score") -> list[Document]:
    """Documents with scores in their metadata, which may be out of date."""
    return [Document(str(place), metadata={field: score}) for place, score in enumerate(scores)]


def ranked_with(*scores: JSON, field: str = "score") -> list[Document]:
    """Documents with scores beside their texts, as a body has them."""
    bodies = [DocumentBody.model_validate({"text": str(place), field: score}) for place, score in enumerate(scores)]
    return [document for body in bodies for document in body.documents()]


async def planned(
    documents: Sequence[Document] = tuple(map(Document, TEXTS)),
    window: int | None = None,
    ordering: Ordering = ORDERING,
    **fields: Any,
) -> Plan:
    request = GenerationRequest((Message("user", QUESTION),), tuple(documents), **fields)
    return await Planner(Scripted(), ordering=ordering).plan(request, window)


def order_of(plan: Plan) -> list[int | None]:
    return [document.number for document in plan.documents]


# Words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Bridge's ÄRMEL, 9.81 m²; straße", ["the", "bridge", "s", "ärmel", "9", "81", "m2", "strasse"]),
        ("埃菲尔铁塔高330米。", [*"埃菲尔铁塔高", "埃菲", "菲尔", "尔铁", "铁塔", "塔高", "330", "米"]),
        ("東京タワー", [*"東京タワー", "東京", "京タ", "タワ", "ワー"]),
        ("서울은 크다", [*"서울은", "서울", "울은", *"크다", "크다"]),
        ("किताब कहाँ है।", ["किताब", "कहाँ", "है"]),
        ("புத்தகம், עִבְרִית", ["புத்தகம்", "עִבְרִית"]),
        ("cafe\u0301", ["café"]),
        ("snake_case", ["snake", "case"]),
        ("", []),
        ("!? \n", []),
    ],
)
def test_a_text_has_words_with_or_without_spaces_between_them(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("question", "texts", "expected"),
    [
        (QUESTION, TEXTS, [2, 3, 1, 0]),
        ("港口大桥是哪一年开通的？", ["市场星期五卖鲱鱼。", "老桥有九个拱。", "港口大桥于1931年开通。"], [2, 1, 0]),
        (
            "Wann wurde die Hafenbrücke eröffnet?",
            ["Der Markt.", "Die HAFENBRÜCKE wurde 1931 eröffnet."],
            [1, 0],
        ),
        ("猫", ["狗在家", "黑猫在家"], [1, 0]),
        ("किताब", ["वह है, कि ताकि बात हो", "मेज़ पर लाल किताब रखी"], [1, 0]),
        ("?", TEXTS, [0, 1, 2, 3]),
        ("zebra", TEXTS, [0, 1, 2, 3]),
        (QUESTION, ["", "…", "bridge"], [2, 0, 1]),
        (QUESTION, ["", "…"], [0, 1]),
        (QUESTION, [], []),
    ],
)
def test_texts_with_the_words_of_the_question_come_first_and_others_stay(
    question: str, texts: Sequence[str], expected: list[int]
) -> None:
    assert by_relevance(question, texts) == expected


# Which order


@pytest.mark.parametrize(
    ("documents", "order", "ranked", "expected"),
    [
        (ranked_with(1, 2), "given", False, "given"),
        (ranked_with(1, 2), "relevance", True, "relevance"),
        (ranked_with(1, 2), "auto", True, "scores"),
        (ranked_with(1, "0.5"), "auto", True, "scores"),
        (ranked_with(1, None), "auto", True, "given"),
        (ranked_with(1, True), "auto", True, "given"),
        (ranked_with(1, "high"), "auto", False, "relevance"),
        (ranked_with(1, 1), "auto", False, "relevance"),
        (scored(1, 2), "auto", True, "given"),
        (scored(1, 2), "auto", False, "scores"),
        (scored(1, 2, field="rerank_score"), "auto", True, "scores"),
        (scored(0.5, float("nan")), "auto", False, "relevance"),
        (scored(0.5, 10**400), "auto", False, "relevance"),
        (scored(0.5, 0.5), "auto", False, "relevance"),
        ([*scored(1), Document("x")], "auto", False, "relevance"),
        ([Document("a"), Document("b")], "auto", False, "relevance"),
        ([Document("a"), Document("b")], "auto", True, "given"),
        ([Document("a"), Document("b")], "ends", False, "relevance"),
        ([Document("a")], "auto", False, "given"),
        ([], "auto", False, "given"),
    ],
)
def test_the_order_is_that_of_the_scores_or_the_reranker_or_else_of_the_words(
    documents: list[Document], order: str, ranked: bool, expected: str
) -> None:
    assert basis_of(documents, order, ranked) == expected


BOTH = [{"reranker_score": 0.2, "vector_distance": 0.1}, {"reranker_score": 0.8, "vector_distance": 0.9}]
PLACEHOLDERS = [{"reranker_score": 0.0, "vector_distance": 0.9}, {"reranker_score": 0.0, "vector_distance": 0.1}]


@pytest.mark.parametrize(
    ("documents", "ranked", "expected"),
    [
        (ranked_with(0.1, 0.9, "0.5"), True, [2, 3, 1]),
        (ranked_with(0.1, 0.9, 0.9), True, [2, 3, 1]),
        (scored(3, 1, 2, field="vector_distance"), False, [2, 3, 1]),
        ([Document(str(place), metadata=one) for place, one in enumerate(BOTH)], True, [2, 1]),
    ],
)
async def test_documents_with_scores_come_by_them(documents: list[Document], ranked: bool, expected: list[int]) -> None:
    plan = await planned(documents, ranked=ranked)
    assert order_of(plan) == expected
    assert plan.report.order == "scores"


@pytest.mark.parametrize("metadata", [PLACEHOLDERS, [{"similarity": 0.2}, {"similarity": 0.9}]])
async def test_a_retrievers_scores_do_not_undo_what_a_reranker_did(metadata: list[dict[str, JSON]]) -> None:
    plan = await planned([Document(str(place), metadata=one) for place, one in enumerate(metadata)])
    assert (order_of(plan), plan.report.order) == ([1, 2], "given")


async def test_without_a_function_for_it_nothing_is_ordered_by_relevance_and_the_report_says_so() -> None:
    plan = await planned(ordering=Ordering(), ranked=False)
    assert (order_of(plan), plan.report.order) == ([1, 2, 3, 4], "given")


async def test_documents_that_nobody_has_ranked_come_by_relevance_and_the_report_says_where_each_is() -> None:
    plan = await planned(ranked=False)
    assert order_of(plan) == [3, 4, 2, 1]
    assert [(use.number, use.position) for use in plan.report.documents] == [(1, 4), (2, 3), (3, 1), (4, 2)]
    assert plan.report.order == "relevance"
    assert [source.number for source in plan.sources] == [1, 2, 3, 4]
    places = [texts(plan.prompt[-1:]).index(text) for text in (TEXTS[2], TEXTS[3], TEXTS[1], TEXTS[0])]
    assert places == sorted(places)


async def test_reranked_documents_stay_as_they_came_unless_the_request_or_the_setting_says_otherwise() -> None:
    assert order_of(await planned()) == [1, 2, 3, 4]
    assert order_of(await planned(order="relevance")) == [3, 4, 2, 1]
    assert order_of(await planned(ordering=Ordering("relevance", 0, by_relevance))) == [3, 4, 2, 1]
    assert order_of(await planned(ordering=Ordering("relevance", 0, by_relevance), order="given", ranked=False)) == [
        1,
        2,
        3,
        4,
    ]


def test_the_best_are_at_the_ends() -> None:
    assert [at_the_ends(range(1, n)) for n in (1, 2, 3, 7)] == [(), (1,), (1, 2), (1, 3, 5, 6, 4, 2)]


async def test_ends_puts_the_second_best_last_and_the_report_says_so() -> None:
    plan = await planned(order="ends", ranked=False)
    assert order_of(plan) == [3, 2, 1, 4]
    assert plan.report.order == "ends"
    assert [use.position for use in plan.report.documents] == [3, 2, 1, 4]


@pytest.mark.parametrize("order", ["auto", "ends"])
async def test_the_best_stay_where_not_all_have_room(order: str) -> None:
    documents = [Document(f"{text} {'word ' * 120}") for text in TEXTS]
    plan = await planned(documents, 600, order=order, ranked=False)
    fates = [use.fate for use in plan.report.documents]
    assert (fates[2], fates[0]) == ("kept", "dropped")
    assert order_of(plan)[0] == 3
    assert plan.report.documents[0].position is None


async def test_only_the_best_few_are_used_and_the_others_are_told() -> None:
    plan = await planned(ordering=Ordering("auto", 2, by_relevance), ranked=False)
    assert order_of(plan) == [3, 4]
    reason = "it is not among the best 2 (top_documents)"
    assert [(use.fate, use.reason) for use in plan.report.documents] == [
        ("dropped", reason),
        ("dropped", reason),
        ("kept", ""),
        ("kept", ""),
    ]
    assert order_of(await planned(ordering=Ordering("auto", 2, by_relevance))) == [1, 2]


async def test_documents_are_called_by_the_callers_numbers_in_whatever_order() -> None:
    documents = [Document(text, metadata={"citation_id": 10 + place}) for place, text in enumerate(TEXTS)]
    plan = await planned(documents, ranked=False, citations="on")
    assert texts(plan.prompt[-1:]).index("[12] The harbour") < texts(plan.prompt[-1:]).index("[10] Herring")


# Whitespace


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one line", "one line"),
        ("  one line \t", "  one line"),
        ("one\n\n\ntwo  \n \t\nthree\n", "one\ntwo\nthree"),
        ("\n \none\r\n\r\ntwo\rthree", " \none\ntwo\nthree".strip()),
        ("| a | b |\n|---|---|\n| 1  | 2 |", "| a | b |\n|---|---|\n| 1  | 2 |"),
        ("a\n\n\n| b |\n| c |\n\n\nd\n\ne", "a\n\n| b |\n| c |\n\nd\ne"),
        ("a\tb\t\t\nc\td\te", "a\tb\t\t\nc\td\te"),
        (
            "See:\n\n```py\ndef f():\n\n    pass  \n```\n\nEnd.",
            "See:\n```py\ndef f():\n\n    pass  \n```\nEnd.",
        ),
        ("````\n```\n\n\nx\n```\n\n````\n\ny", "````\n```\n\n\nx\n```\n\n````\ny"),
        ("```\n~~~\n\nx\n```python\n\ny", "```\n~~~\n\nx\n```python\n\ny"),
        ("    indented\n\n      code", "    indented\n      code"),
        ("a\x0cb\u2028c\n\nd", "a\x0cb\u2028c\nd"),
        ("", ""),
    ],
)
def test_whitespace_that_says_nothing_is_left_out(text: str, expected: str) -> None:
    document = Document(text, "T", {"a": 1}, 3)
    assert tidied(document) == Document(expected, "T", {"a": 1}, 3)
    if text == expected:
        assert tidied(document) is document


async def test_whitespace_of_more_text_than_a_window_holds_is_left_alone() -> None:
    documents = [Document("a\n\nb"), Document("x " * 600_000), Document("c\n\nd")]
    assert [document.text[:4] for document in (await planned(documents)).documents] == ["a\nb", "x x ", "c\n\nd"]


def test_a_title_is_one_line() -> None:
    assert tidied(Document("x", " A\n\n B ")).title == "A B"


async def test_the_same_text_with_other_blank_lines_is_written_once() -> None:
    plan = await planned([Document(text) for text in ("a\n\nb", "a\nb", "a\r\nb  ")])
    assert [use.fate for use in plan.report.documents] == ["kept", "dropped", "dropped"]
    assert [document.text for document in plan.documents] == ["a\nb"]
