"""One event loop in the background, for calls that have none around them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Do something in the one event loop that all synchronous calls share: what a model server keeps open belongs to a
    loop, so it must not be another one each time."""
    return asyncio.run_coroutine_threadsafe(work, _background_loop()).result()


@cache
def _background_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def one_by_one(items: AsyncGenerator[T]) -> Iterator[T]:
    """Each of `items`, without an event loop around; closing it closes them."""
    try:
        while (item := wait_for(_next_or_none(items))) is not None:
            yield item
    finally:
        wait_for(items.aclose())


async def _next_or_none(items: AsyncGenerator[T]) -> T | None:
    return await anext(items, None)
