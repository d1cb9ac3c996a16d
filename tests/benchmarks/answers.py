"""How many questions are answered from their documents: by prompt template, order of the documents, and sampling.

`make bench-answers` asks the embedded model, through the whole service, with the built-in prompt and the document
with the answer first: some minutes. `python -m tests.benchmarks.answers --prompt all --order all` compares all prompts
and takes an hour or two on two cores. The service's settings in the environment, or `--model`, `--server` and
`--endpoint`, lead to another model.

The facts in `answers.json` are invented, so that no model knows them beforehand. Each question has one document of
eight with its answer; the others are the nearest ones of other questions.

An answer counts if it contains the fact in one of its accepted forms. With 64 questions, two rows that differ by less
than 15 in a hundred may do so by chance.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import httpx
import pytest

from comps.core.types import JSON
from comps.model_servers.embedded.model_files import BUNDLED_MODEL
from tests.service import PATH, Service, running, until_idle

FACTS = Path(__file__).with_suffix(".json")
DOCUMENTS = 8
"""That a question comes with."""
AT_ONCE = 8
"""Questions that are asked at the same time."""
SAMPLINGS: Mapping[str, Mapping[str, JSON]] = {"default": {}, "greedy": {"temperature": 0, "repetition_penalty": 1}}
"""What a body says of sampling: nothing, so that the dialect's defaults apply, or that the likeliest token is taken."""
VARIABLES = {"model": "LLM_NAME", "server": "MODEL_SERVER", "endpoint": "LLM_MODEL_SERVER_ENDPOINT"}
"""The service's settings that are options here."""
ORDERS = ("best", "shuffled")
"""Of the documents: the one with the answer first, as reranked, or anywhere."""
_THOUSANDS = re.compile(r"(?<=\d)[, \u00a0\u202f](?=\d{3}(?!\d))")
_WORDS = re.compile(r"\d+(?:[.:]\d+)*|[^\W\d_]+")


@dataclass(frozen=True)
class Fact:
    """A question, and the document that answers it."""

    topic: str
    question: str
    accepted: Sequence[str]
    """The fact, in the forms that it may have in an answer."""
    title: str
    text: str


PROMPTS: Mapping[str, str | None] = {
    "built-in": None,
    "asking": (
        "Answer the question with what the search results say about it. If they say nothing, answer that you do not "
        "know.\n\nSearch results:\n{context}\n\nQuestion: {question}"
    ),
    "refuse": (
        "Answer from these search results. If they do not say it, say that you do not know.\n\n{context}\n\n{question}"
    ),
    "first": "Answer from these search results.\n\n{context}\n\n{question}",
    "unsure": (
        "Answer the question from these search results, or say that you do not know.\n\n{context}\n\n{question}"
    ),
    "labelled": "Search results:\n{context}\n\n{question}",
    "bare": "{context}\n\n{question}",
    "short": "{context}\n\nQuestion: {question}\nAnswer in a few words.",
    "above": "{context}\n\nUse the search results above to answer the question.\n\nQuestion: {question}",
    "plain": "Answer the question with the search results.\n\nSearch results:\n{context}\n\nQuestion: {question}",
    "begun": "Answer the question with the search results.\n\n{context}\n\nQuestion: {question}\nAnswer:",
    "last": (
        "Search results:\n{context}\n\nAnswer the question in one sentence, using only the search results above. "
        "If they do not say it, answer that you do not know.\n\nQuestion: {question}\nAnswer:"
    ),
    "cite": (
        "Answer the question with what the search results say about it, and put the number of the result behind what "
        "it says, like this: [1]. If they say nothing, answer that you do not know.\n\nSearch results:\n{context}\n\n"
        "Question: {question}"
    ),
    "long": (
        "You are a careful assistant who answers questions from search results. Read all of them, find the one that "
        "is about what is asked, and answer with the name, number or date that it says, exactly as it is written "
        "there. Do not add anything that the search results do not say, do not repeat them, and keep the answer to "
        "one sentence. If none of them has the answer, say that you do not know.\n\n### Search results\n{context}\n\n"
        "### Question\n{question}"
    ),
}
"""What is posted as `chat_template`; None is the built-in one."""


