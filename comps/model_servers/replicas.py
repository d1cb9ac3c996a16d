"""Replicas: several model servers with the same model, as one. Requests go to the replica with the fewest of them."""

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
from comps.core.errors import InvalidRequest, LLMError, ModelServerError, Overloaded, Refused, Unreachable, for_operator
from comps.core.ports import Answer, Loads, ModelServer
from comps.core.types import JSON, Finished, ModelInfo, Prompt, Sampling, TextDelta

log = logging.getLogger("opea_llm")

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds for which a failed replica is set aside: after the first failure, and at most."""
_PREPARING = ("count_tokens", "count_texts", "token_ends", "count_prompt", "render", "translated")
"""The abilities that prepare a prompt. A replica that fails at one may still generate answers."""


class _Replica:
    """A model server with its load and its health."""

    def __init__(self, number: int, server: ModelServer) -> None:
        self.number = number
        self.server = server
        self.outstanding = 0
        """The number of running requests."""
        self.turn = 0
        """The number of its last request. Of replicas with equal load, the one with the lowest number is next."""
        self.failures = 0
        """The number of consecutive failures."""
        self.setbacks = 0
        """How often it was set aside. The result of a call that began before the last time is ignored."""
        self.aside_until: float | None = None
        """The time until which it is set aside; None: it is healthy. After that time, one call is sent as a probe."""
        self.tried = False
        """Whether a probe is running."""

    def usable(self, now: float) -> bool:
        return self.aside_until is None or (self.aside_until <= now and not self.tried)

    def answers(self) -> None:
        """Mark it as healthy."""
        self.failures = 0
        self.aside_until = None
        self.tried = False

    def fails(self, now: float) -> float:
        """Set it aside; returns the duration in seconds."""
        pause = min(_FIRST_PAUSE * 2.0 ** min(self.failures, 10), _LONGEST_PAUSE)
        self.failures += 1
        self.setbacks += 1
        self.aside_until = now + pause
        return pause


class _Begun(Forwarding):
    """Answer that calls back before its first event.

    Args:
        answer: The answer to write to.
        on_begin: Called before the first event.
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
    """Model server that balances requests over replicas.

    A replica that fails is set aside: for 1 s after the first failure, then for twice as long each time, up to 30 s.
        Then
    one call is sent as a probe. A request is retried on another replica only if nothing of its answer has been written.
    If all replicas are set aside, a request goes to the one whose time ends first. A failure to count tokens or to
    render a prompt sets a replica aside only if it was unreachable.

    It has each optional ability that at least one replica has.

    Args:
        servers: The replicas, at least one.
        clock: A monotonic clock, in seconds.
        model: The model's name, for the log.
    """

    def __init__(
        self, servers: Sequence[ModelServer], clock: Callable[[], float] = time.monotonic, model: str = "the model"
    ) -> None:
        self.servers = tuple(servers)
        self._replicas = [_Replica(number, server) for number, server in enumerate(servers, 1)]
        self._clock = clock
        self._model = model
        self._turns = count(1)
        # An ability is detected by its method, so a method is set only if a replica has the ability.
        if self._with("load"):
            self.__dict__["load"] = self._load
        for ability in (*_PREPARING, "complete", "embed"):
            if self._with(ability):
                self.__dict__[ability] = partial(self._ask, ability)

    def _with(self, ability: str) -> list[_Replica]:
        return [replica for replica in self._replicas if getattr(replica.server, ability, None)]

    async def describe(self) -> ModelInfo:
        """Returns the description from the first replica that answers; see `ModelServer.describe`.

        Raises:
            Unreachable: No replica answers.
        """
        failures: dict[int, LLMError] = {}
        for replica in self._in_turn(self._replicas, all_of_them=True):
            try:
                setbacks = replica.setbacks
                with self._health_of(replica):
                    info = await replica.server.describe()
                if setbacks == replica.setbacks:
                    # The count of failures is kept: only the next request shows whether the replica can generate.
                    replica.aside_until = None
                return info
            except (ModelServerError, Overloaded) as error:
                failures[replica.number] = error
        none = f"none of the {len(self._replicas)} replicas answers"
        told = "; ".join(f"replica {number}: {for_operator(failures[number])}" for number in sorted(failures))
        last = list(failures.values())[-1]
        raise Unreachable(f"{none}; the last one: {last}", operator_text=f"{none}: {told}")

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
        """Returns the result of an ability, from one of the replicas that have it."""
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
        """Load the replicas concurrently. It fails only if all replicas fail."""
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
        """Yields the replicas to try for a call, the best first; each is chosen by the state at that moment.

        A replica that is due for a probe comes first. At most one replica that is set aside is yielded, as the last,
        unless `all_of_them` is set.
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
        """Update a replica's health by the result of a call. After a `preparing` call, only Unreachable counts."""
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
        log.warning("replica %d of %d of %s is set aside for %.0f s: %s", *where, pause, for_operator(error))


def _is_its_answer(error: LLMError) -> bool:
    """Returns whether a healthy replica refused the request, as any other replica would."""
    return isinstance(error, Refused) and error.status < 500


def _summed_up(failures: Sequence[LLMError]) -> LLMError:
    """Returns the most useful of several errors: the overload with the shortest retry time, or else the last error."""
    busy = [error for error in failures if isinstance(error, Overloaded)]
    return min(busy, key=lambda error: error.retry_after or 0) if busy else failures[-1]
