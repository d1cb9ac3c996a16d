"""Many streams with faults in a third of them: no token is lost, doubled or reordered without an error being said."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from comps.model_servers import FRAMEWORKS
from tests.faults.model_server import FaultyServer, Pause, Reply, Script, Step, nothing_wrong
from tests.faults.outcomes import Outcome, check, outcome
from tests.faults.scripts import CASES
from tests.faults.test_replies import KINDS, served
from tests.service import Service, until_idle

SHARE = 1 / 3
"""The share of replies with a fault."""
AT_ONCE = 50
TOKENS = 40
MARKS = "ab"
"""Of the tokens of each replica, by which a client knows where they come from."""
FAULTS = [case.fault for case in CASES if case.seconds > 1 and not case.name.startswith("endless")]


class Storm:
    """Spoils a share of the replies, each with a fault chosen by chance, and cuts all into pieces anywhere.

    Args:
        seed: Of the random numbers.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.replies = Counter[str]()
        """How often each fault was played."""

    def __call__(self, reply: Reply) -> Script:
        is_bad = self._random.random() < SHARE
        fault = self._random.choice(FAULTS) if is_bad else nothing_wrong
        self.replies[fault.__name__] += 1
        waiting = b""
        for step in fault(reply):
            if isinstance(step, bytes):
                waiting += step
                continue
            yield from self._cut(waiting)
            waiting = b""
            yield step
        yield from self._cut(waiting)

    def _cut(self, data: bytes) -> Sequence[Step]:
        cuts = sorted(self._random.randrange(len(data) + 1) for _ in range(4))
        pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        return [step for piece in pieces for step in (piece, Pause(0))]

    @property
    def faults(self) -> int:
        return sum(times for name, times in self.replies.items() if name != nothing_wrong.__name__)


async def storm(number: int, framework: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Counter[str]:
    """Ask for that many streams over all kinds, from two replicas, check each, and count how they ended."""
    play, may_ask, ended = Storm(number), asyncio.Semaphore(AT_ONCE), Counter[str]()
    first, second = (FaultyServer(play, TOKENS, mark) for mark in MARKS)
    tokens = {server.tokens[0][1]: server.tokens for server in (first, second)}

    async def ask(service: Service, at: int) -> None:
        async with may_ask:
            got = await outcome(service, KINDS[at % len(KINDS)], streamed=at % 10 > 0)
        check(got, tokens[got.text[1] if got.text else MARKS[0]])
        ended[how(got)] += 1

    async with (
        first.listening(),
        second.listening(),
        served(f"{first.url},{second.url}", monkeypatch, folder, framework) as service,
    ):
        await asyncio.gather(*(ask(service, at) for at in range(number)))
        await until_idle(service)
    assert play.faults > SHARE * 0.8 * number
    return ended


def how(got: Outcome) -> str:
    if got.ended:
        return "whole"
    return "an error item behind text" if got.status == 200 else "a status"


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("number", [150, pytest.param(5000, marks=pytest.mark.soak)])
async def test_no_token_is_lost_doubled_or_reordered_without_an_error(
    number: int, framework: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ended = await storm(number, framework, monkeypatch, tmp_path)
    print(f"{number} streams, {framework}: {dict(ended)}")
    assert ended.total() == number
    assert set(ended) == {"whole", "an error item behind text", "a status"}
