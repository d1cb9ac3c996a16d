"""How much is called for a token, a request and a whole answer: what `make bench` measures in time, counted."""

from __future__ import annotations

import gc
from collections import Counter

import pytest

from tests.hot_path import counting

TOKENS, REQUESTS = 200, 20
# Calls of functions of ours, written in Python; a change that needs more of them says why.
MOST = {
    "native": {"token": 11, "request": 331, "whole": 306},
    "langchain": {"token": 11, "request": 356, "whole": 332},
}


def ours(calls: Counter[str]) -> int:
    """The calls of functions of this project."""
    return sum(count for name, count in calls.items() if name.startswith("comps/"))


@pytest.mark.parametrize("framework", MOST)
async def test_a_token_and_a_request_call_no_more_than_they_need(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with counting(monkeypatch, framework) as count:
        one = ours(await count(1))
        many = ours(await count(1 + TOKENS))
        several = ours(await count(1, 1 + REQUESTS))
        whole = ours(await count(128, 1, stream=False))
        wholes = ours(await count(128, 1 + REQUESTS, stream=False))
    counted = {
        "token": (many - one) / TOKENS,
        "request": (several - one) / REQUESTS,
        "whole": (wholes - whole) / REQUESTS,
    }
    # A timer of the service's own may fire in between, which is less than a call for each request.
    assert {name: number for name, number in counted.items() if int(number) > MOST[framework][name]} == {}, counted


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("framework", MOST)
async def test_a_request_leaves_nothing_to_the_garbage_collector(
    framework: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with counting(monkeypatch, framework) as count:
        await count(1, REQUESTS, stream)
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await count(1, REQUESTS, stream)
            gc.collect()
            left = Counter(type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith("comps"))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    assert left == {}
