"""Implementations of `Answer`: one that collects, one that is read as an event stream, and wrappers around another."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any

from comps.core.deltas import JoinedExtra
from comps.core.errors import BrokenOff
from comps.core.ports import Answer
from comps.core.types import Event, Finished, Generation, TextDelta, Usage, total

_MOST_UNREAD = 64
"""The number of events that `read` buffers before the writer has to wait."""


class Collector:
    """Answer that collects all choices in memory."""

    full = False

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._extras: dict[int, JoinedExtra] = {}
        self._ends: dict[int, Finished] = {}

    def text(self, text: str, choice: int = 0) -> None:
        self._texts.setdefault(choice, []).append(text)

    def delta(self, delta: TextDelta) -> None:
        self._texts.setdefault(delta.choice, []).append(delta.text)
        if delta.extra:
            self._extras.setdefault(delta.choice, JoinedExtra()).add(delta.extra)

    def finished(self, end: Finished) -> None:
        self._ends[end.choice] = end

    async def drain(self) -> None:
        """Returns at once."""

    def generation(self) -> Generation:
        """Returns the complete answer.

        Raises:
            ModelServerError: A choice has no `Finished`, so the answer is incomplete.
        """
        if not self._ends or self._texts.keys() - self._ends.keys():
            raise broken_off()
        usage = next((end.usage for end in self._ends.values() if end.usage), None)
        first, *further = (
            Generation(
                "".join(self._texts.get(choice, ())),
                end.reason,
                usage,
                self._extras[choice].extra() if choice in self._extras else None,
                stop_string=end.stop_string,
            )
            for choice, end in sorted(self._ends.items())
        )
        return replace(first, further=tuple(further))


async def collect(ask: Callable[..., Awaitable[None]], *arguments: Any) -> Generation:
    """Returns the complete answer that `ask(*arguments, answer)` writes.

    Args:
        ask: Writes an answer, such as `server.generate`.
        *arguments: Its arguments before the answer, such as `prompt, sampling, options`.

    Raises:
        ModelServerError: The answer is incomplete; and the errors of `ask`.
    """
    collector = Collector()
    await ask(*arguments, collector)
    return collector.generation()


class _Events:
    """Answer that buffers events until they are read."""

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
        """Wake the reader."""
        self._changed.set()

    async def more(self) -> None:
        """Wait until there are unread events, or `wake` is called."""
        self._read.set()
        await self._changed.wait()
        self._changed.clear()


async def read(ask: Callable[..., Awaitable[None]], *arguments: Any) -> AsyncGenerator[Event]:
    """Yields the events that `ask(*arguments, answer)` writes. Closing the generator cancels `ask`.

    This is for interfaces that are generators, such as LangChain's chat models. The path to a client does not use it.

    Args:
        ask: Writes an answer, such as `server.generate`.
        *arguments: Its arguments before the answer.

    Raises:
        LLMError: The errors of `ask`.
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
    """Base class of answers that write to another answer; a subclass overrides what it changes.

    Args:
        answer: The answer to write to.
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
    """Merges several answers, written concurrently, into the choices of one answer.

    With c choices each, part i has the choices i * c to (i + 1) * c - 1. The last part to end has, in its first
    `Finished`, the usage of all parts together.

    Args:
        answer: The answer to write to.
        count: The number of parts.
        choices: The number of choices of each part.
    """

    def __init__(self, answer: Answer, count: int, choices: int = 1) -> None:
        self._answer = answer
        self._count = count
        self._choices = choices
        self._usages: dict[int, Usage | None] = {}

    def part(self, number: int) -> Part:
        """Returns the answer of one part; parts are numbered from 0."""
        return Part(self._answer, number, number * self._choices, self._usage)

    def _usage(self, number: int, usage: Usage | None) -> Usage | None:
        """Returns the usage for a `Finished` of a part: the total if this is the last part to end."""
        is_last = number not in self._usages and len(self._usages) == self._count - 1
        self._usages.setdefault(number, usage)
        return total(self._usages.values()) if is_last else None


class Part(Forwarding):
    """Answer of one part; see `Parts`."""

    def __init__(
        self, answer: Answer, number: int, offset: int, usage: Callable[[int, Usage | None], Usage | None]
    ) -> None:
        super().__init__(answer)
        self._number = number
        self._offset = offset
        self._total = usage
        self.ended = False
        """Whether a choice of the part has ended."""
        self.usage: Usage | None = None
        """The usage of the part; None until it arrives."""

    def text(self, text: str, choice: int = 0) -> None:
        self._answer.text(text, self._offset + choice)

    def delta(self, delta: TextDelta) -> None:
        self._answer.delta(replace(delta, choice=self._offset + delta.choice))

    def finished(self, end: Finished) -> None:
        self.ended = True
        self.usage = self.usage or end.usage
        usage = self._total(self._number, end.usage)
        self._answer.finished(replace(end, choice=self._offset + end.choice, usage=usage))


def broken_off() -> BrokenOff:
    """Returns the error of an incomplete answer."""
    return BrokenOff("the model server broke off in the middle of the answer")
