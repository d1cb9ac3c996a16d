"""Servers that speak OpenAI's API: recordings of real ones, and what a misbehaving one does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from comps.core.answers import collect, read
from comps.core.errors import (
    BrokenOff,
    InvalidRequest,
    LLMError,
    ModelServerError,
    Overloaded,
    PromptTooLong,
    Refused,
    SettingsError,
    Unreachable,
)
from comps.core.types import JSON, Event, Finished, Generation, Message, Prompt, Sampling, TextDelta, Token, Usage
from comps.model_servers import FRAMEWORKS, through_framework
from comps.model_servers.langchain.chat_model import ChatModelServer
from comps.model_servers.langchain.sync import wait_for
from comps.model_servers.remote.openai_api import OpenAIAPI
from comps.model_servers.remote.tgi import TGI
from comps.model_servers.remote.vllm import VLLM
from comps.model_servers.remote.whole_answers import generation_of
from comps.model_servers.target import Access, Target
from tests.events import gathered
from tests.model_servers.replay import Reply, recorded, replaying, sse

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
QUESTION: Prompt = (Message("user", "Hi"),)


def delta(text: object = None, reason: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


@dataclass(frozen=True)
class Asker:
    """Asks a replaying server of some kind through one of the frameworks."""

    framework: str

    async def events(self, reply: Reply, prompt: Prompt = QUESTION, kind: type[OpenAIAPI] = VLLM) -> list[Event]:
        async with replaying({CHAT: reply, COMPLETIONS: reply}) as replay:
            # In a thread, since a package is imported, for which the service has time before its loop runs.
            native = kind("tiny-llama", replay.url)
            server = await asyncio.to_thread(through_framework, native, self.framework)
            try:
                return [event async for event in read(server.generate, prompt, Sampling(), {})]
            finally:
                await server.aclose()

    async def whole(self, reply: Reply, prompt: Prompt = QUESTION, kind: type[OpenAIAPI] = VLLM) -> Generation:
        return gathered(await self.events(reply, prompt, kind))


@pytest.fixture(params=FRAMEWORKS)
def asker(request: pytest.FixtureRequest) -> Asker:
    return Asker(request.param)


@pytest.mark.parametrize("size", [None, 1, 7, 4096, 100_000])
async def test_a_real_vllm_stream_is_read_however_its_bytes_are_cut(size: int | None, asker: Asker) -> None:
    whole = await asker.whole(recorded("vllm", "chat_stream_usage", size))
    assert whole == Generation("OnOnOnOnOnlOnl", "length", Usage(20, 8))


async def test_a_real_vllm_stream_without_usage_has_none(asker: Asker) -> None:
    whole = await asker.whole(recorded("vllm", "chat_stream"))
    assert (whole.reason, whole.usage) == ("length", None)
    assert whole.text.startswith("On")


async def test_the_details_of_a_usage_that_are_numbers_are_passed_on(asker: Asker) -> None:
    details = {
        "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": None, "odd": "x"},
        "completion_tokens_details": {"reasoning_tokens": 1},
        "odd_details": "x",
        "cost": 0.5,
    }
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, **details}
    whole = await asker.whole(sse(delta("a", "stop"), {"choices": [], "usage": usage}))
    told = {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}
    assert whole.usage == Usage(3, 4, told)


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_earlier_reasoning_is_sent_under_both_of_its_names(framework: str) -> None:
    earlier = Message("assistant", "Four.", {"reasoning_content": "Hm."})
    async with replaying({CHAT: sse(delta("a", "stop"))}) as replay:
        server = await asyncio.to_thread(through_framework, VLLM("m", replay.url), framework)
        await collect(server.generate, (*QUESTION, earlier, *QUESTION), Sampling(), {})
        await server.aclose()
    sent = replay.asked[-1][2]["messages"][1]
    assert sent == {"role": "assistant", "content": "Four.", "reasoning_content": "Hm.", "reasoning": "Hm."}


async def test_text_is_continued_over_completions(asker: Asker) -> None:
    whole = await asker.whole(recorded("vllm", "completions_stream"), "What is Deep Learning?")
    assert whole.text.startswith("ages")
    assert whole.reason == "length"


async def test_a_stream_without_done_is_whole_if_it_said_how_it_ended(asker: Asker) -> None:
    whole = await asker.whole(recorded("transformers_serve", "chat_stream"), kind=OpenAIAPI)
    assert (whole.reason, whole.usage) == ("length", Usage(20, 8))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        pytest.param(sse(delta("a"), b": ping\n\n", delta("b", "stop"), b"data: [DONE]\n\n"), "ab", id="comment"),
        pytest.param(sse(delta("a [DONE] b", "stop"), b"data: [DONE]\n\n"), "a [DONE] b", id="done in the text"),
        pytest.param(sse(delta(None), delta("a"), delta(None, "stop")), "a", id="null content"),
        pytest.param(sse({"choices": []}, delta("a", "stop")), "a", id="empty choices"),
        pytest.param(
            sse(
                b'event: x\r\nid: 1\r\ndata: {"choices":\r\ndata: [{"delta":{"content":"a"},'
                b'"finish_reason":"stop"}]}\r\n\r\n'
            ),
            "a",
            id="several data lines and CRLF",
        ),
        pytest.param(
            sse(b'data:{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}'), "a", id="no last line"
        ),
        pytest.param(sse(b"\xef\xbb\xbf", delta("a"), delta("b", "stop")), "ab", id="byte order mark"),
        pytest.param(
            sse({"choices": [{"index": None, "delta": {"content": "a"}, "finish_reason": "stop"}]}), "a", id="no index"
        ),
        pytest.param(
            sse(delta("a", "stop"), {"usage": {"prompt_tokens": None, "completion_tokens": None}}), "a", id="null usage"
        ),
    ],
)
async def test_what_streams_may_hold(reply: Reply, expected: str, asker: Asker) -> None:
    assert (await asker.whole(reply)).text == expected


CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}
REST = {"index": 0, "function": {"arguments": ": 1}"}}
LOGPROBS = {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}]}


def choice(number: int = 0, reason: str | None = None, **more: object) -> dict[str, object]:
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"} | {
        "choices": [{"index": number, "finish_reason": reason, **more}]
    }


@pytest.mark.parametrize(
    ("reply", "events"),
    [
        pytest.param(
            sse(choice(delta={"role": "assistant"}), choice(delta={"content": "a"}), choice(delta={}, reason="stop")),
            [TextDelta("a"), Finished("stop")],
            id="a role alone and an empty delta",
        ),
        pytest.param(
            sse(choice(delta={"content": "a"}), choice(delta={"content": "b"}, reason="length")),
            [TextDelta("a"), TextDelta("b"), Finished("length")],
            id="text with the end",
        ),
        pytest.param(
            sse(choice(delta={"content": "a"}), choice(delta={}, reason="stop", stop_reason="END")),
            [TextDelta("a"), Finished("stop", stop_string="END")],
            id="a stop string",
        ),
        pytest.param(
            sse(choice(delta={"content": "a"}), choice(delta={}, reason="stop", stop_reason=2)),
            [TextDelta("a"), Finished("stop")],
            id="the id of a token that stops",
        ),
        pytest.param(
            sse(choice(delta={"reasoning": "hm", "content": None}), choice(delta={"content": "a"}, reason="stop")),
            [TextDelta("", 0, {"reasoning": "hm"}), TextDelta("a"), Finished("stop")],
            id="reasoning",
        ),
        pytest.param(
            sse(choice(delta={"reasoning_content": "hm"}), choice(delta={"content": "a"}, reason="stop")),
            [TextDelta("", 0, {"reasoning_content": "hm"}), TextDelta("a"), Finished("stop")],
            id="reasoning by its other name",
        ),
        pytest.param(
            sse(
                choice(delta={"role": "assistant", "content": None, "tool_calls": [CALL]}),
                choice(delta={"tool_calls": [REST]}),
                choice(delta={}, reason="tool_calls"),
            ),
            [
                TextDelta("", 0, {"tool_calls": [CALL]}),
                TextDelta("", 0, {"tool_calls": [REST]}),
                Finished("tool_calls"),
            ],
            id="tool calls",
        ),
        pytest.param(
            sse(choice(delta={"content": "a"}, logprobs=LOGPROBS), choice(delta={}, reason="stop")),
            [TextDelta("a", 0, {"logprobs": LOGPROBS}), Finished("stop")],
            id="logprobs",
        ),
        pytest.param(
            sse(
                choice(0, delta={"content": "a"}),
                choice(1, delta={"content": "b"}),
                choice(1, delta={}, reason="stop"),
                choice(0, delta={"content": "c"}, reason="length"),
                {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}},
            ),
            [
                TextDelta("a"),
                TextDelta("b", 1),
                TextDelta("c"),
                Finished("length", Usage(3, 4), 0),
                Finished("stop", None, 1),
            ],
            id="two choices",
        ),
        pytest.param(
            sse(choice(delta={"content": "a", "annotations": [{"n": 1}]}), choice(delta={}, reason="content_filter")),
            [TextDelta("a", 0, {"annotations": [{"n": 1}]}), Finished("content_filter")],
            id="a field that nobody knows",
        ),
        pytest.param(
            sse(choice(delta={"refusal": "I will not."}), choice(delta={}, reason="stop")),
            [TextDelta("", 0, {"refusal": "I will not."}), Finished("stop")],
            id="a refusal",
        ),
    ],
)
async def test_all_that_a_stream_says_is_passed_on(reply: Reply, events: list[Event], asker: Asker) -> None:
    assert await asker.events(reply) == events


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3])
async def test_characters_may_be_cut_anywhere(size: int, end: bytes, asker: Asker) -> None:
    text = "é 深 🦙 \u2028 \x85."
    said = json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}, ensure_ascii=False)
    body = b"data: " + said.encode() + end + end
    reply = Reply([body[at : at + size] for at in range(0, len(body), size)], headers={})
    assert (await asker.whole(reply)).text == text


def plain(status: int, body: bytes, **headers: str) -> Reply:
    return Reply([body], status, {"Content-Type": "text/plain", **headers})


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (recorded("vllm", "err_too_long"), InvalidRequest, "maximum context length is 1024"),
        (recorded("vllm", "err_bad_temperature"), InvalidRequest, "temperature must be non-negative"),
        (recorded("vllm", "err_unknown_model"), Refused, "does not exist"),
        (recorded("transformers_serve", "err_wrong_type"), Refused, "500"),
        (plain(401, b'{"error":"wrong key sk-123"}'), Refused, "does not accept this service's key$"),
        (plain(422, b'{"detail":"no"}'), InvalidRequest, "no"),
        (plain(413, b"too large"), InvalidRequest, "too large"),
        (plain(503, b"loading"), Unreachable, "loading"),
        (plain(500, b"<html>x</html>"), Refused, "500"),
        (plain(200, b"<html>hello</html>"), ModelServerError, "broke off"),
        (Reply([], headers={}), ModelServerError, "broke off"),
        (Reply([]), ModelServerError, "application/json, no event stream: nothing"),
        (Reply([b'{"error": "no GPU"}']), ModelServerError, "no GPU"),
        (sse(b"data: nonsense\n\n"), ModelServerError, "no JSON"),
        (sse(b"data: [5]\n\n"), ModelServerError, "no JSON object"),
        (sse(delta("a"), {"error": {"message": "out of memory"}}), ModelServerError, "out of memory"),
        (sse(delta("a"), {"error": "out of memory"}), ModelServerError, "out of memory"),
        (sse(delta("a")), ModelServerError, "broke off"),
        (sse({"choices": "none"}), ModelServerError, "broke off"),
        (sse(delta([5]), delta("b", "stop")), ModelServerError, "no text"),
        (sse(delta(5, "stop")), ModelServerError, "no text"),
        (
            sse(choice(0, delta={"content": "a"}), choice(1, delta={"content": "b"}, reason="stop")),
            ModelServerError,
            "broke off",
        ),
        (sse(delta("a"), b"data: [DONE]\n\n"), ModelServerError, "broke off"),
        (Reply([b"data: "], headers={}, break_off=True), ModelServerError, "broke"),
    ],
)
async def test_a_failure_is_an_error_of_ours_with_the_servers_own_words(
    reply: Reply, error: type[LLMError], message: str, asker: Asker
) -> None:
    with pytest.raises(error, match=message):
        await asker.events(reply)


def refused(message: str, **more: object) -> Reply:
    return Reply([json.dumps({"error": {"message": message, **more}}).encode()], 400)


@pytest.mark.parametrize(
    ("reply", "numbers"),
    [
        (recorded("vllm", "err_too_long"), (0, 0)),
        (recorded("llama_server", "err_too_long"), (10031, 1024)),
        (recorded("ray_serve", "err_too_long"), (0, 0)),
        (
            refused("The decoder prompt (length 9) is longer than the maximum model length of 8. Make sure"),
            (0, 0),
        ),
        (refused("The input (9 tokens) is longer than the model's context length (8 tokens)."), (0, 0)),
        (refused("no", param="messages", code="context_length_exceeded"), (0, 0)),
    ],
)
async def test_a_prompt_that_is_too_long_for_the_server_is_known_as_such(
    reply: Reply, numbers: tuple[int, int], asker: Asker
) -> None:
    with pytest.raises(PromptTooLong) as caught:
        await asker.events(reply)
    assert (caught.value.prompt_tokens, caught.value.context_window) == numbers


TOO_LARGE = "is too large: 9. This model's maximum context length is 8 tokens and your request has 2 input tokens"


@pytest.mark.parametrize(
    ("reply", "field"),
    [
        (recorded("vllm", "err_bad_temperature"), "temperature"),
        (recorded("ray_serve", "err_bad_max_tokens"), "max_tokens"),
        (refused(f"max_tokens {TOO_LARGE}", param="max_tokens"), "max_tokens"),
        (refused(f"'max_tokens' or 'max_completion_tokens' {TOO_LARGE}"), None),
        (refused("no", param="a\nb"), None),
        (refused("no", param=["x"], code=[1]), None),
        (plain(400, b'"no"'), None),
    ],
)
async def test_a_refusal_names_the_field_that_the_server_names(reply: Reply, field: str | None, asker: Asker) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await asker.events(reply)
    assert (type(caught.value), caught.value.field) == (InvalidRequest, field)


async def test_a_limit_that_openai_wants_under_its_newer_name_gets_that(asker: Asker) -> None:
    newer = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    replies = [refused(newer, param="max_tokens", code="unsupported_parameter"), sse(delta("a", "stop"))]
    async with replaying({CHAT: replies}) as replay:
        native = OpenAIAPI("o9", replay.url)
        server = await asyncio.to_thread(through_framework, native, asker.framework)
        for _ in range(2):
            assert (await collect(server.generate, QUESTION, Sampling(5), {})).text == "a"
        await server.aclose()
    limits = [{name: value for name, value in body.items() if "max_" in name} for _, _, body in replay.asked]
    assert limits == [{"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_completion_tokens": 5}]


@pytest.mark.parametrize(("status", "error"), [(429, Overloaded), (503, Unreachable)])
async def test_a_busy_server_says_when_to_come_back(status: int, error: type[LLMError], asker: Asker) -> None:
    with pytest.raises(error) as caught:
        await asker.whole(plain(status, b"busy", **{"Retry-After": "7"}))
    assert caught.value.retry_after == 7


async def test_a_closed_port_is_unreachable() -> None:
    server = VLLM("m", "http://127.0.0.1:9")
    with pytest.raises(Unreachable):
        await server.describe()
    with pytest.raises(Unreachable):
        await collect(server.generate, QUESTION, Sampling(), {})
    await server.aclose()


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
async def test_it_is_described_by_its_own_list_of_models(ending: str) -> None:
    async with replaying({"/v1/models": recorded("vllm", "models")}) as replay:
        server = VLLM("tiny-llama", replay.url + ending)
        info = await server.describe()
        await server.describe()
        alias = VLLM("alias", replay.url)
        assert (await alias.describe()).name == "alias"
        await server.aclose()
        await alias.aclose()
    assert (info.name, info.base, info.context_window) == ("tiny-llama", "tiny-llama", 1024)
    assert len(replay.asked) == 2


@pytest.mark.parametrize("body", [b'{"data": null}', b'{"data": ["x"]}', b"[]", b"<html>"])
async def test_a_list_of_models_that_is_none_costs_no_answer(body: bytes) -> None:
    for status in (200, 400, 404, 500):
        async with replaying({"/v1/models": plain(status, body)}) as replay:
            server = VLLM("m", replay.url)
            info = await server.describe()
            await server.aclose()
        assert (info.name, info.context_window) == ("m", None)


async def embedded(*vectors: object) -> Sequence[Sequence[float]]:
    """What comes of a server's vectors."""
    data = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    async with replaying({"/v1/embeddings": Reply([json.dumps({"data": data}).encode()])}) as replay:
        server = VLLM("m", replay.url)
        try:
            return (await server.embed(["a"] * len(vectors))).vectors
        finally:
            await server.aclose()


