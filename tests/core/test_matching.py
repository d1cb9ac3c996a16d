"""Sentences of an answer are matched to the documents with their words."""

from __future__ import annotations

from threading import current_thread
from typing import Any

import pytest

from comps.core.answers import Collector, collect
from comps.core.generator import TextGenerator
from comps.core.matching import Matcher
from comps.core.types import JSON, Document, GenerationRequest, Message
from comps.model_servers.scripted import Scripted
from tests.events import texts

GIVEN = {
    1: Document("The harbour bridge of Velmora was opened in 1931. Its pylons are green.", "Harbour Bridge"),
    2: Document("Velmora has a market for herring on Fridays.", metadata={"url": "http://a"}),
    7: Document("埃菲尔铁塔高330米。"),
}


def cited(text: str, start: int = 0) -> list[tuple[str, int]]:
    annotations = Matcher(GIVEN).matches(text, start).get("annotations", [])
    told = [one[one["type"]] for one in annotations]
    return [(text[one["start_index"] : one["end_index"]], one["number"]) for one in told]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The bridge was opened in 1931.", [("The bridge was opened in 1931.", 1)]),
        ("1931", [("1931", 1)]),
        (
            "It opened in 1931. There is herring on Fridays!\nGreen pylons.",
            [("It opened in 1931.", 1), ("There is herring on Fridays!", 2), ("Green pylons.", 1)],
        ),
        ("铁塔高330米。", [("铁塔高330米。", 7)]),
        ("Velmora.", []),
        ("The moon is made of cheese and of rock.", []),
        ("I do not know.", []),
        ("", []),
        ("?!", []),
        ("<think>The bridge was opened in 1931.</think>Herring on Fridays.", [("Herring on Fridays.", 2)]),
        ("```\nthe bridge was opened in 1931\n```", []),
    ],
)
def test_a_sentence_is_matched_to_the_document_that_has_its_words_and_no_other(
    text: str, expected: list[tuple[str, int]]
) -> None:
    assert cited(text) == expected


def test_an_echoed_prompt_is_not_matched() -> None:
    prompt = "The bridge was opened in 1931. "
    assert cited(f"{prompt}Herring on Fridays.", len(prompt)) == [("Herring on Fridays.", 2)]


def test_the_annotation_says_how_it_was_found() -> None:
    (found,) = Matcher(GIVEN).matches("Herring on Fridays.")["annotations"]
    link = {"start_index": 0, "end_index": 19, "title": "", "url": "http://a", "number": 2}
    assert found == {"type": "url_citation", "url_citation": {**link, "matched_by": "words", "score": 1.0}}


def test_documents_with_the_same_words_are_not_told_apart() -> None:
    given = {1: Document("It is green."), 2: Document("It is green.", "Again")}
    assert Matcher(given).matches("It is green.") == {}


@pytest.mark.parametrize("by_body", [True, False])
async def test_an_answer_is_matched_where_that_is_asked_for_and_the_documents_have_no_numbers(by_body: bool) -> None:
    server = Scripted([["The bridge was ", "opened in 1931 [2]."]])
    settings: Any = {} if by_body else {"citations": "matched"}
    generator = TextGenerator(server, "m", **settings)
    request = GenerationRequest(
        (Message("user", "When?"),), tuple(GIVEN.values()), citations="matched" if by_body else None
    )
    extra = (await collect(generator.generate, request)).extra
    assert (await generator.complete(await generator.plan(request))).extra == extra
    assert extra
    (found,) = extra["annotations"]
    assert found["document_citation"]["number"] == 1
    assert "[1]" not in texts(server.asked[0][0])


@pytest.mark.parametrize(
    ("documents", "length", "thread"),
    [(1, 9_000, "MainThread"), (1, 11_000, "beside"), (900, 900, "MainThread"), (900, 9_000, "beside")],
)
async def test_what_takes_long_to_compare_is_compared_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, documents: int, length: int, thread: str
) -> None:
    threads: list[str] = []
    matches = Matcher.matches

    def seen(matcher: Matcher, text: str, start: int = 0) -> dict[str, JSON]:
        threads.append(current_thread().name)
        return matches(matcher, text, start)

    monkeypatch.setattr(Matcher, "matches", seen)
    given = tuple(Document(f"The card with number {number} is green.") for number in range(documents))
    request = GenerationRequest((Message("user", "Which?"),), documents=given, citations="matched")
    generator = TextGenerator(Scripted([["The card is green. " * (length // 19)]]), "scripted")
    plan = await generator.plan(request)
    await generator.complete(plan)
    await generator.answer(plan, Collector())
    assert threads == [thread] * 2
