"""What an embedded engine is held to with a real model, whatever the engine."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

import pytest

from comps.core.answers import collect, read
from comps.core.errors import PromptTooLong
from comps.core.ports import CountsTokens, ModelServer
from comps.core.types import Message, Prompt, Sampling, TextDelta

STORY: Prompt = (Message("user", "Tell me a story about a lighthouse."),)
GREEDY = Sampling(max_tokens=24, temperature=0.0)


async def text_of(server: ModelServer, sampling: Sampling, prompt: Prompt = STORY) -> str:
    return (await collect(server.generate, prompt, sampling, {})).text


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
