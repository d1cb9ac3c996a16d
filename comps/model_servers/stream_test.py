"""The stream test: a stream whose times are known. By it, `opea-llm check --through` finds what proxies do to streams.

Every service has it as a model that nothing lists: it takes the way of every answer, and costs no model server
anything. Its prompt is a JSON list of pauses in seconds, and it writes an event after each of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from time import time

from comps.core.errors import InvalidRequest
from comps.core.ports import Answer
from comps.core.prompts import text_of
from comps.core.types import JSON, Finished, ModelInfo, Prompt, Sampling, Usage

STREAM_TEST = "stream-test"
"""The name of the model."""
MOST_EVENTS, LONGEST_SECONDS = 200, 150.0
"""The limits of a stream: its events, and all its pauses together."""


class StreamTest:
    """Model server that writes an event after each pause, with the time since the first event and that of the day, both
    in seconds: `0.0600 1767225600.123`."""

    async def describe(self) -> ModelInfo:
        return ModelInfo(STREAM_TEST)

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        pauses = _pauses(prompt if isinstance(prompt, str) else text_of(prompt[-1].content))
        loop = asyncio.get_running_loop()
        due = started = loop.time()
        for number, pause in enumerate(pauses):
            due += pause
            await asyncio.sleep(due - loop.time())
            await answer.drain()
            if number == 0:
                due = started = loop.time()
            answer.text(f"{loop.time() - started:.4f} {time():.3f}\n")
        answer.finished(Finished("stop", Usage(0, len(pauses))))

    async def aclose(self) -> None:
        """There are no resources to release."""


def _pauses(said: str) -> Sequence[float]:
    """Parses the prompt.

    Raises:
        InvalidRequest: It is no list of pauses, or a list of too many or too long ones.
    """
    wanted = f"a JSON list of 1 to {MOST_EVENTS} pauses in seconds, {LONGEST_SECONDS:g} together at most"
    try:
        pauses = json.loads(said)
        if not isinstance(pauses, list) or not 1 <= len(pauses) <= MOST_EVENTS:
            raise ValueError
        seconds = [float(pause) for pause in pauses]
    except (ValueError, TypeError, RecursionError):
        raise InvalidRequest(f"{STREAM_TEST} takes {wanted}", "messages") from None
    if not (all(pause >= 0 for pause in seconds) and sum(seconds) <= LONGEST_SECONDS):
        raise InvalidRequest(f"{STREAM_TEST} takes {wanted}", "messages")
    return seconds
