"""What setup.cfg declares is what the code imports: nothing more, and nothing less."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
EXTRAS = ("client", "langchain", "openvino", "otel", "llama_cpp", "transformers")
"""The extras that comps needs; the others are for tests and for building."""
NAMES = {
    "bs4": "beautifulsoup4",
    "docx": "python-docx",
    "llama_cpp": "llama-cpp-python",
    "opentelemetry": "opentelemetry-sdk",
    "yaml": "pyyaml",
}
"""Import names that are not the distribution's."""
NOT_IMPORTED = {
    "accelerate": "transformers loads a model onto a device with it",
    "gguf": "transformers reads GGUF files with it",
    "langchain": "nothing imports it; to be left out when the versions are locked anew",
    "langchain-community": "`class` of the settings may name its chat models",
    "opentelemetry-exporter-otlp-proto-http": "found by its entry point, in tracing.py",
    "uvloop": "uvicorn imports it by its name, in serving.py",
}
"""Declared distributions that are used without an import, with the reason."""
BY_OTHERS = {"click": "typer", "ray": "impl/model_server/ray/requirements.txt"}
"""Imports that another declaration brings."""


@cache
def declared() -> frozenset[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", "utf-8")
    lists = [parser["options"]["install_requires"]]
    lists += [parser["options.extras_require"][extra] for extra in EXTRAS]
    lines = [line.strip() for text in lists for line in text.splitlines()]
    return frozenset(canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith("#"))


@cache
def imported() -> frozenset[str]:
    """The distributions that the code imports."""
    return frozenset(imports())


def imports() -> Iterator[str]:
    """Each import of a distribution, by the name of its package."""
    for folder in ("comps", "impl"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                for package in {name.partition(".")[0] for name in names}:
                    if package not in sys.stdlib_module_names and package not in ("comps", "impl"):
                        yield NAMES.get(package, canonicalize_name(package))


def test_no_declared_dependency_is_unused() -> None:
    assert declared() - imported() - NOT_IMPORTED.keys() == set()


def test_nothing_is_imported_that_is_not_declared() -> None:
    assert imported() - declared() - BY_OTHERS.keys() == set()


def test_the_exceptions_are_declared_and_not_imported() -> None:
    assert NOT_IMPORTED.keys() <= declared() - imported()


def test_the_version_is_told_by_setup_cfg_and_the_same_elsewhere() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", "utf-8")
    metadata = parser["metadata"]
    label = re.search(r'image\.version="([^"]+)"', (ROOT / "docker" / "Dockerfile").read_text("utf-8"))
    assert label
    assert label[1] == metadata["version"]
    assert metadata["author"]
    assert all(f"Python :: 3.{minor}" in metadata["classifiers"] for minor in range(10, 14))
