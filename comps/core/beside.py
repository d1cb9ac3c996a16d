"""Work that takes long, such as reading a body of megabytes, done beside the event loop, which goes on with others.

It is done in another event loop, in a thread of its own: coroutines can be run there as they are, and one thread delays
the service's loop by no more than Python's switch interval, 5 ms, however much work there is.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import cache, partial
from typing import Any, TypeVar

from comps.core.ports import ABILITIES

T = TypeVar("T")

LONG = 100_000
"""Characters or bytes from which on work on a text is done beside the loop: what takes some milliseconds."""
MANY = 1_000
"""Items, such as documents, from which on work on them is done beside the loop."""
_RUNNING: set[Future[Any]] = set()
"""What runs beside the loop."""


async def beside(work: Callable[..., T], *arguments: Any) -> T:
    """Returns the result of `work(*arguments)`, done beside the running loop."""

    async def done() -> T:
        return work(*arguments)

    return await run_beside(done())


async def beside_if_long(text: str | bytes, work: Callable[..., T], *arguments: Any) -> T:
    """Returns the result of `work(*arguments)`, done beside the running loop if the text that it is about is long."""
    return await beside(work, *arguments) if len(text) > LONG else work(*arguments)


async def run_beside(work: Coroutine[Any, Any, T]) -> T:
    """Returns the result of a coroutine that runs beside the running loop; to cancel this cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    _RUNNING.add(future)
    future.add_done_callback(_RUNNING.discard)
    try:
        return await asyncio.wrap_future(future)
    finally:
        del future  # Which has the exception, whose traceback has this frame: a cycle, with all of a large body in it.


def is_busy() -> bool:
    """Whether something runs beside the loop."""
    return bool(_RUNNING)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The other loop, which is started when it is needed first."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="beside", daemon=True).start()
    return loop


class FromBeside:
    """The abilities of a model server, to be called beside its loop.

    Args:
        server: The model server.
        loop: Its event loop.
    """

    def __init__(self, server: object, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        for ability in ABILITIES:
            if method := getattr(server, ability, None):
                setattr(self, ability, partial(self._call, method))

    async def _call(self, method: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(method(*arguments), self._loop))
