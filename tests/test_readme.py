"""The README is true: its commands run, its answers come, its tables are the code's own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from comps.app import make_dialects, open_models, read_settings
from comps.dialects import DIALECTS
from comps.dialects.shared.endpoint import Endpoint
from comps.model_servers import MODEL_SERVERS
from comps.model_servers.embedded.openvino import OpenVINO
from comps.model_servers.scripted import Scripted
from comps.settings import SECTIONS, environment_names
from tests.seeds import Example
from tests.seeds.__main__ import rows
from tests.service import running

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
BASH = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", README + CONTRIBUTING, re.DOTALL)
INI = re.findall(r"```ini\n(.*?)```", README, re.DOTALL)
CURLS = [block for block in BASH if block.startswith("curl ")]
ASKS = [block for block in BASH if ".venv/bin/opea-llm ask" in block]


def settings_table() -> str:
    """The README's table of settings, as it must stand there."""
    lines = ["| section | key | environment | default | what it is |", "|---|---|---|---|---|"]
    for name, section in SECTIONS.items():
        for key, info in section.model_fields.items():
            variables = ", ".join(f"`{variable}`" for variable in environment_names(info))
            default = ", ".join(info.default) if isinstance(info.default, tuple) else str(info.default)
            shown = f"`{default}`" if default else "empty"
            lines.append(f"| `{name}` | `{key}` | {variables} | {shown} | {info.description} |")
    return "\n".join(lines)


def test_the_table_of_settings_is_the_codes_own() -> None:
    assert settings_table() in README


def clash_table() -> str:
    """The README's table of what several dialects want, as it must stand there: of the default order."""
    dialects = make_dialects(read_settings(None))
    lines = ["| route | body | claimed by | answered by |", "|---|---|---|---|"]
    for path in dict.fromkeys(path for dialect in dialects for path in dialect.calls):
        claims = {one.name: [call.marker for call in one.calls[path]] for one in dialects if path in one.calls}
        if len(claims) > 1:
            endpoint = Endpoint(path, dialects)
            for call, owner in endpoint.calls:
                claiming = [name for name, markers in claims.items() if call.marker in markers]
                lines.append(_clash(f"POST {path}", f"with `{call.marker}`", claiming, owner.name))
            lines.append(_clash(f"POST {path}", "none of these: the error", list(claims), endpoint.calls[0][1].name))
    for route in dict.fromkeys(route for dialect in dialects for route in dialect.routes):
        facts = {one.name: one.routes[route] for one in dialects if route in one.routes}
        if len({fact.respond for fact in facts.values()}) > 1:
            lines.append(_clash(route, "", list(facts), next(iter(facts))))
    names = [dialect.name for dialect in dialects]
    return "\n".join([*lines, _clash("", "a route that there is not: the error", names, names[0])])


def _clash(route: str, body: str, claiming: list[str], owner: str) -> str:
    claims = ", ".join(f"`{name}`" for name in claiming)
    return f"| {f'`{route}`' if route else ''} | {body} | {claims} | `{owner}` |"


def test_the_table_of_what_several_dialects_want_is_the_codes_own() -> None:
    assert clash_table() in README


def test_every_kind_and_dialect_is_named() -> None:
    for name in (*MODEL_SERVERS, *DIALECTS):
        assert f"`{name}`" in README


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b", README + CONTRIBUTING)) - {"it", "sure"} <= targets


@pytest.mark.parametrize("block", CURLS)
async def test_every_curl_runs_as_printed(monkeypatch: pytest.MonkeyPatch, block: str) -> None:
    async with running(Scripted([["Gaudi 2 has 96 GB", "."]]), monkeypatch) as service:
        command = block.replace("localhost:9000", f"127.0.0.1:{service.port}")
        done = await asyncio.to_thread(
            subprocess.run, ["bash", "-euc", command], capture_output=True, text=True, timeout=60, check=True
        )
    assert done.stdout
    assert '"detail"' not in done.stdout
    assert '"error"' not in done.stdout
    assert '"error_message"' not in done.stdout


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
        examples = [Example("README", 0, block) for block in CURLS]
        asked = [asyncio.to_thread(lambda one: next(rows(service.url, [one])), example) for example in examples]
        ran = await asyncio.gather(*asked)  # In one batch.
    assert [(row.command, row.answer.body) for row in ran if row.fault] == []
    assert b"Paris" in ran[-1].answer.body  # llm-api's question, greedily.
    warranty = [row.answer.body for row in ran if "warranty of the battery" in row.command]
    assert len(warranty) == 2
    assert all(b'"The warranty of the battery is 3 years."' in body for body in warranty)  # As it is shown.


@pytest.mark.parametrize("block", ASKS)
def test_every_ask_runs_as_printed(tmp_path: Path, block: str) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "opea-llm").write_text(f'#!/bin/sh\nexec {sys.executable} -m comps "$@"\n')
    (tmp_path / ".venv" / "bin" / "opea-llm").chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MODEL_SERVER": "scripted"}
    subprocess.run(
        ["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
    )


@pytest.mark.parametrize("block", PYTHON)
def test_every_python_example_runs(block: str) -> None:
    namespace: dict[str, object] = {"__name__": "example"}
    exec(compile(block, "example", "exec"), namespace)


@pytest.mark.parametrize("block", INI)
def test_every_file_of_settings_that_is_printed_can_be_served(tmp_path: Path, block: str) -> None:
    file = tmp_path / "config.ini"
    file.write_text(block)
    models = [generator.model for generator in open_models(read_settings(file))]
    assert models[1:] == re.findall(r"\[Model\.(.+)\]", block)


async def test_the_answer_printed_has_the_form_of_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (printed,) = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", README, re.DOTALL)]
    asked = re.search(r"-d '(.*?)'", CURLS[0], re.DOTALL)
    assert asked
    async with running(Scripted([[printed["text"]]]), monkeypatch) as service:
        answer = await service.post(json.loads(asked[1]), "/v1/chat/completions")
    assert {**answer.json, "id": printed["id"]} == printed
    assert len(answer.json["id"]) == len(printed["id"])


def test_links_lead_to_files_that_exist() -> None:
    for text in (README, CONTRIBUTING):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / link).exists(), link


def test_the_layout_in_contributing_names_every_file() -> None:
    for file in (ROOT / "comps").rglob("*.py"):
        if file.name not in ("__init__.py", "__main__.py"):
            assert re.search(rf"(?<![\w]){re.escape(file.name)}", CONTRIBUTING), file.name