async def test_vectors_are_read_as_numbers_or_in_base64() -> None:
    assert await embedded([0.5, -2], "AAAAPwAAAMA=") == ([0.5, -2], [0.5, -2.0])


@pytest.mark.parametrize(
    "vectors",
    [
        (None,),
        ([],),
        ([0.1, None],),
        ([True],),
        (["A"],),
        ({"a": 1},),
        ("AAAA",),
        ("AADAfw==",),
        ("no base64!",),
        ([1.0], [1.0, 2.0]),
    ],
    ids=str,
)
async def test_vectors_that_are_none_are_an_error_of_the_model_servers(vectors: tuple[object, ...]) -> None:
    with pytest.raises(ModelServerError, match="makes no sense"):
        await embedded(*vectors)


async def test_a_finish_reason_that_is_none_does_not_reach_a_header(asker: Asker) -> None:
    assert (await asker.whole(sse(delta("a", "stop\r\nX-Evil: 1")))).reason == "unknown"


@pytest.mark.parametrize("said", ["abort", "ERROR", "network_error", "insufficient_system_resource"])
async def test_an_answer_that_the_server_says_it_did_not_complete_is_an_error(said: str, asker: Asker) -> None:
    with pytest.raises(BrokenOff, match=f"in the middle of the answer: {said.lower()}$"):
        await asker.whole(sse(delta("a", said), b"data: [DONE]\n\n"))


