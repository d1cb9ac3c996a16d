"""Replicas that are told to fail, and a clock that is told the time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from comps.core.answers import collect, read
from comps.core.errors import LLMError, ModelServerError, Refused, Timeout, Unreachable
from comps.core.ports import Answer, Completes
from comps.core.types import JSON, Event, Generation, ModelInfo, Prompt, Sampling
from comps.model_servers.replicas import Replicas
from comps.model_servers.scripted import Script, Scripted

FAILURES = [Unreachable("away"), Timeout("slow"), ModelServerError("broke"), Refused(500, "oops"), Refused(503, "no")]


class Clock:
    """Time that goes on when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Replica(Scripted):
    """A model server that says who it is, until it is told to fail."""

    def __init__(self, name: str, *answers: Script) -> None:
        super().__init__(answers or [[name]], name=name)
        self.error: LLMError | None = None
        self.described = 0

    async def describe(self) -> ModelInfo:
        self.described += 1
        if self.error:
            raise self.error
        return await super().describe()

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        if self.error:
            self.asked.append((prompt, sampling, options))
            raise self.error
        await super().generate(prompt, sampling, options, answer)

    @property
    def times(self) -> int:
        """How often it was asked."""
        return len(self.asked)


class Completing(Replica):
    """A replica that gives whole answers at once as well."""

    async def complete(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> Generation:
        return await collect(self.generate, prompt, sampling, options)


class Group:
    """Replicas a, b … and a clock."""

    def __init__(self, number: int, *answers: Script, kind: type[Replica] = Replica) -> None:
        self.clock = Clock()
        self.each = [kind("abcdefgh"[i], *answers) for i in range(number)]
        self.all = Replicas(self.each, self.clock)

    async def ask(self) -> str:
        return (await collect(self.all.generate, "?", Sampling(), {})).text

    async def ask_whole(self) -> str:
        """The text of an answer that is asked for whole."""
        assert isinstance(self.all, Completes)
        return (await self.all.complete("?", Sampling(), {})).text

    async def begin(self) -> AsyncGenerator[Event]:
        """An answer of which the first event has come."""
        events = read(self.all.generate, "?", Sampling(), {})
        await anext(events)
        return events
