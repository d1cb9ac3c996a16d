"""Clients as people use them, unmodified, against the running service: OpenAI's SDK, and LangChain's over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

from comps.core.errors import (
    Forbidden,
    InvalidRequest,
    LLMError,
    Overloaded,
    Refused,
    Timeout,
    Unauthorized,
    UnknownModel,
    Unreachable,
)
from comps.model_servers import open_model_server
from comps.model_servers.scripted import Scripted
from comps.model_servers.target import Target
from tests.model_servers.replay import Reply, replaying, sse
from tests.service import PATH, Able, Service, running

WORDS = ["Deep", " learning", " is", " fun."]
ASKED: list[Any] = [{"role": "user", "content": "?"}]


def client(service: Service) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


async def test_openais_sdk_gets_a_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service, client(service) as sdk:
        answer = await sdk.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "?"}])
    assert answer.choices[0].message.content == "Deep learning is fun."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert answer.usage.completion_tokens == 4


async def test_openais_sdk_gets_a_streamed_answer_with_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service, client(service) as sdk:
        stream = await sdk.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": "?"}],
            max_tokens=3,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].delta.content for chunk in chunks[:3]] == WORDS[:3]
    assert chunks[3].choices[0].finish_reason == "length"
    assert chunks[4].usage
    assert chunks[4].usage.completion_tokens == 3


async def test_openais_sdk_understands_our_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"LLM_DIALECTS": "openai"}
    async with running(Scripted([WORDS]), monkeypatch, own) as service, client(service) as sdk:
        with pytest.raises(openai.BadRequestError) as bad:
            await sdk.chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "?"}], temperature=-1
            )
        with pytest.raises(openai.NotFoundError):
            await sdk.chat.completions.create(model="other", messages=[{"role": "user", "content": "?"}])
    assert bad.value.param == "temperature"


@pytest.mark.parametrize(
    ("error", "seen", "kind"),
    [
        (InvalidRequest("x"), openai.BadRequestError, "invalid_request_error"),
        (Forbidden("x"), openai.PermissionDeniedError, "invalid_request_error"),
        (Unauthorized("x"), openai.AuthenticationError, "invalid_request_error"),
        (UnknownModel("a", "b"), openai.NotFoundError, "invalid_request_error"),
        (Overloaded("x"), openai.RateLimitError, "rate_limit_error"),
        (Refused(418, "x"), openai.InternalServerError, "server_error"),
        (Unreachable("x"), openai.InternalServerError, "server_error"),
        (Timeout("x"), openai.InternalServerError, "server_error"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
@pytest.mark.parametrize("stream", [False, True])
async def test_openais_sdk_raises_its_own_class_for_each_error(
    monkeypatch: pytest.MonkeyPatch, error: LLMError, seen: type[openai.APIStatusError], kind: str, stream: bool
) -> None:
    async with running(Scripted([[error]]), monkeypatch) as service, client(service) as sdk:
        with pytest.raises(seen) as caught:
            await sdk.chat.completions.create(model="scripted", messages=ASKED, stream=stream)
    assert caught.value.type == kind


async def test_openais_sdk_raises_what_breaks_a_stream_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([["Deep", Unreachable("gone away")]]), monkeypatch) as service, client(service) as sdk:
        stream = await sdk.chat.completions.create(model="scripted", messages=ASKED, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "Deep"
        with pytest.raises(openai.APIError, match="gone away"):
            await anext(stream)


async def test_openais_sdk_is_told_what_to_send_instead_of_token_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able(), monkeypatch) as service, client(service) as sdk:
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            await sdk.embeddings.create(model="scripted", input=[[1, 2], [3]])
        with pytest.raises(openai.BadRequestError, match="token ids"):
            await sdk.completions.create(model="scripted", prompt=[1, 2])


async def test_openais_sdk_lists_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted(), monkeypatch) as service, client(service) as sdk:
        assert [model.id async for model in sdk.models.list()] == ["scripted"]
        assert (await sdk.models.retrieve("scripted")).id == "scripted"
        with pytest.raises(openai.NotFoundError):
            await sdk.models.retrieve("other")


async def test_openais_sdk_gets_completions_of_several_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([["one"], ["two"]]), monkeypatch) as service, client(service) as sdk:
        answer = await sdk.completions.create(model="scripted", prompt=["a", "b"])
        stream = await sdk.completions.create(model="scripted", prompt=["a", "b"], stream=True)
        pieces = [chunk.choices[0] async for chunk in stream]
    assert [choice.text for choice in answer.choices] == ["one", "two"]
    texts = {n: "".join(piece.text for piece in pieces if piece.index == n) for n in (0, 1)}
    assert texts == {0: "one", 1: "two"}


async def test_openais_sdk_gets_vectors_in_both_encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able(), monkeypatch) as service, client(service) as sdk:
        packed = await sdk.embeddings.create(model="scripted", input=["ab", "c"])
        plain = await sdk.embeddings.create(model="scripted", input="ab", encoding_format="float")
    assert [item.embedding for item in packed.data] == [[1.0, 2.0], [1.0, 1.0]]
    assert plain.data[0].embedding == [1.0, 2.0]
    assert packed.usage.prompt_tokens == 3


LATER = {"LLM_OPEA_STREAM": "text_completion", "LLM_STRING_MESSAGES": "query"}
"""The settings for GenAIComps 1.3 and later."""


@pytest.mark.parametrize("environment", [LATER, {}])
async def test_what_opea_checks_its_services_with_reads_the_answer_to_a_string(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    # GenAIComps' tests/utils/validate_svc_with_openai.py, which names a model of its own.
    question: Any = "What is Deep Learning?"
    async with running(Scripted([WORDS]), monkeypatch, environment) as service, client(service) as sdk:
        answer: Any = await sdk.chat.completions.create(model="tgi", messages=question, max_tokens=128)
        stream: Any = await sdk.chat.completions.create(model="tgi", messages=question, stream=True)
        choices = [chunk.choices[0] async for chunk in stream]
    if environment:
        assert answer.choices[0].text == "Deep learning is fun."
        assert "".join(choice.text for choice in choices) == "Deep learning is fun."
    else:
        assert answer.choices[0].message.content == "Deep learning is fun."
        assert "".join(choice.delta.content or "" for choice in choices) == "Deep learning is fun."
    assert choices[-1].finish_reason == "stop"


async def test_hugging_faces_client_which_names_a_model_of_its_own_gets_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted([WORDS]), monkeypatch) as service:
        hub = InferenceClient(base_url=service.url)
        answer = await asyncio.to_thread(hub.chat_completion, ASKED)
        stream = await asyncio.to_thread(lambda: list(hub.chat_completion(ASKED, stream=True)))
    assert answer.choices[0].message.content == "Deep learning is fun."
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Deep learning is fun."


@asynccontextmanager
async def in_front_of(reply: Reply | list[Reply], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's SDK, asking a service over a vLLM that gives the reply, or one after the other."""
    replies: dict[str, Reply | list[Reply]] = {"/v1/models": Reply([b'{"data": []}']), PATH: reply}
    async with replaying(replies) as replay:
        server = open_model_server("vllm", Target("m", replay.url))
        async with running(server, monkeypatch, {"LLM_NAME": "m"}) as service, client(service) as sdk:
            yield sdk


