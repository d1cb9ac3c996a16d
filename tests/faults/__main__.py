"""Try each fault once, and write the table of what clients get: `python -m tests.faults` writes docs/faults.md."""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trustme

from comps.model_servers import FRAMEWORKS
from tests.benchmarks.pages import DOCS, table
from tests.faults.model_server import FaultyServer
from tests.faults.outcomes import outcome
from tests.faults.scripts import CASES, Case, endless_line
from tests.faults.test_replies import KINDS, deadlines, served
from tests.process import free_port

PAGE = DOCS / "faults.md"
HEAD = """# What clients get when a model server fails

Written by `python -m tests.faults`, which `make soak` runs: each fault once, at the level of TCP, over both frameworks
and over the kinds openai_api, vllm and tgi; `tests/faults/` has a test for each. Before the first token an error is a
status, and behind it an item of the stream. Deadlines are short in this table.
"""
BESIDES = (
    (
        "comments and pings alone come, for as long as the client stays",
        "504, or an error item, at the same deadlines as without them",
        "model_servers/remote/test_client.py",
    ),
    (
        "an answer ends with a finish reason that says it is not complete (`abort`, `error` …)",
        "502, or an error item behind the text",
        "model_servers/remote/test_openai_api.py",
    ),
    (
        "an answer is compressed in a way that is not read (`br`, `zstd`)",
        "502 with the reason; other statuses keep their meaning",
        "model_servers/remote/test_connection.py",
    ),
    (
        "a gateway does not reach the model server (502, 504), or redirects",
        "the service is not ready; requests get 502, and nothing is followed",
        "model_servers/remote/test_client.py",
    ),
    (
        "a model server restarts under load",
        "what it had begun ends in an error; what comes meanwhile gets 502 or 503; then all is answered",
        "faults/test_connections.py",
    ),
    (
        "a server resets, closes or speaks before it has read anything",
        "502 or 503 with the reason",
        "faults/test_connections.py",
    ),
    (
        "`kill -9` of one of two replicas",
        "what it had begun ends in an error; all else is answered by the other",
        "model_servers/test_replica_killed.py",
    ),
    (
        "`kill -9` of the embedded engine's process",
        "its requests end in an error; readiness is false until it is loaded again, which begins at once",
        "faults/test_engine_killed.py",
    ),
    (
        "the embedded engine's process hangs (`kill -STOP`)",
        "its requests end at the deadlines that are set; after a minute it is ended, and the same as for `kill -9`",
        "faults/test_engine_killed.py",
    ),
    (
        "a full disk for the log, or for standard error",
        "requests go on; standard error tells once a minute that the log cannot be written",
        "faults/test_log_and_clock.py",
    ),
    (
        "the wall clock jumps by ten years",
        "no deadline moves; a date in `Retry-After` is read by the clock of its server",
        "faults/test_log_and_clock.py",
    ),
    (
        "a third of 10,000 streams break",
        "no token is lost, doubled or reordered without an error",
        "faults/test_numbered_streams.py",
    ),
)
"""Further faults: what happens, and the test of it."""


@dataclass
class Situation:
    """A model server with a fault.

    Args:
        description: What is wrong with it.
        url: Where it is.
        settings: The service's settings.
        question: What it is asked.
    """

    description: str
    url: str
    settings: dict[str, str] = field(default_factory=dict)
    question: str = "?"


@asynccontextmanager
async def of_case(case: Case) -> AsyncIterator[Situation]:
    async with FaultyServer(case.fault).listening() as server:
        yield Situation(case.description, server.url, deadlines(case.seconds))


@asynccontextmanager
async def refused() -> AsyncIterator[Situation]:
    yield Situation("The connection is refused", f"http://127.0.0.1:{free_port()}")


@asynccontextmanager
async def unknown_name() -> AsyncIterator[Situation]:
    yield Situation("The server's name cannot be resolved", "http://no-such-host.invalid")


@asynccontextmanager
async def wrong_certificate() -> AsyncIterator[Situation]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with FaultyServer().listening(context) as server:
        yield Situation("TLS with a certificate of an unknown authority", server.url.replace("http", "https"))


@asynccontextmanager
async def stops_reading() -> AsyncIterator[Situation]:
    async with FaultyServer().listening() as server:
        server.reads = False
        what = "The server stops reading in the middle of a large request"
        yield Situation(what, server.url, deadlines(1), "word " * 1_500_000)


@asynccontextmanager
async def long_line() -> AsyncIterator[Situation]:
    async with FaultyServer().listening() as server:
        server.tokens = ["€" * 100_000, " 1€"]
        yield Situation("A line of 100,000 characters", server.url)


@asynccontextmanager
async def gigabyte_line() -> AsyncIterator[Situation]:
    async with FaultyServer(endless_line(1_000_000_000)).listening() as server:
        yield Situation("A line of a gigabyte", server.url)


SITUATIONS: list[Callable[[], AbstractAsyncContextManager[Situation]]] = [
    refused,
    unknown_name,
    wrong_certificate,
    *(partial(of_case, case) for case in CASES),
    stops_reading,
    long_line,
    gigabyte_line,
]


async def row(situation: Situation, monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """A fault, and the outcomes of a streamed and of a whole answer, over all frameworks and kinds."""
    streamed, whole = dict[str, None](), dict[str, None]()
    for framework in FRAMEWORKS:
        async with served(situation.url, monkeypatch, folder, framework, **situation.settings) as service:
            for kind in KINDS:
                for is_streamed, outcomes in ((True, streamed), (False, whole)):
                    got = await outcome(service, kind, is_streamed, situation.question)
                    outcomes.setdefault(got.brief)
    return [situation.description, "; or ".join(streamed), "; or ".join(whole)]


async def page(monkeypatch: pytest.MonkeyPatch) -> str:
    """The text of docs/faults.md."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for situation in SITUATIONS:
            async with situation() as made:
                rows.append(await row(made, monkeypatch, Path(folder)))
                print(*rows[-1], sep=" | ", flush=True)
    tables = [*table(["fault", "a stream gets", "a whole answer is"], rows), "Further faults:\n"]
    return "\n".join([HEAD, *tables, *table(["fault", "what happens", "its test, in tests/"], BESIDES)])


def main() -> None:
    logging.disable()
    with pytest.MonkeyPatch.context() as monkeypatch:
        text = asyncio.run(page(monkeypatch))
    PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
