"""TGI's own clients against the stand-in: what they read of it is what they read of TGI; and what LangChain's loses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import text_generation
import text_generation.errors
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import GenerationError, OverloadedError, ValidationError
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

from tests.model_servers.tgi_stand_in import ANSWER, EOS, Model, StandIn, encode, standing_in
from tests.tgi_clients import OLD_PYDANTIC, read

PROMPT = "What is Deep Learning?"
TOKENS = len(encode(ANSWER, specials=False).ids) + 1
STOPS = ["d3 wo"]
"""Begins and ends within a token."""


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    async with standing_in() as stand_in:
        yield stand_in


# huggingface_hub.


async def test_huggingface_hub_reads_a_whole_answer_with_its_details(stand_in: StandIn) -> None:
    async with AsyncInferenceClient(stand_in.url) as client:
        answer = await client.text_generation(PROMPT, details=True, max_new_tokens=5, seed=3, do_sample=True)
        text = await client.text_generation(PROMPT, return_full_text=True)
    assert answer.details
    assert (answer.details.finish_reason, answer.details.generated_tokens, answer.details.seed) == ("length", 5, 3)
    assert "".join(token.text for token in answer.details.tokens) == answer.generated_text
    assert text == PROMPT + ANSWER


async def test_huggingface_hub_reads_a_stream(stand_in: StandIn) -> None:
    async with AsyncInferenceClient(stand_in.url) as client:
        events = [event async for event in await client.text_generation(PROMPT, details=True, stream=True)]
    assert "".join(event.token.text for event in events) == ANSWER + EOS
    assert [event.token.special for event in events] == [False] * (TOKENS - 1) + [True]
    last = events[-1]
    assert last.details
    assert (last.generated_text, last.details.finish_reason) == (ANSWER, "eos_token")
    assert (last.details.generated_tokens, last.details.input_length) == (TOKENS, len(encode(PROMPT).ids))


async def test_huggingface_hub_reads_a_stop_string_as_part_of_the_text(stand_in: StandIn) -> None:
    async with AsyncInferenceClient(stand_in.url) as client:
        answer = await client.text_generation(PROMPT, details=True, stop=[" word3"])
    assert answer.generated_text == " word0 word1 word2 word3"
    assert answer.details
    assert answer.details.finish_reason == "stop_sequence"


async def test_huggingface_hub_reads_chats_whole_and_streamed(stand_in: StandIn) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    async with AsyncInferenceClient(stand_in.url) as client:
        whole = await client.chat_completion(messages, temperature=0, max_tokens=200)
        stream = await client.chat_completion(
            messages, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        chunks: list[Any] = [chunk async for chunk in stream]
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (ANSWER, "stop")
    assert "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == TOKENS


async def test_huggingface_hub_reads_tool_calls(stand_in: StandIn) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": {"properties": {}}}}]
    async with AsyncInferenceClient(stand_in.url) as client:
        answer = await client.chat_completion([{"role": "user", "content": "Hi"}], tools=tools)
    (call,) = answer.choices[0].message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Paris"}')


@pytest.mark.parametrize(
    ("model", "parameters", "error"),
    [
        (Model(), {"temperature": 0.0}, ValidationError),
        (Model(), {"top_p": 1.0}, ValidationError),
        (Model(), {"stop": list("abcde")}, ValidationError),
        (Model(busy=True), {}, OverloadedError),
        (Model(fails_at=0), {}, GenerationError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_huggingface_hub_reads_errors(
    model: Model, parameters: dict[str, Any], error: type[Exception], stream: bool
) -> None:
    async with standing_in(model) as stand_in, AsyncInferenceClient(stand_in.url) as client:
        with pytest.raises(error):
            await read(client, PROMPT, stream, parameters)


# text_generation, the client in TGI's own repository.


@OLD_PYDANTIC
async def test_text_generation_reads_a_whole_answer_and_a_stream(stand_in: StandIn) -> None:
    client = text_generation.AsyncClient(stand_in.url)
    whole = await client.generate(PROMPT, max_new_tokens=200)
    events = [event async for event in client.generate_stream(PROMPT, max_new_tokens=200)]
    assert whole.generated_text == events[-1].generated_text == ANSWER
    assert whole.details.finish_reason == "eos_token"
    assert events[-1].details
    assert whole.details.generated_tokens == events[-1].details.generated_tokens == TOKENS
    assert "".join(event.token.text for event in events if not event.token.special) == ANSWER


@OLD_PYDANTIC
@pytest.mark.parametrize(
    ("model", "error"),
    [
        (Model(max_total_tokens=10), text_generation.errors.ValidationError),
        (Model(busy=True), text_generation.errors.OverloadedError),
        (Model(fails_at=0), text_generation.errors.GenerationError),
    ],
)
async def test_text_generation_reads_errors(model: Model, error: type[Exception]) -> None:
    async with standing_in(model) as stand_in:
        client = text_generation.AsyncClient(stand_in.url)
        with pytest.raises(error):
            await client.generate(PROMPT, max_new_tokens=200)


# LangChain's own classes, as they are: this is why ChatTGI exchanges the client.


@pytest.fixture
def endpoint(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> HuggingFaceEndpoint:
    return HuggingFaceEndpoint(
        endpoint_url=stand_in.url, temperature=None, top_p=None, typical_p=None, max_new_tokens=200, streaming=True
    )  # type: ignore[call-arg]  # It takes its model from the URL.


async def test_huggingfaceendpoint_shows_special_tokens_and_says_neither_end_nor_usage(
    endpoint: HuggingFaceEndpoint, stand_in: StandIn
) -> None:
    chunks = [chunk async for chunk in endpoint._astream(PROMPT)]
    assert "".join(chunk.text for chunk in chunks) == ANSWER + EOS
    assert not any(chunk.generation_info for chunk in chunks)
    assert not stand_in.bodies("/")[0]["parameters"].get("details")


async def test_huggingfaceendpoint_shows_a_stop_string_that_begins_within_a_token(
    endpoint: HuggingFaceEndpoint,
) -> None:
    text = "".join([chunk.text async for chunk in endpoint._astream(PROMPT, stop=STOPS)])
    assert STOPS[0] in text


async def test_chathuggingface_sends_no_top_k_that_its_endpoint_was_given(stand_in: StandIn) -> None:
    endpoint = HuggingFaceEndpoint(endpoint_url=stand_in.url, top_k=3)  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="langchain-community"):
        chat = ChatHuggingFace(llm=endpoint)
    assert (await chat.ainvoke("Hi")).content
    (body,) = stand_in.bodies("/v1/chat/completions")
    assert "top_k" not in body
