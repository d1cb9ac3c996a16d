"""The default prompt: where its instruction is, what asks for numbers, and models without system messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from comps.core.answers import collect
from comps.core.errors import InvalidRequest, LLMError, Refused, Unreachable
from comps.core.generator import TextGenerator
from comps.core.instructions import asks_for_marks, takes_system_messages
from comps.core.planning import Plan, Planner
from comps.core.ports import Answer
from comps.core.prompts import CITING, INSTRUCTIONS, Templates
from comps.core.types import JSON, Document, GenerationRequest, Message, Prompt, Sampling
from comps.model_servers.scripted import Scripted
from tests.events import texts

FACTS = (Document("It is seven years old.", "The tree"), Document("It is green."))
QUESTION = Message("user", "How old is it?")
CONTEXT = "Context:\nThe tree: It is seven years old.\nIt is green.\n\nHow old is it?"
EN = INSTRUCTIONS["en"]


def asked(*messages: Message, **fields: Any) -> GenerationRequest:
    return replace(GenerationRequest((*messages, QUESTION), FACTS), **fields)


async def planned(request: GenerationRequest, server: Scripted | None = None, **settings: Any) -> Plan:
    return await Planner(server or Scripted(), **settings).plan(request, None)


def told(prompt: Prompt) -> list[tuple[str, Any]]:
    assert not isinstance(prompt, str)
    return [(message.role, message.content) for message in prompt]


async def test_the_instruction_is_the_system_message_of_a_question_and_of_a_conversation() -> None:
    plan = await planned(asked())
    assert told(plan.prompt) == [("system", EN), ("user", CONTEXT)]
    assert plan.has_system_instruction
    earlier = (Message("user", "Hello."), Message("assistant", "Hello!"))
    plan = await planned(asked(*earlier))
    history = [("user", "Hello."), ("assistant", "Hello!")]
    assert told(plan.prompt) == [("system", EN), *history, ("user", CONTEXT)]


async def test_chinese_documents_have_a_chinese_prompt() -> None:
    plan = await planned(replace(asked(), documents=(Document("这棵树七岁了。", "树"),)))
    assert told(plan.prompt) == [
        ("system", INSTRUCTIONS["zh"]),
        ("user", "上下文：\n树: 这棵树七岁了。\n\nHow old is it?"),
    ]


@pytest.mark.parametrize("role", ["system", "developer"])
async def test_beside_a_system_message_of_the_caller_the_instruction_begins_the_question(role: str) -> None:
    plan = await planned(asked(Message(role, "Be kind.")))
    assert told(plan.prompt) == [(role, "Be kind."), ("user", f"{EN}\n\n{CONTEXT}")]
    assert not plan.has_system_instruction


async def test_text_to_continue_begins_with_the_instruction() -> None:
    plan = await planned(GenerationRequest("How old is it?", FACTS))
    assert plan.prompt == f"{EN}\n\n{CONTEXT}"


@pytest.mark.parametrize(
    "request_",
    [
        asked(template="{context}|{question}"),
        asked(Message("system", "Know: {context}")),
        asked(documents=None),
        asked(documents=()),
    ],
)
async def test_there_is_no_instruction_where_the_caller_has_a_template_or_no_documents(
    request_: GenerationRequest,
) -> None:
    plan = await planned(request_)
    assert EN not in texts(plan.prompt)
    assert not plan.has_system_instruction


async def test_a_language_without_an_instruction_has_its_template_alone() -> None:
    templates = Templates({"en": "{context} {question}"}, instructions={})
    plan = await planned(asked(), templates=templates)
    assert told(plan.prompt) == [("user", "The tree: It is seven years old.\nIt is green. How old is it?")]


# Citation marks


NUMBERED = "[1] The tree: It is seven years old.\n[2] It is green."


@pytest.mark.parametrize(
    ("request_", "setting", "numbered", "citing"),
    [
        (asked(), "auto", False, False),
        (asked(), "on", True, True),
        (asked(), "off", False, False),
        (asked(), "matched", False, False),
        (asked(citations="on"), "off", True, True),
        (asked(citations="off"), "on", False, False),
        (asked(Message("system", "Cite the sources as [1].")), "auto", True, False),
        (asked(Message("system", "Cite the sources as [1].")), "on", True, False),
        (asked(Message("system", "Cite the sources as [1].")), "off", False, False),
        (asked(Message("developer", "Schreibe [n] hinter jeden Satz.")), "auto", True, False),
        (asked(template="{context} Write the number, as in [number]. {question}"), "auto", True, False),
        (replace(asked(), prompt=(Message("user", "How old is it? Cite [1], [2]."),)), "auto", True, False),
    ],
)
async def test_documents_are_numbered_where_marks_are_wanted(
    request_: GenerationRequest, setting: str, numbered: bool, citing: bool
) -> None:
    plan = await planned(request_, citations=setting)
    assert (NUMBERED in str(told(plan.prompt)[-1][1])) is numbered
    assert plan.numbered is numbered
    assert (CITING["en"].format(number=1) in texts(plan.prompt)) is citing


@pytest.mark.parametrize(
    "said",
    [
        *(
            "[1]",
            "`[2]`",
            "[1, 3]",
            "[1-3]",
            "【1†source】",
            "[n]",
            "[number]",
            "[citation:1]",
            "[doc 1]",
            "[Source 2]",
        ),
        *("[Source 2]", "[#1]", "[^1]", "[citation:x]", "[编号]"),
    ],
)
@pytest.mark.parametrize("role", ["system", "user"])
def test_marks_and_what_stands_for_them_ask_for_marks(said: str, role: str) -> None:
    request = replace(asked(), prompt=(Message(role, f"Cite as {said}, please."),))
    assert asks_for_marks(request)
    assert asks_for_marks(GenerationRequest(f"Cite as {said}, please.", FACTS))


@pytest.mark.parametrize(
    "said",
    [
        *(
            "a list [] of items",
            "values[k]",
            "in [brackets]",
            "[see there]",
            "What does a[i] mean?",
            "- [x] done",
            "[0]",
        ),
        '{"ids":[1, 2]}',
    ],
)
def test_other_brackets_ask_for_no_marks(said: str) -> None:
    assert not asks_for_marks(asked(Message("system", said)))


async def test_the_example_of_a_mark_is_a_number_that_is_there_and_other_languages_have_it_in_english() -> None:
    documents = tuple(replace(one, metadata={"citation_id": number}) for number, one in enumerate(FACTS, 7))
    plan = await planned(asked(documents=documents), citations="on")
    assert str(told(plan.prompt)[0][1]).endswith("as in [7].")
    german = Templates({"en": "", "zh": "", "de": "{context} {question}"}, instructions={})
    plan = await planned(asked(language="de"), citations="on", templates=german)
    assert told(plan.prompt)[0] == ("system", CITING["en"].format(number=1))


async def test_no_citations_are_looked_for_where_they_are_off() -> None:
    quoted = (Document("one", metadata={"citation_id": 1}),)
    request = GenerationRequest((QUESTION,), quoted=quoted)
    for mode, expected in (("off", None), ("matched", None), ("auto", 1)):
        generator = TextGenerator(Scripted([["So [1]."]]), "m", citations=mode)
        extra = (await collect(generator.generate, request)).extra
        assert (extra and len(extra["annotations"])) == expected


async def test_where_no_document_has_room_nothing_says_to_answer_from_them() -> None:
    request = asked(documents=(Document("word " * 1000),))
    plan = await Planner(Scripted()).plan(request, 300)
    assert told(plan.prompt) == [("user", QUESTION.content)]
    assert [use.fate for use in plan.report.documents] == ["dropped"]


# Models without system messages


class Gemma(Scripted):
    """Counts prompts, and refuses or leaves out system messages as some chat templates do."""

    def __init__(self, refusal: LLMError | None = None, *, ignores: bool = False, away: bool = False) -> None:
        super().__init__([["seven"]])
        self.refusal, self.ignores, self.away = refusal, ignores, away
        self.counted = 0

    def _check(self, prompt: Prompt) -> None:
        if self.refusal and any(message.role == "system" for message in prompt if isinstance(message, Message)):
            raise self.refusal

    async def count_tokens(self, text: str) -> int:
        return len(text.split())

    async def count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        self.counted += 1
        if self.away:
            raise Unreachable("away")
        self._check(prompt)
        read = [one for one in prompt if isinstance(one, Message) and not (self.ignores and one.role == "system")]
        return sum(len(str(message.content).split()) for message in read)

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        self._check(prompt)
        await super().generate(prompt, sampling, options, answer)


REFUSAL = InvalidRequest("System role not supported", "messages")


@pytest.mark.parametrize(
    ("server", "takes"),
    [
        (Gemma(), True),
        (Gemma(REFUSAL), False),
        (Gemma(Refused(500, "TemplateError: System role not supported")), False),
        (Gemma(ignores=True), False),
        (Gemma(Refused(404, "no such route")), None),
    ],
)
async def test_it_is_found_out_by_counting_whether_a_model_takes_system_messages(
    server: Gemma, takes: bool | None
) -> None:
    assert await takes_system_messages(server.count_prompt, None) is takes


async def test_it_stays_unknown_for_now_where_the_model_server_fails_meanwhile() -> None:
    async def count(prompt: Prompt, options: Mapping[str, JSON]) -> int:
        raise REFUSAL if len(prompt) > 1 else Refused(500, "Internal error")

    with pytest.raises(Refused):
        await takes_system_messages(count, None)


@pytest.mark.parametrize(
    ("written", "takes"),
    [("<s>system\nAnswer in one word.\nuser\n?", True), ("<s>user\n?", False), (REFUSAL, False)],
)
async def test_it_is_found_out_by_rendering_where_nothing_counts(written: str | LLMError, takes: bool) -> None:
    async def render(prompt: Prompt, options: Mapping[str, JSON]) -> str:
        if isinstance(written, LLMError):
            if len(prompt) > 1:
                raise written
            return "?"
        return written

    assert await takes_system_messages(None, render) is takes
    assert await takes_system_messages(None, None) is None


async def test_many_first_requests_find_it_out_together() -> None:
    server = Gemma(REFUSAL)
    planner = Planner(server)
    plans = await asyncio.gather(*(planner.plan(asked(), None) for _ in range(20)))
    assert {texts(plan.prompt) for plan in plans} == {texts(plans[0].prompt)}
    assert server.counted == 3


async def test_a_server_that_fails_meanwhile_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Gemma(away=True)
    planner = Planner(server)
    for _ in range(3):
        assert (await planner.plan(asked(), None)).has_system_instruction
    assert server.counted <= 2
    assert planner.takes_system is None
    server.away = False
    monkeypatch.setattr(planner, "_ask_again", 0.0)
    assert (await planner.plan(asked(), None)).has_system_instruction
    assert planner.takes_system is True


async def test_a_server_without_the_route_is_asked_once() -> None:
    server = Gemma(Refused(404, "no such route"))
    planner = Planner(server)
    for _ in range(3):
        assert (await planner.plan(asked(), None)).has_system_instruction
    assert server.counted <= 2


async def test_a_model_that_takes_none_gets_the_instruction_with_the_question_and_is_asked_once() -> None:
    server = Gemma(REFUSAL)
    planner = Planner(server)
    for _ in range(2):
        plan = await planner.plan(asked(), None)
        assert told(plan.prompt) == [("user", f"{EN}\n\n{CONTEXT}")]
        assert server.counted == 3


class Mistral(Scripted):
    """Counts nothing, so that only its refusals say what it takes."""

    def __init__(self, refusal: LLMError) -> None:
        super().__init__([["seven"]])
        self.refusal = refusal
        self.refused = 0

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        if not isinstance(prompt, str) and prompt[0].role == "system":
            self.refused += 1
            raise self.refusal
        await super().generate(prompt, sampling, options, answer)


@pytest.mark.parametrize(
    "said",
    [
        "System role not supported",
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
        "Developer instruction is not enabled for models/gemma-3-1b-it",
    ],
)
@pytest.mark.parametrize("kind", [InvalidRequest, lambda said: Refused(500, said)])
@pytest.mark.parametrize("parts", [False, True])
async def test_a_caller_never_sees_the_refusal_of_our_own_system_message(
    said: str, parts: bool, kind: Callable[[str], LLMError]
) -> None:
    server = Mistral(kind(said))
    generator = TextGenerator(server, "m")
    content: Any = [{"type": "text", "text": "How old is it?"}] if parts else "How old is it?"
    request = replace(asked(), prompt=(Message("user", content),))
    for _ in range(2):
        assert (await collect(generator.generate, request)).text == "seven"
    assert server.refused == 1
    assert [prompt[0].role for prompt, _, _ in server.asked if isinstance(prompt[0], Message)] == ["user", "user"]
    first, second = (prompt for prompt, _, _ in server.asked)
    assert first == second
    assert texts(first).count(EN) == 1


class Picky(Scripted):
    """Refuses everything that has two user messages in a row."""

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        if [one.role for one in prompt if isinstance(one, Message)][-2:] == ["user", "user"]:
            raise InvalidRequest("Conversation roles must alternate user/assistant/user/assistant/...")
        await super().generate(prompt, sampling, options, answer)


async def test_a_refusal_for_another_reason_changes_the_prompt_of_nobody_else() -> None:
    server = Picky([["seven"]])
    generator = TextGenerator(server, "m")
    with pytest.raises(InvalidRequest, match="alternate"):
        await collect(generator.generate, asked(Message("user", "Hello.")))
    await collect(generator.generate, asked())
    assert told(server.asked[-1][0])[0] == ("system", EN)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (asked(), InvalidRequest("top_p must be less than 1")),
        (asked(), InvalidRequest("the file system is full")),
        (asked(Message("system", "Be kind.")), InvalidRequest("System role not supported")),
    ],
)
async def test_other_refusals_reach_the_caller(request_: GenerationRequest, error: InvalidRequest) -> None:
    server = Mistral(error)
    with pytest.raises(InvalidRequest, match=str(error)[:10]):
        await collect(TextGenerator(server, "m").generate, request_)
    assert server.refused == 1
