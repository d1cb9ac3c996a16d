"""Several model servers that serve the same model, as one: each request goes to whoever has the fewest to answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

from comps.core.answers import Forwarding
from comps.core.errors import InvalidRequest, LLMError, ModelServerError, Overloaded, Refused, Unreachable
from comps.core.ports import Answer, Loads, ModelServer
from comps.core.types import JSON, Finished, ModelInfo, Prompt, Sampling, TextDelta

log = logging.getLogger("opea_llm")

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds for which a replica that failed is set aside: at first, and after failing again and again."""
_PREPARING = ("count_tokens", "count_texts", "token_ends", "count_prompt", "render", "translated")
"""What is asked before an answer: who fails at that may answer all the same."""


class _Replica:
    """One of the model servers, and what is known of its health."""

    def __init__(self, number: int, server: ModelServer) -> None:
        self.number = number
        self.server = server
        self.outstanding = 0
        """Requests that it is answering."""
        self.turn = 0
        """When it was last given a request; of two with as many to answer, the one that has waited longer is next."""
        self.failures = 0
        """In a row, without an answer between them."""
        self.setbacks = 0
        """How often it was set aside; what began before the last time says nothing new."""
        self.aside_until: float | None = None
        """None: it is in use. Once the time has come, one call is let through to try it."""
        self.tried = False
        """Whether such a call is on its way."""

    def usable(self, now: float) -> bool:
        return self.aside_until is None or (self.aside_until <= now and not self.tried)

    def answers(self) -> None:
        """It has answered a request."""
        self.failures = 0
        self.aside_until = None
        self.tried = False

    def fails(self, now: float) -> float:
        """Set it aside; returns for how many seconds."""
        pause = min(_FIRST_PAUSE * 2.0 ** min(self.failures, 10), _LONGEST_PAUSE)
        self.failures += 1
        self.setbacks += 1
        self.aside_until = now + pause
        return pause


class _Begun(Forwarding):
    """Writes an answer on, and tells of its first piece.

    Args:
        answer: Where it is written to.
        on_begin: Called before the first piece.
    """

    def __init__(self, answer: Answer, on_begin: Callable[[], None]) -> None:
        super().__init__(answer)
        self._on_begin = on_begin
        self.begun = False

    def text(self, text: str, choice: int = 0) -> None:
        if not self.begun:
            self._begin()
        self._answer.text(text, choice)

    def delta(self, delta: TextDelta) -> None:
        if not self.begun:
            self._begin()
        self._answer.delta(delta)

    def finished(self, end: Finished) -> None:
        if not self.begun:
            self._begin()
        self._answer.finished(end)

    def _begin(self) -> None:
        self.begun = True
        self._on_begin()


