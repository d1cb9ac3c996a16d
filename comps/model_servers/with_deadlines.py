"""Deadlines for model servers that keep none themselves: engines in this service, LangChain classes, plug-ins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from comps.core.answers import Forwarding
from comps.core.ports import ABILITIES, Answer, ModelServer
from comps.core.types import JSON, Finished, ModelInfo, Prompt, Sampling, TextDelta
from comps.model_servers.remote.deadlines import Deadlines
from comps.model_servers.target import Access

_WITHOUT = ("load", "translated")
"""The abilities without a deadline: loading takes as long as it takes, and translating asks nothing."""


class WithDeadlines:
    """A model server with deadlines, which are those of a model server over HTTP. It has its optional abilities.

    A missed deadline cancels the request, is counted, and raises `Timeout`. While the reader is waited for, only
    `total_seconds` counts. What comes in one piece, such as a whole answer of a LangChain class, a vector or a count of
    tokens, has `first_token_seconds` until its end.

    Args:
        server: The model server.
        access: Its deadlines.
    """

    def __init__(self, server: ModelServer, access: Access) -> None:
        self._server = server
        self._access = access
        for ability in ABILITIES:
            if method := getattr(server, ability, None):
                setattr(self, ability, method if ability in _WITHOUT else self._in_time(method))

    def _in_time(self, method: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any) -> Any:
            return await _within(Deadlines.of_whole(self._access), method(*arguments))

        return call

    async def describe(self) -> ModelInfo:
        return await self._server.describe()

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        deadlines = Deadlines.of_stream(self._access)
        timed = _Timed(answer, deadlines)
        await _within(deadlines, self._server.generate(prompt, sampling, options, timed))

    async def aclose(self) -> None:
        await self._server.aclose()


class _Timed(Forwarding):
    """Answer whose events move a deadline, which is suspended while the reader is waited for.

    Args:
        answer: The answer to write to.
        deadlines: The deadlines.
    """

    def __init__(self, answer: Answer, deadlines: Deadlines) -> None:
        super().__init__(answer)
        self._deadlines = deadlines
        self._now = deadlines.loop.time
        self._draining = 0
        """How many writers wait: each choice may have one."""

    def text(self, text: str, choice: int = 0) -> None:
        self._deadlines.last_token = self._now()
        self._answer.text(text, choice)

    def delta(self, delta: TextDelta) -> None:
        self._deadlines.last_token = self._now()
        self._answer.delta(delta)

    def finished(self, end: Finished) -> None:
        self._deadlines.last_token = self._now()
        self._answer.finished(end)

    async def drain(self) -> None:
        if not self._answer.full:
            await self._answer.drain()
            return
        self._draining += 1
        self._deadlines.suspend()
        try:
            await self._answer.drain()
        finally:
            self._draining -= 1
            if not self._draining:
                self._deadlines.resume()


async def _within(deadlines: Deadlines, asked: Coroutine[Any, Any, Any]) -> Any:
    """Returns the result of what is asked, in a task of its own, so that its cancellation is not the caller's.

    Raises:
        Timeout: A deadline was missed; what was asked is cancelled, and has ended.
    """
    late: asyncio.Future[Exception] = deadlines.loop.create_future()
    deadlines.watch(late.set_result)
    running = asyncio.ensure_future(asked)
    try:
        await asyncio.wait((running, late), return_when=asyncio.FIRST_COMPLETED)
    finally:
        deadlines.stop()
        running.cancel()  # Nothing happens if it has ended.
        await asyncio.gather(running, return_exceptions=True)
    if late.done() and (running.cancelled() or running.exception()):
        raise late.result()
    return running.result()
