"""The programs in examples/ run as they are against the service, in the environments of their packages."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients import is_installed, python_of
from tests.service import Able, running

FOLDER = Path(__file__).parent.parent / "examples"
ANSWER = ["The warranty", " is three years."]
ENVIRONMENTS = {
    "langchain_rag": None,
    "haystack_rag": ("haystack_3_4_1", "haystack"),
    "opea_orchestrator": ("opea_comps", "comps"),
}
"""By example: the client in `tests.clients` that has its packages, and one of these; None: those of the tests."""


def test_every_example_is_run_here() -> None:
    assert {file.stem for file in FOLDER.glob("*.py")} == set(ENVIRONMENTS)


@pytest.mark.parametrize("name", ENVIRONMENTS)
async def test_an_example_prints_the_answer_and_its_documents_reach_the_model(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    environment = ENVIRONMENTS[name]
    if environment and not is_installed(*environment):
        pytest.skip(f"{environment[0]} is not installed: `make test` does it, where it can be had")
    python = str(python_of(environment[0])) if environment else sys.executable
    server = Able([ANSWER])
    async with running(server, monkeypatch, {"LLM_NAME": "SmolLM2-135M-Instruct"}) as service:
        program = [python, "-I", str(FOLDER / f"{name}.py"), service.url]
        done = await asyncio.create_subprocess_exec(*program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        said, wrong = await done.communicate()
    assert done.returncode == 0, wrong.decode()
    assert b"is three years." in said
    assert server.asked
    for prompt, _, _ in server.asked:
        assert not isinstance(prompt, str)
        assert "The battery has a warranty of three years." in str(prompt[-1].content)
