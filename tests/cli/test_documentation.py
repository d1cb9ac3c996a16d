"""docs/command-line.md is true: its commands run, and its tables are the code's own."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest
import typer

import comps.serving
from comps.cli import cli, path_check
from comps.exit_codes import FOUND, MEANINGS
from comps.model_servers.scripted import Scripted
from comps.settings import Settings
from tests.cli.invoking import Ran, invoked
from tests.cli.test_replay import QUESTION, recorded
from tests.process import ROOT
from tests.service import running

TEXT = (ROOT / "docs" / "command-line.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
LINE = re.compile(r"(?:(?P<before>printf .+) \| )?opea-llm (?P<arguments>.+?)(?: > (?P<file>\S+))?")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files that the commands name."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("Rain.")
    (tmp_path / "gaudi.txt").write_text("Gaudi 2 has 96 GB of memory.")
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def test_every_command_runs_as_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Settings] = []

    def start(settings: Settings) -> NoReturn:
        started.append(settings)
        raise typer.Exit

    monkeypatch.setattr(path_check, "PAUSES", [0.0, 0.01, 0.01])
    monkeypatch.setattr(comps.serving, "ServiceProcess", start)
    await recorded(monkeypatch, folder / "records", Scripted(), QUESTION)
    next((folder / "records").iterdir()).rename(folder / "record.json")
    async with running({"demo": Scripted()}, monkeypatch, {"LLM_NAME": "demo"}) as service:
        ran = [(line, await asyncio.to_thread(_ran, line, service.url)) for line in COMMANDS]
    ended = {line: one.code for line, one in ran}
    assert ended == {line: FOUND if " replay " in line else 0 for line in COMMANDS}, ran
    assert len(started) == sum("opea-llm serve " in line for line in COMMANDS)
    assert {word for line in COMMANDS for word in re.findall(r"opea-llm ([a-z]+)", line)} == set(_names())


def _ran(line: str, url: str) -> Ran:
    """Runs a line, with the scripted model server, and the service at a URL."""
    parts = LINE.fullmatch(line)
    assert parts, line
    stdin = subprocess.check_output(["bash", "-c", parts["before"]]) if parts["before"] else b""
    arguments = shlex.split(parts["arguments"].replace("http://localhost:9000", url))
    environment = {} if "--model-server" in arguments else {"MODEL_SERVER": "scripted"}
    done = invoked(*arguments, stdin=stdin, environment=environment)
    if parts["file"]:
        Path(parts["file"]).write_text(done.out)
    return done


def _names() -> list[str]:
    commands = [command.callback.__name__ for command in cli.registered_commands if command.callback]
    return [*commands, *(str(group.name) for group in cli.registered_groups)]


def test_its_tables_have_every_command_every_exit_code_and_every_fault() -> None:
    listed = TEXT.partition("## Settings")[0]
    assert sorted(re.findall(r"^\| `(\w+)[^|]*` \| [a-z]", listed, re.MULTILINE)) == sorted(_names())
    for code, meaning in MEANINGS.items():
        assert f"| {code} | {meaning} |\n" in TEXT
    source = (ROOT / "comps" / "cli" / "path_faults.py").read_text() + Path(path_check.__file__).read_text()
    named = set(re.findall(r'Finding\(\s*"(\w+)"', source))
    told = TEXT.partition("| name |")[2].partition("\n\n")[0]
    assert named == set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.+?) \|", told, re.MULTILINE))))
