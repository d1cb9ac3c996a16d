"""README and documentation are true: their commands run, their answers come, their tables are the code's own."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import huggingface_hub.constants  # noqa: F401  # At its import it reads whether it is offline, which tests are.
import pytest

from comps.app import read_settings
from comps.dialects import DIALECTS
from comps.model_servers import MODEL_SERVERS
from comps.model_servers.embedded.openvino import OpenVINO
from comps.model_servers.scripted import Scripted
from comps.opening import open_models
from tests.seeds import Example
from tests.seeds.__main__ import Row, rows
from tests.service import running
from tests.tables import TABLES, settings_table, written

__all__ = ["settings_table"]

ROOT = Path(__file__).parent.parent
PAGES = {
    str(file.relative_to(ROOT)): file.read_text("utf-8")
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
"""The texts of the README, of CONTRIBUTING and of the documentation, by their paths."""
RUN_ELSEWHERE = ("docs/command-line.md",)
"""The pages whose commands are run by tests of what they are about."""
FOLDERS = ("docker", "impl")
"""Further folders with pages, whose commands are tested elsewhere."""
MOST_LINES = 150
"""What a newcomer reads."""


def blocks(language: str) -> list[Any]:
    """The blocks of code in a language, each a parameter of a test with its page's name."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [
        pytest.param(block, id=f"{page}-{number}")
        for page, text in PAGES.items()
        if page not in RUN_ELSEWHERE
        for number, block in enumerate(fence.findall(text), 1)
    ]


def starting(parameters: list[Any], start: str) -> list[str]:
    """The blocks in which a line begins like that."""
    found = [str(one.values[0]) for one in parameters]
    return [block for block in found if re.search(f"^{re.escape(start)}", block, re.MULTILINE)]


CURLS = starting(blocks("bash"), "curl ")
COMMANDS = starting(blocks("bash"), ".venv/bin/opea-llm ")
README = PAGES["README.md"]
CONTRIBUTING = PAGES["CONTRIBUTING.md"]


def test_the_readme_is_short_enough_for_a_newcomer() -> None:
    assert README.count("\n") <= MOST_LINES


@pytest.mark.parametrize("page", TABLES)
def test_a_table_is_the_codes_own(page: str) -> None:
    """If it is not: `python -m tests.tables`."""
    assert written(page) == PAGES[f"docs/{page}"]


def test_every_kind_and_dialect_is_named() -> None:
    for page, names in {"docs/model-servers.md": MODEL_SERVERS, "docs/dialects.md": DIALECTS}.items():
        assert [name for name in names if f"`{name}`" not in PAGES[page]] == []


def test_every_client_in_the_table_has_the_test_that_is_named_there() -> None:
    rows = PAGES["docs/dialects.md"].partition("## Clients")[2].partition("\n## ")[0]
    named = re.findall(r"`(test_\w+\.py)`: `(test_\w+)…`", rows)
    assert len(named) > 10
    assert [test for file, test in named if f"async def {test}" not in (ROOT / "tests" / file).read_text("utf-8")] == []


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {name for text in PAGES.values() for name in re.findall(r"[`\n]make ([a-z-]+)", text)}
    assert named - targets == set()
    assert len(named) > 10


async def test_every_curl_runs_as_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([["Gaudi 2 has 96 GB", "."]]), monkeypatch) as service:

        def ran(block: str) -> str:
            command = block.replace("localhost:9000", f"127.0.0.1:{service.port}")
            done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, timeout=60, check=True)
            return done.stdout

        answers = await asyncio.gather(*(asyncio.to_thread(ran, block) for block in CURLS))
    for block, answer in zip(CURLS, answers, strict=True):
        assert answer, block
        for wrong in ('"detail"', '"error"', '"error_message"'):
            assert wrong not in answer, block


class Lent:
    """A model server that outlives the service."""

    def __init__(self, engine: OpenVINO) -> None:
        self.describe, self.generate = engine.describe, engine.generate
        self.count_tokens, self.count_prompt, self.render = engine.count_tokens, engine.count_prompt, engine.render

    async def aclose(self) -> None:
        pass


@pytest.mark.xdist_group("engine")
async def test_the_bundled_model_answers_every_curl_with_sensible_text(
    engine: OpenVINO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Lent(engine), monkeypatch, {"LLM_NAME": "SmolLM2-135M-Instruct"}) as service:
        asking = [block for block in CURLS if " -d " in block and "/v1/prompt" not in block]
        known = [block for block in asking if "/generate " in block or "warranty of the battery" in block]

        async def ran_at_once(blocks: Sequence[str]) -> list[Row]:
            examples = [Example("README", 0, block) for block in blocks]
            asked = [asyncio.to_thread(lambda one: next(rows(service.url, [one])), example) for example in examples]
            return await asyncio.gather(*asked)

        ran = await ran_at_once([block for block in asking if block not in known])
        for block in known:  # In a batch, sums are rounded in another order, and their answers may be others.
            ran += await ran_at_once([block])
    assert [(row.command, row.answer.body) for row in ran if row.fault] == []
    (llm_api,) = [row.answer.body for row in ran if "/generate " in row.command]
    assert b"Paris" in llm_api  # Greedily.
    warranty = [row.answer.body for row in ran if "warranty of the battery" in row.command]
    assert len(warranty) == 2
    assert all(b'"The warranty of the battery is 3 years."' in body for body in warranty)  # As it is shown.


