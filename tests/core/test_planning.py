"""From a request to a prompt that fits: with a model server whose tokens are words, and four around a message."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from comps.core.answers import collect
from comps.core.budget import DEFAULT_SHARING, Sharing
from comps.core.counting import Counter, estimate, estimated_prompt, message_text
from comps.core.errors import InvalidRequest, PromptTooLong, Refused, TextTooLong, Unreachable
from comps.core.generator import TextGenerator
from comps.core.planning import Plan, Planner
from comps.core.prompts import Templates, text_of
from comps.core.reports import settled
from comps.core.types import JSON, Document, DocumentUse, GenerationRequest, Message, Prompt, Report, Sampling, Usage
from comps.model_servers.scripted import Scripted

QUESTION = (Message("user", "where is the lantern ?"),)
LIMIT = Sampling(max_tokens=50)
PLAIN = Templates(document="{title}\n{text}")


class Words(Scripted):
    """Counts words, and how often it was asked."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__()
        self.failure = failure
        self.counted: list[str] = []
        self.trips = 0
        """How often it was asked something while it had nothing else to answer."""
        self._answering = 0

    @asynccontextmanager
    async def _asked(self) -> AsyncIterator[None]:
        self.trips += not self._answering
        self._answering += 1
        await asyncio.sleep(0)
        yield
        self._answering -= 1

    async def count_tokens(self, text: str) -> int:
        self.counted.append(text)
        if self.failure:
            raise self.failure
        async with self._asked():
            return len(text.split())

    async def count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        if self.failure:
            raise self.failure
        async with self._asked():
            return words_of(prompt)


def words_of(prompt: Prompt) -> int:
    if isinstance(prompt, str):
        return len(prompt.split())
    return sum(len(message_text(message).split()) + 4 for message in prompt)


def documents(*sizes: int) -> tuple[Document, ...]:
    """Documents of so many words, in sentences of ten."""
    return tuple(
        Document(" ".join(f"d{number}.{word}" + "." * (word % 10 == 9) for word in range(size)))
        for number, size in enumerate(sizes)
    )


def request(
    prompt: Prompt = QUESTION, found: Sequence[Document] | None = None, sampling: Sampling = LIMIT
) -> GenerationRequest:
    return GenerationRequest(prompt, None if found is None else tuple(found), sampling=sampling)


async def planned(
    asked: GenerationRequest,
    window: int | None,
    server: Scripted | None = None,
    sharing: Sharing = DEFAULT_SHARING,
    to_the_token: bool = False,
) -> Plan:
    return await Planner(server or Words(), sharing, PLAIN).plan(asked, window, to_the_token=to_the_token)


def texts_of(plan: Plan) -> list[str]:
    assert not isinstance(plan.prompt, str)
    return [text_of(message.content) for message in plan.prompt]


def fates(plan: Plan) -> list[tuple[str, int | None]]:
    return [(use.fate, use.tokens_used) for use in plan.report.documents]


async def test_far_below_the_window_nothing_is_counted_and_nothing_changes() -> None:
    server = Words()
    plan = await planned(request(found=documents(20, 20)), 8192, server)
    assert server.counted == []
    assert plan.sampling == LIMIT
    assert plan.report.counted == "not"
    assert [use.fate for use in plan.report.documents] == ["kept", "kept"]


@pytest.mark.parametrize("window", [None, 200, 257, 300, 333, 1000, 8192])
@pytest.mark.parametrize("total", [None, 500])
async def test_counting_to_the_token_changes_nothing_that_is_asked(window: int | None, total: int | None) -> None:
    asked = replace(request(found=documents(90, 70), sampling=Sampling(max_tokens=900)), max_total_tokens=total)
    plan, exact = [await planned(asked, window, to_the_token=to_the_token) for to_the_token in (False, True)]
    assert (exact.prompt, exact.sampling, exact.options) == (plan.prompt, plan.sampling, plan.options)
    assert exact.report.max_tokens == plan.report.max_tokens
    assert exact.report.counted == "model"
    assert exact.report.prompt_tokens == words_of(exact.prompt)
    if window is not None and total is None:
        assert None not in [use.tokens_used for use in exact.report.documents]


async def test_an_unknown_window_takes_everything() -> None:
    plan = await planned(request(found=documents(10_000)), None)
    assert plan.report.context_window is None
    assert fates(plan) == [("kept", None)]


