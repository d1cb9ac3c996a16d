"""How often, and after which pause, a request is sent to a model server again."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from random import uniform

from comps.core.tallies import RETRIES

log = logging.getLogger("opea_llm")

_FIRST_PAUSE = 0.1
"""The longest pause before the first retry of a request, in seconds; it doubles with each further one."""
_LONGEST_PAUSE = 5.0
"""The longest pause that a request waits for; a longer one is told to the caller."""
_AT_FIRST, _MOST = 10.0, 100.0
"""Retries in a new budget, and in a full one."""


@dataclass
class Retries:
    """The retries of one model, with a budget that all its replicas share.

    The budget is a token bucket: each request adds `share`, each retry takes 1. So retries are at most that share of
    the requests, but for the 10 in a new budget, and however many requests fail, the load is not doubled.

    Args:
        share: Retries per request, such as 0.2; 0: no retries.
        most: The maximum number of retries of one request; 0: no retries.
        model: The model's name, for the metrics.
    """

    share: float = 0.2
    most: int = 2
    model: str = field(default="", compare=False)
    _left: float = field(default=_AT_FIRST, init=False, compare=False)

    def add_request(self) -> None:
        """Count a request."""
        if self._left < _MOST:
            self._left += self.share

    def take(self, reason: str) -> bool:
        """Take a retry from the budget; returns whether there is one.

        Args:
            reason: One of `RETRIES`.
        """
        if self._left < 1 or not (self.share and self.most):
            log.debug("not asked again (%s): the budget of retries is spent", reason)
            return False
        self._left -= 1
        log.debug("asked again (%s); the budget has %.1f retries left", reason, self._left)
        RETRIES[self.model, reason] += 1
        return True

    def pause(self, number: int, reason: str, least: float = 0.0, within: float = _LONGEST_PAUSE) -> float | None:
        """Take a retry from the budget; returns the pause before it in seconds, or None if there is to be none.

        The pause is random (jitter), so that requests that failed together are not repeated together.

        Args:
            number: The number of the request's retries so far.
            reason: One of `RETRIES`.
            least: The shortest pause, in seconds: the model server's `Retry-After`.
            within: Seconds to the deadline of the request.
        """
        longest = _FIRST_PAUSE * 2.0**number
        pause = max(uniform(longest / 2, longest), least * uniform(1, 1.2))
        if number >= self.most or pause > min(within, _LONGEST_PAUSE) or not self.take(reason):
            return None
        return pause