@pytest.mark.parametrize("kind", [VLLM, TGI])
async def test_a_whole_answer_that_the_server_says_it_did_not_complete_is_an_error(kind: type[OpenAIAPI]) -> None:
    choice = {"message": {"content": "a"}, "finish_reason": "abort"}
    body = {"generated_text": "a", "details": {"finish_reason": "abort"}, "choices": [choice]}
    reply = Reply([json.dumps(body).encode()])
    async with replaying({CHAT: reply, "/generate": reply}) as replay:
        server = kind("m", replay.url)
        with pytest.raises(BrokenOff, match="abort"):
            await server.complete("?" if kind is TGI else QUESTION, Sampling(), {})
        await server.aclose()


def test_a_url_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(SettingsError, match="LLM_API_KEY") as caught:
        VLLM.open(Target("m", "http://user:hunter2@127.0.0.1:9"))
    assert "hunter2" not in str(caught.value)


def test_a_langchain_model_over_it_can_be_invoked_synchronously_again_and_again() -> None:
    with start_blocking_portal() as portal:
        replies = {CHAT: sse(delta("a", "stop"))}
        with portal.wrap_async_context_manager(replaying(replies)) as replay:
            server = VLLM("m", replay.url)
            model = ChatModelServer(server=server)
            assert [model.invoke("?").content for _ in range(3)] == ["a", "a", "a"]
            wait_for(server.aclose())


