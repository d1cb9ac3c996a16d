"""How often answers cite, and how often what they cite is the document that says it.

`python -m tests.benchmarks.answers.citing` asks the answerable questions of a set once with each way of citing, the
documents shuffled. Only right answers count: to a wrong one, no citation is right.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import pytest

from comps.core.types import JSON
from comps.model_servers.embedded.model_files import BUNDLED_MODEL
from tests.benchmarks.answers.outcomes import outcome
from tests.benchmarks.answers.prompts import SERVICE, body
from tests.benchmarks.answers.questions import LANGUAGES, SETS, Question, given_with, in_order, read
from tests.service import PATH, running

MODES = ("matched", "on")


@dataclass(frozen=True)
class Cited:
    """What one right answer cites."""

    numbers: tuple[int, ...]
    """Of the cited documents, by citation."""
    own: frozenset[int]
    """Of the documents that say it."""


async def ask(
    client: httpx.AsyncClient, url: str, question: Question, everything: Sequence[Question], mode: str
) -> Cited | None:
    """What the answer cites; None if it is not right."""
    documents = in_order("shuffled", given_with(question, everything), 1)
    fields: JSON = {"citations": mode, "temperature": 0, "max_tokens": 48}
    response = await client.post(url + PATH, json=body(SERVICE, documents, question.question, fields))
    assert response.status_code == 200, response.text
    reply = response.json()
    if outcome(reply["text"], question) != "right":
        return None
    annotations = reply.get("annotations", [])
    own = frozenset(place for place, one in enumerate(documents, 1) if one in question.documents)
    return Cited(tuple(one[one["type"]]["number"] for one in annotations), own)


def summary(mode: str, answers: Sequence[Cited | None]) -> str:
    """A line about the answers with one way of citing."""
    right = [one for one in answers if one]
    citing = sum(bool(one.numbers) for one in right)
    numbers = [(number, one.own) for one in right for number in one.numbers]
    true = sum(number in own for number, own in numbers)
    return (
        f"citations = {mode}: {len(right)} of {len(answers)} answers are right; {citing} of these cite; {true} of "
        f"their {len(numbers)} citations name a document that says it"
    )


async def measure(options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the service, ask it, and print a line for each way of citing."""
    everything = read(options.set)
    questions = [one for one in everything if one.answerable and one.language in options.language]
    environment = {"LLM_NAME": BUNDLED_MODEL}
    async with (
        running({}, monkeypatch, environment) as service,
        httpx.AsyncClient(timeout=None, trust_env=False) as client,
    ):
        for mode in MODES:
            asked = [ask(client, service.url, question, everything, mode) for question in questions]
            print(summary(mode, await asyncio.gather(*asked)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.answers.citing", description=__doc__)
    parser.add_argument("--set", choices=SETS, default="tuning", help="the questions")
    parser.add_argument(
        "--language", nargs="+", choices=LANGUAGES, default=["en"], help="only those in these languages"
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(measure(parser.parse_args(), monkeypatch))


if __name__ == "__main__":
    main()
