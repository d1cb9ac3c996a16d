"""A model that packages carry in parts is joined in their order, and only if the whole is what it was."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.answers import models
from tests.benchmarks.answers.models import Carried, named, title


def carried(monkeypatch: pytest.MonkeyPatch, folder: Path, content: bytes) -> None:
    """Eleven packages of two bytes each, which pip is said to have downloaded."""
    one = Carried("a-part", 11, "1.0", hashlib.sha256(b"".join(b"%02d" % n for n in range(1, 12))).hexdigest(), "none")
    monkeypatch.setattr(models, "MODELS", {"m": one})
    monkeypatch.setattr(models, "FOLDER", folder)

    def download(command: Sequence[str], **_: Any) -> None:
        into = Path(command[command.index("--dest") + 1])
        for number, wanted in enumerate(command[command.index("--dest") + 2 :], 1):
            assert wanted == f"a-part{number}==1.0"
            with zipfile.ZipFile(into / f"a_part{number}-1.0-py3-none-any.whl", "w") as archive:
                archive.writestr(f"a_part{number}/__init__.py", "")
                archive.writestr(f"a_part{number}/data/part{number:02}.bin", content or b"%02d" % number)

    monkeypatch.setattr(subprocess, "run", download)


def test_the_parts_are_joined_in_their_order_and_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried(monkeypatch, tmp_path, b"")
    assert named("m") == str(tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "0102030405060708091011"
    monkeypatch.delattr(subprocess, "run")
    assert named("m") == str(tmp_path / "m.gguf")
    assert [named("other"), title("a/b/m.Q4.gguf"), title("a/b")] == ["other", "m.Q4", "b"]


def test_another_file_than_it_was_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried(monkeypatch, tmp_path, b"??")
    with pytest.raises(ValueError, match="another file"):
        named("m")
    assert not list(tmp_path.iterdir())
