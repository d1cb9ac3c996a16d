"""Answers to write to: one that collects, one that is read as it is written, and wrappers around another."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any

from comps.core.deltas import join_extra
from comps.core.errors import ModelServerError
from comps.core.ports import Answer
from comps.core.types import JSON, Event, Finished, Generation, TextDelta, Usage, total

_MOST_UNREAD = 64
"""Events that `read` keeps before the writer is told to wait."""


class Collector:
    """Collects an answer with all its choices."""

    full = False

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._extras: dict[int, dict[str, JSON]] = {}
        self._ends: dict[int, Finished] = {}

    def text(self, text: str, choice: int = 0) -> None:
        self._texts.setdefault(choice, []).append(text)

    def delta(self, delta: TextDelta) -> None:
        self._texts.setdefault(delta.choice, []).append(delta.text)
        if delta.extra:
            self._extras[delta.choice] = join_extra(self._extras.get(delta.choice, {}), delta.extra)

    def finished(self, end: Finished) -> None:
        self._ends[end.choice] = end

    async def drain(self) -> None:
        """Returns at once."""

    def generation(self) -> Generation:
        """The whole answer.

        Raises:
            ModelServerError: A choice has no end; half an answer is never passed off as a whole one.
        """
        if not self._ends or self._texts.keys() - self._ends.keys():
            raise broken_off()
        usage = next((end.usage for end in self._ends.values() if end.usage), None)
        first, *further = (
            Generation("".join(self._texts.get(choice, ())), end.reason, usage, self._extras.get(choice))
            for choice, end in sorted(self._ends.items())
        )
        return replace(first, further=tuple(further))


async def collect(ask: Callable[..., Awaitable[None]], *arguments: Any) -> Generation:
    """The whole answer of `ask(*arguments, answer)`, such as `collect(server.generate, prompt, sampling, options)`.

    Raises:
        ModelServerError: The answer has no end.
    """
    collector = Collector()
    await ask(*arguments, collector)
    return collector.generation()


class _Events:
    """Keeps events until they are read."""

    def __init__(self) -> None:
        self.unread: deque[Event] = deque()
        self._changed = asyncio.Event()
        self._read = asyncio.Event()

    def text(self, text: str, choice: int = 0) -> None:
        self.delta(TextDelta(text, choice))

    def delta(self, delta: TextDelta) -> None:
        self.unread.append(delta)
        self._changed.set()

    def finished(self, end: Finished) -> None:
        self.unread.append(end)
        self._changed.set()

    @property
    def full(self) -> bool:
        return len(self.unread) >= _MOST_UNREAD

    async def drain(self) -> None:
        while self.full:
            self._read.clear()
            await self._read.wait()

    def wake(self, _: object) -> None:
        """Let the reader look again."""
        self._changed.set()

    async def more(self) -> None:
        """Wait until there is something to read, or `wake` was called."""
        self._read.set()
        await self._changed.wait()
        self._changed.clear()


async def read(ask: Callable[..., Awaitable[None]], *arguments: Any) -> AsyncGenerator[Event]:
    """The events of the answer of `ask(*arguments, answer)`, as they are written. Closing the generator cancels it.

    For whoever has to be a generator, as LangChain's chat models are; an answer on its way to a client needs none.
    """
    events = _Events()
    writing = asyncio.ensure_future(ask(*arguments, events))
    writing.add_done_callback(events.wake)
    try:
        while events.unread or not writing.done():
            while events.unread:
                yield events.unread.popleft()
            if not writing.done():
                await events.more()
        await writing
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


class Forwarding:
    """Writes to another answer; a subclass changes what it has to.

    Args:
        answer: The other one.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def text(self, text: str, choice: int = 0) -> None:
        self._answer.text(text, choice)

    def delta(self, delta: TextDelta) -> None:
        self._answer.delta(delta)

    def finished(self, end: Finished) -> None:
        self._answer.finished(end)

    @property
    def full(self) -> bool:
        return self._answer.full

    async def drain(self) -> None:
        await self._answer.drain()


class Parts:
    """Several answers that are written at the same time, as one: the choices of the second are numbered after those of
    the first, and so on. The usage of all is told with the first end of the last of them.

    Args:
        answer: Where they are written to.
        count: How many there are.
        choices: Of each.
    """

    def __init__(self, answer: Answer, count: int, choices: int = 1) -> None:
        self._answer = answer
        self._count = count
        self._choices = choices
        self._usages: dict[int, Usage | None] = {}

    def part(self, number: int) -> Part:
        """The answer with that number, from 0."""
        return Part(self._answer, number, number * self._choices, self._usage)

    def _usage(self, number: int, usage: Usage | None) -> Usage | None:
        """What is told as usage with an end of an answer."""
        is_last = number not in self._usages and len(self._usages) == self._count - 1
        self._usages.setdefault(number, usage)
        return total(self._usages.values()) if is_last else None


class Part(Forwarding):
    """One of several answers; see `Parts`."""

    def __init__(
        self, answer: Answer, number: int, offset: int, usage: Callable[[int, Usage | None], Usage | None]
    ) -> None:
        super().__init__(answer)
        self._number = number
        self._offset = offset
        self._usage = usage
        self.ended = False
        """Whether there was an end."""

    def text(self, text: str, choice: int = 0) -> None:
        self._answer.text(text, self._offset + choice)

    def delta(self, delta: TextDelta) -> None:
        self._answer.delta(replace(delta, choice=self._offset + delta.choice))

    def finished(self, end: Finished) -> None:
        self.ended = True
        usage = self._usage(self._number, end.usage)
        self._answer.finished(replace(end, choice=self._offset + end.choice, usage=usage))


def broken_off() -> ModelServerError:
    """The error of an answer that has no end."""
    return ModelServerError("the model server broke off in the middle of the answer")
