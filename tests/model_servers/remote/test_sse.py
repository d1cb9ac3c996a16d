"""Server-sent events of unusual size; what else they may be is shown with whole answers, in test_openai_api."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from comps.core.errors import ModelServerError
from comps.model_servers.remote import sse
from comps.model_servers.remote.sse import sse_data


async def test_an_event_of_megabytes_is_whole_however_its_bytes_are_cut() -> None:
    body = b"data: " + b"a" * 5_000_000 + b"\n\ndata: b\n\n"

    async def pieces() -> AsyncGenerator[bytes]:
        for at in range(0, len(body), 1400):
            yield body[at : at + 1400]

    assert [len(data) async for data in sse_data(pieces())] == [5_000_000, 1]


async def test_a_line_without_an_end_is_an_error_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_LONGEST", 1000)
    sent = 0

    async def endless() -> AsyncGenerator[bytes]:
        nonlocal sent
        yield b"data: before\n\ndata: "
        while sent < 100_000:
            sent += 100
            yield b"a" * 100

    events = sse_data(endless())
    assert await anext(events) == b"before"
    with pytest.raises(ModelServerError, match="a line without an end"):
        await anext(events)
    assert sent == 1000
