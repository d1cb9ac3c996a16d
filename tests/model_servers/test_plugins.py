"""Plug-ins, really built and installed: packages with kinds of model server, and one with a LangChain chat model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.fresh_processes import FreshProcesses

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 120

pytestmark = pytest.mark.xdist_group("plugins")

Command = Callable[..., "subprocess.CompletedProcess[str]"]

CHAT_MODEL = """
from langchain_core.language_models import SimpleChatModel

class Parrot(SimpleChatModel):
    prefix: str = ""

    @property
    def _llm_type(self):
        return "parrot"

    def _call(self, messages, stop=None, run_manager=None, **kwargs):
        return self.prefix + messages[-1].content
"""


LOUD = """

from comps import collect

class Loud(Echo):
    @classmethod
    def open(cls, target):
        server = cls()
        server.mark = target.engine["mark"]
        return server

    async def generate(self, prompt, sampling, options, answer):
        whole = await collect(super().generate, prompt, sampling, options)
        for word in whole.text.split():
            answer.text(word.upper() + " " + self.mark)
        answer.finished(Finished(whole.reason))
"""
ENTRY_POINTS = """\
    echo = acme_servers:Echo
    Loud = acme_servers:Loud
    broken = acme_broken:Nothing
    closed = acme_servers:Usage
    scripted = acme_servers:Echo
"""


def echo() -> str:
    """The example in the documentation, as it stands there."""
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    blocks: list[str] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return next(block for block in blocks if "class Echo:" in block)


def package(folder: Path, name: str, module: str, points: str = "") -> Path:
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[build-system]\nrequires = ["setuptools"]\n')
    (folder / f"{name}.py").write_text(module)
    metadata = f"[metadata]\nname = {name.replace('_', '-')}\nversion = 1\n\n[options]\npy_modules = {name}\n\n"
    (folder / "setup.cfg").write_text(f"{metadata}[options.entry_points]\nopea_llm.model_servers =\n{points}\n")
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the packages are installed into."""
    sources, folder = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("installed")
    packages = (
        package(sources / "servers", "acme_servers", echo() + LOUD, ENTRY_POINTS),
        package(sources / "chat", "acme_chat", CHAT_MODEL),
        package(sources / "broken", "acme_broken", "import acme_driver_that_is_not_there\n"),
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    how = ["--no-deps", "--no-build-isolation", "--target", str(folder)]
    done = subprocess.run(
        [*pip, *how, *map(str, packages)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


PROGRAM = """
import os, sys
os.chdir(sys.argv[1])
sys.path.insert(0, sys.argv[1])
sys.argv[:2] = ["opea-llm"]
from comps.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def command(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """`opea-llm` where the packages are installed besides."""
    langchain = ("comps.model_servers.langchain.langchain_model", "comps.model_servers.langchain.through")
    processes = FreshProcesses(tmp_path_factory.mktemp("printed"), "comps.app", "comps.cli", *langchain)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return processes.run(PROGRAM, str(installed), *arguments, environment={**os.environ, **environment})

    yield run
    processes.close()


@pytest.fixture(scope="module")
def started(installed: Path) -> Command:
    """The same, started anew."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join((str(ROOT), str(installed)))
        return subprocess.run(
            [sys.executable, "-m", "comps", *arguments],
            env={**os.environ, "PYTHONPATH": path, **environment},
            cwd=installed,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return run


@pytest.mark.parametrize("framework", ["native", "langchain"])
def test_a_kind_of_another_package_answers(started: Command, framework: str) -> None:
    done = started("ask", "one two three", "--max-tokens", "2", MODEL_SERVER="echo", FRAMEWORK=framework)
    assert (done.returncode, done.stdout) == (0, "one two \n"), done.stderr
    assert "length" in done.stderr


def test_it_gets_its_own_settings_whatever_the_case_of_its_name(command: Command) -> None:
    done = command("ask", "one two", MODEL_SERVER="loud", LLM_ENGINE_MARK="!", FRAMEWORK="native")
    assert done.stdout == "ONE !TWO !\n", done.stderr


def test_check_describes_a_kind_of_another_package(command: Command) -> None:
    done = command("check", MODEL_SERVER="echo")
    assert done.returncode == 0, done.stderr
    assert "answers with echo" in done.stdout


def test_an_unknown_kind_is_told_both_what_is_here_and_what_was_added(command: Command) -> None:
    done = command("check", MODEL_SERVER="zzzzzz")
    assert done.returncode == 2
    assert "openvino" in done.stderr
    assert "broken, closed, echo, loud" in done.stderr


def test_a_package_that_cannot_be_imported_is_named_with_the_reason_once_it_is_chosen(command: Command) -> None:
    done = command("check", MODEL_SERVER="broken")
    assert done.returncode == 2
    assert "acme-servers" in done.stderr
    assert "ModuleNotFoundError: No module named 'acme_driver_that_is_not_there'" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_opened_is_no_kind(command: Command) -> None:
    done = command("check", MODEL_SERVER="closed")
    assert done.returncode == 2
    assert "acme_servers:Usage of the package acme-servers has no open(target)" in done.stderr


def test_no_package_takes_the_place_of_a_kind_that_is_here(command: Command) -> None:
    done = command("ask", "Hi", MODEL_SERVER="scripted")
    assert done.stdout == "This answer was written beforehand.\n"
    assert "the package acme-servers offers a model server 'scripted'" in done.stderr


def test_a_langchain_chat_model_of_another_package_answers(command: Command) -> None:
    chosen = {"MODEL_SERVER": "langchain", "LLM_ENGINE_CLASS": "acme_chat:Parrot", "LLM_ENGINE_PREFIX": "So:"}
    done = command("ask", "Hello there", **chosen)
    assert (done.returncode, done.stdout) == (0, "So:Hello there\n"), done.stderr
    assert command("check", **chosen).returncode == 0


def test_a_langchain_chat_model_is_named_in_the_configuration_file(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "config.ini"
    file.write_text(
        dedent("""
        [Model]
        model_server = langchain
        class = acme_chat:Parrot
        prefix = "So:"
    """)
    )
    done = command("ask", "Hello", "--config", str(file))
    assert done.stdout == "So:Hello\n", done.stderr


def test_a_missing_package_is_told_with_the_command_that_mends_it(command: Command) -> None:
    done = command("check", MODEL_SERVER="langchain", LLM_ENGINE_CLASS="langchain_nobody:Chat")
    assert done.returncode == 2
    assert "pip install langchain-nobody" in done.stderr
