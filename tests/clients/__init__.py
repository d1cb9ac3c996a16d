"""Clients that pin what this project has newer, each in an environment of its own, `.venv-clients/<name>`.

A client is three files: what it is (`.in`), that with all it needs (`.txt`, made by `make lock`), and a program that
uses it and prints what it got (`.py`). A client in JavaScript is a folder: package.json, its lock file and the program
(`.mjs`). `make test` sets the environments up.
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
    places = (f"{client}/lib/python*/site-packages/{package}", f"{client}/node_modules/{package}")
    return any(any(ENVIRONMENTS.glob(place)) for place in places)


def use(client: str, *urls: str) -> dict[str, Any]:
    """What a client gets from the services at `urls`, by the names of its program's functions; by `urls` first, if the
    program takes several."""
    program, is_node = FOLDER / f"{client}.py", (FOLDER / client).is_dir()
    command = [str(python_of(client)), "-I", str(program), *urls]
    given: dict[str, Any] = {}
    if is_node:  # It imports from the folder that it runs in.
        command = ["node", "--input-type=module", "-", *urls]
        given = {"cwd": ENVIRONMENTS / client, "input": (FOLDER / client / f"{client}.mjs").read_text()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **given)
    assert done.returncode == 0, done.stderr
    got: dict[str, Any] = json.loads(done.stdout)
    return got