def read_facts() -> list[Fact]:
    """All facts, topic by topic."""
    return [Fact(**fact) for fact in json.loads(FACTS.read_text("utf-8"))]


def some(facts: Sequence[Fact], number: int) -> list[Fact]:
    """So many of the facts, from all topics alike."""
    number = min(number, len(facts))
    return [facts[index * len(facts) // number] for index in range(number)]


def normal(text: str) -> str:
    """The words and numbers of a text in small letters, a space before and after each: what is compared."""
    return f" {' '.join(_WORDS.findall(_THOUSANDS.sub('', text).casefold()))} "


def contains(text: str, fact: Fact) -> bool:
    """Whether a text tells the fact, in any of its accepted forms."""
    return any(normal(form) in normal(text) for form in fact.accepted)


def with_others(fact: Fact, facts: Sequence[Fact]) -> list[Fact]:
    """The facts whose documents go with a question: its own first, then those of its topic, the likest first."""
    asked = set(normal(fact.question).split())

    def distance(other: Fact) -> tuple[bool, int]:
        return other.topic != fact.topic, -len(asked & set(normal(f"{other.title} {other.text}").split()))

    others = sorted((other for other in facts if other is not fact), key=distance)
    return [fact, *others[: DOCUMENTS - 1]]


def in_order(order: str, given: Sequence[Fact], draw: int) -> list[Fact]:
    """The facts of a question in their order; each draw shuffles anew, and a draw always the same way."""
    return list(given) if order == "best" else random.Random(f"{draw} {given[0].title}").sample(given, len(given))


def body(template: str | None, given: Sequence[Fact], question: str, sampling: Mapping[str, JSON]) -> JSON:
    """What is posted."""
    return {
        "query": question,
        "documents": [{"title": fact.title, "text": fact.text} for fact in given],
        "chat_template": template,
        "stream": False,
        **sampling,
    }


class Tally:
    """The answers of one prompt, order and sampling."""

    def __init__(self) -> None:
        self._right: dict[int, list[bool]] = defaultdict(list)
        self._tokens = 0

    def add(self, draw: int, right: Sequence[bool], tokens: int) -> None:
        """Count some answers of a draw, which have so many tokens together."""
        self._right[draw].extend(right)
        self._tokens += tokens

    def __str__(self) -> str:
        shares = [fmean(right) for right in self._right.values()]
        tokens = self._tokens / sum(map(len, self._right.values()))
        spread = f"{min(shares):.0%} - {max(shares):.0%}" if len(shares) > 1 else "one draw"
        return f"{fmean(shares):.0%} | {spread} | {tokens:.0f}"


class Evaluation:
    """Asks a running service.

    Args:
        service: The service.
        client: With which it is asked.
        facts: Whose questions are asked.
        draws: How often each is asked where chance has a part: in the order of the documents, or in the sampling.
        max_tokens: Of an answer. One that copies its documents has the fact, too, if only it is long enough.
        show: Print every answer.
    """

    def __init__(
        self,
        service: Service,
        client: httpx.AsyncClient,
        facts: Sequence[Fact],
        *,
        draws: int,
        max_tokens: int,
        show: bool,
    ) -> None:
        self._service, self._client, self._show = service, client, show
        self._draws, self._max_tokens = draws, max_tokens
        everything = read_facts()
        self._given = [with_others(fact, everything) for fact in facts]

    async def rows(self, name: str, order: str) -> Iterator[str]:
        """The rows of the table for a prompt and an order, one for each sampling.

        All draws and samplings of some questions come before the next questions, so that the prompts that they share
        are read once where the model server has a prefix cache.
        """
        tallies = {sampling: Tally() for sampling in SAMPLINGS}
        for start in range(0, len(self._given), AT_ONCE):
            given = self._given[start : start + AT_ONCE]
            for draw in range(1, self._draws + 1):
                for sampling, tally in tallies.items():
                    if draw == 1 or (order, sampling) != ("best", "greedy"):
                        await self._ask(given, name, order, sampling, draw, tally)
        return (f"| {name} | {order} | {sampling} | {tally} |" for sampling, tally in tallies.items())

    async def _ask(
        self, given: Sequence[Sequence[Fact]], name: str, order: str, sampling: str, draw: int, tally: Tally
    ) -> None:
        fields = {**SAMPLINGS[sampling], "max_tokens": self._max_tokens, "seed": draw}
        before = await self._tokens()
        bodies = [body(PROMPTS[name], in_order(order, facts, draw), facts[0].question, fields) for facts in given]
        answers = await asyncio.gather(*map(self._answer, bodies))
        right = [contains(answer, facts[0]) for answer, facts in zip(answers, given, strict=True)]
        tally.add(draw, right, await self._tokens() - before)
        if self._show:
            for answer, facts, good in zip(answers, given, right, strict=True):
                print(f"  {'+' if good else '-'} {facts[0].question} [{facts[0].accepted[0]}] {answer!r}")

    async def _answer(self, asked: JSON) -> str:
        answer = await self._client.post(self._service.url + PATH, json=asked)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["text"])

    async def _tokens(self) -> int:
        """Of all answers so far, as the model server counted them."""
        await until_idle(self._service)
        metrics = (await self._service.get("/metrics")).body.decode()
        found = re.search(r'^opea_llm_tokens_total\{kind="completion"\} (\S+)$', metrics, re.MULTILINE)
        return int(float(found[1])) if found else 0


async def evaluate(options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the service, ask it, and print the table row by row."""
    chosen = {variable: getattr(options, name) for name, variable in VARIABLES.items()}
    environment = {variable: value for variable, value in chosen.items() if value}
    facts = some(read_facts(), options.questions)
    async with (
        running({}, monkeypatch, environment) as service,
        httpx.AsyncClient(timeout=None, trust_env=False) as client,
    ):
        evaluation = Evaluation(
            service, client, facts, draws=options.draws, max_tokens=options.max_tokens, show=options.show
        )
        print(f"{options.model}: {len(facts)} questions, each with {DOCUMENTS} documents; draws: {options.draws}\n")
        print("| prompt | documents | sampling | answered | lowest - highest draw | tokens of an answer |")
        print("|---|---|---|---|---|---|", flush=True)
        started = time.perf_counter()
        for name in PROMPTS if "all" in options.prompt else options.prompt:
            for order in ORDERS if options.order == "all" else (options.order,):
                for row in await evaluation.rows(name, order):
                    print(row, flush=True)
        print(f"\n{time.perf_counter() - started:.0f} s")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.answers", description=(__doc__ or "").partition("\n")[0]
    )

    add = parser.add_argument
    add("--questions", type=int, default=64, help="how many questions are asked")
    add("--draws", type=int, default=2, help="how often each is asked where chance has a part")
    add("--max-tokens", type=int, default=48, help="the longest answer")
    add("--prompt", nargs="+", choices=[*PROMPTS, "all"], default=["built-in"], help="the prompts to compare")
    add("--order", choices=[*ORDERS, "all"], default="best", help="the document with the answer first, or anywhere")
    add("--model", default=os.environ.get(VARIABLES["model"], BUNDLED_MODEL), help="the model's name")
    add("--server", help="what runs it: one of the service's model servers")
    add("--endpoint", help="the model server's URL")
    add("--show", action="store_true", help="print every answer")
    return parser.parse_args(arguments)


def main() -> None:
    options = parsed()
    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(evaluate(options, monkeypatch))


if __name__ == "__main__":
    main()
