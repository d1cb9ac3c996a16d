"""The command within the test's own process, which costs no start of Python."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from typer.testing import CliRunner

from comps.cli import cli


@dataclass(frozen=True)
class Ran:
    """How a command has ended, and what it has printed."""

    code: int
    out: str
    err: str


def invoked(*arguments: str, stdin: str | bytes = "", environment: dict[str, str] | None = None) -> Ran:
    """Runs the command."""
    done = CliRunner().invoke(cli, arguments, input=stdin, env=environment, prog_name="opea-llm")
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ran(done.exit_code, done.stdout, done.stderr)


async def invoke(*arguments: str, stdin: str | bytes = "", environment: dict[str, str] | None = None) -> Ran:
    """Runs the command beside the event loop, in which the service that it asks may run."""
    return await asyncio.to_thread(invoked, *arguments, stdin=stdin, environment=environment)
