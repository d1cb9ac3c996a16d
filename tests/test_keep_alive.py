"""Streams of a model server that says nothing for a while."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from comps.core.errors import ModelServerError
from comps.model_servers.scripted import Scripted
from tests.service import PATH, Connection, running

KEPT = b": keep-alive\n\n"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}], "stream": True}
QUICK = {"USVC_KEEPALIVE_SECONDS": "0.02"}


async def comments(client: Connection, most: int = 3) -> int:
    """How many comments come one after the other, at most so many."""
    for number in range(most):
        if await client.chunk() != KEPT:
            return number
    return most


STREAMS: list[tuple[str, dict[str, Any]]] = [
    (PATH, CHAT),
    ("/agenerate", {"prompt": "?"}),
    ("/v1/responses", {"input": "?", "stream": True}),
    ("/v1/messages", {**CHAT, "max_tokens": 9}),
    ("/v2/chat", CHAT),
    ("/generate_stream", {"inputs": "?"}),
]
"""Where the clients skip comments, a body of each dialect."""


@pytest.mark.parametrize("framework", ["native", "langchain"])
@pytest.mark.parametrize(("path", "body"), STREAMS, ids=[path for path, _ in STREAMS])
async def test_a_silent_stream_gets_comments_before_and_between_its_pieces(
    path: str, body: dict[str, Any], framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    server = Scripted([[first, "one", second, " two"]])
    async with running(server, monkeypatch, {**QUICK, "FRAMEWORK": framework}) as service, service.connect() as client:
        await client.send("POST", path, json.dumps(body).encode())
        assert (await client.head()).status == 200
        assert await comments(client) == 3
        first.set()
        while b"one" not in await client.chunk():
            pass
        assert await comments(client) == 3
        second.set()
        rest = b""
        while chunk := await client.chunk():
            rest += chunk
        assert b"two" in rest


async def test_what_fails_after_a_comment_is_an_error_item(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    server = Scripted([[gate, ModelServerError("it broke")]])
    async with running(server, monkeypatch, QUICK) as service, service.connect() as client:
        await client.send("POST", PATH, json.dumps(CHAT).encode())
        assert (await client.head()).status == 200
        await comments(client, 1)
        gate.set()
        while b"it broke" not in await client.chunk():
            pass


@pytest.mark.parametrize(
    ("body", "settings", "path"),
    [
        ({"query": "?"}, QUICK, PATH),
        (CHAT, {}, PATH),
        ({**CHAT, "stream": False}, QUICK, PATH),
        (CHAT, QUICK, "/api/chat"),
    ],
    ids=str,
)
async def test_there_are_no_comments_where_they_are_off_or_would_be_read(
    body: dict[str, Any], settings: dict[str, str], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Scripted([["one"]], delay=0.1)
    async with running(server, monkeypatch, settings) as service:
        assert KEPT not in (await service.post(body, path)).body