class Weather(BaseModel):
    """What the model is asked to fill in."""

    city: str
    degrees: int


async def test_openais_sdk_parses_what_a_response_format_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told = '{"city": "Paris", "degrees": 9}'
    reply = sse({"choices": [{"index": 0, "delta": {"content": told}, "finish_reason": "stop"}]})
    async with in_front_of(reply, monkeypatch) as sdk:
        answer = await sdk.chat.completions.parse(
            model="m", messages=[{"role": "user", "content": "?"}], response_format=Weather
        )
    assert answer.choices[0].message.parsed == Weather(city="Paris", degrees=9)


async def test_openais_sdk_puts_a_streamed_tool_call_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[dict[str, object]] = [
        {"index": 0, "id": "c", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city":'}},
        {"index": 0, "function": {"arguments": ' "Paris"}'}},
    ]
    deltas = [{"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]} for piece in pieces]
    text = {"choices": [{"index": 0, "delta": {"content": "Wait."}}]}
    reply = sse(text, *deltas, {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    async with (
        in_front_of(reply, monkeypatch) as sdk,
        sdk.chat.completions.stream(model="m", messages=[{"role": "user", "content": "?"}]) as stream,
    ):
        answer = await stream.get_final_completion()
    assert answer.choices[0].finish_reason == "tool_calls"
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.arguments == '{"city": "Paris"}'
    assert answer.choices[0].message.content == "Wait."


CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}


async def test_openais_sdk_has_a_tool_called_and_sends_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = {"tool_calls": [{"index": 0, **CALL}]}
    reply = sse({"choices": [{"index": 0, "delta": delta, "finish_reason": "tool_calls"}]})
    async with in_front_of(reply, monkeypatch) as sdk:
        tools: list[Any] = [openai.pydantic_function_tool(Weather, name="weather")]
        answer = await sdk.chat.completions.create(model="m", messages=ASKED, tools=tools, tool_choice="required")
        said = answer.choices[0].message
        turns: list[Any] = [*ASKED, said.to_dict(), {"role": "tool", "tool_call_id": "c", "content": "9"}]
        raw = await sdk.chat.completions.with_raw_response.create(model="m", messages=turns, tools=tools)
    assert said.content is None
    assert said.tool_calls
    assert said.tool_calls[0].to_dict() == CALL
    assert "x-ignored-params" not in raw.headers


async def test_openais_sdk_gets_several_choices_with_their_logprobs(monkeypatch: pytest.MonkeyPatch) -> None:
    def piece(index: int, text: str, reason: str | None = None) -> object:
        token = {"token": text, "logprob": -0.5, "bytes": [97], "top_logprobs": []}
        choice = {"index": index, "delta": {"content": text}, "logprobs": {"content": [token]}}
        return {"choices": [{**choice, "finish_reason": reason}]}

    reply = sse(piece(0, "a"), piece(1, "x"), piece(0, "b", "stop"), piece(1, "y", "length"))
    async with in_front_of(reply, monkeypatch) as sdk:
        whole = await sdk.chat.completions.create(model="m", messages=ASKED, n=2, logprobs=True, top_logprobs=1)
        stream = await sdk.chat.completions.create(model="m", messages=ASKED, n=2, logprobs=True, stream=True)
        pieces = [chunk.choices[0] async for chunk in stream]
    texts = [(choice.message.content, choice.finish_reason) for choice in whole.choices]
    assert texts == [("ab", "stop"), ("xy", "length")]
    logprobs = [choice.logprobs.content or [] for choice in whole.choices if choice.logprobs]
    assert [[token.token for token in tokens] for tokens in logprobs] == [["a", "b"], ["x", "y"]]
    for chunk, told in zip(pieces, "axby", strict=False):
        assert chunk.delta.content == told
        assert chunk.logprobs
        assert [token.token for token in chunk.logprobs.content or ()] == [told]
    assert [(one.index, one.finish_reason) for one in pieces[4:]] == [(0, "stop"), (1, "length")]


async def test_openais_sdk_gets_what_an_answer_cites(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [
        {"text": "96 GB", "title": "Gaudi 2", "metadata": {"url": "http://a"}},
        {"text": "Flour", "metadata": {"bucket_name": "b", "object_name": "o"}},
        "Paris",
    ]
    extra = {"documents": documents, "citations": "on"}
    asked: dict[str, Any] = {"model": "scripted", "messages": ASKED, "extra_body": extra}
    answers = Scripted([["96 GB [", "1][2", ", 3]", " [4]."]])
    async with running(answers, monkeypatch) as service, client(service) as sdk, httpx.AsyncClient() as http:
        whole = (await sdk.chat.completions.create(**asked)).choices[0].message
        async with sdk.chat.completions.stream(**asked) as stream:
            gathered = (await stream.get_final_completion()).choices[0].message
        chat = ChatOpenAI(
            base_url=f"{service.url}/v1", api_key=SecretStr("none"), http_async_client=http, model="scripted"
        )
        pieces = [piece.text async for piece in chat.astream("?", extra_body=extra)]
    assert "".join(pieces) == whole.content == gathered.content == "96 GB [1][2, 3] [4]."
    for message in (whole, gathered):
        assert message.content
        assert message.annotations
        first, *others = message.annotations
        link = first.url_citation
        assert message.content[link.start_index : link.end_index] == "[1]"
        assert (first.type, link.title, link.url) == ("url_citation", "Gaudi 2", "http://a")
        told = [one.to_dict() for one in others]
        assert [one["type"] for one in told] == ["file_citation", "document_citation"]
        assert told[0]["file_citation"] == {
            **{"start_index": 9, "end_index": 15, "title": "", "number": 2},
            **{"bucket_name": "b", "object_name": "o"},
        }
        assert (message.model_extra or {})["unknown_citations"] == [4]


async def test_langchains_chat_model_calls_tools_and_fills_in_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    called = sse(
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **CALL}]}, "finish_reason": "tool_calls"}]}
    )
    filled = sse(
        {"choices": [{"index": 0, "delta": {"content": '{"city": "Rome", "degrees": 3}'}, "finish_reason": "stop"}]}
    )
    async with in_front_of([called, called, filled], monkeypatch) as sdk, httpx.AsyncClient() as http:
        chat = ChatOpenAI(base_url=str(sdk.base_url), api_key=SecretStr("none"), http_async_client=http, model="m")
        with_tools = chat.bind_tools([Weather])
        whole = await with_tools.ainvoke("?")
        pieces = [piece async for piece in with_tools.astream("?")]
        weather = await chat.with_structured_output(Weather).ainvoke("?")
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("weather", {"city": "Paris"})]
    names = [chunk["name"] for piece in pieces if isinstance(piece, AIMessageChunk) for chunk in piece.tool_call_chunks]
    assert names == ["weather"]
    assert weather == Weather(city="Rome", degrees=3)


async def test_langchains_openai_classes_get_answers_and_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Able([WORDS]), monkeypatch) as service, httpx.AsyncClient() as http:
        given: dict[str, Any] = {"base_url": f"{service.url}/v1", "api_key": "none", "http_async_client": http}
        chat = ChatOpenAI(**given, model="scripted")
        whole = await chat.ainvoke("?")
        pieces = [piece.text async for piece in chat.astream("?")]
        embeddings = OpenAIEmbeddings(**given, model="scripted", check_embedding_ctx_length=False)
        vectors = await embeddings.aembed_documents(["ab", "c"])
    assert whole.content == "Deep learning is fun."
    assert "".join(pieces) == "Deep learning is fun."
    assert vectors == [[1.0, 2.0], [1.0, 1.0]]