async def test_of_too_many_documents_the_best_are_kept_one_is_cut_and_the_rest_named() -> None:
    plan = await planned(request(found=documents(100, 100, 100, 100)), 320)
    assert [use.fate for use in plan.report.documents] == ["kept", "kept", "cut", "dropped"]
    assert plan.report.documents[3] == DocumentUse(4, "dropped", "it does not fit the context window", 100, 0)
    text = texts_of(plan)[-1]
    assert "d1.99." in text
    assert "d2.0 " in text
    assert "d3." not in text
    assert text.rstrip().endswith("where is the lantern ?")


async def test_a_cut_document_ends_with_a_sentence() -> None:
    plan = await planned(request(found=documents(100, 100, 100)), 320)
    text = texts_of(plan)[-1]
    last = [word for word in text.split() if word.startswith("d2.")][-1]
    assert last.endswith("9.")


@pytest.mark.parametrize("window", [200, 257, 300, 333, 412])
@pytest.mark.parametrize("counted", ["before", "by the model server", "not"])
@pytest.mark.parametrize("history", [(), (Message("user", "a b c"), Message("assistant", "d e"))])
async def test_the_report_adds_up_to_the_tokens_of_the_prompt(
    window: int, counted: str, history: tuple[Message, ...]
) -> None:
    asked = request((*history, *QUESTION), documents(90, 70, 80, 60))
    plan = await planned(asked, window, to_the_token=counted == "before")
    report = plan.report
    if counted == "by the model server":
        report = settled(report, Usage(words_of(plan.prompt), 50))
    assert report.documents_tokens is not None
    assert report.history_tokens is not None
    assert report.question_tokens is not None
    assert report.prompt_tokens is not None
    assert report.documents_tokens + report.history_tokens + report.question_tokens == report.prompt_tokens
    if counted == "not":
        assert 0 <= report.prompt_tokens - words_of(plan.prompt) <= 20
    else:
        assert report.prompt_tokens == words_of(plan.prompt)
    assert sum(use.tokens_used or 0 for use in report.documents) == report.documents_tokens
    assert plan.sampling.max_tokens == report.max_tokens
    assert words_of(plan.prompt) + (report.max_tokens or 0) <= window
    assert report.headroom == window - report.prompt_tokens - (report.max_tokens or 0)


async def test_what_is_sure_to_fit_has_the_tokens_that_the_model_server_counted() -> None:
    report = settled((await planned(request(found=documents(20)), 8192)).report, Usage(77, 5))
    kept = DocumentUse(1, "kept", position=1)
    assert report == Report(8192, documents=(kept,), prompt_tokens=77, max_tokens=50)


async def test_counting_costs_one_round_trip_and_one_more_where_a_document_is_cut_for_the_first_time() -> None:
    server = Words()
    planner = Planner(server)
    planner.takes_system = True
    trips = []
    for sizes in ((200, 210), (200, 210), (200,), (170, 10)):
        before = server.trips
        await planner.plan(request(found=[Document("word " * size) for size in sizes]), 380)
        trips.append(server.trips - before)
    assert trips == [2, 1, 1, 1]


class Finding(Words):
    """Tells where its words end, too."""

    async def token_ends(self, text: str) -> Sequence[int]:
        async with self._asked():
            return [found.end() for found in re.finditer(r"\S+", text)]


@pytest.mark.parametrize("template", ["{title}\n{text}", "<{number}> {text} (from {url})"])
@pytest.mark.parametrize("window", [260, 300, 333, 350, 380])
async def test_a_cut_costs_no_round_trip_where_it_is_known_where_tokens_are(window: int, template: str) -> None:
    server = Finding()
    found = [replace(one, metadata={"url": "https://a.example"}) for one in documents(150, 170, 20)]
    planner = Planner(server, templates=Templates(document=template))
    planner.takes_system = True
    plan = await planner.plan(request(found=found), window)
    assert server.trips == 1
    assert "cut" in [use.fate for use in plan.report.documents]
    assert plan.documents[-1].text.endswith("9.")
    spare = window - words_of(plan.prompt) - 50
    assert 0 <= spare < 20
    assert texts_of(plan)[-1].count("(from https://a.example)") == len(plan.documents) * template.count("(from")


