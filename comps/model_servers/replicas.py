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
from comps.core.errors import (
    InvalidRequest,
    LLMError,
    ModelServerError,
    Overloaded,
    Refused,
    Timeout,
    Unreachable,
    for_operator,
)
from comps.core.ports import Answer, Loads, ModelServer
from comps.core.retries import Retries
from comps.core.tallies import RETRIES
from comps.core.types import JSON, Finished, ModelInfo, Prompt, Sampling, TextDelta
from comps.model_servers.circuit_breaker import Call, CircuitBreaker

log = logging.getLogger("opea_llm")

_PREPARING = ("count_tokens", "count_texts", "token_ends", "tokenize", "count_prompt", "render", "translated")
"""The abilities that prepare a prompt. A replica that fails at one may still generate answers."""


class _Replica:
    """A model server with its load and its circuit breaker."""

    def __init__(self, number: int, server: ModelServer, breaker: CircuitBreaker) -> None:
        self.number = number
        self.server = server
        self.breaker = breaker
        self.outstanding = 0
        """The number of running requests."""
        self.turn = 0
        """The number of its last request. Of replicas with equal load, the one with the lowest number is next."""


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

    Each replica has a circuit breaker: if it fails, it is set aside for 1 s, then for twice as long each time, up to
    `longest_pause`. Then one call is sent as a probe. If all replicas are set aside, a request goes to the one whose
    time ends first. A failure to count tokens or to render a prompt sets a replica aside only if it was unreachable.

    A request moves to another replica only if nothing of its answer has been written:

    - if it was not begun, since the replica was unreachable or busy, to any of the others;
    - if the replica failed, within the budget of `retries`, since it may have begun;
    - never after a timeout or a refusal: the one may still be running there, the other would be the same elsewhere.

    It has each optional ability that at least one replica has.

    Args:
        servers: The replicas, at least one.
        clock: A monotonic clock, in seconds.
        model: The model's name, for the log.
        retries: The budget of retries.
        failures: Consecutive failures after which a replica is set aside; one is enough if it is unreachable.
        longest_pause: The longest time for which it is set aside, in seconds.
    """

    def __init__(
        self,
        servers: Sequence[ModelServer],
        clock: Callable[[], float] = time.monotonic,
        model: str = "the model",
        retries: Retries | None = None,
        failures: int = 1,
        longest_pause: float = 30.0,
    ) -> None:
        self.servers = tuple(servers)
        self._clock = clock
        self._model = model
        self._retries = retries or Retries()
        self._replicas = [
            _Replica(number, server, CircuitBreaker(partial(self._tell, number), failures, longest_pause))
            for number, server in enumerate(servers, 1)
        ]
        self._turns = count(1)
        # An ability is detected by its method, so a method is set only if a replica has the ability.
        if self._with("load"):
            self.__dict__["load"] = self._load
        for ability in (*_PREPARING, "complete", "embed"):
            if self._with(ability):
                self.__dict__[ability] = partial(self._ask, ability)

    def circuit_states(self) -> Sequence[str]:
        """See `HasCircuitBreakers`."""
        return [replica.breaker.state for replica in self._replicas]

    def _with(self, ability: str) -> list[_Replica]:
        return [replica for replica in self._replicas if getattr(replica.server, ability, None)]

    async def describe(self) -> ModelInfo:
        """Returns the description from the first replica that answers; see `ModelServer.describe`.

        Raises:
            Unreachable: No replica answers.
        """
        failures: dict[int, LLMError] = {}
        left = list(self._replicas)
        while left:
            replica = self._taken(left, all_of_them=True)
            try:
                with self._health_of(replica) as call:
                    info = await replica.server.describe()
                if call.is_of_now:
                    # The failures are kept: only the next request shows whether the replica can generate.
                    replica.breaker.close()
                return info
            except (ModelServerError, Overloaded) as error:
                failures[replica.number] = error
        none = f"none of the {len(self._replicas)} replicas answers"
        told = "; ".join(f"replica {number}: {for_operator(failures[number])}" for number in sorted(failures))
        last = list(failures.values())[-1]
        raise Unreachable(f"{none}; the last one: {last}", operator_text=f"{none}: {told}")

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        failures: list[LLMError] = []
        self._retries.add_request()
        left = list(self._replicas)
        while left:
            if failures:
                await self._before_moving(failures)
            replica = self._taken(left)
            begun = _Begun(answer, replica.breaker.answers)
            try:
                with self._busy(replica), self._health_of(replica):
                    self._tell_choice(replica)
                    await replica.server.generate(prompt, sampling, options, begun)
                return
            except (ModelServerError, Overloaded) as error:
                if begun.begun or _is_its_answer(error) or isinstance(error, Timeout):
                    raise
                failures.append(error)
        raise _summed_up(failures)

    async def _ask(self, ability: str, *arguments: Any) -> Any:
        """Returns the result of an ability, from one of the replicas that have it."""
        failures: list[LLMError] = []
        preparing = ability in _PREPARING
        self._retries.add_request()
        left = self._with(ability)
        while left:
            if failures:
                await self._before_moving(failures)
            replica = self._taken(left)
            try:
                with self._busy(replica), self._health_of(replica, preparing=preparing):
                    self._tell_choice(replica)
                    answer = await getattr(replica.server, ability)(*arguments)
                replica.breaker.answers()
                return answer
            except (ModelServerError, Overloaded) as error:
                if _is_its_answer(error) or (isinstance(error, Timeout) and not preparing):
                    raise
                failures.append(error)
        raise _summed_up(failures)

    async def _before_moving(self, failures: list[LLMError]) -> None:
        """Wait before a request that has failed is sent to another replica.

        Raises:
            LLMError: It must not be sent again.
        """
        last = failures[-1]
        log.debug("another replica is asked: %s", for_operator(last))
        if isinstance(last, Unreachable | Overloaded):  # It was not begun, so that this is no load in addition.
            RETRIES[self._retries.model, "unreachable" if isinstance(last, Unreachable) else "overloaded"] += 1
            return
        begun_before = sum(not isinstance(error, Unreachable | Overloaded) for error in failures[:-1])
        pause = self._retries.pause(begun_before, "failed")
        if pause is None:
            del last  # It may be what is raised, whose traceback has this frame: a cycle.
            raise _summed_up(failures)
        await asyncio.sleep(pause)

    async def _load(self) -> None:
        """Load the replicas concurrently. It fails only if all replicas fail."""
        loading = [(replica, replica.server) for replica in self._replicas if isinstance(replica.server, Loads)]
        results = await asyncio.gather(*(server.load() for _, server in loading), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if len(failures) == len(self._replicas):
            raise failures[0]
        for (replica, _), result in zip(loading, results, strict=True):
            if isinstance(result, BaseException):
                replica.breaker.open(self._clock(), for_operator(result))

    async def aclose(self) -> None:
        await asyncio.gather(*(replica.server.aclose() for replica in self._replicas))

    def _taken(self, left: list[_Replica], *, all_of_them: bool = False) -> _Replica:
        """Takes the replica to try next out of those that are left, by their state at this moment.

        A replica that is due for a probe comes first. One that is set aside comes if there is no other, as the last,
        unless `all_of_them` is set.
        """
        now = self._clock()
        if usable := [replica for replica in left if replica.breaker.allows(now)]:
            chosen = min(usable, key=lambda one: (one.breaker.open_until is None, one.outstanding, one.turn))
            left.remove(chosen)
            return chosen
        chosen = min(left, key=lambda one: one.breaker.open_until or now)
        if all_of_them:
            left.remove(chosen)
        else:
            left.clear()
        return chosen

    @contextmanager
    def _busy(self, replica: _Replica) -> Iterator[None]:
        replica.turn = next(self._turns)
        replica.outstanding += 1
        try:
            yield
        finally:
            replica.outstanding -= 1

    @contextmanager
    def _health_of(self, replica: _Replica, *, preparing: bool = False) -> Iterator[Call]:
        """Tell a replica's circuit breaker the result of a call. After a `preparing` call, only Unreachable counts."""
        breaker = replica.breaker
        call = breaker.begin(self._clock())
        try:
            yield call
        except (InvalidRequest, Overloaded):
            breaker.answers()
            raise
        except ModelServerError as error:
            unreachable = isinstance(error, Unreachable)
            if _is_its_answer(error):
                breaker.answers()
            elif unreachable or not preparing:
                call.fails(self._clock(), for_operator(error), at_once=unreachable)
            raise
        finally:
            call.end()

    def _tell_choice(self, chosen: _Replica) -> None:
        """Log which replica is asked, and what else it does."""
        log.debug(
            "replica %d of %d of %s is asked; it has %d requests, and its circuit is %s",
            chosen.number,
            len(self.servers),
            self._model,
            chosen.outstanding,
            chosen.breaker.state,
        )

    def _tell(self, number: int, level: int, what: str) -> None:
        log.log(level, "replica %d of %d of %s %s", number, len(self.servers), self._model, what)


def _is_its_answer(error: LLMError) -> bool:
    """Returns whether a healthy replica refused the request, as any other replica would."""
    return isinstance(error, Refused) and error.status < 500


def _summed_up(failures: list[LLMError]) -> LLMError:
    """Returns the most useful of several errors: the overload with the shortest retry time, the last error of a replica
    that was reached, or else the last one. The list is emptied, since the error's traceback refers to it."""
    busy = [error for error in failures if isinstance(error, Overloaded)]
    reached = [error for error in failures if not isinstance(error, Unreachable)]
    found = min(busy, key=lambda error: error.retry_after or 0) if busy else (reached or failures)[-1]
    failures.clear()
    return found
