"""Processes that begin with their imports done: each is a fork of one that waits, which costs a tenth of a start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_WAITING = """
import importlib, json, os, sys, traceback
for module in sys.argv[1:]:
    importlib.import_module(module)
for line in sys.stdin:
    program, arguments, environment, *files = json.loads(line)
    child = os.fork()
    if not child:
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[1:] = arguments
        code = 0
        try:
            exec(program, {"__name__": "__main__"})
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class FreshProcesses:
    """Runs programs, one after another, each in a process of its own.

    Args:
        folder: For what they print.
        modules: What each begins with. It must not read the environment as it is imported.
    """

    def __init__(self, folder: Path, *modules: str) -> None:
        self._files = [folder / "out", folder / "err"]
        command = [sys.executable, "-c", _WAITING, *modules]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._waiting: Any = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, program: str, *arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a program with these arguments and no other environment."""
        files = list(map(str, self._files))
        self._waiting.stdin.write(json.dumps([program, arguments, dict(environment), *files]) + "\n")
        self._waiting.stdin.flush()
        code = int(self._waiting.stdout.readline())
        out, err = (file.read_text() for file in self._files)
        for file in self._files:
            file.unlink()
        return subprocess.CompletedProcess(arguments, code, out, err)

    def close(self) -> None:
        with self._waiting:
            self._waiting.stdin.close()
