"""The marks in an answer, and what is said of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from time import process_time

import pytest

from comps.core.answers import collect, read
from comps.core.citations import Cited, by_number, citations, cited_numbers, marks, with_citations
from comps.core.generator import TextGenerator
from comps.core.ports import Answer
from comps.core.types import JSON, Document, Event, Finished, GenerationRequest, Message, TextDelta
from comps.model_servers.scripted import Scripted
from tests.core.test_answers import write

LINK = Document("one", "Gaudi 2", {"url": "http://a"}, 1)
FILE = Document("two", "", {"bucket_name": "b", "object_name": "o", "citation_id": "c2"}, 2)
PLAIN = Document("three", "Bread", {}, 3)
GIVEN = by_number([LINK, FILE, PLAIN])


def named(text: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(text[mark.start : mark.end], mark.numbers) for mark in marks(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It has 96 GB [3].", [("[3]", (3,))]),
        ("It has 96 GB.[3]", [("[3]", (3,))]),
        ("memory[1][2].", [("[1]", (1,)), ("[2]", (2,))]),
        ("[1, 3] and [2;4]", [("[1, 3]", (1, 3)), ("[2;4]", (2, 4))]),
        ("[1-3] [1–3] [2—3]", [("[1-3]", (1, 2, 3)), ("[1–3]", (1, 2, 3)), ("[2—3]", (2, 3))]),
        ("[1-2, 2, 5]", [("[1-2, 2, 5]", (1, 2, 5))]),
        ("内存【1】很大【2†来源】。", [("【1】", (1,)), ("【2†来源】", (2,))]),
        ("它[1、2]和[1，3]", [("[1、2]", (1, 2)), ("[1，3]", (1, 3))]),
        ("[[1]](http://a)", [("[1]", (1,))]),
        ("😀 [12]", [("[12]", (12,))]),
    ],
)
def test_marks_are_found_with_their_numbers_and_places(text: str, expected: list[tuple[str, tuple[int, ...]]]) -> None:
    assert named(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "[0]",
        "[0, 1]",
        "[01]",
        "[]",
        "[a1]",
        "[1a]",
        "[-1]",
        "[1.5]",
        "[1,]",
        "[3-1]",
        "[1990-2020]",
        r"\[1\]",
        "[\n1]",
        "(1)",
        "[1",
        "1]",
    ],
)
def test_what_names_no_document_is_no_mark(text: str) -> None:
    assert named(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`array[1]` [2]", ["[2]"]),
        ("``a ` b[1]`` [2]", ["[2]"]),
        ("[1]\n```python\nx[2] = `y`\n```\n[3]", ["[1]", "[3]"]),
        ("[1]\n```python\nx[2]", ["[1]"]),
        ("A ` alone [1].\n\nAnother ` [2].", ["[1]", "[2]"]),
        ("A ` alone [1]", ["[1]"]),
        ("`a` [1] `b` [2] `c[3]`", ["[1]", "[2]"]),
        ("[1]\n~~~\nxs [2]\n~~~\n[3] ~~~ [4]", ["[1]", "[3]", "[4]"]),
        ("[1]\n~~~\nxs [2]", ["[1]"]),
    ],
)
def test_within_backticks_or_tildes_there_is_code_and_no_mark(text: str, expected: list[str]) -> None:
    assert [said for said, _ in named(text)] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>as [1] says</think> So [2].", ["[2]"]),
        ("<thinking>as [1] says", []),
        ("arr[1] is 5, and x[2] too [3].", ["[3]"]),
        ("my_list[1] [3]", ["[3]"]),
        ("limit[1] = 5, rows[2].sum, f[3](x), more[1] == 2 [2]", ["[2]"]),
        ("vLLM[1], the H200[2] and its memory[3].", ["[1]", "[2]", "[3]"]),
        ('{"a": [1, 2], "b": "see [1]"}', []),
        ('It is {"a": [1, 2]}, says [3].', ["[3]"]),
        ("[1, 2]", []),
        ("nums = [1, 2]; return [3, 4]; as in [5, 6]", ["[5, 6]"]),
        ("<THINK>[1]</THINK> [2] <code>x [3]</code> [THINK]y [4][/THINK]", ["[2]"]),
        ("no opening [1]</think> So [2].", ["[2]"]),
        ("{ [1] } [2]", ["[1]", "[2]"]),
    ],
)
def test_reasoning_indexes_and_json_have_no_marks(text: str, expected: list[str]) -> None:
    assert [said for said, _ in named(text)] == expected


@pytest.mark.parametrize(
    "hostile",
    [
        *("[" * 200_000, "[1," * 60_000, "[" + "1," * 100_000, "[1†" * 60_000, "` [1] `" * 30_000, '{"a":' * 60_000),
        "".join("`" * length + " " for length in range(600)),
    ],
    ids=lambda text: str(text[:8]),
)
def test_no_text_takes_long_to_look_at(hostile: str) -> None:
    begun = process_time()
    assert named(hostile) == []
    assert process_time() - begun < 5  # Hundredths of a second; minutes, if it looked again and again.


def test_each_document_is_told_in_the_form_that_it_has() -> None:
    assert citations("[1] [2, 3]", GIVEN) == {
        "annotations": [
            {
                "type": "url_citation",
                "url_citation": {"start_index": 0, "end_index": 3, "title": "Gaudi 2", "url": "http://a", "number": 1},
            },
            {
                "type": "file_citation",
                "file_citation": {
                    "start_index": 4,
                    "end_index": 10,
                    "title": "",
                    "bucket_name": "b",
                    "object_name": "o",
                    "number": 2,
                    "citation_id": "c2",
                },
            },
            {
                "type": "document_citation",
                "document_citation": {"start_index": 4, "end_index": 10, "title": "Bread", "number": 3},
            },
        ]
    }


def test_documents_that_were_not_given_are_told_once_each() -> None:
    assert citations("[9] [7, 9]", GIVEN) == {"unknown_citations": [9, 7]}
    assert citations("Nothing.", GIVEN) == {}


def test_of_the_passages_of_one_file_the_first_stands_for_all() -> None:
    first, second = (Document(text, metadata={"citation_id": 4}) for text in ("a", "b"))
    assert by_number([], [first, second, Document("no number"), Document("c", metadata={"citation_id": True})]) == {
        4: first
    }


def test_which_documents_are_cited_is_read_from_what_came_beside_the_text() -> None:
    assert cited_numbers(citations("[1] [2, 3] [9]", GIVEN)) == {1, 2, 3}
    foreign: list[JSON] = [{"type": "url_citation", "url_citation": {"url": "http://b"}}, {"type": []}, "x"]
    told: list[JSON] = [{"type": "x", "x": {"number": 1}}, {"type": "x", "x": {"number": [1], "start_index": 0}}]
    for one in (foreign, told, 5, True, "x", {"a": 1}):
        assert cited_numbers({"annotations": one}) == set()
    assert cited_numbers(None) == cited_numbers({}) == set()


def find(text: str, start: int) -> dict[str, JSON]:
    return citations(text, GIVEN, start)


async def listed(*events: Event, echoed: str = "") -> list[Event]:
    """The events, with what they cite. The whole answer cites the same."""

    async def ask(answer: Answer) -> None:
        await write(events, Cited(answer, find, echoed))

    assert await collect(ask) == with_citations(await collect(write, events), find, echoed)
    return [event async for event in read(ask)]


@pytest.mark.parametrize("pieces", [["See [1]."], ["See [", "1", "]."], [*"See [1]."], ["See", " [1", "", "]", "."]])
async def test_a_mark_is_found_whatever_the_pieces_are(pieces: Sequence[str]) -> None:
    *deltas, found, end = await listed(*map(TextDelta, pieces), Finished("stop"))
    assert deltas == [TextDelta(piece) for piece in pieces]
    assert found == TextDelta("", extra=citations("See [1].", GIVEN))
    assert end == Finished("stop")


async def test_each_choice_is_looked_at_by_itself() -> None:
    begun = (TextDelta("a [", 0), TextDelta("b [", 1), TextDelta("2]", 1), TextDelta("1]", 0), TextDelta("none", 2))
    events = await listed(*begun, *(Finished("stop", choice=choice) for choice in (1, 0, 2)))
    assert events[len(begun) :] == [
        TextDelta("", 1, citations("b [2]", GIVEN)),
        Finished("stop", choice=1),
        TextDelta("", 0, citations("a [1]", GIVEN)),
        Finished("stop", choice=0),
        Finished("stop", choice=2),
    ]


async def test_the_marks_of_an_echoed_prompt_are_not_the_models() -> None:
    prompt = "[1] Gaudi 2\none\n\nWhy?"
    *_, found, _ = await listed(TextDelta(prompt), TextDelta(" So [2]."), Finished("stop"), echoed=prompt)
    assert found == TextDelta("", extra=citations(f"{prompt} So [2].", GIVEN, len(prompt)))
    assert isinstance(found, TextDelta)
    assert cited_numbers(found.extra) == {2}


def asked(*documents: Document, quoted: tuple[Document, ...] = ()) -> GenerationRequest:
    return GenerationRequest((Message("user", "Why?"),), documents or None, quoted=quoted)


async def test_closing_the_events_closes_the_model_servers() -> None:
    server = Scripted([["a", asyncio.Event()]])
    async with aclosing(read(TextGenerator(server, "m").generate, asked(Document("one")))) as events:
        await anext(events)
    assert server.closed.is_set()


async def answered(text: str, request: GenerationRequest, **arguments: object) -> JSON:
    generator = TextGenerator(Scripted([[text]]), "m", **{"citations": "on", **arguments})  # type: ignore[arg-type]
    extra = (await collect(generator.generate, request)).extra
    assert (await generator.complete(await generator.plan(request))).extra == extra
    return extra


async def test_an_answer_from_documents_says_what_it_cites() -> None:
    said = await answered("Because [1], [3].", asked(Document("one", "Gaudi 2", {"url": "http://a"}), Document("two")))
    assert cited_numbers(said) == {1}
    assert said["unknown_citations"] == [3]


async def test_an_answer_without_marks_says_nothing_of_them() -> None:
    assert await answered("Because.", asked(Document("one"))) is None


async def test_without_documents_marks_are_text_like_any_other() -> None:
    assert await answered("Because [1].", asked()) is None


async def test_documents_that_the_model_does_not_see_by_number_are_not_cited_by_it() -> None:
    assert await answered("Because [1].", asked(Document("one")), citations="auto") is None


async def test_documents_that_the_caller_has_written_are_cited_by_their_own_ids() -> None:
    said = await answered("Because [5], [1].", asked(quoted=(Document("one", metadata={"citation_id": 5}),)))
    assert cited_numbers(said) == {5}
    assert said["unknown_citations"] == [1]


async def test_what_is_cited_is_as_the_caller_sent_it_whatever_the_model_was_given() -> None:
    document = Document("one", "Title", {"url": "http://a/<eos>"})
    said = await answered("[1]", asked(document), escape=lambda text: text.replace("<eos>", "").upper())
    (annotation,) = said["annotations"]
    told = annotation["url_citation"]
    assert (told["title"], told["url"]) == ("Title", "http://a/<eos>")


async def test_a_document_that_had_no_room_is_none_that_can_be_cited() -> None:
    server = Scripted([["Because [1] [2]."]], context_window=600)
    documents = tuple(Document(f"{place} " + "word " * 400) for place in (1, 2))
    whole = await collect(TextGenerator(server, "m", citations="on").generate, asked(*documents))
    assert whole.extra
    assert cited_numbers(whole.extra) == {1}
    assert whole.extra["unknown_citations"] == [2]
