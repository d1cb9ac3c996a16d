"""Clients that pin what this project has newer, each in an environment of its own, `.venv-clients/<name>`.

A client is three files: what it is (`.in`), that with all it needs (`.txt`, made by `make lock`), and a program that
uses it and prints what it got (`.py`). `make test` sets the environments up.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ENVIRONMENTS = FOLDER.parent.parent / ".venv-clients"


def python_of(client: str) -> Path:
    """The interpreter of a client's environment."""
    return ENVIRONMENTS / client / "bin" / "python"


def is_installed(client: str, package: str) -> bool:
    """Whether the environment has the package; it has not where the client cannot be installed."""
    return any(ENVIRONMENTS.glob(f"{client}/lib/python*/site-packages/{package}"))


def use(client: str, *urls: str) -> dict[str, Any]:
    """What a client gets from the services at `urls`, by the names of its program's functions; by `urls` first, if the
    program takes several."""
    command = [str(python_of(client)), "-I", str(FOLDER / f"{client}.py"), *urls]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    got: dict[str, Any] = json.loads(done.stdout)
    return got
