"""Work done at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def at_once(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all the work, done at the same time; if one fails, the others stop, and have stopped when it
    raises."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
