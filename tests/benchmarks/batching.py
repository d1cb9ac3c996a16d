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
from statistics import median
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
COMPARED = 9
"""Rounds of the comparison with openvino-genai alone."""
ROUNDS = 3
DOCUMENTS = [
    "Bread is made of flour, water and salt.",
    "Intel Gaudi 2 has 96 GB of HBM2E memory on board.",
    "Paris is the capital of France.",
]


def body_of(number: int) -> JSON:
    """One question, its documents begun differently each time, so that no cache helps."""
    return {
        "query": "How much memory does Gaudi 2 have?",
        "documents": [f"Note {number}.", *DOCUMENTS],
        "max_new_tokens": MAX_TOKENS,
        "temperature": 0,
        "streaming": False,
    }


async def ask(service: Service, number: int) -> str:
    answer = await service.post(body_of(number))
    assert answer.status == 200, answer.body
    return str(answer.json["text"])


async def rendered(service: Service, number: int) -> str:
    """The prompt of a question as the model reads it."""
    answer = await service.post(body_of(number), "/v1/prompt")
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

    def answer(self, prompts: Sequence[str]) -> tuple[float, list[str]]:
        """The seconds that it takes for the prompts at once, and the answers."""
        assert self._process.stdin
        print(json.dumps(prompts), file=self._process.stdin, flush=True)
        told = json.loads(self._read())
        return float(told["seconds"]), told["texts"]

    def close(self) -> None:
        self._process.communicate()


async def compare(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Print the time that the service takes for eight questions at once, as a ratio to openvino-genai's own."""
    environment = {"FRAMEWORK": framework, "LLM_NAME": BUNDLED_MODEL}
    alone = Alone()
    ratios = []
    async with running(OpenVINO(BUNDLED_MODEL), monkeypatch, environment) as service:
        for round_ in range(-1, COMPARED):  # The first one warms both up.
            numbers = range(100_000 + round_ * 1000, 100_000 + round_ * 1000 + QUESTIONS)
            prompts = [await rendered(service, number) for number in numbers]
            started = time.perf_counter()
            answers = await asyncio.gather(*(ask(service, number) for number in numbers))
            through = time.perf_counter() - started
            directly, texts = await asyncio.to_thread(alone.answer, prompts)
            if round_ >= 0 and texts == answers:  # Sums differ with the batch, and so may a token, and all after it.
                ratios.append(through / directly)
    alone.close()
    print(
        f"openvino, {framework}: {QUESTIONS} at once through the service / by openvino-genai alone = "
        f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds with the same answers)"
    )


async def measure(kind: str, framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"FRAMEWORK": framework, "LLM_NAME": BUNDLED_MODEL}
    async with running(KINDS[kind](BUNDLED_MODEL), monkeypatch, environment) as service:
        await ask(service, 0)
        for round_ in range(ROUNDS):
            numbers = range(1 + round_ * 1000, 1 + round_ * 1000 + QUESTIONS)
            started = time.perf_counter()
            for number in numbers:
                await ask(service, number)
            in_a_row = time.perf_counter() - started
            started = time.perf_counter()
            await asyncio.gather(*(ask(service, number + 500) for number in numbers))
            at_once = time.perf_counter() - started
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