def test_it_may_be_used_in_one_event_loop_after_another() -> None:
    with start_blocking_portal() as portal:
        replies = {CHAT: sse(delta("a", "stop")), "/v1/models": Reply([b'{"data": []}'])}
        with portal.wrap_async_context_manager(replaying(replies)) as replay:
            server = OpenAIAPI("m", replay.url)

            async def use() -> str:
                assert (await server.describe()).name == "m"
                answer = await collect(server.generate, (Message("user", "?"),), Sampling(), {})
                await server.aclose()
                return answer.text

            assert [asyncio.run(use()) for _ in range(2)] == ["a", "a"]


async def test_closing_an_answer_closes_the_connection() -> None:
    reply = sse(delta("a"))
    reply.hang = True
    async with replaying({CHAT: reply}) as replay:
        server = VLLM("m", replay.url)
        async with aclosing(read(server.generate, QUESTION, Sampling(), {})) as events:
            assert await anext(events) == TextDelta("a")
        await asyncio.wait_for(replay.left.wait(), 5)
        await server.aclose()


EVERYTHING = Sampling(7, 0.0, 1.0, 40, 0.8, 1.1, 0.2, 0.3, 42, ("a",))


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        (OpenAIAPI, {"max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop"}),
        (
            VLLM,
            {"max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "top_k"}
            | {"repetition_penalty"},
        ),
    ],
)
async def test_what_is_sent_is_what_the_server_knows(kind: type[OpenAIAPI], sent: set[str]) -> None:
    async with replaying({CHAT: sse(delta("a", "stop"))}) as replay:
        server = kind("m", replay.url, Access(api_key="secret"))
        await collect(server.generate, QUESTION, EVERYTHING, {"logprobs": True})
        await server.aclose()
    ((_, headers, body),) = replay.asked
    assert headers["authorization"] == "Bearer secret"
    always = {"model", "messages", "stream", "stream_options", "logprobs"}
    assert set(body) == sent | always
    assert body["messages"] == [{"role": "user", "content": "Hi"}]


