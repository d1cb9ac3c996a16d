"""Eight questions with documents at once, against eight in a row and against openvino-genai alone: the embedded model,
through the whole service.

`make bench` runs it with openvino; `python -m tests.benchmarks.batching llama_cpp transformers` with those kinds, which
must be installed. It prints ratios of times measured side by side: times alone say more of the machine.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from subprocess import PIPE

import pytest

from comps.core.types import JSON
from comps.model_servers.embedded.base import Embedded
from comps.model_servers.embedded.llama_cpp import LlamaCpp
from comps.model_servers.embedded.model_files import BUNDLED_MODEL
from comps.model_servers.embedded.openvino import OpenVINO
from comps.model_servers.embedded.transformers import Transformers
from tests.service import Service, running

KINDS: dict[str, Callable[[str], Embedded]] = {kind.kind: kind for kind in (OpenVINO, LlamaCpp, Transformers)}
QUESTIONS = 8
MAX_TOKENS = 48
COMPARED = 30
"""Rounds of the comparison with openvino-genai alone."""
ROUNDS = 3
DOCUMENTS = [
    "Bread is made of flour, water and salt.",
    "Intel Gaudi 2 has 96 GB of HBM2E memory on board.",
    "Paris is the capital of France.",
]


QUESTION: JSON = "How much memory does Gaudi 2 have?"
LONG: JSON = "Count from 1 to 500: 1, 2, 3, 4, 5,"
"""Nearly every answer to it is as long as it may be, so that both sides generate the same number of tokens."""


def body_of(number: int, question: JSON = QUESTION) -> JSON:
    """One question, its documents begun differently each time, so that no cache helps."""
    return {
        "messages": question,
        "documents": [f"Note {number}.", *DOCUMENTS],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": False,
    }


async def ask(service: Service, body: JSON) -> int:
    """The tokens of the answer."""
    answer = await service.post(body)
    assert answer.status == 200, answer.body
    return int(answer.json["usage"]["completion_tokens"])


async def ask_at_once(service: Service, bodies: Sequence[JSON]) -> tuple[float, int]:
    """The seconds that it takes, and the tokens of all answers."""
    started = time.perf_counter()
    tokens = await asyncio.gather(*(ask(service, body) for body in bodies))
    return time.perf_counter() - started, sum(tokens)


async def rendered(service: Service, body: JSON) -> str:
    """The prompt of a question as the model reads it."""
    answer = await service.post(body, "/v1/prompt")
    return str(answer.json["prompts"][0]["rendered"])


class Alone:
    """openvino-genai alone, in a process of its own; see `genai`."""

    def __init__(self) -> None:
        arguments = [sys.executable, "-m", "tests.benchmarks.genai", str(MAX_TOKENS)]
        self._process = subprocess.Popen(arguments, stdin=PIPE, stdout=PIPE, text=True)
        self._read()

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()

    def answer(self, prompts: Sequence[str]) -> tuple[float, int]:
        """The seconds that it takes for the prompts at once, and the tokens of all answers."""
        assert self._process.stdin
        print(json.dumps(prompts), file=self._process.stdin, flush=True)
        told = json.loads(self._read())
        return float(told["seconds"]), int(told["tokens"])

    def close(self) -> None:
        self._process.communicate()


async def compare(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Print the time that the service takes for eight questions at once, as a ratio to openvino-genai's own.

    The two take turns in going first: where a machine changes its speed, that falls on both alike.
    """
    environment = {"FRAMEWORK": framework, "LLM_NAME": BUNDLED_MODEL}
    alone = Alone()
    ratios = []
    async with running(OpenVINO(BUNDLED_MODEL), monkeypatch, environment) as service:
        for round_ in range(-1, COMPARED):  # The first one warms both up.
            first = 100_000 + round_ * 1000
            bodies = [body_of(number, LONG) for number in range(first, first + QUESTIONS)]
            prompts = [await rendered(service, body) for body in bodies]
            if round_ % 2:
                through = await ask_at_once(service, bodies)
                directly = await asyncio.to_thread(alone.answer, prompts)
            else:
                directly = await asyncio.to_thread(alone.answer, prompts)
                through = await ask_at_once(service, bodies)
            if round_ >= 0 and through[1] == directly[1]:  # Sums differ with the batch, and so may a token.
                ratios.append(through[0] / directly[0])
    alone.close()
    low, _, high = quantiles(ratios)
    print(
        f"openvino, {framework}: {QUESTIONS} at once through the service / by openvino-genai alone = "
        f"{median(ratios):.3f} (of {len(ratios)} rounds, half are within {low:.3f} to {high:.3f})"
    )


async def measure(kind: str, framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"FRAMEWORK": framework, "LLM_NAME": BUNDLED_MODEL}
    async with running(KINDS[kind](BUNDLED_MODEL), monkeypatch, environment) as service:
        await ask(service, body_of(0))
        for round_ in range(ROUNDS):
            numbers = range(1 + round_ * 1000, 1 + round_ * 1000 + QUESTIONS)
            started = time.perf_counter()
            for number in numbers:
                await ask(service, body_of(number))
            in_a_row = time.perf_counter() - started
            at_once, _ = await ask_at_once(service, [body_of(number + 500) for number in numbers])
            print(
                f"{kind}, {framework}: {QUESTIONS} at once / in a row = {at_once:.2f} s / {in_a_row:.2f} s "
                f"= {at_once / in_a_row:.2f}"
            )


def main() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for kind in sys.argv[1:] or [OpenVINO.kind]:
            for framework in ("native", "langchain"):
                asyncio.run(measure(kind, framework, monkeypatch))
                if kind == OpenVINO.kind:
                    asyncio.run(compare(framework, monkeypatch))


if __name__ == "__main__":
    main()
