"""The ends of sentences in a text that comes in pieces, passages of documents, and citations sentence by sentence."""

from __future__ import annotations

from time import process_time

import pytest

from comps.core import words as words_of
from comps.core.answers import Collector
from comps.core.citations import own_citations_in
from comps.core.cited_sentences import CitedSentences
from comps.core.matching import Matcher
from comps.core.passages import Passages
from comps.core.sentences import SentenceEnds, sentences
from comps.core.types import JSON, Document, Event, Finished, TextDelta
from comps.core.words import words
from tests.core.test_answers import write

TEXT = 'Well. It has 3.5 "big" ones (e.g. two)! "Yes?" Good…\n\n埃菲尔铁塔高330米。它很高。\nThe end'
SENTENCES = ["Well.", 'It has 3.5 "big" ones (e.g.', "two)!", '"Yes?"', "Good…", "埃菲尔铁塔高330米。", "它很高。"]


def test_sentences_end_at_their_marks_and_at_line_breaks_but_not_within_numbers() -> None:
    assert [TEXT[begin:end] for begin, end in sentences(TEXT, 0, len(TEXT))] == [*SENTENCES, "The end"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_ends_of_sentences_are_found_in_pieces_of_any_size(size: int) -> None:
    ends, found, parts = SentenceEnds(), [""], list[str]()
    for start in range(0, len(TEXT), size):
        first, *others = ends.split(TEXT[start : start + size])
        found[-1] += first
        found += others
        parts += [first, *others]
    assert [sentence.strip() for sentence in found] == [*SENTENCES, "The end"]
    assert "".join(parts) == TEXT


FACTS = (
    "# Velmora\n\nVelmora is a town by the sea. Its harbour bridge was opened in 1931. It has green pylons.\n"
    "There is a market for herring. Herring is sold on Fridays, and bread on Mondays."
)


@pytest.mark.parametrize(
    ("sentence", "passage"),
    [
        ("The bridge was opened in 1931.", "Its harbour bridge was opened in 1931."),
        ("Bread on Mondays.", "Herring is sold on Fridays, and bread on Mondays."),
        (
            "The harbour bridge of 1931 has green pylons.",
            "Its harbour bridge was opened in 1931. It has green pylons.",
        ),
        ("A town by the sea.", "Velmora is a town by the sea."),
        ("Nothing of that kind.", None),
    ],
)
def test_the_passage_of_a_sentence_is_the_one_with_its_words_and_as_many_neighbours_as_it_needs(
    sentence: str, passage: str | None
) -> None:
    span = Passages(FACTS).find(set(words(sentence)))
    assert (span and FACTS[span[0] : span[1]]) == passage


def test_a_passage_is_short_however_long_a_line_is() -> None:
    table = " ".join(f"row{number} has {number * 7}" for number in range(2000))
    span = Passages(table).find(set(words("row1500 has 10500")))
    assert span
    assert "row1500 has 10500" in table[span[0] : span[1]]
    assert span[1] - span[0] <= 3 * 600


def test_a_passage_of_a_long_document_is_found_in_linear_time() -> None:
    def seconds(size: int) -> float:
        text = "".join(f"The line {number} of it is the same as the others. " for number in range(size))
        began = process_time()
        passages = Passages(text)
        for number in range(100):
            assert passages.find(set(words(f"The line {number} of it is the same.")))
        return process_time() - began

    assert seconds(2400) < 20 * min(seconds(300) for _ in range(2))


def test_no_search_for_words_takes_a_whole_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, searched = words_of._WORD, []

    class Seen:
        def findall(self, text: str) -> list[str]:
            searched.append(len(text))
            found: list[str] = pattern.findall(text)
            return found

    monkeypatch.setattr(words_of, "_WORD", Seen())
    assert words("Alpha beta-2\n" * 10_000) == ["alpha", "beta", "2"] * 10_000
    assert words("x" * 50_000 + " y")[-1] == "y"
    assert max(searched) <= 20_000


GIVEN = {1: Document(FACTS, "Velmora"), 2: Document("Paris has a tower.")}


async def told(*events: Event, **arguments: float) -> list[str | list[str]]:
    """What is written of an answer: its pieces of text, and the passages of each list of annotations."""
    seen: list[str | list[str]] = []

    class Seen(Collector):
        def text(self, text: str, choice: int = 0) -> None:
            seen.append(text)

        def delta(self, delta: TextDelta) -> None:
            cited = [GIVEN[one["number"]].text[slice(*one["passage"])] for one in own_citations_in(delta.extra)]
            seen.append(cited if delta.extra else delta.text)

        def finished(self, end: Finished) -> None:
            seen.append("end")

    answer = CitedSentences(Seen(), Matcher(GIVEN, passages=True).matches, **arguments)
    await write(events, answer)
    await answer.finish()
    return seen


async def test_the_citations_of_a_sentence_come_behind_it_and_the_text_flows_on() -> None:
    bridge = "Its harbour bridge was opened in 1931."
    assert await told(
        TextDelta("Well"),
        TextDelta(". The bridge"),
        TextDelta(" was opened in 1931"),
        TextDelta("."),
        TextDelta("\n"),
        TextDelta("It has green pylons"),
        Finished("stop"),
    ) == [
        *("Well", ".", [], " The bridge", " was opened in 1931", ".", [bridge], "\n"),
        *("It has green pylons", ["It has green pylons."], "end"),
    ]


@pytest.mark.parametrize("call", [{"tool_calls": [{"index": 0}]}, {"function_call": {"name": "f"}}], ids=str)
async def test_a_sentence_without_an_end_is_cited_before_the_call_that_follows_it(call: dict[str, JSON]) -> None:
    seen = await told(TextDelta("It has green pylons"), TextDelta("", 0, call), Finished("stop"))
    assert seen == ["It has green pylons", ["It has green pylons."], [], "end"]


async def test_a_long_answer_is_cited_at_its_end_from_where_sentences_were_cited_last() -> None:
    green, filler = "It has green pylons.", f"{'Lorem ipsum ' * 40}. " * 30
    told_of_it = await told(*map(TextDelta, (green + " ", filler, green)), Finished("stop"), most=100)
    assert told_of_it.count([green]) == 2
    assert told_of_it[-2:] == [[green], "end"]


def test_only_who_asks_for_it_is_told_the_passage() -> None:
    (plain,) = Matcher(GIVEN).matches("It has green pylons.")["annotations"]
    assert "passage" not in plain["document_citation"]
    (by_title,) = Matcher({1: Document("a b c", "Paris Tower")}, passages=True).matches("Paris Tower")["annotations"]
    assert by_title["document_citation"]["passage"] is None
