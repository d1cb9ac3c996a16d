"""How a context window is shared, and where a text is cut."""

from __future__ import annotations

from unicodedata import normalize

import pytest

from comps.core.budget import Share, Sharing, cut, share
from comps.core.errors import PromptTooLong

SHORT = Sharing(least_answer=10)


def test_documents_have_what_question_answer_and_history_leave() -> None:
    assert share(200, 50, [20, 20], [30, 30], SHORT, 40) == Share(2, 100)
    assert share(200, 50, [], [60, 60, 60, 5], SHORT, 40) == Share(0, 140)


def test_the_answer_keeps_what_the_settings_say_and_no_more_than_it_may_have() -> None:
    assert share(200, 50, [], [100, 100], Sharing(least_answer=50), 1000) == Share(0, 100)
    assert share(200, 50, [], [100, 100], Sharing(least_answer=50), 20) == Share(0, 130)
    assert share(200, 50, [], [100, 100], Sharing(least_answer=50), None) == Share(0, 100)


def test_what_was_said_before_stays_longer_than_all_but_the_best_document() -> None:
    assert share(200, 50, [40, 40], [50, 50], SHORT, 40) == Share(2, 60)


def test_the_earliest_of_it_gives_way_first_and_all_of_it_before_the_best_document() -> None:
    assert share(200, 50, [40, 40], [80, 80], SHORT, 40) == Share(1, 100)
    assert share(200, 50, [40, 40], [120, 80], SHORT, 40) == Share(0, 140)


def test_it_gives_way_to_all_documents_if_the_settings_say_so() -> None:
    assert share(200, 50, [40, 40], [50, 50], Sharing(10, documents_first=True), 40) == Share(1, 100)


def test_a_question_that_fills_the_window_is_refused_with_the_numbers() -> None:
    with pytest.raises(PromptTooLong) as caught:
        share(200, 200, [1], [1], SHORT, 40)
    assert (caught.value.prompt_tokens, caught.value.context_window) == (200, 200)
    assert share(200, 199, [1], [1], SHORT, 40) == Share(0, 0)


TEXT = 'One two three. Four "five six." Seven eight nine ten eleven.\nTwelve'


@pytest.mark.parametrize(
    ("most", "kept"),
    [
        (1000, TEXT),
        (len(TEXT) - 1, 'One two three. Four "five six." Seven eight nine ten eleven.'),
        (45, 'One two three. Four "five six."'),
        (31, 'One two three. Four "five six."'),
        (20, "One two three."),
        (12, "One two"),
        (3, "One"),
        (2, ""),
        (0, ""),
    ],
)
def test_a_text_is_cut_at_the_end_of_a_sentence_else_of_a_word(most: int, kept: str) -> None:
    assert cut(TEXT, most) == kept


def test_a_sentence_s_end_that_costs_most_of_the_text_is_not_waited_for() -> None:
    assert cut("Yes. " + "word " * 100, 200).endswith("word")


def test_a_decimal_point_ends_no_sentence() -> None:
    assert cut("It costs 3.14159 euros and more", 16) == "It costs 3.14159"


def test_chinese_is_cut_at_its_full_stops_and_else_between_characters() -> None:
    assert cut("今天天气很好。我们去公园散步吧", 10) == "今天天气很好。"
    assert cut("今天天气很好我们去公园散步吧", 10) == "今天天气很好我们去公"


def test_a_word_in_latin_letters_among_chinese_stays_whole() -> None:
    assert cut("本系统使用TensorFlow与许多其他软件", 8) == "本系统使用"
    assert cut("本系统使用TensorFlow与许多其他软件", 14) == "本系统使用"
    assert cut("本系统使用TensorFlow与许多其他软件", 15) == "本系统使用TensorFlow"
    assert cut("本系统使用TensorFlow与许多其他软件", 16) == "本系统使用TensorFlow与"


def test_a_space_early_in_chinese_does_not_cost_the_rest() -> None:
    text = "关于天气。 " + "今天天气很好我们去公园散步吧" * 30
    assert cut(text, 300) == text[:300]


def test_korean_is_cut_between_its_words() -> None:
    assert cut("오늘은 날씨가 좋습니다", 6) == "오늘은"
    apart = normalize("NFD", "오늘은 날씨가 좋습니다")
    assert cut(apart, len(apart) // 2) == normalize("NFD", "오늘은")


@pytest.mark.parametrize(
    "whole",
    [
        "👩\u200d🚀",
        "❤\ufe0f",
        "か\u3099",
        "👍🏽",
        "🇩🇪",
        "1\ufe0f\u20e3",
        "🏴\U000e0067\U000e0062\U000e007f",
    ],
)
def test_what_is_read_as_one_character_is_not_cut(whole: str) -> None:
    for most in range(1, len(whole)):
        assert cut("漢字" + whole + whole, 2 + most) == "漢字"
    assert cut(f"漢字{whole}漢字", 2 + len(whole)) == f"漢字{whole}"