@pytest.mark.parametrize("block", COMMANDS)
async def test_every_command_runs_as_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, block: str) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    command = tmp_path / ".venv" / "bin" / "opea-llm"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m comps "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MODEL_SERVER", "scripted")
    monkeypatch.setenv("FRAMEWORK", "native")
    async with AsyncExitStack() as stack:
        if "localhost:9000" in block:
            service = await stack.enter_async_context(running(Scripted(), monkeypatch))
            block = block.replace("localhost:9000", f"127.0.0.1:{service.port}")
        how: Any = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 60, "check": False}
        done: Any = await asyncio.to_thread(lambda: subprocess.run(["bash", "-euc", block], **how))
    assert done.returncode == 0, done.stderr


def test_every_block_of_bash_is_run_by_one_of_these_tests() -> None:
    known = {"make run\n", *CURLS, *COMMANDS}
    assert [one.id for one in blocks("bash") if one.values[0] not in known] == []


@pytest.mark.parametrize("block", blocks("sh"))
def test_what_is_only_shown_names_settings_and_files_that_exist(monkeypatch: pytest.MonkeyPatch, block: str) -> None:
    """Blocks of `sh` are not run: they start services, or need Docker."""
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["export"]:
            for word in words[1:]:
                monkeypatch.setenv(*word.partition("=")[::2])
            open_models(read_settings(None))
        for word in words:
            if word.startswith(("docker/", "impl/", "tests/", "examples/")):
                assert (ROOT / word).exists(), word


async def test_every_python_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([["The warranty is", " three years."]]), monkeypatch) as service:

        def run(block: str) -> str:
            printed: list[str] = []

            def note(*values: object, end: str = "", flush: bool = False) -> None:
                printed.extend(map(str, values))

            code = compile(block.replace("localhost:9000", f"127.0.0.1:{service.port}"), "example", "exec")
            exec(code, {"__name__": "example", "print": note})
            return "".join(printed)

        for one in blocks("python"):
            block = str(one.values[0])
            said = await asyncio.to_thread(run, block)
            assert bool(said) == ("print(" in block), one.id
            if "localhost:9000" in block and "chat" in block:
                assert "three years" in said, one.id


@pytest.mark.parametrize("block", blocks("ini"))
def test_every_file_of_settings_that_is_printed_can_be_served(tmp_path: Path, block: str) -> None:
    file = tmp_path / "config.ini"
    file.write_text(block)
    models = [generator.model for generator in open_models(read_settings(file))]
    assert models[1:] == re.findall(r"\[Model\.(.+)\]", block)


async def test_the_echo_dialect_of_the_documentation_answers_from_its_echo_model_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    for one in blocks("python"):
        if str(one.id).startswith("docs/extending.md"):
            exec(compile(str(one.values[0]), str(one.id), "exec"), names)
    async with running(names["Echo"](), monkeypatch, further=[names["echo"](None)]) as service:
        whole = await service.post({"say": "Hello there", "words": 1}, "/echo")
        streamed = await service.post({"say": "Hello there", "stream": True, "mood": 1}, "/echo")
        wrong = await service.post({"say": "Hello there", "words": 0}, "/echo")
    assert (whole.status, whole.json) == (200, {"said": "Hello "})
    assert whole.headers["x-finish-reason"] == "length"
    assert streamed.chunks == [b'{"said":"Hello "}\n', b'{"said":"there "}\n', b'{"end":"stop"}\n']
    assert streamed.headers["x-ignored-params"] == "mood"
    assert wrong.status == 400
    assert "words" in wrong.json["error"]


async def test_the_answer_printed_has_the_form_of_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (printed,) = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", README, re.DOTALL)]
    asked = re.search(r"-d '(.*?)'", CURLS[0], re.DOTALL)
    assert asked
    async with running(Scripted([[printed["text"]]]), monkeypatch) as service:
        answer = await service.post(json.loads(asked[1]), "/v1/chat/completions")
    assert {**answer.json, "id": printed["id"]} == printed
    assert len(answer.json["id"]) == len(printed["id"])


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_headings_that_exist() -> None:
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.md")]
    for page in [*PAGES, *(str(file.relative_to(ROOT)) for file in files)]:
        file = ROOT / page
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", file.read_text("utf-8")):
            path, _, anchor = link.partition("#")
            target = (file.parent / path).resolve() if path else file
            assert target.exists(), f"{page}: {link}"
            assert not anchor or anchor in anchors(target.read_text("utf-8")), f"{page}: {link}"


def test_every_page_of_the_documentation_can_be_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        file = waiting.pop()
        if file not in reached:
            reached.add(file)
            links = re.findall(r"\]\((?!https?:)([^)#]+\.md)", file.read_text("utf-8"))
            waiting += [(file.parent / link).resolve() for link in links]
    assert {ROOT / page for page in PAGES} - reached == set()


def test_the_layout_in_contributing_names_every_file() -> None:
    for file in (ROOT / "comps").rglob("*.py"):
        if file.name not in ("__init__.py", "__main__.py"):
            assert re.search(rf"(?<![\w]){re.escape(file.name)}", CONTRIBUTING), file.name
