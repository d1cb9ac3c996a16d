"""The folders of impl/model_server: scripts that say what is missing, compose files that mean what .env says."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "impl" / "model_server"
SCRIPTS = sorted(FOLDER.rglob("*.sh"))
COMPOSE = sorted(FOLDER.glob("*/compose.*.yaml"))
SERVERS = sorted({file.parent for file in COMPOSE})
EVERYWHERE = ("awk", "df", "grep", "mkdir")
"""What the scripts take for granted."""
SERVICE_KEYS = {
    "image": str,
    "pull_policy": str,
    "build": dict,
    "user": str,
    "entrypoint": list,
    "command": list,
    "environment": dict,
    "ports": list,
    "volumes": list,
    "ipc": str,
    "runtime": str,
    "cap_add": list,
    "security_opt": list,
    "devices": list,
    "group_add": list,
    "deploy": dict,
    "restart": str,
    "stop_grace_period": str,
    "healthcheck": dict,
}


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER))


every_compose = pytest.mark.parametrize("file", COMPOSE, ids=name_of)
every_server = pytest.mark.parametrize("server", SERVERS, ids=name_of)


def service(file: Path) -> dict[str, Any]:
    """The one service of a compose file."""
    document = yaml.safe_load(file.read_text("utf-8"))
    assert list(document) == ["services"]
    ((_, described),) = document["services"].items()
    assert isinstance(described, dict)
    return described


def variables(server: Path) -> dict[str, str]:
    """What .env sets; every line with a value must have an explanation right before it."""
    found, before = {}, ""
    for line in (server / ".env").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            assert name not in found, f"{name} stands twice"
            assert before.startswith("# "), f"{name} is not explained"
            found[name] = value
        before = line
    return found


def used_in(file: Path) -> set[str]:
    return set(re.findall(r"\$\{(\w+)", file.read_text("utf-8")))


@dataclass
class Machine:
    """A machine on which a script may run: a folder with its programs, and what docker was told there."""

    programs: Path
    data: Path

    def has(self, name: str, body: str = "exit 0") -> None:
        """Put a program there."""
        program = self.programs / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)

    def has_docker(self, runtimes: str = '{"runc":{}}') -> None:
        """Docker, which knows some runtimes and, asked to run something, only says what and with what."""
        told = 'compose) case $2 in version) exit 0 ;; *) echo "$PWD: docker $*"; exec env ;; esac ;;'
        self.has("docker", f"case $1 in info) echo '{runtimes}' ;; {told} esac")
        (self.programs / "env").symlink_to(str(shutil.which("env")))

    def run(self, server: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a server's script there, from another folder."""
        usual = {"PATH": str(self.programs), "DATA_PATH": str(self.data), "MIN_DISK_GB": "0"}
        return subprocess.run(
            ["/bin/sh", str(FOLDER / server / "run.sh"), *arguments],
            env={**usual, "LLM_ENDPOINT_PORT": "18008", **environment},
            cwd=self.data.parent,
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in EVERYWHERE:
        (programs / name).symlink_to(str(shutil.which(name)))
    return Machine(programs, tmp_path / "data")


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a script ended."""
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_every_script_is_sh(script: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True)
    subprocess.run(["bash", "-n", script], check=True)
    if script.name == "run.sh":
        assert os.access(script, os.X_OK)


@every_server
def test_every_folder_has_its_files(server: Path) -> None:
    assert {"README.md", "run.sh", ".env", "compose.cpu.yaml", "compose.gpu.yaml"} <= {
        one.name for one in server.iterdir()
    }


@every_compose
def test_a_compose_file_says_what_compose_knows(file: Path) -> None:
    described = service(file)
    assert described.keys() <= SERVICE_KEYS.keys()
    assert all(isinstance(value, SERVICE_KEYS[key]) for key, value in described.items())
    assert all(isinstance(value, str) for value in described["environment"].values()), "YAML must not read a number"
    assert all(isinstance(argument, str) for argument in described.get("command", []))


@every_compose
def test_an_image_is_pinned_or_built_here(file: Path) -> None:
    described = service(file)
    name, _, tag = described["image"].rpartition(":")
    assert name
    if build := described.get("build"):
        assert described["pull_policy"] == "never"
        assert (file.parent / build["context"]).resolve() == ROOT
        return
    if tag == "${VLLM_GAUDI_TAG}":  # The image's name has the versions.
        assert re.search(r"/vllm-\d+\.\d+\.\d+-ptupstream-\d+\.\d+\.\d+$", name)
    else:
        assert re.search(r"\d", tag)


@every_compose
def test_the_health_check_asks_the_port_that_is_published(file: Path) -> None:
    described = service(file)
    (published,) = described["ports"]
    assert published.startswith("${LLM_ENDPOINT_PORT}:")
    port = published.rpartition(":")[2]
    check = described["healthcheck"]
    assert check["test"][0] == "CMD"
    assert any(f"http://localhost:{port}/" in word for word in check["test"])
    assert {"interval", "timeout", "retries", "start_period"} < check.keys()


@every_compose
def test_a_device_is_handed_to_the_container(file: Path) -> None:
    described = service(file)
    device = file.name.split(".")[1]
    if device == "gaudi":
        assert described["runtime"] == "habana"
        assert described["environment"]["OMPI_MCA_btl_vader_single_copy_mechanism"]
        assert described["cap_add"] == ["SYS_NICE"]
        assert described["ipc"] == "host"
    elif device == "gpu":
        assert ("deploy" in described) != ("devices" in described)
    else:
        assert not described.keys() & {"deploy", "devices", "runtime"}


@every_server
def test_every_variable_is_explained_and_used(server: Path) -> None:
    used = set().union(*(used_in(file) for file in server.glob("compose.*.yaml")))
    assert used <= variables(server).keys()
    by_checks = {name for name in variables(server) if f"${name}" in (FOLDER / "checks.sh").read_text("utf-8")}
    assert variables(server).keys() == used | by_checks


@every_server
def test_no_secret_stands_in_a_file(server: Path) -> None:
    assert not variables(server)["HF_TOKEN"]


@every_server
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_without_docker_it_says_so(machine: Machine, server: Path, device: str) -> None:
    done = machine.run(server.name, device, LLM_NAME="owner/name")
    assert refused(done).startswith("docker is missing: install it")


def test_a_docker_that_does_not_answer(machine: Machine) -> None:
    machine.has("docker", "exit 1")
    assert refused(machine.run("vllm", "cpu")).startswith("docker does not answer: start it")


def test_a_docker_without_compose(machine: Machine) -> None:
    machine.has("docker", "[ $1 != compose ]")
    assert "docker-compose-plugin" in refused(machine.run("vllm", "cpu"))


@pytest.mark.parametrize("arguments", [(), ("tpu",), ("cpu gaudi",)])
def test_an_unknown_device_shows_the_known_ones(machine: Machine, arguments: tuple[str, ...]) -> None:
    assert refused(machine.run("tgi", *arguments)).endswith("one of: cpu gaudi gpu")


@pytest.mark.parametrize("server", ["openvino", "llama_cpp"])
def test_what_does_not_run_on_gaudi_says_what_does(machine: Machine, server: str) -> None:
    assert "does not run on Gaudi: ../vllm and ../tgi do" in refused(machine.run(server, "gaudi"))


@pytest.mark.parametrize(
    ("device", "program", "runtime"), [("gaudi", "hl-smi", "habana"), ("gpu", "nvidia-smi", "nvidia")]
)
def test_a_device_that_is_missing(machine: Machine, device: str, program: str, runtime: str) -> None:
    machine.has_docker()
    assert refused(machine.run("vllm", device)).startswith(f"{program} is missing: install")
    machine.has(program, "exit 9")
    assert refused(machine.run("vllm", device)).startswith(f"{program} finds no ")
    machine.has(program)
    assert refused(machine.run("vllm", device)).startswith(f"docker does not know the runtime {runtime}: ")


def test_an_intel_gpu_that_is_missing(machine: Machine, tmp_path: Path) -> None:
    machine.has_docker()
    nowhere = str(tmp_path / "renderD128")
    assert refused(machine.run("openvino", "gpu", RENDER_DEVICE=nowhere)).startswith(f"{nowhere} is missing")


def test_a_port_that_is_taken(machine: Machine) -> None:
    if not (ss := shutil.which("ss")):
        pytest.skip("there is no ss here, and the script leaves it to docker")
    machine.has_docker()
    (machine.programs / "ss").symlink_to(ss)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert refused(machine.run("vllm", "cpu", LLM_ENDPOINT_PORT=port)).startswith(f"port {port} is taken")


def test_a_port_that_ss_says_is_taken(machine: Machine) -> None:
    machine.has_docker()
    machine.has("ss", 'case "$*" in *":18008") echo LISTEN ;; esac')
    assert refused(machine.run("vllm", "cpu")).startswith("port 18008 is taken: set LLM_ENDPOINT_PORT")


def test_a_port_that_is_none(machine: Machine) -> None:
    machine.has_docker()
    assert refused(machine.run("vllm", "cpu", LLM_ENDPOINT_PORT="http")).startswith("LLM_ENDPOINT_PORT = http")


def test_a_gated_model_needs_a_token(machine: Machine) -> None:
    machine.has_docker()
    llama = "meta-llama/Meta-Llama-3-8B-Instruct"
    assert refused(machine.run("vllm", "cpu", LLM_NAME=llama)).startswith(f"{llama} is gated")
    assert machine.run("vllm", "cpu", LLM_NAME=llama, HF_TOKEN="hf_x").returncode == 0


def test_a_disk_that_is_too_small(machine: Machine) -> None:
    machine.has_docker()
    line = refused(machine.run("vllm", "cpu", MIN_DISK_GB="99999999"))
    assert re.search(r"data has \d+ GB free, and MIN_DISK_GB asks for 99999999", line)


def test_shared_memory_that_is_too_small(machine: Machine) -> None:
    machine.has_docker()
    (machine.programs / "df").unlink()
    machine.has("df", "echo Header; echo shm 65536 0 65536 0% /dev/shm")
    assert refused(machine.run("vllm", "cpu")).startswith("/dev/shm has 64 MB, and 1024 are needed")
    assert machine.run("llama_cpp", "cpu").returncode == 0, "llama.cpp shares no memory with the host"


@pytest.mark.parametrize("device", ["gpu", "gaudi"])
def test_vllm_over_ray_needs_a_repository(machine: Machine, device: str) -> None:
    assert "owner/name" in refused(machine.run("ray", device))


@every_compose
def test_it_starts_the_device_s_compose_file(machine: Machine, file: Path) -> None:
    machine.has_docker('{"runc":{},"habana":{},"nvidia":{}}')
    machine.has("hl-smi")
    machine.has("nvidia-smi")
    device = file.name.split(".")[1]
    # A file stands for the GPU's.
    done = machine.run(file.parent.name, device, "-d", LLM_NAME="owner/name", RENDER_DEVICE=str(file))
    command, *environment = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert command == f"{file.parent}: docker compose -f {file.name} up -d"
    given = dict(line.split("=", 1) for line in environment if "=" in line)
    assert given["LLM_NAME"] == "owner/name", "the environment goes before .env"
    assert used_in(file) <= given.keys()
