"""Each fault of a reply, over each framework and each kind of remote model server, streamed and whole."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from comps.model_servers import FRAMEWORKS
from tests.faults.model_server import FaultyServer, nothing_wrong
from tests.faults.outcomes import Outcome, both, check
from tests.faults.scripts import CASES, Case
from tests.service import Service, running, until_idle

KINDS = ("openai_api", "vllm", "tgi")
"""Of openai_api, a whole answer is streamed and collected; of the others it is requested whole."""
every_framework = pytest.mark.parametrize("framework", FRAMEWORKS)
at_the_connection = pytest.mark.parametrize("framework", ["native", pytest.param("langchain", marks=pytest.mark.soak)])
"""For faults that a framework cannot see: the one is tested always, the other by `make soak`."""
TELLING = ("reset before headers", "closed in a chunk", "ended early", "reset behind the answer", "silent after tokens")
"""The faults that a framework sees, one of each sort."""


@asynccontextmanager
async def served(
    url: str, monkeypatch: pytest.MonkeyPatch, folder: Path, framework: str = "native", **settings: str
) -> AsyncIterator[Service]:
    """The service with a model for each kind, all at the same URL."""
    sections = [f"[Model.{kind}]\nmodel_server={kind}\nmodel_server_endpoint={url}" for kind in KINDS[1:]]
    (folder / "config.ini").write_text("\n".join(sections))
    monkeypatch.chdir(folder)
    environment = {
        "FRAMEWORK": framework,
        "LLM_NAME": KINDS[0],
        "MODEL_SERVER": KINDS[0],
        "LLM_MODEL_SERVER_ENDPOINT": url,
        **settings,
    }
    async with running({}, monkeypatch, environment) as service:
        yield service


def deadlines(seconds: float) -> dict[str, str]:
    return {"LLM_FIRST_TOKEN_SECONDS": f"{seconds}", "LLM_BETWEEN_TOKENS_SECONDS": f"{seconds}"}


@pytest.mark.parametrize(
    ("case", "framework"),
    [
        pytest.param(case, name, marks=() if name == "native" or case.name in TELLING else pytest.mark.soak)
        for case in CASES
        for name in FRAMEWORKS
    ],
    ids=lambda value: value.name if isinstance(value, Case) else value,
)
async def test_a_client_gets_the_whole_answer_or_an_error_and_the_next_one_a_good_answer(
    case: Case, framework: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with (
        FaultyServer(case.fault).listening() as server,
        served(server.url, monkeypatch, tmp_path, framework, **deadlines(case.seconds)) as service,
    ):
        for streamed, whole in await asyncio.gather(*(both(service, kind) for kind in KINDS)):
            check_case(case, streamed, whole, server.tokens)
        server.fault = nothing_wrong
        if case.seconds > 1:  # In less, a busy machine may not answer.
            for pair in await asyncio.gather(*(both(service, kind) for kind in KINDS)):
                assert [(good.text, good.ended) for good in pair] == [("".join(server.tokens), True)] * 2
        await until_idle(service)


def check_case(case: Case, streamed: Outcome, whole: Outcome, tokens: list[str]) -> None:
    """The outcomes are what the case says."""
    for got in (streamed, whole):
        check(got, tokens)
        assert bool(got.error) is bool(case.said), got
        assert re.search(case.said, got.error), got
    if case.said:
        assert whole.status == case.status
        assert streamed.status == (200 if case.begins else case.status), streamed
        assert bool(streamed.text) is case.begins
