"""What an embedded engine is held to with a real model, whatever the engine."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from comps.core.answers import collect, read
from comps.core.errors import InvalidRequest, PromptTooLong
from comps.core.ports import CountsTokens, ModelServer
from comps.core.types import JSON, Message, Prompt, Sampling, TextDelta
from comps.model_servers import FRAMEWORKS, through_framework

STORY: Prompt = (Message("user", "Tell me a story about a lighthouse."),)
GREEDY = Sampling(max_tokens=24, temperature=0.0)
HOT = Sampling(max_tokens=200, temperature=1.5)
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "old": {"type": "boolean"}, "tail": {"$ref": "#/$defs/Tail"}},
    "required": ["kind", "old", "tail"],
    "additionalProperties": False,
    "$defs": {"Tail": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}},
}


async def text_of(server: ModelServer, sampling: Sampling, prompt: Prompt = STORY) -> str:
    return (await collect(server.generate, prompt, sampling, {})).text


def content_of(extra: Mapping[str, JSON] | None) -> list[dict[str, JSON]]:
    """The records of a chat's logprobs."""
    content: list[dict[str, JSON]] = extra["logprobs"]["content"] if extra else []
    return content


class EmbeddedContract:
    """A subclass brings a fixture `server`, whose model has a context window of 2048 tokens."""

    forged = ""
    """Control tokens that end a turn and open one of the system's."""
    control_token = ""
    """One of them."""

    async def test_a_short_answer_is_done_while_a_long_one_runs(self, server: ModelServer) -> None:
        async with aclosing(read(server.generate, "1 2 3 4", Sampling(max_tokens=1500, temperature=0.0), {})) as long:
            await anext(long)
            await text_of(server, replace(GREEDY, max_tokens=3))
            assert isinstance(await anext(long), TextDelta)

    async def test_a_seed_repeats_an_answer_and_without_one_each_is_drawn_anew(self, server: ModelServer) -> None:
        hot = Sampling(max_tokens=24, temperature=2.0)
        assert await text_of(server, replace(hot, seed=-7)) == await text_of(server, replace(hot, seed=-7))
        assert await text_of(server, hot) != await text_of(server, hot)

    async def test_only_the_likeliest_token_is_left_by_temperature_top_k_or_top_p(self, server: ModelServer) -> None:
        greedy = await text_of(server, GREEDY)
        for narrow in (Sampling(top_k=1), Sampling(top_p=0.0), Sampling(top_p=1e-6)):
            assert await text_of(server, replace(narrow, max_tokens=24, temperature=1.5)) == greedy

    async def test_a_stop_string_ends_an_answer_and_is_never_shown(self, server: ModelServer) -> None:
        whole = await text_of(server, GREEDY)
        stop = whole[9:14]
        cut = await collect(server.generate, STORY, replace(GREEDY, stop=("§", stop)), {})
        assert (cut.text, cut.reason) == (whole[: whole.index(stop)], "stop")

    async def test_control_tokens_in_a_message_open_no_turn(self, server: ModelServer) -> None:
        assert isinstance(server, CountsTokens)
        counts = []
        for text in (self.forged, "x"):
            answer = await collect(server.generate, (Message("user", text),), replace(GREEDY, max_tokens=1), {})
            assert answer.usage
            counts.append(answer.usage.prompt_tokens)
        assert counts[0] - counts[1] > 15
        assert await server.count_tokens(self.control_token) == 1

    async def test_a_prompt_over_the_window_is_refused_with_the_numbers(self, server: ModelServer) -> None:
        with pytest.raises(PromptTooLong) as caught:
            await text_of(server, GREEDY, "hello world " * 2000)
        assert caught.value.context_window == 2048
        assert caught.value.prompt_tokens >= 4000

    async def test_answers_match_their_constraints_beside_others(self, server: ModelServer) -> None:
        asked: list[dict[str, Any]] = [
            *({"guided_json": SCHEMA}, {"guided_choice": ["yes", 'no "\\\n']}),
            *({"guided_grammar": 'root ::= "a" [0-9] "z"'}, {}),
        ]
        answers = await asyncio.gather(*(collect(server.generate, STORY, HOT, options) for options in asked))
        jsonschema.validate(json.loads(answers[0].text), SCHEMA)
        assert answers[1].text in ("yes", 'no "\\\n')
        assert re.fullmatch("a[0-9]z", answers[2].text)
        assert [one.reason for one in answers[:3]] == ["stop"] * 3

    async def test_every_field_of_sampling_goes_with_a_constraint(self, server: ModelServer) -> None:
        full = Sampling(200, 1.5, 0.9, 20, 0.8, 1.2, 0.5, 0.5, 1)
        answer = await collect(server.generate, STORY, full, {"guided_json": SCHEMA})
        jsonschema.validate(json.loads(answer.text), SCHEMA)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"guided_json": {"type": "strin"}},
            {"guided_grammar": "nonsense"},
            {"guided_json": {"$ref": "https://a.b/c"}},
        ],
        ids=str,
    )
    async def test_an_invalid_constraint_is_refused_by_name(self, server: ModelServer, wrong: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await collect(server.generate, STORY, GREEDY, wrong)
        assert caught.value.field == next(iter(wrong))
        assert await text_of(server, GREEDY)

    async def test_logprobs_are_of_the_text_whole_and_streamed_in_both_frameworks(self, server: ModelServer) -> None:
        stop = (await text_of(server, GREEDY))[19:22]
        options, sampling = {"logprobs": True, "top_logprobs": 3}, replace(GREEDY, stop=(stop,))
        through = [await asyncio.to_thread(through_framework, server, name) for name in FRAMEWORKS]
        answers = [await collect(one.generate, STORY, sampling, options) for one in through]
        async with aclosing(read(server.generate, STORY, sampling, options)) as events:
            deltas = [event async for event in events if isinstance(event, TextDelta)]
        said = [(one.text, one.extra) for one in answers] + [(one.text, one.extra) for one in deltas]
        for text, extra in said:
            assert "".join(record["token"] for record in content_of(extra)) == text
        assert answers[0] == answers[1]
        assert [record for delta in deltas for record in content_of(delta.extra)] == content_of(answers[0].extra)
        for record in content_of(answers[0].extra):
            logprobs = [one["logprob"] for one in record["top_logprobs"]]
            assert logprobs[0] == record["logprob"]
            assert logprobs == sorted(logprobs, reverse=True)
            assert len(logprobs) == 3
            assert sum(map(math.exp, logprobs)) <= 1

    async def test_logprobs_are_before_temperature_penalties_and_constraints(self, server: ModelServer) -> None:
        options = {"logprobs": True, "top_logprobs": 20}
        hot, ruled = [
            await collect(server.generate, STORY, Sampling(1, 5.0, 0.9, 5, 0.9, 1.5, 1.0, 1.0, seed=1), options | more)
            for more in ({}, {"guided_choice": ["zebra"]})
        ]
        plain = await collect(server.generate, STORY, replace(GREEDY, max_tokens=1), options)
        (first,), *others = [content_of(one.extra) for one in (plain, hot, ruled)]
        for (other,) in others:
            assert [one["token"] for one in other["top_logprobs"]] == [one["token"] for one in first["top_logprobs"]]
            assert [one["logprob"] for one in other["top_logprobs"]] == pytest.approx(
                [one["logprob"] for one in first["top_logprobs"]], abs=1e-3
            )
        assert content_of(ruled.extra)[0]["logprob"] < -4

    async def test_characters_of_several_tokens_are_in_the_text_of_their_last_ones(self, server: ModelServer) -> None:
        prompt, hot = "🦄漢字 " * 20, Sampling(max_tokens=40, temperature=3.0, seed=3)
        whole = await collect(server.generate, prompt, hot, {"logprobs": 2, "echo": True, "n": 2})
        for one in whole.choices:
            assert one.extra
            logprobs = one.extra["logprobs"]
            assert "".join(logprobs["tokens"]) == one.text
            assert one.text.startswith(prompt)
            for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
                assert one.text.startswith(token, offset)
            assert "🦄" in logprobs["tokens"]
            assert logprobs["token_logprobs"][0] is None
            told = zip(
                logprobs["tokens"][1:], logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True
            )
            assert all(likeliest[token] == logprob for token, logprob, likeliest in told)

    async def test_a_demanded_call_has_arguments_by_its_schema(self, server: ModelServer) -> None:
        tools = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("hire", "greet")]
        answer = await collect(server.generate, STORY, HOT, {"tools": tools, "tool_choice": "required"})
        assert answer.reason == "tool_calls"
        assert answer.extra
        function = answer.extra["tool_calls"][0]["function"]
        assert function["name"] in ("hire", "greet")
        jsonschema.validate(json.loads(function["arguments"]), SCHEMA)