def test_without_an_endpoint_it_says_which_setting_is_missing() -> None:
    with pytest.raises(SettingsError, match="model_server_endpoint"):
        VLLM.open(Target("m"))


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("one:8", "a URL is needed, which begins with http:// or https://"),
        ("http://one:8 http://two:8", "no space may be in a URL"),
        ("http://", "no host, or no port, in this URL"),
        ("http://one:70000", "Port out of range 0-65535"),
        ("http://one:eight", "Port could not be cast to integer value as 'eight'"),
        ("http://one:8/v1/chat/completions", "leave /chat/completions away, requests add it"),
        ("http://one:8/v1/completions/", "leave /completions/ away, requests add it"),
        ("http://one:8/generate_stream", "leave /generate_stream away, requests add it"),
    ],
)
@pytest.mark.parametrize("kind", [VLLM, TGI])
def test_an_endpoint_that_cannot_be_asked_says_what_is_wrong_with_it(
    kind: type[OpenAIAPI], endpoint: str, said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        kind.open(Target("m", endpoint))
    assert str(caught.value) == f"model_server_endpoint = {endpoint}: {said}"


def test_a_target_does_not_show_its_key() -> None:
    assert "secret" not in repr(Target("m", access=Access(api_key="secret")))


async def test_documents_beside_the_messages_reach_vllms_chat_and_its_tokenizer() -> None:
    documents = [{"doc_id": "1", "title": "", "text": "rain"}]
    options: dict[str, JSON] = {"documents": documents, "chat_template_kwargs": {"a": 1}, "tools": [{}], "min_p": 0.1}
    tokenized = Reply([b'{"count": 7, "max_model_len": 1024, "tokens": []}'])
    async with replaying({CHAT: sse(delta("a", "stop")), "/tokenize": tokenized}) as replay:
        server = VLLM("m", replay.url)
        assert await server.count_prompt(QUESTION, options) == 7
        await collect(server.generate, QUESTION, Sampling(), options)
        await server.aclose()
    counted, asked = [body for _, _, body in replay.asked]
    assert counted == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{}],
        "chat_template_kwargs": {"a": 1, "documents": documents},
    }
    assert asked["documents"] == documents
    assert asked["chat_template_kwargs"] == {"a": 1}