async def test_a_server_that_cannot_tell_where_tokens_are_is_asked_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Lost(Finding):
        finds = 0

        async def token_ends(self, text: str) -> Sequence[int]:
            self.finds += 1
            if self.finds <= 2:
                raise Refused(500, "not now")
            return await super().token_ends(text)

    server = Lost()
    planner = Planner(server)
    for sizes, finds in (((100, 200), 2), ((101, 201), 2)):
        plan = await planner.plan(request(found=documents(*sizes)), 300)
        assert plan.report.counted == "model"
        assert server.finds == finds
    monkeypatch.setattr("comps.core.counting._PAUSE", 0.0)
    planner.counter.ends_from = 0.0
    for sizes, finds in (((102, 202), 4), ((103, 203), 6)):
        await planner.plan(request(found=documents(*sizes)), 300)
        assert server.finds == finds


class Batches(Finding):
    """Counts many texts at once, too."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__()
        self.batches: list[list[str]] = []
        self.batch_failure = failure

    async def count_texts(self, texts: Sequence[str]) -> Sequence[int]:
        self.batches.append(list(texts))
        if self.batch_failure:
            raise self.batch_failure
        async with self._asked():
            return [len(text.split()) for text in texts]


async def test_texts_not_seen_before_are_counted_in_one_batch_if_the_server_can() -> None:
    server, single = Batches(), Finding()
    planner, other = Planner(server), Planner(single)
    for sizes in ((90, 100, 120), (90, 100, 120, 110, 80)):
        asked = request(found=documents(*sizes))
        plan, same = await planner.plan(asked, 330), await other.plan(asked, 330)
        assert (plan.prompt, plan.report) == (same.prompt, same.report)
    assert [len(batch) for batch in server.batches] == [3, 2]
    assert server.counted == []


async def test_a_text_too_long_to_be_counted_is_found_in_a_batch_and_costs_the_others_nothing() -> None:
    class Short(Batches):
        async def token_ends(self, text: str) -> Sequence[int]:
            if len(text.split()) > 150:
                raise TextTooLong(200, 150)
            return await super().token_ends(text)

    plan = await planned(request(found=documents(60, 200)), 300, Short(TextTooLong(200, 150)))
    assert plan.report.counted == "model"
    assert [(use.fate, use.tokens) for use in plan.report.documents] == [("kept", 60), ("cut", 200)]


async def test_a_batch_that_fails_costs_no_request_its_answer() -> None:
    plan = await planned(request(found=documents(100, 200)), 400, Batches(Unreachable("away")))
    assert plan.report.counted == "estimate"


async def test_the_answer_gets_what_is_left_and_no_more_than_was_asked() -> None:
    plan = await planned(request(found=documents(100), sampling=Sampling(max_tokens=1000)), 400)
    assert plan.report.prompt_tokens
    assert plan.sampling.max_tokens == 400 - plan.report.prompt_tokens
    plan = await planned(request(found=documents(100), sampling=Sampling(max_tokens=30)), 400)
    assert plan.sampling.max_tokens == 30


async def test_the_earliest_exchanges_give_way_whole_and_the_systems_message_never() -> None:
    said = [Message(role, f"{number} " * 30) for number in range(3) for role in ("user", "assistant")]
    plan = await planned(request((Message("system", "be brief"), *said, *QUESTION), documents(60)), 280)
    kept = [text.split()[0] for text in texts_of(plan)[:-1]]
    assert kept == ["be", "2", "2"]
    assert plan.report.turns_dropped == 4
    assert fates(plan) == [("kept", 60)]


async def test_a_conversation_none_of_which_may_be_dropped_is_refused_unless_it_fits_and_documents_give_way() -> None:
    said = [Message(role, f"{number} " * 30) for number in range(3) for role in ("user", "assistant")]
    asked = replace(request((*said, *QUESTION), documents(60)), drops_turns=False)
    plan = await planned(asked, 280)
    assert (plan.report.turns_dropped, len(plan.prompt)) == (0, 7)
    assert [use.fate for use in plan.report.documents] == ["dropped"]
    for window in (180, 100):
        with pytest.raises(PromptTooLong):
            await planned(asked, window)
    estimated = await planned(asked, 180, Words(Unreachable("away")))  # Nobody is refused by an estimate.
    assert estimated.report.turns_dropped == 0


async def test_a_question_that_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(PromptTooLong) as caught:
        await planned(request((Message("user", "word " * 500),), documents(10)), 400)
    assert caught.value.context_window == 400
    assert caught.value.prompt_tokens > 500


async def test_documents_seen_before_are_not_counted_again() -> None:
    server = Words()
    planner = Planner(server, DEFAULT_SHARING)
    for _ in range(2):
        await planner.plan(request(found=documents(200, 200)), 480)
    assert len(server.counted) == len(set(server.counted))


async def test_of_a_library_only_what_might_fit_is_counted_and_the_rest_is_named_as_dropped() -> None:
    server = Words()
    plan = await planned(request(found=documents(*[50] * 1000)), 300, server)
    assert len(server.counted) < 20
    assert len(plan.report.documents) == 1000
    assert plan.report.documents[-1] == DocumentUse(1000, "dropped", "it does not fit the context window", None, 0)
    assert fates(plan)[:4] == [("kept", 50)] * 4


async def test_a_document_that_is_far_too_long_is_cut_all_the_same() -> None:
    plan = await planned(request(found=documents(20, 5000, 20)), 300)
    assert [use.fate for use in plan.report.documents] == ["kept", "cut", "dropped"]


async def test_of_a_long_history_only_what_might_fit_is_counted_and_all_that_is_lost_is_told() -> None:
    server = Words()
    said = [Message(role, f"{number} " * 30) for number in range(1000) for role in ("user", "assistant")]
    plan = await planned(request((*said, *QUESTION)), 300, server)
    assert len(server.counted) < 50
    assert plan.report.turns_dropped == 2000 - (len(plan.prompt) - 1)
    assert texts_of(plan)[-2].startswith("999 ")


async def test_without_a_counter_a_token_is_estimated_for_every_three_bytes() -> None:
    plan = await planned(request(found=documents(100, 100)), 500, Scripted())
    assert plan.report.counted == "estimate"
    assert sum(map(estimate, texts_of(plan))) <= 450


async def test_an_estimate_refuses_no_request() -> None:
    plan = await planned(request((Message("user", "word " * 200),), documents(10)), 300, Scripted())
    assert fates(plan)[0][0] == "dropped"
    assert plan.sampling.max_tokens == 50


async def test_a_server_without_that_route_is_asked_once_and_one_that_fails_again() -> None:
    missing, away = Words(Refused(404, "no")), Words(Unreachable("away"))
    for server in (missing, away):
        planner = Planner(server, DEFAULT_SHARING)
        planner.takes_system = True
        for _ in range(4):
            plan = await planner.plan(request(found=documents(100, 100)), 500)
            assert plan.report.counted == "estimate"
    assert len(missing.counted) < len(away.counted)


async def test_a_template_of_the_request_and_its_language_stay_whichever_documents_are_kept() -> None:
    asked = replace(request(found=documents(200, 200)), template="{context} | {question}")
    plan = await planned(asked, 400)
    assert " | where is the lantern ?" in texts_of(plan)[-1]


async def test_documents_without_a_question_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="messages"):
        await planned(request((Message("system", "a"),), documents(10)), 100)


# what is read of a request


def parts(*texts: str) -> list[JSON]:
    return [{"type": "text", "text": text} for text in texts]


async def test_a_content_in_parts_is_shared_like_one_in_a_piece() -> None:
    question = (Message("user", parts("where is", "the lantern ?")),)
    plan = await planned(request(question, documents(100, 100, 100)), 320)
    assert [use.fate for use in plan.report.documents] == ["kept", "kept", "cut"]
    said = [Message(role, parts("word " * 100)) for role in ("user", "assistant")] * 3
    plan = await planned(request((*said, *QUESTION)), 320)
    assert plan.report.turns_dropped == 4


async def test_a_picture_in_a_conversation_leaves_its_texts_to_be_shared() -> None:
    picture: JSON = {"type": "image_url", "image_url": {"url": "data:,"}}
    question = (Message("user", [*parts("where is the lantern ?"), picture]),)
    plan = await planned(request(question, documents(100, 100, 100)), 320)
    assert [use.fate for use in plan.report.documents] == ["kept", "kept", "cut"]
    assert not isinstance(plan.prompt, str)
    assert picture in plan.prompt[-1].content


async def test_texts_are_counted_by_whatever_name_their_parts_have() -> None:
    said = [
        Message("user", [{"type": "input_text", "text": "word " * 100}]),
        Message("assistant", [{"type": "refusal", "refusal": "word " * 100}]),
    ]
    plan = await planned(request((*said * 3, *QUESTION)), 300)
    assert plan.report.turns_dropped == 4
    assert (plan.report.prompt_tokens or 0) > 200


async def test_tool_calls_of_the_history_are_counted() -> None:
    calls = {"tool_calls": [{"function": {"name": "look", "arguments": "word " * 400}}]}
    said = (Message("user", "look"), Message("assistant", "", calls), Message("tool", "seen"))
    plan = await planned(request((*said, *QUESTION), documents(100)), 500)
    assert plan.report.turns_dropped == 3
    assert fates(plan) == [("kept", 100)]


@pytest.mark.parametrize("server", [Scripted(), Words(Unreachable("away"))])
async def test_tools_are_estimated_if_they_cannot_be_counted(server: Scripted) -> None:
    options = {"tools": [{"type": "function", "function": {"name": "look", "description": "word " * 300}}]}
    plan = await planned(replace(request(found=documents(100, 100)), options=options), 1000, server)
    assert plan.report.counted == "estimate"
    assert estimated_prompt(plan.prompt, options) + (plan.sampling.max_tokens or 0) <= 1000


async def test_what_a_chat_template_may_write_of_its_own_is_room_that_is_not_sure() -> None:
    assert (await planned(request(sampling=Sampling(max_tokens=7900)), 8192)).report.counted == "model"


async def test_the_order_of_the_messages_stays_whatever_is_counted() -> None:
    said = (
        Message("assistant", "Hello"),
        Message("user", "a b"),
        Message("system", "mid"),
        Message("assistant", "b"),
        *QUESTION,
    )
    assert (await planned(request(said, sampling=Sampling(max_tokens=350)), 400)).prompt == said
    long = (Message("user", "word " * 300), Message("assistant", "yes"), *said[1:])
    plan = await planned(request(long, sampling=Sampling(max_tokens=50)), 200)
    assert plan.prompt == said[1:]
    assert plan.report.turns_dropped == 2


@pytest.mark.parametrize("template", ["{context} {context} {question}", "{question}"])
@pytest.mark.parametrize("system", ["Know: {context}", "Be brief."])
async def test_documents_in_several_places_are_counted_in_each(template: str, system: str) -> None:
    asked = replace(request((Message("system", system), *QUESTION), documents(50, 50, 50, 50)), template=template)
    plan = await planned(asked, 400, to_the_token=True)
    assert plan.report.prompt_tokens == words_of(plan.prompt)
    assert words_of(plan.prompt) + 50 <= 400
    assert (plan.report.question_tokens or 0) < 40
    assert sum(use.tokens_used or 0 for use in plan.report.documents) == plan.report.documents_tokens


async def test_a_document_that_cannot_be_cut_makes_room_for_those_behind_it() -> None:
    class Letters(Words):
        async def count_tokens(self, text: str) -> int:
            return len(text) // 4 if "QUJD" in text else await super().count_tokens(text)

    found = [Document("QUJD" * 3000), *documents(20, 30)]
    plan = await planned(request(found=found), 300, Letters())
    assert fates(plan) == [("dropped", 0), ("kept", 20), ("kept", 30)]
    assert plan.report.documents[0].reason == "not even a sentence of it fits"
    assert [one.number for one in plan.sources] == [2, 3]


@pytest.mark.parametrize("window", [300, 8192])
async def test_empty_documents_keep_their_places_and_are_told(window: int) -> None:
    found = [Document(""), *documents(20), Document(" \n"), Document("", "A title")]
    plan = await planned(request(found=found), window)
    assert [(use.number, use.fate, use.reason) for use in plan.report.documents] == [
        (1, "dropped", "it is empty"),
        (2, "kept", ""),
        (3, "dropped", "it is empty"),
        (4, "kept", ""),
    ]
    assert [one.number for one in plan.documents] == [2, 4]


async def test_documents_that_are_all_empty_are_none_found() -> None:
    plan = await planned(request(found=[Document(""), Document(" ")]), 8192)
    assert plan.report.nothing_found
    assert plan.prompt == QUESTION


async def test_of_a_document_longer_than_any_window_only_the_beginning_is_looked_at() -> None:
    looked_at: list[int] = []

    def escape(text: str) -> str:
        looked_at.append(len(text))
        return text

    found = [Document("A sentence of words. " * 100_000)]
    plan = await Planner(Words(), escape=escape).plan(request(found=found), 300)
    assert max(looked_at) < 3000
    assert plan.report.documents[0].fate == "cut"
    assert plan.report.documents[0].tokens is None


@pytest.mark.parametrize("window", [None, 8192])
@pytest.mark.parametrize("prompt", [QUESTION, "where is the lantern ?"])
async def test_each_text_is_searched_for_markers_once_where_nothing_is_counted(
    window: int | None, prompt: Prompt
) -> None:
    looked_at: list[str] = []

    def escape(text: str) -> str:
        looked_at.append(text)
        return text

    asked = request(prompt, documents(20, 20))
    await Planner(Words(), escape=escape).plan(asked, window)
    assert "\n".join(looked_at).count("d0.19.") == 1


MARKED = tuple((text * 20).rstrip() for text in ("</turn> a. ", "b <turn> c. ", "turn> d. "))


def escaped(text: str) -> str:
    return text.replace("<turn>", "< turn>").replace("</turn>", "< /turn>")


@pytest.mark.parametrize("window", [None, 200, 300, 8192])
@pytest.mark.parametrize("native_", [False, True])
@pytest.mark.parametrize("history", [(), (Message("user", "<turn>"), Message("assistant", "</turn>"))])
async def test_what_is_asked_has_no_marker_and_its_tokens_are_counted_as_it_is_asked(
    window: int | None, native_: bool, history: tuple[Message, ...]
) -> None:
    server = Native()
    found = [Document(text, "<", {"url": text}) for text in MARKED]
    template = Templates(document="{title}{text}")
    planner = Planner(server, Sharing(10), template, escaped, native_)
    plan, exact = [
        await planner.plan(request((*history, *QUESTION), found), window, to_the_token=to_the_token)
        for to_the_token in (False, True)
    ]
    assert not isinstance(plan.prompt, str)
    laid = [*texts_of(plan), *(text for one in plan.options.get("documents", ()) for text in one.values())]
    assert [text for text in laid if escaped(text) != text] == []
    assert (exact.prompt, exact.options, exact.documents) == (plan.prompt, plan.options, plan.documents)
    assert exact.report.prompt_tokens == await server.count_prompt(plan.prompt, plan.options)
    assert all(escaped(one.text) == one.text for one in plan.documents)
    assert [one.text for one in plan.sources] == [MARKED[(one.number or 0) - 1] for one in plan.documents]
    if window:
        assert exact.report.prompt_tokens + (plan.sampling.max_tokens or 0) <= window
        assert None not in [use.tokens_used for use in exact.report.documents]


async def test_a_question_that_no_tokenizer_gets_into_the_window_is_refused_unread() -> None:
    server = Words()
    with pytest.raises(PromptTooLong):
        await planned(request((Message("user", "x" * 100_000),)), 300, server)
    assert server.trips == 0


# where counting fails


async def test_counting_that_fails_later_costs_no_request_its_answer() -> None:
    server = Finding()
    planner = Planner(server)
    asked = request(found=documents(100, 100, 100, 100))
    exact = await planner.plan(asked, 320)
    server.failure = Unreachable("away")
    estimated = await planner.plan(asked, 320)
    assert (exact.report.counted, estimated.report.counted) == ("model", "estimate")


async def test_a_server_that_counts_texts_and_no_prompts_counts_by_its_texts() -> None:
    class Texts(Words):
        async def count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
            raise Refused(404, "no such route")

    plan = await planned(request(found=documents(100, 100)), 300, Texts())
    assert plan.report.counted == "model"
    assert words_of(plan.prompt) + 50 <= 300


async def test_an_estimated_report_is_scaled_to_what_the_model_server_counted() -> None:
    history = (Message("user", "a b c"), Message("assistant", "d e"))
    plan = await planned(request((*history, *QUESTION), documents(100, 100)), 700, Scripted())
    estimated = plan.report
    report = settled(estimated, Usage((estimated.prompt_tokens or 0) // 2, 9))
    parts_of_it = (report.documents_tokens, report.history_tokens, report.question_tokens)
    assert min(part or 0 for part in parts_of_it) > 0
    assert sum(part or 0 for part in parts_of_it) == report.prompt_tokens == (estimated.prompt_tokens or 0) // 2
    assert sum(use.tokens_used or 0 for use in report.documents) == report.documents_tokens


@pytest.mark.parametrize("window", [300, 512, 1000])
async def test_an_estimate_asks_for_no_more_than_the_window_holds(window: int) -> None:
    sharing = Sharing(least_answer=1000)
    asked = request((Message("user", "word " * 180),), sampling=Sampling(max_tokens=2000))
    plan = await planned(asked, window, Scripted(), sharing)
    assert 1 <= (plan.sampling.max_tokens or 0) < window


def test_digits_and_other_scripts_are_estimated_dearer_than_english() -> None:
    assert estimate("a" * 30) == 10
    assert estimate("1" * 30) == 30
    assert estimate("\u6e2f" * 10) == 15


async def test_what_is_remembered_is_bounded_by_its_tokens() -> None:
    class Long(Words):
        async def token_ends(self, text: str) -> Sequence[int]:
            return range(100_000)

    counter = Counter(Long())
    for number in range(100):
        await counter.count().text(f"text {number}")
    assert counter.cached("text 99")
    assert counter.cached("text 0") is None


# beside the messages


class Native(Words):
    """Its chat template writes documents down, each with six words around it, or takes none."""

    def __init__(self, takes: bool = True, failure: Exception | None = None) -> None:
        super().__init__(failure)
        self.takes = takes
        self.prompts = 0

    async def count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        self.prompts += 1
        tokens = await super().count_prompt(prompt, options)
        if self.takes:
            beside = options.get("documents") or []
            tokens += sum(len(f"{one['title']} {one['text']}".split()) + 6 for one in beside)
        return tokens


def native(server: Scripted) -> Planner:
    return Planner(server, native=True)


async def test_documents_go_beside_the_messages_where_the_chat_template_takes_them() -> None:
    found = (Document("text one", "First", {"url": "u", "page": 3}), Document("text two"))
    plan = await native(Native()).plan(replace(request(found=found), options={"tools": ["t"]}), 8192)
    assert plan.prompt == QUESTION
    assert plan.options == {
        "tools": ["t"],
        "documents": [
            {"doc_id": "1", "title": "First", "text": "text one", "url": "u"},
            {"doc_id": "2", "title": "", "text": "text two"},
        ],
    }
    assert plan.report.native


async def test_of_too_many_documents_beside_the_messages_the_best_are_kept_and_all_fits() -> None:
    server = Native()
    plan = await native(server).plan(request(found=documents(100, 100, 100)), 300, to_the_token=True)
    assert [use.fate for use in plan.report.documents] == ["kept", "kept", "cut"]
    assert plan.report.prompt_tokens == await server.count_prompt(plan.prompt, plan.options)
    assert plan.report.prompt_tokens + (plan.sampling.max_tokens or 0) <= 300
    assert plan.report.headroom is not None
    assert plan.report.headroom < 20
    assert [one["text"] for one in plan.options["documents"]] == [one.text for one in plan.documents]


async def test_a_chat_template_that_takes_no_documents_leaves_them_in_the_text_and_is_asked_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Native(takes=False)
    planner = native(server)
    planner.takes_system = True
    for _ in range(2):
        plan = await planner.plan(request(found=documents(20)), 8192)
        assert "d0.19." in texts_of(plan)[-1]
        assert plan.options == {}
        assert not plan.report.native
    assert server.prompts == 2
    assert len(caplog.records) == 1


async def test_documents_beside_the_messages_reach_the_model_server_also_where_a_total_is_kept_to() -> None:
    server = Native()
    asked = replace(request(found=documents(20)), max_total_tokens=500)
    await collect(TextGenerator(server, "m", native=True).generate, asked)
    ((_, _, options),) = server.asked
    assert [one["doc_id"] for one in options["documents"]] == ["1"]


@pytest.mark.parametrize("server", [Scripted(), Native(failure=Unreachable("away"))])
async def test_if_the_template_is_unknown_documents_stay_in_the_text(server: Scripted) -> None:
    plan = await native(server).plan(request(found=documents(20)), 8192)
    assert "d0.19." in texts_of(plan)[-1]


@pytest.mark.parametrize(
    "asked",
    [
        replace(request(found=documents(20)), template="{context} {question}"),
        request((Message("system", "Know: {context}"), *QUESTION), documents(20)),
        request("where is", documents(20)),
        request(found=[]),
        request(),
    ],
)
async def test_documents_with_a_place_of_their_own_in_the_text_stay_there(asked: GenerationRequest) -> None:
    server = Native()
    planner = native(server)
    planner.takes_system = True
    assert (await planner.plan(asked, 8192)).options == {}
    assert server.prompts == 0


async def test_what_is_sure_to_fit_counts_tools_and_documents_beside_the_messages() -> None:
    asked = replace(request(), options={"tools": ["word " * 100]})
    assert (await planned(asked, 500)).report.counted == "model"
