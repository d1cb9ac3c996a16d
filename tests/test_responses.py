"""The handler under another ASGI server than the one of this project."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from comps.model_servers.scripted import Scripted
from comps.responses import SentResponse
from tests.service import PATH, running


async def test_a_server_that_says_by_an_error_that_the_client_has_left_is_understood(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = Scripted([["one", asyncio.Event(), "never"]])
    sent: list[Any] = []
    body = json.dumps({"messages": "Hello?", "stream": True}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise BrokenPipeError
        sent.append(message)

    async with running(scripted, monkeypatch) as service:
        scope = {"type": "http", "method": "POST", "path": PATH, "root_path": "", "headers": [], "query_string": b""}
        handler = next(one for one in service.app.state.service.handlers if one.endpoint.path == PATH)
        await asyncio.wait_for(handler(scope, receive, send), 10)
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert scripted.closed.is_set()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_server_that_says_by_an_error_of_receive_that_the_client_has_left_is_understood() -> None:
    async def receive() -> Any:
        raise RuntimeError("cancelled")

    async def send(message: Any) -> None:
        raise AssertionError

    response, left = SentResponse(receive, send), asyncio.Event()
    response.on_leave(left.set)
    response.on_leave(None)  # Nobody wants to know any more.
    await asyncio.sleep(0)
    assert not left.is_set()
    response.on_leave(left.set)
    await asyncio.wait_for(left.wait(), 5)


@pytest.mark.parametrize("streams", [False, True])
async def test_a_server_that_gives_requests_no_id_of_ours_gets_none_in_the_answer(
    monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    """Ray's proxy has ids of its own; beside an empty one, clients read `, <id>`."""
    body = {"model": "scripted", "messages": [{"role": "user", "content": "?"}], "max_tokens": 5}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async with running(Scripted([["one"]]), monkeypatch) as service:
        for path in (PATH, "/v1/messages"):
            data = json.dumps({**body, "stream": streams}).encode()
            messages = [{"type": "http.request", "body": data, "more_body": False}]

            async def receive(messages: list[Any] = messages) -> Any:
                return messages.pop() if messages else await asyncio.Event().wait()

            scope = {
                "type": "http",
                "method": "POST",
                "path": path,
                "root_path": "",
                "headers": [],
                "query_string": b"",
            }
            handler = next(one for one in service.app.state.service.handlers if one.endpoint.path == path)
            await asyncio.wait_for(handler(scope, receive, send), 10)
    starts = [message for message in sent if message["type"] == "http.response.start"]
    assert [start["status"] for start in starts] == [200, 200]
    assert not [name for start in starts for name, _ in start["headers"] if name.endswith(b"request-id")]
