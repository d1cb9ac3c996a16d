"""Deadlines of model servers and clients: on each route, in each dialect's shape, over both frameworks, in metrics."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Collection, Iterator

import pytest

from comps.core.errors import Timeout
from comps.core.sockets import notice_silence
from comps.core.tallies import TIMEOUTS
from comps.dialects import DIALECTS
from comps.dialects.shared.base import GenerationCall
from comps.model_servers import FRAMEWORKS
from comps.model_servers.remote import client, openai_api
from tests.dialects.kinds import KINDS, Kind
from tests.dialects.test_contract import check_error
from tests.hanging import CHAT, CHAT_PATH, hanging, in_front, metric
from tests.service import PATIENCE, Answer, Service, until_idle
from tests.test_backpressure import Flood, slow_client


def everywhere(deadline: str, dialects: Collection[str]) -> pytest.MarkDecorator:
    """The parameters of a test: a deadline in these dialects, and the deadline of the whole answer in one of them."""
    cases = [(deadline, dialect) for dialect in dialects] + [("total", "openai")]
    return pytest.mark.parametrize(
        ("deadline", "dialect", "framework"), [(*case, framework) for case in cases for framework in FRAMEWORKS]
    )


@pytest.fixture(autouse=True)
def no_timeouts_before() -> Iterator[None]:
    TIMEOUTS.clear()
    yield
    TIMEOUTS.clear()


async def ask_all(service: Service, dialect: str, streamed: bool) -> dict[Kind, Answer]:
    """The answers to each kind of body of a dialect, asked for at the same time."""
    kinds = [kind for kind in KINDS if kind.dialect == dialect and kind.bodies(streamed)]
    paths = [kind.route.replace("{model:path}", "m") for kind in kinds]
    asked = [service.post(kind.bodies(streamed)[0], path) for kind, path in zip(kinds, paths, strict=True)]
    return dict(zip(kinds, await asyncio.gather(*asked), strict=True))


@everywhere("first_token", DIALECTS)
async def test_an_answer_that_does_not_begin_in_time_is_a_504_in_the_dialects_shape(
    monkeypatch: pytest.MonkeyPatch, deadline: str, dialect: str, framework: str
) -> None:
    settings = {"LLM_DIALECTS": dialect, f"LLM_{deadline.upper()}_SECONDS": "0.1"}
    async with hanging() as server, in_front([server], monkeypatch, framework, **settings) as service:
        late = 0
        for streamed in (True, False):
            for kind, answer in (await ask_all(service, dialect, streamed)).items():
                if issubclass(kind.call, GenerationCall) or "embedding" in kind.route:
                    late += 1
                    assert answer.status == kind.call.style.status(Timeout("")) == 504, kind
                    check_error(dialect, answer, "the model server did not begin in time")
        counted = await metric(service, "opea_llm_timeouts_total")
    assert counted.keys() == {deadline}
    assert counted[deadline] >= late  # Of a body with several prompts, more than one may be late.


@everywhere("between_tokens", sorted({kind.dialect for kind in KINDS if kind.bodies(True)}))
async def test_a_stream_that_does_not_go_on_in_time_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch, deadline: str, dialect: str, framework: str
) -> None:
    settings = {"LLM_DIALECTS": dialect, f"LLM_{deadline.upper()}_SECONDS": "0.2"}
    async with hanging(begins=True) as server, in_front([server], monkeypatch, framework, **settings) as service:
        kinds = [kind for kind in KINDS if kind.dialect == dialect and kind.bodies(True)]
        for kind in kinds:
            async with service.connect() as connection:
                path = kind.route.replace("{model:path}", "m")
                await connection.send("POST", path, json.dumps(kind.bodies(True)[0]).encode())
                assert (await connection.head()).status == 200
                text = b""  # Up to the error, or to the end of the connection where a dialect has no other sign.
                while not (b"in time" in text or b"ERROR" in text or connection.reader.at_eof()):
                    text += await asyncio.wait_for(connection.reader.read(65_536), PATIENCE)
                assert b"word" in text
                assert b"[DONE]" not in text
        await until_idle(service)
        counted = await metric(service, "opea_llm_timeouts_total")
    assert counted == {deadline: len(kinds)}


BEATS = (
    b"data: {}\n\n",
    b'event: ping\ndata: {"type": "ping"}\n\n',
    b'data: {"type": "ping"}\n\n',
    b'data: {"id": "c", "choices": []}\n\n',
    b'data: {"id": "c", "choices": null, "usage": null}\n\n',
    b'data: {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}\n\n',
    b'data: {"choices": [{"index": 0, "delta": {"content": "", "reasoning": null}, "finish_reason": null}]}\n\n',
    b'data: {"choices": [{"index": 0, "text": "", "logprobs": null}]}\n\n',
    b'data: {"choices": [{"delta": {"content": ""}, "logprobs": {"content": [], "refusal": null}}]}\n\n',
    b'data: {"choices": [{"delta": {"provider_specific_fields": {"refusal": null}, "tool_calls": []}}]}\n\n',
    b"data: []\n\ndata: null\n\ndata: 0\n\n",
    b': OPENROUTER PROCESSING\n\nevent: heartbeat\ndata: {"status": "processing"}\n\n',
)
"""Events that only keep a connection open."""


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("dialect", "beats"), [(name, BEATS[at::4]) for at, name in enumerate(("opea", "openai", "anthropic", "ollama"))]
)
async def test_heartbeats_of_a_model_server_are_no_tokens(
    monkeypatch: pytest.MonkeyPatch, dialect: str, beats: tuple[bytes, ...], framework: str
) -> None:
    kind = next(kind for kind in KINDS if kind.dialect == dialect and kind.bodies(True))
    body, path = kind.bodies(True)[0], kind.route.replace("{model:path}", "m")
    settings = {"LLM_DIALECTS": dialect, "LLM_FIRST_TOKEN_SECONDS": "0.1", "LLM_BETWEEN_TOKENS_SECONDS": "0.05"}
    async with hanging() as server, in_front([server], monkeypatch, framework, **settings) as service:
        for server.beat in beats:
            server.begins = False
            answer = await service.post(body, path)
            assert answer.status == 504, server.beat
            check_error(dialect, answer, "the model server did not begin in time")
            server.begins = True
            answer = await asyncio.wait_for(service.post(body, path), PATIENCE)
            assert answer.status == 200
            assert b"did not go on in time" in answer.body or answer.body.endswith(b"data: [ERROR]\n\n"), server.beat
        counted = await metric(service, "opea_llm_timeouts_total")
    assert counted == {"first_token": len(beats), "between_tokens": len(beats)}


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_what_counts_and_describes_has_deadlines_as_well(monkeypatch: pytest.MonkeyPatch, framework: str) -> None:
    monkeypatch.setattr(client, "_FACTS_SECONDS", 0.1)
    monkeypatch.setattr(openai_api, "_FRESH_SECONDS", 0.0)
    settings = {"LLM_FIRST_TOKEN_SECONDS": "0.1"}
    async with hanging() as server, in_front([server], monkeypatch, framework, **settings) as service:
        server.counts = False
        count = await service.post({"prompt": "?"}, "/api/count_token")
        check_error("square", count, "in time")
        preview = await service.post(CHAT, "/v1/prompt")
        check_error("openai", preview, "in time")
        # A prompt that cannot be counted is estimated, and no answer is late because of that.
        chat = await service.post({**CHAT, "documents": ["word " * 3000]}, CHAT_PATH)
        server.lists = False
        models = await service.get("/v1/models")
        ready = await service.get("/ready")
    assert (count.status, preview.status, chat.status, models.status, ready.status) == (504, 504, 504, 200, 503)
    assert Counter(TIMEOUTS).keys() == {"first_token"}


async def test_a_connection_that_takes_too_long_is_a_503_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)  # The kernel's queue is full after one or two.
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        async with hanging() as server:
            server.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            settings = {"LLM_CONNECT_SECONDS": "0.1"}
            async with in_front([server], monkeypatch, "native", **settings) as service:
                answer = await service.post(CHAT, CHAT_PATH)
                counted = await metric(service, "opea_llm_timeouts_total")
    assert answer.status == 503
    assert counted["connect"] >= 1
    assert counted.keys() == {"connect"}


async def test_a_client_that_takes_nothing_of_its_answer_is_given_up_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flood = await asyncio.get_running_loop().create_server(Flood, "127.0.0.1", 0)
    async with flood, hanging() as server:
        server.url = f"http://127.0.0.1:{flood.sockets[0].getsockname()[1]}"
        async with in_front([server], monkeypatch, "native") as service:
            for listening in service.server.servers[0].sockets:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
                notice_silence(listening, 0.3)  # As the command does it by `stalled_client_seconds`.
            reader = await asyncio.to_thread(slow_client, service.port)
            await asyncio.wait_for(until_idle(service), PATIENCE)
            reader.close()
            assert await metric(service, "opea_llm_timeouts_total") == {"client": 1}
            assert await metric(service, "opea_llm_cancelled_requests_total") == {"stream": 1}
