"""Eight questions with documents at once, against eight in a row: the embedded model, through the whole service.

`make bench` runs it with openvino; `python -m tests.benchmarks.batching llama_cpp transformers` with those kinds, which
must be installed. It prints ratios of times measured side by side: times alone say more of the machine.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

import pytest

from comps.model_servers.embedded.base import Embedded
from comps.model_servers.embedded.llama_cpp import LlamaCpp
from comps.model_servers.embedded.model_files import BUNDLED_MODEL
from comps.model_servers.embedded.openvino import OpenVINO
from comps.model_servers.embedded.transformers import Transformers
from tests.service import Service, running

KINDS: dict[str, Callable[[str], Embedded]] = {kind.kind: kind for kind in (OpenVINO, LlamaCpp, Transformers)}
QUESTIONS = 8
ROUNDS = 3
DOCUMENTS = [
    "Bread is made of flour, water and salt.",
    "Intel Gaudi 2 has 96 GB of HBM2E memory on board.",
    "Paris is the capital of France.",
]


async def ask(service: Service, number: int) -> None:
    """One question, its documents begun differently each time, so that no cache helps."""
    documents = [f"Note {number}.", *DOCUMENTS]
    body = {
        "query": "How much memory does Gaudi 2 have?",
        "documents": documents,
        "max_new_tokens": 48,
        "streaming": False,
    }
    answer = await service.post(body)
    assert answer.status == 200, answer.body


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


if __name__ == "__main__":
    main()
