"""Logprobs of embedded models: their records, which are held back with the text, and both forms of OpenAI's API."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import openai
import pytest
from openai.types import Completion as SdkCompletion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from comps.core.answers import Collector, collect
from comps.core.types import JSON, Generation, Message, Sampling, Usage
from comps.model_servers import FRAMEWORKS
from comps.model_servers.embedded.buffered_answer import BufferedAnswer
from comps.model_servers.embedded.decoding import Completion
from comps.model_servers.embedded.logprobs import Record, Wanted, chat_logprobs
from comps.model_servers.embedded.tool_calls import MarkedCalls
from comps.model_servers.embedded.tools import Tools
from tests.model_servers.embedded.test_text import DECODERS, Decode, random_ids, replacing
from tests.model_servers.embedded.word_engine import Words, logprob
from tests.service import Service, running

END = -1


def answered(
    decode: Decode, ids: Sequence[int], stops: Sequence[str], most: int, logprobs: bool = True
) -> list[dict[str, JSON]]:
    """The parts of an answer of these tokens, each of which has the probabilities 1/2, and 1/4 for a space."""
    completion = Completion(1, [97, 32], most, stops, decode, {END}, True)
    if logprobs:
        completion.add_logprobs(Wanted(2, False), replacing, None)
    parts = []
    for token in (*ids, END):
        part = completion.push(token, (-math.log(2), [(token, -math.log(2)), (32, -math.log(4))]))
        parts += [part] if part else []
        if part and part.get("last"):
            break
    return parts


def joined(records: Sequence[Record]) -> str:
    return "".join(record["token"] for record in records)


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
def test_the_texts_of_the_records_of_a_part_are_its_text(decode: Decode) -> None:
    random = Random(7)
    for _ in range(150):
        ids = random_ids(random, random.randrange(12))
        stops, most = random.sample(["the", "€", "😀", "\n ", "a", "é中"], random.randrange(3)), random.randint(1, 60)
        parts = answered(decode, ids, stops, most)
        assert [part["text"] for part in parts] == [joined(part["logprobs"]) for part in parts]
        without = answered(decode, ids, stops, most, logprobs=False)
        assert "".join(part["text"] for part in parts) == "".join(part["text"] for part in without)


def test_a_token_with_which_a_character_begins_has_the_mark_that_stands_for_it_at_the_end() -> None:
    parts = answered(replacing, [97, 261], [], 9)  # "a", and a space with two of the three bytes of a character.
    assert [(part["text"], len(part["logprobs"])) for part in parts] == [("a", 1), (" \ufffd", 1)]


def test_records_of_a_stop_string_are_dropped_and_that_of_a_token_with_text_before_it_has_that_text() -> None:
    last = answered(replacing, [256, 97, 258, 98], ["ng"], 9)[-1]  # " the", "a", "ing", "b"
    assert (last["text"], [record["token"] for record in last["logprobs"]]) == ("i", ["i"])
    assert answered(replacing, [97, 258], ["ing"], 9)[-1]["logprobs"] == []


def test_an_alternative_without_text_has_its_name_and_the_chosen_token_the_text_that_it_adds() -> None:
    def named(ids: Sequence[int]) -> str:
        return "".join("<end>" if one == END else replacing([one]) for one in ids)

    completion = Completion(1, [97], 9, (), lambda ids: replacing([one for one in ids if one != END]), set(), True)
    completion.add_logprobs(Wanted(3, False), named, None)
    likeliest = [(0xE2, -1.0), (END, -2.0), (256, -math.inf)]
    assert [completion.push(token, (-1.0, likeliest)) for token in (0xE2, 0x82)] == [None, None]
    part = completion.push(0xAC, (-1.0, [(0xAC, -1.0)]))
    assert part
    assert part["logprobs"][0]["top_logprobs"] == [["", -1.0], ["<end>", -2.0], [" the", -9999.0]]
    assert [record["token"] for record in part["logprobs"]] == ["", "", "€"]
    assert part["logprobs"][2]["top_logprobs"] == [["€", -1.0]]
    for token in (END, 97):
        part = completion.push(token, (-1.0, [(END, -1.0)]))
    assert part
    assert [record["top_logprobs"] for record in part["logprobs"]] == [[["", -1.0]], [["<end>", -1.0]]]


def sdk_of(service: Service) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_openais_sdk_gets_them_in_both_forms_whole_and_streamed(
    words: Words, monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    chat: Any = {"model": "words", "messages": [{"role": "user", "content": "one two three four ."}]}
    chat |= {"logprobs": True, "top_logprobs": 2, "n": 2, "stop": " fo", "max_tokens": 9}
    text: Any = {"model": "words", "prompt": "one two three four .", "logprobs": 1, "n": 2, "stop": [" fo"]}
    environment = {"LLM_NAME": "words", "FRAMEWORK": framework}
    async with running(words, monkeypatch, environment) as service, sdk_of(service) as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(**chat)
        chunks = [one async for one in await sdk.chat.completions.create(**chat, stream=True)]
        texts = (await sdk.completions.with_raw_response.create(**text)).http_response.content
        pieces = [one async for one in await sdk.completions.create(**text, stream=True)]
    assert "x-ignored-params" not in raw.headers
    tokens = [" one", " two", " three"]
    likeliest = [{"token": one, "logprob": logprob(at), "bytes": list(one.encode())} for at, one in enumerate(tokens)]
    records = [{**one, "top_logprobs": likeliest[:2]} for one in likeliest]
    answer = ChatCompletion.model_validate_json(raw.http_response.content, strict=True)
    for choice in answer.choices:
        assert (choice.message.content, choice.finish_reason) == (" one two three", "stop")
        assert choice.logprobs
        assert choice.logprobs.to_dict() == {"content": records, "refusal": None}
        told = [one.choices[0] for one in chunks if one.choices[0].index == choice.index]
        assert [one.delta.content for one in told] == [*tokens, None]
        assert [one.logprobs and one.logprobs.to_dict()["content"] for one in told] == [
            *([one] for one in records),
            None,
        ]
    assert all(ChatCompletionChunk.model_validate(chunk.to_dict(), strict=True) for chunk in chunks)
    whole = SdkCompletion.model_validate_json(texts, strict=True)
    for one in whole.choices:
        assert one.logprobs
        assert one.logprobs.to_dict() == {
            "tokens": tokens,
            "token_logprobs": [logprob(at) for at in range(3)],
            "top_logprobs": [{" one": logprob(0), token: logprob(at)} for at, token in enumerate(tokens)],
            "text_offset": [0, 4, 8],
        }
        told_offsets = [
            (piece.choices[0].text, logprobs.tokens, logprobs.text_offset)
            for piece in pieces
            if piece.choices[0].index == one.index and (logprobs := piece.choices[0].logprobs)
        ]
        assert told_offsets == [(" one", [" one"], [0]), (" two", [" two"], [4]), (" three", [" three"], [8])]


def test_the_tokens_of_a_call_have_logprobs_beside_its_deltas() -> None:
    tools = Tools(({"name": "look", "parameters": {}},), demanded=False, several=True, is_older_form=False)
    collector = Collector()
    answer = BufferedAnswer(collector, MarkedCalls(tools), form=chat_logprobs)
    tokens = ["Well", "<tool_call>", '{"name": "look", ', '"arguments": {}}', "</tool_call>", "<tool"]
    for token in tokens:
        answer.push(token, [{"token": token, "logprob": -0.5, "top_logprobs": []}])
    answer.end()
    answer.finish("stop", Usage(1, 6))
    generation = collector.generation()
    assert (generation.text, generation.reason) == ("Well<tool", "tool_calls")
    assert generation.extra
    assert [record["token"] for record in generation.extra["logprobs"]["content"]] == tokens


async def said(words: Words, prompt: str, most: int, **options: JSON) -> Generation:
    return await collect(words.generate, prompt, Sampling(max_tokens=most), options)


async def test_where_they_are_asked_for_tokens_and_alternatives_have_their_ids(words: Words) -> None:
    assert "logprob_ids" in (await words.describe()).capabilities
    conversation, asked = (Message("user", "a b ."),), {"logprobs": True, "top_logprobs": 1, "logprob_ids": True}
    chat = await collect(words.generate, conversation, Sampling(), asked)
    assert chat.extra
    content = chat.extra["logprobs"]["content"]
    assert [(one["id"], [other["id"] for other in one["top_logprobs"]]) for one in content] == [(0, [0]), (1, [0])]
    text = (await said(words, "a b .", 5, logprobs=1, logprob_ids=True)).extra
    assert text
    assert text["logprobs"]["token_ids"] == [0, 1]
    assert text["logprobs"]["top_token_ids"] == [{" a": 0}, {" a": 0, " b": 1}]


async def test_an_echoed_prompt_has_logprobs_too_but_for_its_first_token(words: Words) -> None:
    whole = await said(words, "a b a", 1, echo=True, logprobs=0, n=2)
    assert [one.text for one in whole.choices] == ["a b a a"] * 2
    for one in whole.choices:
        assert one.extra == {
            "logprobs": {
                "tokens": ["a", " b", " a", " a"],
                "token_logprobs": [None, logprob(1), logprob(0), logprob(0)],
                "top_logprobs": [None, {" b": logprob(1)}, {" a": logprob(0)}, {" a": logprob(0)}],
                "text_offset": [0, 1, 3, 5],
            }
        }
    alone = await said(words, "a b a", 0, echo=True, logprobs=1)
    assert (alone.text, alone.reason, alone.usage and alone.usage.completion_tokens) == ("a b a", "length", 0)
    assert alone.extra
    assert alone.extra["logprobs"]["top_logprobs"] == [None, {" a": logprob(0), " b": logprob(1)}, {" a": logprob(0)}]
    assert (await said(words, "a", 0, echo=True, logprobs=1)).extra == {
        "logprobs": {"tokens": ["a"], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
    }
    indented = await said(words, "  a b", 0, echo=True, logprobs=0)  # The spaces are in no token of this engine.
    assert indented.extra
    assert indented.extra["logprobs"]["tokens"] == ["  a", " b"]


async def test_an_answer_of_no_tokens_is_empty_or_the_prompt(words: Words) -> None:
    for options, text in (({}, ""), ({"echo": True}, "round and")):
        assert (await said(words, "round and", 0, **options)).text == text


class Chosen(Words):
    """An engine that has logprobs of the tokens alone that it generates."""

    alternatives = False


async def test_an_engine_without_alternatives_has_logprobs_of_the_chosen_tokens_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = {"messages": [{"role": "user", "content": "a ."}], "logprobs": True, "top_logprobs": 2}
    text = {"prompt": "a .", "max_tokens": 1}
    async with running(
        server := Chosen("words"), monkeypatch, {"LLM_NAME": "words", "LLM_DIALECTS": "openai"}
    ) as service:
        assert {"logprobs", "top_logprobs"} & (await server.describe()).capabilities == {"logprobs"}
        answer = await service.post(chat)
        chosen, dropped = [
            await service.post({**text, "logprobs": wish, "echo": wish > 0}, "/v1/completions") for wish in (0, 3)
        ]
        refused = await service.post({**text, "logprobs": 0, "echo": True}, "/v1/completions")
    (record,) = answer.json["choices"][0]["logprobs"]["content"]
    assert (record["token"], record["top_logprobs"], answer.headers["x-ignored-params"]) == (" a", [], "top_logprobs")
    assert chosen.json["choices"][0]["logprobs"]["top_logprobs"] == [{" a": logprob(0)}]
    assert "x-ignored-params" not in chosen.headers
    (choice,) = dropped.json["choices"]
    assert (choice["text"], choice["logprobs"], dropped.headers["x-ignored-params"]) == ("a . a", None, "logprobs")
    assert (refused.status, refused.json["error"]["param"]) == (400, "logprobs")
