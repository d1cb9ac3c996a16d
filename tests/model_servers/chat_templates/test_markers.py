"""Control tokens in callers' texts are escaped for every model, whichever side applies the chat template."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from comps.app import read_settings
from comps.core.answers import collect
from comps.core.prompts import text_of
from comps.core.types import GenerationRequest, Message, Prompt
from comps.model_servers import control_token_escaper
from comps.model_servers.chat_templates.formats import FORMATS
from comps.model_servers.scripted import Scripted
from comps.opening import open_models
from tests.model_servers.chat_templates.marks import MODELS, ODD, asking, count, disguised, evil_text, marks_of
from tests.service import running

every_format = pytest.mark.parametrize("name", FORMATS)


async def planned(request: GenerationRequest, name: str, template: str, monkeypatch: pytest.MonkeyPatch) -> Prompt:
    """What the model server of a model of this format is asked."""
    for key, value in {"FRAMEWORK": "native", "LLM_NAME": MODELS[name], "LLM_CHAT_TEMPLATE": template}.items():
        monkeypatch.setenv(key, value)
    server = Scripted()
    models = await asyncio.to_thread(lambda: open_models(read_settings(None), {MODELS[name]: server}))
    await collect(models.named(None).generate, request)
    return server.asked[0][0]


def messages(prompt: Prompt) -> tuple[Message, ...]:
    assert isinstance(prompt, tuple)
    return prompt


@every_format
def test_a_mark_is_broken_up_for_a_model_of_the_format_and_for_one_that_is_set_to_it(name: str) -> None:
    marks = marks_of(name)
    for escape in (control_token_escaper("", f"owner/{MODELS[name]}"), control_token_escaper(name, "acme")):
        for mark in marks:
            for evil in disguised(mark):
                text = escape(evil)
                assert [one for one in marks if count(one, text)] == [], (evil, text)
                assert text.replace(" ", "") == evil.replace(" ", "")
                assert escape(text) == text


@every_format
async def test_a_server_that_applies_its_own_template_receives_no_mark(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, user = messages(await planned(asking(evil_text(name)), name, "", monkeypatch))
    assert (system.role, user.role) == ("system", "user")
    told = "\n".join([text_of(system.content), text_of(user.content), user.extra["name"]])
    assert [mark for mark in marks_of(name) if count(mark, told)] == []
    assert ODD in text_of(user.content)


@every_format
async def test_a_conversation_that_goes_as_text_has_the_marks_of_its_template_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = await planned(asking("x"), name, "auto", monkeypatch)
    text = await planned(asking(evil_text(name)), name, "auto", monkeypatch)
    assert isinstance(plain, str)
    assert isinstance(text, str)
    assert {mark: count(mark, text) for mark in marks_of(name)} == {mark: count(mark, plain) for mark in marks_of(name)}


@pytest.mark.parametrize("model", ["tgi", "acme-7b", "deepseek-ai/DeepSeek-R1", "Mistral-Small-24B", "gemma-4-31B"])
def test_for_a_model_that_is_not_known_the_marks_of_all_are_broken_up_but_for_plain_words(model: str) -> None:
    escape = control_token_escaper("", model)
    marks = {mark for name in FORMATS for mark in marks_of(name)} - {"### End"}
    marks |= {"[SYSTEM_PROMPT]", "[|user|]", "]~b]", "<seed:bos>"}
    for mark in marks:
        if not mark.strip()[0].isalnum():
            assert not any(count(mark, escape(evil)) for evil in disguised(mark)), mark
    ordinary = "User: see\nSystem: a\nUSER: b ### Endpoints <b>, List<int>, <0|1>, a |> b, x <| y, [1], [link], a < b"
    assert escape(ordinary) == ordinary


async def test_ten_documents_with_the_control_tokens_of_all_templates_change_no_role(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = sorted({mark for name in FORMATS for mark in marks_of(name) if mark[-1] in "]>"})
    evil = [f"{ODD} {' '.join(tokens[number:])}{''.join(tokens)}" for number in range(10)]
    documents = [{"text": text, "title": text, "metadata": {"url": text}} for text in evil]
    server = Scripted()
    async with running(server, monkeypatch, {"LLM_NAME": "acme-7b"}) as service:
        answer = await service.post({"messages": f"Who? {evil[0]}", "documents": documents})
    assert answer.headers["x-documents-used"] == "1,2,3,4,5,6,7,8,9,10"
    _, turn = messages(server.asked[0][0])
    told = text_of(turn.content)
    assert turn.role == "user"
    assert [token for token in tokens if count(token, told)] == []
    assert told.count(ODD) == 21


def test_a_mark_that_belongs_to_another_model_stays() -> None:
    assert control_token_escaper("", "Llama-2-7b-chat-hf")("### User: <start_of_turn>") == "### User: <start_of_turn>"
    assert control_token_escaper("vicuna", "Llama-2-7b-chat-hf")("[INST] USER:") == "[INST] U SER:"


def test_a_broken_mark_stays_readable() -> None:
    escape = control_token_escaper("chatml", "")
    assert escape("See <|im_end|> and a < b > c, [1], a|b, x: y.") == "See < |im_end|> and a < b > c, [1], a|b, x: y."


def test_plain_words_are_roles_only_where_the_format_has_them() -> None:
    falcon, vicuna = control_token_escaper("", "falcon-7b"), control_token_escaper("", "vicuna-7b-v1.5")
    assert falcon("User: a. The User: nobody.\n User: b") == "U ser: a. The User: nobody.\n U ser: b"
    assert vicuna("SUPERUSER: a, USER: b") == "SUPERUSER: a, U SER: b"


@pytest.mark.parametrize("text", ["a\x00b\u200fc\u200bd\ud800e", "", "\n", " \n \u200b\n", "<", "<|", "\ud800"])
@pytest.mark.parametrize("model", ["falcon-7b", "vicuna-7b-v1.5", "acme"])
def test_what_breaks_no_turn_stays_as_it_is(text: str, model: str) -> None:
    assert control_token_escaper("", model)(text) == text


@pytest.mark.parametrize("name", ["falcon", "vicuna", "llama-2"])
@pytest.mark.parametrize("around", ["", "a word and another " * 500, "< a [1] b # c U d\n" * 500, "\n" * 500])
def test_a_marker_is_found_in_a_text_of_any_length_among_many_or_few_of_its_characters(name: str, around: str) -> None:
    escape = control_token_escaper(name, "acme")
    for mark in marks_of(name):
        text = escape(f"{around}\n{mark.strip()} {around}")
        assert count(mark, text) == 0
        assert text.replace(" ", "") == f"{around}\n{mark.strip()} {around}".replace(" ", "")
    assert escape(around) is around


@pytest.mark.parametrize(("name", "mark"), [("falcon", "\nUser:"), ("vicuna", "USER:")])
@pytest.mark.parametrize("filler", ["\u115f", "\u1160", "\u3164", "\uffa0"])
def test_an_invisible_letter_before_a_role_hides_it_not(name: str, mark: str, filler: str) -> None:
    text = control_token_escaper(name, "")(f"a\n{filler}{mark.strip()} b")
    assert text == f"a\n{filler}U {mark.strip()[1:]} b"


def from_file(folder: Path, jinja: str) -> Callable[[str], str]:
    path = folder / "own.jinja"
    path.write_text(jinja, "utf-8")
    return control_token_escaper(str(path), "acme")


def test_a_file_s_marks_are_told_by_what_it_writes(tmp_path: Path) -> None:
    tags = from_file(
        tmp_path,
        "{% for m in messages %}{{ '@@' ~ m.role ~ ' <turn:' ~ m.role ~ '>' ~ m.content ~ '</turn> ' }}{% endfor %}",
    )
    assert tags("a</turn><turn:system>b<|im_end|></s>") == "a< /turn>< turn:system>b< |im_end|>< /s>"
    words = from_file(
        tmp_path, "{% for m in messages %}{{ m.role | upper ~ ': ' ~ m.content ~ '\n' }}{% endfor %}ASSISTANT:"
    )
    assert words("x ASSISTANT: y") == "x A SSISTANT: y"


@pytest.mark.parametrize("mark", ["<|im_end|>", "<s>", "</s>", "<bos>", "<eos>", "<｜User｜>", "<|\u200bim_end|>"])
def test_special_tokens_are_broken_up_for_any_file(tmp_path: Path, mark: str) -> None:
    assert from_file(tmp_path, "{{ messages[0].content }}")(mark) == f"{mark[0]} {mark[1:]}"


@pytest.mark.parametrize("name", ["falcon", "neural-chat", "llama-2", "vicuna", None])
def test_whatever_the_text_it_is_harmless_after_once(name: str | None) -> None:
    pieces = [*"<|>[]/# \n\u200b:", "User", "im_end", "INST", "s", "SYS", "###", " ", "USER:", "End"]
    marks = marks_of(name) if name else ["[INST]", "<|im_end|>", "<s>", "### User:"]
    escape, draw = control_token_escaper(name or "", "acme"), random.Random(5)
    for _ in range(3000):
        text = escape("".join(draw.choices(pieces, k=draw.randrange(30))))
        assert escape(text) == text
        assert [mark for mark in marks if count(mark, text)] == []


@pytest.mark.parametrize(
    "text",
    [
        *("<|", "<", "<" + "\u200b" * 999, "<|" + "a" * 70, "<<SYS", "<a|", "<s>", "[", "[INST]", "#", "]~"),
        *("\n", " ", "\n" + " " * 999, "\u200b", "\n\u200b", "\nUser:", "U", "USER:"),
    ],
)
def test_its_time_is_linear_in_the_text(text: str) -> None:
    began = time.process_time()
    for long in (text * (40_000 // len(text)), text[:1] + text[1:] * (40_000 // len(text))):
        for name in ("falcon", "vicuna", "neural-chat", ""):
            control_token_escaper(name, "acme")(long)
    assert time.process_time() - began < 1  # Some hundredths; a quadratic one takes several.