@pytest.mark.parametrize(
    ("strings", "tokens"),
    [
        (["<s>", "\u2581rain", "bow"], [Token(1, 0), Token(5, 4), Token(6, 7)]),
        (["rain", "bow", ""], [Token(1, 4), Token(5, 7), Token(6, 7)]),
        (["?", "?", "?"], [Token(1, None), Token(5, None), Token(6, None)]),
        (None, [Token(1, None), Token(5, None), Token(6, None)]),
    ],
)
async def test_vllm_tells_the_tokens_of_a_text(strings: list[str] | None, tokens: list[Token]) -> None:
    answer = json.dumps({"count": 3, "tokens": [1, 5, 6], "token_strs": strings}).encode()
    async with replaying({"/tokenize": Reply([answer])}) as replay:
        server = VLLM("m", replay.url)
        assert await server.tokenize("rainbow") == tokens
        await server.aclose()
    assert replay.asked[0][2] == {"model": "m", "prompt": "rainbow", "return_token_strs": True}


async def test_vllm_renders_a_conversation_by_its_tokenizer() -> None:
    tokenized = Reply([b'{"count": 2, "max_model_len": 1024, "tokens": [5, 6]}'])
    replies = {"/tokenize": tokenized, "/detokenize": Reply([b'{"prompt": "<user>Hi"}'])}
    async with replaying(replies) as replay:
        server = VLLM("m", replay.url)
        assert await server.render(QUESTION, {"tools": [{}], "n": 2}) == "<user>Hi"
        assert await server.render("Once", {}) == "Once"
        await server.aclose()
    asked = {path: body for path, _, body in replay.asked}
    assert asked == {
        "/tokenize": {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "tools": [{}]},
        "/detokenize": {"model": "m", "tokens": [5, 6]},
    }


