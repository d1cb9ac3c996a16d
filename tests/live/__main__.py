"""`make live`: set up what each model server needs, run its tests, and print one table of all.

`python -m tests.live [SERVER …]` runs the named ones, or all that can run here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.live.servers import BUILDING, ENVIRONMENTS, ROOT, SERVERS, Server, python_of
from tests.live.table import HEAD, REPORTS

REQUIREMENTS = Path(__file__).parent / "requirements"


def prepare(environment: str) -> None:
    """Make `.venv-live/<environment>`, unless it is there and its requirements are as they were."""
    folder = ENVIRONMENTS / environment
    requirements = REQUIREMENTS / f"{environment}.txt"
    stamp, wanted = folder / ".installed", hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"Setting up .venv-live/{environment}; this takes minutes, once.", flush=True)
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    variables = {**os.environ, **BUILDING.get(environment, {})}
    subprocess.run([*pip, "--no-deps", "--requirement", str(requirements)], check=True, env=variables)
    if any(server.environment == environment and server.inside for server in SERVERS.values()):
        # The tests find here what .venv has, behind this environment's own packages.
        own = next(folder.glob("lib/python*/site-packages"))
        here = next((ROOT / ".venv").glob("lib/python*/site-packages"))
        (own / "zz-project.pth").write_text(f"import site; site.addsitedir({str(here)!r})\n")
    stamp.write_text(wanted)


def missing(server: Server) -> str:
    """What this machine lacks for it, that cannot be set up; empty: nothing."""
    program = server.command[0] if server.command else "{python}"
    return "" if program == "{python}" or shutil.which(program) else f"there is no {program} on the PATH"


def run(name: str) -> bool:
    """Whether the server's tests pass."""
    server = SERVERS[name]
    try:
        if server.environment:
            prepare(server.environment)
    except subprocess.CalledProcessError:
        print(f"{name}: its packages cannot be installed with Python {sys.version.split()[0]}; pip says why above")
        return False
    python = python_of(server) if server.inside else sys.executable
    tests = ["tests/live/test_contract.py", *server.more]
    command = [str(python), "-m", "pytest", "-m", "live", "-n", "0", "-v", "--tb", "short", "--server", name, *tests]
    return subprocess.run(command, cwd=ROOT, check=False, env={**os.environ, "NO_COLOR": "1"}).returncode == 0


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in SERVERS]
    if unknown:
        print(f"'{unknown[0]}' is no model server here; known: {', '.join(SERVERS)}")
        return 2
    shutil.rmtree(REPORTS, ignore_errors=True)
    failed = []
    for name in names or SERVERS:
        if lack := missing(SERVERS[name]):
            print(f"{name}: left out, since {lack}", flush=True)
            failed += [name] if names else []
        elif not run(name):
            failed.append(name)
    table = "\n".join(
        [*HEAD, *(rows for file in sorted(REPORTS.glob("*.md")) for rows in file.read_text().splitlines())]
    )
    REPORTS.with_suffix(".md").write_text(table + "\n")
    print(f"\n{table}\n\n{'failed: ' + ', '.join(failed) if failed else 'all passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
