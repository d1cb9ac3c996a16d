"""Tokens counted by a file: those of the served model, whatever the model server can do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from typing import Any, TypeVar

import pytest

from comps.app import read_settings
from comps.core.answers import collect
from comps.core.counting import MESSAGE_OVERHEAD
from comps.core.errors import SettingsError
from comps.core.ports import CountsPrompts, CountsTexts, CountsTokens, Embeds, Tokenizes
from comps.core.types import Message, Sampling, Token
from comps.model_servers import with_chat_template, with_tokenizer
from comps.model_servers.chat_templates import tokenizer_file
from comps.model_servers.scripted import Scripted
from comps.opening import open_models
from tests.model_servers.tgi_stand_in import tokenizer
from tests.service import Able, running

T = TypeVar("T")

TEXT = "Deep learning is a part of machine learning, isn't it? 深度学习 🌊"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A byte-level tokenizer that puts one special token before every text."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer().save(str(path))
    return str(path)


def tokens(text: str) -> int:
    return len(tokenizer().encode(text, add_special_tokens=False))


async def test_a_text_is_counted_without_special_tokens_and_one_to_continue_with_them(file: str) -> None:
    server = with_tokenizer(Scripted(), file)
    assert isinstance(server, CountsPrompts)
    assert await server.count_tokens(TEXT) == tokens(TEXT)
    assert await server.count_tokens(TEXT * 500) == tokens(TEXT * 500)
    assert await server.count_prompt(TEXT, {}) == len(tokenizer().encode(TEXT)) == tokens(TEXT) + 1


async def test_a_text_s_tokens_are_told_with_special_tokens(file: str) -> None:
    server = with_tokenizer(Scripted(), file)
    assert isinstance(server, Tokenizes)
    told = await server.tokenize(TEXT)
    assert [token.id for token in told] == tokenizer().encode(TEXT).ids
    assert (told[0].end, told[-1].end) == (0, len(TEXT))


@pytest.mark.parametrize(("times", "is_beside"), [(1, False), (2_000, True)])
async def test_the_tokens_of_a_long_text_are_made_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, file: str, times: int, is_beside: bool
) -> None:
    threads = set()

    def made(*fields: Any) -> Token:
        threads.add(get_ident())
        return Token(*fields)

    monkeypatch.setattr(tokenizer_file, "Token", made)
    server = with_tokenizer(Scripted(), file)
    assert isinstance(server, Tokenizes)
    assert len(await server.tokenize(TEXT * times)) == len(tokenizer().encode(TEXT * times))
    assert len(threads) == 1
    assert (get_ident() not in threads) is is_beside


@pytest.mark.parametrize("times", [1, 100])
async def test_texts_are_counted_at_once_as_each_alone(file: str, times: int) -> None:
    server = with_tokenizer(Scripted(), file)
    assert isinstance(server, CountsTexts)
    texts = [TEXT * times, "", "half a character: \ud800", TEXT[:9]]
    assert await server.count_texts(texts) == [await server.count_tokens(text) for text in texts]
    assert await server.count_texts([]) == []


async def test_many_texts_are_counted_while_others_are_served(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[Callable[[], object]] = []

    async def to_thread(work: Callable[[], T]) -> T:
        threads.append(work)
        return work()

    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    server = with_tokenizer(Scripted(), file)
    assert isinstance(server, CountsTexts)
    await server.count_texts([TEXT])
    assert threads == []
    await server.count_texts([TEXT] * 40)
    assert len(threads) == 1


async def test_a_chat_template_of_ours_is_counted_with_all_that_it_writes(file: str) -> None:
    server = with_chat_template(with_tokenizer(Scripted(), file), "chatml", "")
    assert isinstance(server, CountsPrompts)
    written = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert await server.count_prompt((Message("user", "Why?"),), {}) == tokens(written) + 1


async def test_an_unknown_chat_template_is_estimated(file: str) -> None:
    server = with_tokenizer(Scripted(), file)
    assert isinstance(server, CountsPrompts)
    conversation = (Message("system", "Be brief."), Message("user", [{"type": "text", "text": TEXT}]))
    assert await server.count_prompt(conversation, {}) == tokens("Be brief.") + tokens(TEXT) + 3 * MESSAGE_OVERHEAD


async def test_all_else_stays_as_it_was(file: str) -> None:
    server = with_tokenizer(Able(), file)
    assert isinstance(server, Embeds)
    assert (await collect(server.generate, TEXT, Sampling(), {})).text
    assert not isinstance(with_tokenizer(Scripted(), file), Embeds)
    assert await server.describe() == await Able().describe()
    plain = Scripted()
    assert with_tokenizer(plain, "") is plain
    assert not isinstance(plain, CountsTokens)


async def test_the_service_counts_by_the_file_what_its_model_server_cannot_count(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"LLM_TOKENIZER_FILE": file, "LLM_CHAT_TEMPLATE": "chatml"}
    server = Scripted(context_window=600)
    async with running(server, monkeypatch, environment) as service:
        body = {"query": "Why?", "documents": ["A sentence of some words. " * 3] * 9, "stream": False}
        report = (await service.post(body)).json["report"]
    assert report["counted"] == "model"
    prompt, sampling, _ = server.asked[0]
    assert isinstance(prompt, str)
    assert 580 < len(tokenizer().encode(prompt)) + (sampling.max_tokens or 0) <= 600
    assert {"kept", "dropped"} <= {use["fate"] for use in report["documents"]}


def test_a_file_that_is_no_tokenizer_is_a_setting_s_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("LLM_TOKENIZER_FILE", str(tmp_path / "tokenizer.json"))
    monkeypatch.setenv("MODEL_SERVER", "scripted")
    with pytest.raises(SettingsError, match=r"^\[Model\] tokenizer_file = .*: no tokenizer.json"):
        open_models(read_settings(None))
