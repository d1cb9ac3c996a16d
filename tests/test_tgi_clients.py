"""TGI's clients, unmodified, against the running service: huggingface_hub's, text_generation, LangChain's over the
first, and our own, so that a service may stand in front of a service. What they get is checked by TGI's own schema."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import text_generation
import text_generation.errors
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub import errors as hub
from langchain_huggingface import HuggingFaceEndpoint

from comps.core.answers import collect
from comps.core.errors import (
    InvalidRequest,
    LLMError,
    ModelServerError,
    Overloaded,
    PromptTooLong,
    Refused,
    UnknownModel,
    Unreachable,
)
from comps.core.ports import Answer, CountsPrompts, FindsTokens, Tokenizes
from comps.core.prompts import text_of
from comps.core.types import JSON, ModelInfo, Prompt, Sampling, TextDelta, Token, Usage
from comps.model_servers import FRAMEWORKS, open_model_server, through_framework
from comps.model_servers.target import Target
from tests.model_servers.tgi_stand_in import validator
from tests.service import Able, Service, running
from tests.tgi_clients import OLD_PYDANTIC, read

PROMPT = "What is Deep Learning?"
WORDS = ["Deep", " learning", " ☃"]
ANSWER = "".join(WORDS)
ONLY = {"LLM_DIALECTS": "tgi"}
FACT = "Intel Gaudi 2 has 96 GB of memory on board."
HONOURED = frozenset((*Sampling.__dataclass_fields__, "logprobs", "top_logprobs", "response_format"))


class Scored(Able):
    """A model server that honours all, and tells the log probabilities of its tokens where that is asked for."""

    def __init__(self, *script: Any) -> None:
        super().__init__([script or WORDS], context_window=100_000)

    async def describe(self) -> ModelInfo:
        return replace(await super().describe(), capabilities=HONOURED)

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        to = _WithScores(answer) if "logprobs" in options else answer
        await super().generate(prompt, sampling, options, to)


class _WithScores:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.finished = answer.finished
        self.drain = answer.drain
        self.full = False

    def delta(self, delta: TextDelta) -> None:
        self._answer.delta(delta)

    def text(self, text: str, choice: int = 0) -> None:
        scores = {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [{text: -0.5, "x": -1.5}]}
        self._answer.delta(TextDelta(text, choice, {"logprobs": scores}))


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with running(Scored(), monkeypatch, ONLY) as service:
        yield service


def failing(monkeypatch: pytest.MonkeyPatch, *script: Any) -> Any:
    return running(Scored(*script), monkeypatch, ONLY)


# huggingface_hub.


async def test_huggingface_hub_reads_whole_answers(service: Service) -> None:
    async with AsyncInferenceClient(service.url) as client:
        text = await client.text_generation(PROMPT, return_full_text=False)
        full = await client.text_generation(PROMPT)
        told = await client.text_generation(
            PROMPT, return_full_text=False, details=True, max_new_tokens=2, do_sample=True, seed=3, top_n_tokens=1
        )
        best = await client.text_generation(PROMPT, details=True, best_of=2, temperature=0.5)
        stopped = await client.text_generation(PROMPT, details=True, stop=[" learn"], return_full_text=False)
    assert (text, full) == (ANSWER, PROMPT + ANSWER)
    assert told.details
    assert (told.details.finish_reason, told.details.generated_tokens, told.details.seed) == ("length", 2, 3)
    assert [token.text for token in told.details.tokens] == WORDS[:2]
    assert [token.logprob for token in told.details.tokens] == [-0.5, -0.5]
    top: Any = told.details.top_tokens
    assert [[token["text"] for token in place] for place in top] == [["Deep"], [" learning"]]
    assert stopped.details
    assert (stopped.generated_text, stopped.details.finish_reason) == ("Deep", "stop_sequence")
    assert best.details
    assert [one.generated_text for one in best.details.best_of_sequences or ()] == [PROMPT + ANSWER]


async def test_huggingface_hub_reads_the_facts_of_the_endpoint(service: Service) -> None:
    async with AsyncInferenceClient(service.url, provider="hf-inference") as client:
        info, healthy = await client.get_endpoint_info(), await client.health_check()
    assert (info["model_id"], info["max_total_tokens"], healthy) == ("scripted", 100_000, True)


async def test_huggingface_hub_reads_streams(service: Service) -> None:
    def sync() -> list[str]:
        return [*InferenceClient(service.url).text_generation(PROMPT, stream=True)]

    assert [text for text in await asyncio.to_thread(sync) if text] == WORDS
    async with AsyncInferenceClient(service.url) as client:
        stream = await client.text_generation(PROMPT, details=True, stream=True, return_full_text=False)
        events = [event async for event in stream]
    assert [event.token.text for event in events if not event.token.special] == WORDS
    assert [event.token.logprob for event in events[:-1]] == [-0.5] * len(WORDS)
    last = events[-1]
    assert last.details
    assert (last.generated_text, last.details.finish_reason) == (ANSWER, "eos_token")
    assert (last.details.generated_tokens, last.details.input_length) == (3, 4)


@pytest.mark.parametrize(
    ("script", "parameters", "error"),
    [
        ([], {"temperature": -1.0}, hub.ValidationError),
        ([], {"best_of": 2}, hub.ValidationError),
        ([Overloaded("full")], {}, hub.OverloadedError),
        ([ModelServerError("broken")], {}, hub.GenerationError),
        (["Deep", ModelServerError("broken")], {}, hub.GenerationError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_huggingface_hub_raises_its_own_class_for_each_error(
    monkeypatch: pytest.MonkeyPatch, script: Any, parameters: Any, error: type[Exception], stream: bool
) -> None:
    async with failing(monkeypatch, *script) as service, AsyncInferenceClient(service.url) as client:
        with pytest.raises(error):
            await read(client, PROMPT, stream, parameters)


# text_generation, the client in TGI's own repository.


@OLD_PYDANTIC
async def test_text_generation_reads_whole_answers_and_streams(service: Service) -> None:
    def sync() -> Any:
        return text_generation.Client(service.url).generate(PROMPT, max_new_tokens=2)

    client = text_generation.AsyncClient(service.url)
    whole = await client.generate(PROMPT, do_sample=True, best_of=2, top_n_tokens=1)
    events = [event async for event in client.generate_stream(PROMPT, max_new_tokens=200)]
    cut = await asyncio.to_thread(sync)
    assert whole.generated_text == events[-1].generated_text == ANSWER
    assert whole.details.finish_reason == "eos_token"
    assert whole.details.best_of_sequences
    assert events[-1].details
    assert whole.details.generated_tokens == events[-1].details.generated_tokens == 3
    assert [event.token.text for event in events if not event.token.special] == WORDS
    assert (cut.generated_text, cut.details.finish_reason) == ("Deep learning", "length")


@OLD_PYDANTIC
@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (InvalidRequest("no", "top_k"), text_generation.errors.ValidationError),
        (Overloaded("full"), text_generation.errors.OverloadedError),
        (Unreachable("gone"), text_generation.errors.GenerationError),
        (UnknownModel("a", "b"), text_generation.errors.NotFoundError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_text_generation_raises_its_own_class_for_each_error(
    monkeypatch: pytest.MonkeyPatch, error: LLMError, seen: type[Exception]
) -> None:
    async with failing(monkeypatch, error) as service:
        client = text_generation.AsyncClient(service.url)
        with pytest.raises(seen):
            await client.generate(PROMPT)
        with pytest.raises(seen):
            [event async for event in client.generate_stream(PROMPT)]


# LangChain.


async def test_langchains_endpoint_reads_whole_answers_and_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scored()
    async with running(server, monkeypatch, ONLY) as service:
        endpoint = HuggingFaceEndpoint(endpoint_url=service.url, top_k=3)  # type: ignore[call-arg]
        whole = await endpoint.ainvoke(PROMPT)
        sync = await asyncio.to_thread(endpoint.invoke, PROMPT)
        pieces = [piece async for piece in endpoint.astream(PROMPT)]
        stopped = await endpoint.ainvoke(PROMPT, stop=[" learn"])
    assert whole == sync == ANSWER
    assert [piece for piece in pieces if piece] == WORDS
    assert stopped == "Deep"
    sampling = server.asked[0][1]
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (512, 0.8, 0.95, 3)


async def test_langchains_endpoint_raises_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with failing(monkeypatch, ModelServerError("broken")) as service:
        endpoint = HuggingFaceEndpoint(endpoint_url=service.url)  # type: ignore[call-arg]
        with pytest.raises(hub.GenerationError, match="broken"):
            await endpoint.ainvoke(PROMPT)


# The schema.


async def test_what_it_answers_is_valid_by_tgis_schema(service: Service) -> None:
    parameters = {"details": True, "top_n_tokens": 2, "do_sample": True, "best_of": 2}
    whole = await service.post({"inputs": PROMPT, "parameters": parameters}, "/generate")
    (listed,) = (await service.post({"inputs": PROMPT, "parameters": parameters}, "/")).json
    stream = await service.post({"inputs": PROMPT, "parameters": {"details": True}}, "/generate_stream")
    fast = await service.post({"inputs": PROMPT}, "/generate_stream")
    tokens, info = await service.post({"inputs": PROMPT}, "/tokenize"), await service.get("/info")
    chat = await service.post({"messages": [{"role": "user", "content": PROMPT}]}, "/chat_tokenize")
    refused = await service.post({"inputs": ""}, "/generate")
    answers = [
        ("GenerateResponse", whole.json),
        ("GenerateResponse", listed),
        ("TokenizeResponse", tokens.json),
        ("ChatTokenizeResponse", chat.json),
        ("Info", info.json),
        ("ErrorResponse", refused.json),
        *(("StreamResponse", json.loads(one.removeprefix(b"data:"))) for one in (*stream.chunks, *fast.chunks)),
    ]
    assert len(answers) == 6 + 2 * 4
    for schema, document in answers:
        validator(schema).validate(document)


# Our own client: a service in front of this one.


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return lambda server: through_framework(server, request.param)


async def test_our_own_client_reads_all_that_it_reads_of_tgi(service: Service, framework: Callable[[Any], Any]) -> None:
    server = framework(open_model_server("tgi", Target("scripted", service.url)))
    assert all(isinstance(server, ability) for ability in (CountsPrompts, FindsTokens, Tokenizes))
    info = await server.describe()
    assert (info.context_window, info.base) == (100_000, "scripted")
    streamed = await collect(server.generate, PROMPT, Sampling(2, seed=1), {})
    whole = await server.complete(PROMPT, Sampling(top_k=3), {})
    assert (streamed.text, streamed.reason, streamed.usage) == ("Deep learning", "length", Usage(4, 2))
    assert (whole.text, whole.reason) == (ANSWER, "stop")
    assert whole.usage
    assert whole.usage.completion_tokens == 3
    assert await server.count_tokens("é b") == await server.count_prompt("é b", {}) == 3
    assert await server.token_ends("é b") == [1, 2, 3]
    assert await server.tokenize("é b") == [Token(ord("é"), 1), Token(32, 2), Token(98, 3)]
    await server.aclose()


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (InvalidRequest("no", "top_k"), InvalidRequest),
        (PromptTooLong(9000, 8192), PromptTooLong),
        (Overloaded("full"), Overloaded),
        (ModelServerError("broken"), Refused),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_our_own_client_raises_each_error_as_its_own(
    monkeypatch: pytest.MonkeyPatch, framework: Callable[[Any], Any], error: LLMError, seen: type[LLMError]
) -> None:
    async with failing(monkeypatch, error) as service:
        server = framework(open_model_server("tgi", Target("tgi", service.url)))
        for ask in (server.complete, lambda *asked: collect(server.generate, *asked)):
            with pytest.raises(seen) as caught:
                await ask(PROMPT, Sampling(), {})
            assert type(caught.value) is seen
            if seen is InvalidRequest:
                assert getattr(caught.value, "field", None) == "top_k"
            if isinstance(caught.value, PromptTooLong):
                assert (caught.value.prompt_tokens, caught.value.context_window) == (9000, 8192)
        await server.aclose()


async def test_a_service_in_front_of_a_service_answers_from_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Scored(FACT)
    async with running(inner, monkeypatch) as behind:
        outer = open_model_server("tgi", Target("scripted", behind.url))
        async with running(outer, monkeypatch) as front:
            asked = {"messages": "How much memory?", "documents": [FACT], "citations": "matched"}
            answer = await front.post(asked)
            stream = await front.post({"inputs": "How much memory?", "documents": [FACT]}, "/generate_stream")
    choice = answer.json["choices"][0]
    assert choice["message"]["content"] == FACT
    assert choice["message"]["annotations"]
    assert answer.headers["x-documents-used"] == stream.headers["x-documents-used"] == "1"
    assert json.loads(stream.chunks[-1].removeprefix(b"data:"))["generated_text"] == FACT
    read = [prompt if isinstance(prompt, str) else text_of(prompt[-1].content) for prompt, _, _ in inner.asked]
    assert len(read) == 2
    assert all(FACT in text for text in read)