async def test_sampling_that_the_server_does_not_know_is_not_sent_and_said_not_to_be() -> None:
    sampling = Sampling(max_tokens=3, top_k=4, stop=("x",))
    for server, top_k in ((OpenAIAPI("m", "http://x"), None), (VLLM("m", "http://x"), 4)):
        _, told, _ = await server.translated(QUESTION, sampling, {})
        assert told == replace(sampling, top_k=top_k)
        assert server.request(QUESTION, sampling, {})[1].get("top_k") == top_k
        await server.aclose()


def test_a_whole_answer_says_before_which_stop_string_it_ended() -> None:
    choices = [{"index": 1, "finish_reason": "stop", "message": {"content": "b"}, "matched_stop": 2}]
    choices += [{"index": 0, "finish_reason": "stop", "message": {"content": "a"}, "matched_stop": "END"}]
    whole = generation_of({"choices": choices})
    assert [(one.text, one.stop_string) for one in whole.choices] == [("a", "END"), ("b", None)]


@pytest.mark.parametrize(
    ("kind", "wanted", "streamed"),
    [(VLLM, "auto", False), (OpenAIAPI, "auto", True), (VLLM, "stream", True), (OpenAIAPI, "whole", False)],
)
async def test_a_whole_answer_is_requested_whole_of_servers_that_stop_when_their_client_leaves(
    kind: type[OpenAIAPI], wanted: Any, streamed: bool
) -> None:
    async with replaying({CHAT: sse(delta("a", "stop"))}) as replay:  # Which is read in any case.
        server = kind("m", replay.url, Access(whole_answers=wanted))
        assert await server.complete(QUESTION, Sampling(), {}) == Generation("a", "stop")
        await server.aclose()
    assert replay.asked[0][2].get("stream", False) is streamed
