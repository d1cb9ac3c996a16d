"""Concurrent tasks, and work in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_BEGUN_AT_ONCE = 100
"""How many coroutines begin in one turn of the event loop, which thousands would hold for too long."""


async def at_once(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs coroutines concurrently and returns their results, in the same order.

    A single coroutine runs in the caller's task. If one raises, the others are cancelled and awaited first.

    Raises:
        Exception: The first error of a coroutine.
    """
    if len(work) <= 1:
        return [await one for one in work]
    tasks: list[asyncio.Task[T]] = []
    try:
        for one in work:
            tasks.append(asyncio.ensure_future(one))
            if len(tasks) % _BEGUN_AT_ONCE == 0:
                await asyncio.sleep(0)
        return await asyncio.gather(*tasks)
    finally:
        for one in work[len(tasks) :]:
            one.close()
        await _end(tasks)
        tasks.clear()  # One has the error, whose traceback has this frame: a cycle.


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Returns the result of `work`, done in a daemon thread: unlike asyncio's own, it does not delay the exit."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # Raised where it is awaited.
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(done)
