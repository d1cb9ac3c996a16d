"""The questions are fit to be asked: their documents say what is asked for, and no others that go with them do."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest

from tests.benchmarks.answers.questions import (
    DOCUMENTS,
    LANGUAGES,
    LONG_WORDS,
    ORDERS,
    OTHER_WORDS,
    SETS,
    SHAPES,
    Document,
    Question,
    documents_of,
    given_with,
    in_order,
    read,
    some,
)
from tests.benchmarks.answers.words import contains, content_words

QUESTIONS = {name: read(name) for name in SETS}
ALL = tuple(chain.from_iterable(QUESTIONS.values()))
ANSWERABLE = tuple(question for question in ALL if question.answerable)

every_set = pytest.mark.parametrize("name", SETS)


def given(question: Question) -> list[Document]:
    """The documents that are posted with a question."""
    return given_with(question, next(own for own in QUESTIONS.values() if question in own))


def test_both_sets_have_the_same_mix_of_shapes_and_languages() -> None:
    assert [len(questions) for questions in QUESTIONS.values()] == [102, 102]
    counted = [Counter((one.language, one.shape) for one in questions) for questions in QUESTIONS.values()]
    assert {shape for _, shape in counted[0]} == set(SHAPES)
    assert {language for language, _ in counted[0]} == set(LANGUAGES)
    assert all(abs(counted[0][kind] - counted[1][kind]) <= 1 for kind in counted[0] | counted[1])


def test_the_sets_share_no_topic_document_question_or_name() -> None:
    tuning, held_out = (
        {*chain.from_iterable((one.topic, one.question, *(d.title for d in documents_of(one))) for one in questions)}
        for questions in QUESTIONS.values()
    )
    assert not tuning & held_out
    for own, other in (SETS, reversed(SETS)):
        texts = "\n".join({f"{d.title}\n{d.text}" for one in QUESTIONS[other] for d in documents_of(one)})
        names = [form for one in QUESTIONS[own] if one.shape == "name" for form in chain(*one.accepted)]
        assert [name for name in names if contains(texts, name)] == []


def test_titles_texts_and_questions_are_all_different() -> None:
    documents = {document for question in ALL for document in documents_of(question)}
    assert len({one.title for one in documents}) == len({one.text for one in documents}) == len(documents)
    assert len({one.question for one in ALL}) == len(ALL)


def test_each_fact_is_in_a_document_of_its_own_and_in_no_other_that_goes_with_it() -> None:
    for question in ANSWERABLE:
        for forms in question.accepted:
            saying = [one for one in given(question) if any(one.says(form) for form in forms)]
            assert len(saying) == 1, (question.question, forms)
            assert saying[0] in question.documents, question.question
            assert not any(contains(question.question, form) for form in forms), question.question


def test_two_documents_are_needed_where_the_shape_says_so() -> None:
    for question in ANSWERABLE:
        assert len(question.documents) == (2 if question.shape == "two documents" else 1), question.question
        if question.shape == "two documents" and len(question.accepted) == 1:
            first, last = question.documents
            assert any(last.says(form) for form in question.accepted[0])
            assert contains(first.text, last.title), "the first document leads to the second"
            assert not contains(question.question, last.title), "which the question does not name"
        elif question.shape == "two documents":
            said = [
                [any(one.says(form) for form in forms) for forms in question.accepted] for one in question.documents
            ]
            assert said == [[True, False], [False, True]], question.question


def test_what_no_document_says_is_in_none_that_goes_with_it() -> None:
    for question in ALL:
        assert question.answerable == (question.shape != "unanswerable")
        assert question.answerable == bool(question.documents) != bool(question.unsaid)
        assert not any(one.says(form) for one in given(question) for form in question.unsaid), question.question


def test_a_distractor_says_something_else_and_not_the_fact() -> None:
    for question in ALL:
        assert bool(question.rival) == (question.shape == "distractor")
        if question.shape == "distractor":
            assert question.distractor
            saying = [one for one in given(question) if any(one.says(form) for form in question.rival)]
            assert saying == [question.distractor], question.question
            assert len(content_words(question.question) & content_words(question.distractor.text)) >= 2


def test_a_fact_stands_in_the_middle_of_a_longer_document() -> None:
    for question in ALL:
        for document in documents_of(question):
            words = len(document.text.split())
            if question.shape == "long":
                parts = document.text.split("\n")
                assert 750 <= words <= 900
                assert not any(contains(part, form) for part in (parts[0], parts[-1]) for form in question.accepted[0])
            elif question.shape == "table":
                assert document.text.count("\n") >= 3
            elif question.language == "zh":
                assert 80 <= len(document.text) <= 160, document.title
            else:
                assert 40 <= words <= 90, document.title


@every_set
def test_a_share_of_the_questions_is_put_in_other_words_than_the_documents(name: str) -> None:
    shares = [question.shared for question in QUESTIONS[name] if question.answerable]
    in_other_words = [share for share in shares if share <= OTHER_WORDS]
    assert len(in_other_words) / len(shares) >= 0.35
    assert sum(in_other_words) / len(in_other_words) <= 0.15


@every_set
def test_the_order_of_shared_words_does_not_find_every_document(name: str) -> None:
    """What a lexical order finds is no measure of what a model finds."""
    answerable = [question for question in QUESTIONS[name] if question.answerable]
    found = 0
    for question in answerable:
        asked = content_words(question.question)
        best = max(reversed(given(question)), key=lambda one: len(asked & content_words(f"{one.title}\n{one.text}")))
        found += best in question.documents
    assert 0.5 <= found / len(answerable) <= 0.75


def test_a_question_has_its_documents_first_then_the_distractor_then_those_of_its_topic() -> None:
    for question in ALL:
        documents = given(question)
        first = list(documents_of(question))
        assert documents[: len(first)] == first
        assert len(set(documents)) == DOCUMENTS
        topics = [
            {one.topic for one in ALL if document in documents_of(one)} == {question.topic} for document in documents
        ]
        assert topics == sorted(topics, reverse=True), question.question
        is_long = [len(document.text.split()) > LONG_WORDS for document in documents]
        assert not any(is_long) or question.topic in ("reports", "chronicles")


def test_a_question_has_documents_of_its_own_language_only() -> None:
    french, english = (
        Question("rail", code, "name", "Le train ?", (("x",),), (Document(code, "train"),)) for code in ("fr", "en")
    )
    assert given_with(french, [english, french]) == [Document("fr", "train")]


def test_a_draw_shuffles_the_same_way_again_and_the_others_otherwise() -> None:
    documents = given(ALL[0])
    shuffled = [in_order("shuffled", documents, draw) for draw in (0, 0, 1)]
    assert shuffled[0] == shuffled[1] != shuffled[2]
    assert sorted(one.title for one in shuffled[2]) == sorted(one.title for one in documents)
    assert in_order("best", documents, 1) == documents
    assert in_order("last", documents, 1) == documents[::-1]
    assert len(ORDERS) == 3


def test_shuffled_documents_with_the_answer_are_at_each_place() -> None:
    places = Counter(
        in_order("shuffled", documents, draw).index(documents[0])
        for documents in map(given, ANSWERABLE)
        for draw in (1, 2, 3)
    )
    assert len(places) == DOCUMENTS
    assert min(places.values()) >= 40


def test_a_few_questions_are_of_many_topics() -> None:
    questions = read("tuning")
    assert len({one.topic for one in some(questions, 24)}) == len({one.topic for one in questions})
    assert some(questions, len(questions)) == some(questions, 1000) == list(questions)


def test_every_scalar_of_a_set_is_a_string() -> None:
    assert {"742", "10:40", "4,70"} <= {form for one in read("tuning") for forms in one.accepted for form in forms}


def test_the_share_of_its_own_words_is_that_of_content_words() -> None:
    document = Document("Tower", "The tower of Berg has 300 steps, all of oak.")
    assert Question("", "en", "number", "How many steps has the tower?", (("300",),), (document,)).shared == 1
    assert Question("", "en", "number", "How many stairs lead upwards?", (("300",),), (document,)).shared == 0
    assert content_words("Towers, when towering over 300 houses") == content_words("tower towered 300 house")
    assert Question("", "zh", "name", "塔楼在哪里？", (("山上",),), (Document("", "塔楼在山上"),)).shared == 2 / 3