class Replicas:
    """Model servers that serve the same model.

    A replica that fails is set aside for a second, and for twice as long each further time, up to 30 s; then one
    call is let through to try it. A request is moved to another replica only while nothing of its answer has been
    written. While all are set aside, a request still tries the one whose time comes first. Counting that fails sets
    nobody aside, unless that one is away.

    It has every optional ability that one of the replicas has, and asks those that have it.

    Args:
        servers: The replicas, at least one.
        clock: Seconds that only ever grow.
        model: What they serve, for the log.
    """

    def __init__(
        self, servers: Sequence[ModelServer], clock: Callable[[], float] = time.monotonic, model: str = "the model"
    ) -> None:
        self.servers = tuple(servers)
        self._replicas = [_Replica(number, server) for number, server in enumerate(servers, 1)]
        self._clock = clock
        self._model = model
        self._turns = count(1)
        # An ability is told by its method, so there is one only where it is true.
        if self._with("load"):
            self.__dict__["load"] = self._load
        for ability in (*_PREPARING, "complete", "embed"):
            if self._with(ability):
                self.__dict__[ability] = partial(self._ask, ability)

    def _with(self, ability: str) -> list[_Replica]:
        return [replica for replica in self._replicas if getattr(replica.server, ability, None)]

    async def describe(self) -> ModelInfo:
        """What one of the replicas says; see `ModelServer.describe`.

        Raises:
            Unreachable: None of them answers.
        """
        failures: list[LLMError] = []
        for replica in self._in_turn(self._replicas, all_of_them=True):
            try:
                setbacks = replica.setbacks
                with self._health_of(replica):
                    info = await replica.server.describe()
                if setbacks == replica.setbacks:
                    # Whether it can generate as well, the next request shows; until then its failures are remembered.
                    replica.aside_until = None
                return info
            except (ModelServerError, Overloaded) as error:
                failures.append(error)
        raise Unreachable(f"none of the {len(self._replicas)} replicas answers; the last one: {failures[-1]}")

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        failures: list[LLMError] = []
        for replica in self._in_turn(self._replicas):
            begun = _Begun(answer, replica.answers)
            try:
                with self._busy(replica), self._health_of(replica):
                    await replica.server.generate(prompt, sampling, options, begun)
                return
            except (ModelServerError, Overloaded) as error:
                if begun.begun or _is_its_answer(error):
                    raise
                failures.append(error)
        raise _summed_up(failures)

    async def _ask(self, ability: str, *arguments: Any) -> Any:
        """What one of the replicas with that ability says."""
        failures: list[LLMError] = []
        for replica in self._in_turn(self._with(ability)):
            try:
                with self._busy(replica), self._health_of(replica, preparing=ability in _PREPARING):
                    answer = await getattr(replica.server, ability)(*arguments)
                replica.answers()
                return answer
            except (ModelServerError, Overloaded) as error:
                if _is_its_answer(error):
                    raise
                failures.append(error)
        raise _summed_up(failures)

    async def _load(self) -> None:
        """Load all that have something to load; one that can answer is enough."""
        loading = [(replica, replica.server) for replica in self._replicas if isinstance(replica.server, Loads)]
        results = await asyncio.gather(*(server.load() for _, server in loading), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if len(failures) == len(self._replicas):
            raise failures[0]
        for (replica, _), result in zip(loading, results, strict=True):
            if isinstance(result, BaseException):
                self._set_aside(replica, result)

    async def aclose(self) -> None:
        await asyncio.gather(*(replica.server.aclose() for replica in self._replicas))

    def _in_turn(self, replicas: Sequence[_Replica], *, all_of_them: bool = False) -> Iterator[_Replica]:
        """The replicas that a call may be tried on, the best first, as things stand when each is asked for.

        One that may be tried again goes before the others, so that it is back soon. Of those that are set aside there
        is one at most, unless all of them are to be tried.
        """
        left = list(replicas)
        last = False
        while left and not last:
            now = self._clock()
            usable = [replica for replica in left if replica.usable(now)]
            last = not usable and not all_of_them
            if usable:
                chosen = min(usable, key=lambda one: (one.aside_until is None, one.outstanding, one.turn))
            else:
                chosen = min(left, key=lambda one: one.aside_until or now)
            left.remove(chosen)
            yield chosen

    @contextmanager
    def _busy(self, replica: _Replica) -> Iterator[None]:
        replica.turn = next(self._turns)
        replica.outstanding += 1
        try:
            yield
        finally:
            replica.outstanding -= 1

    @contextmanager
    def _health_of(self, replica: _Replica, *, preparing: bool = False) -> Iterator[None]:
        """Learn from how a call ends; of one that only prepares an answer, only that a replica is away."""
        trying = replica.aside_until is not None
        early = replica.aside_until is not None and self._clock() < replica.aside_until
        replica.tried |= trying
        setbacks = replica.setbacks
        try:
            yield
        except (InvalidRequest, Overloaded):
            replica.answers()
            raise
        except ModelServerError as error:
            if _is_its_answer(error):
                replica.answers()
            elif setbacks == replica.setbacks and not early and (not preparing or isinstance(error, Unreachable)):
                self._set_aside(replica, error)
            raise
        finally:
            if trying:
                replica.tried = False

    def _set_aside(self, replica: _Replica, error: BaseException) -> None:
        pause = replica.fails(self._clock())
        where = (replica.number, len(self._replicas), self._model)
        log.warning("replica %d of %d of %s is set aside for %.0f s: %s", *where, pause, error)


def _is_its_answer(error: LLMError) -> bool:
    """Whether the replica is well and has refused: another one would say the same."""
    return isinstance(error, Refused) and error.status < 500


def _summed_up(failures: Sequence[LLMError]) -> LLMError:
    """Of what several replicas failed with, what a caller can make the most of."""
    busy = [error for error in failures if isinstance(error, Overloaded)]
    return min(busy, key=lambda error: error.retry_after or 0) if busy else failures[-1]
