"""What builds the images and runs the containers: Docker where it answers; else podman, on a base made by debootstrap.

podman builds with buildah's own code. Where the official image of Python cannot be had, a minimal Debian with Debian's
Python takes its name: as slim as Debian's slim images are, and without bytecode, as the official one is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "images"
"""Kept between runs: the base, the layers of the last build, the build's context."""
DOCKERFILE = ROOT / "docker" / "Dockerfile"
MISSING = "no Docker daemon answers, and podman needs root and: apt-get install podman crun debootstrap"

_HIDE_CGROUPS = "umount -R /sys/fs/cgroup; mount -t tmpfs none /sys/fs/cgroup; "
_LIMITS = ("--cgroups=disabled", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000")
_COMPLAINT = re.compile(r"^time=.*unable to get systemd connection.*\n", re.MULTILINE)
"""podman would have systemd run the health check from time to time; here tests do."""
_LEFT_OUT = (
    *("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian"),
    *("var/cache/apt", "var/lib/apt/lists", "var/log", "tmp"),
)
"""What Debian's slim images do not have."""


ENVIRONMENT = dict(os.environ)
"""As it was before the tests took the proxies and settings out of it."""


class NoEngineError(Exception):
    """There is nothing to build images with; says what to install."""


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str


def run(command: Sequence[str], patience: float) -> Done:
    """Run a command to its end."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False, env=ENVIRONMENT)
    return Done(done.returncode, done.stdout, _COMPLAINT.sub("", done.stderr))


def base_image() -> str:
    """The name in the Dockerfile's FROM."""
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    assert found
    return found[1]


@dataclass(frozen=True)
class Engine:
    """A way to build images and run containers."""

    name: str
    command: tuple[str, ...]
    """What stands before a subcommand."""
    for_builds: tuple[str, ...] = ()
    for_runs: tuple[str, ...] = ()

    def __call__(self, *words: str, patience: float = 60.0, check: bool = True) -> Done:
        """Run a subcommand to its end; unless told otherwise, it has to succeed."""
        done = run([*self.command, *words], patience)
        assert not check or done.code == 0, f"{' '.join(words)}\nended with {done.code}:\n{done.out}\n{done.err}"
        return done

    def build(self, tag: str, target: str, context: Path, patience: float, *options: str, **arguments: str) -> None:
        """Build a target of the Dockerfile in `context`."""
        given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        where = ["--file", str(context / "docker" / "Dockerfile"), str(context)]
        words = ["build", *self.for_builds, "--target", target, "--tag", tag, *given, *options, *where]
        done = run([*self.command, *words], patience)
        assert done.code == 0, f"{tag} cannot be built:\n{done.out[-3000:]}\n{done.err[-3000:]}"

    def containers(self, *words: str, patience: float = 60.0, check: bool = True) -> Done:
        """`run` with what this machine needs of it."""
        return self("run", *self.for_runs, *words, patience=patience, check=check)

    def inspect(self, what: str) -> Any:
        return json.loads(self("inspect", what).out)[0]

    def healthy(self, container: str) -> bool:
        """Run the health check of a container's image, in it, as the engine does."""
        if self.name == "podman":
            return self("healthcheck", "run", container, check=False).code == 0
        _, *test = self.inspect(container)["Config"]["Healthcheck"]["Test"]
        return self("exec", container, *test, check=False).code == 0

    def remove(self, container: str) -> None:
        at_once = ("--time", "0") if self.name == "podman" else ()
        self("rm", "--force", *at_once, container, check=False)


def find_engine() -> Engine:
    """The engine of this machine, which has run a container.

    Raises:
        NoEngineError: There is none.
    """
    if shutil.which("docker") and run(["docker", "info"], 30).code == 0:
        return Engine("docker", ("docker",), ("--build-arg", "SOURCE_DATE_EPOCH=0"))
    if os.geteuid() or not all(map(shutil.which, ("podman", "debootstrap", "unshare"))):
        raise NoEngineError(MISSING)
    WORK.mkdir(parents=True, exist_ok=True)
    said = ""
    for driver in ("overlay", "vfs"):
        storage = [f"--storage-driver={driver}", f"--root={WORK}/{driver}", f"--runroot={WORK}/run-{driver}"]
        for prepare, limits in (("", ()), (_HIDE_CGROUPS, _LIMITS)):
            # In mounts of its own: what podman mounts below its root would be in the way of who removes that.
            within = ("unshare", "--mount", "sh", "-c", f'{prepare}exec "$@"', "sh", "podman", *storage)
            build = ("--isolation=chroot", "--pull=never", "--layers", "--format=docker", "--timestamp=0")
            engine = Engine("podman", (*within, "--cgroup-manager=cgroupfs"), build, limits)
            try:
                _have_base(engine)
                engine.containers("--rm", "--net=host", base_image(), "python3", "-c", "import ssl, ctypes")
            except AssertionError as error:
                said = str(error)
            else:
                return engine
    raise NoEngineError(f"podman runs no container here: {said.strip().splitlines()[-1]}")


def _have_base(engine: Engine) -> None:
    """Make a base image that has the name in FROM, unless there is one."""
    if engine("image", "exists", base_image(), check=False).code == 0:
        return
    archive = WORK / "base.tar"
    if not archive.exists():
        _debootstrap(archive)
    changes = ["--change=CMD python3", "--change=ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"]
    engine("import", *changes, str(archive), base_image(), patience=300)


def _debootstrap(archive: Path) -> None:
    folder, suite = WORK / "base", base_image().rpartition("-")[2]
    shutil.rmtree(folder, ignore_errors=True)
    packages = "--include=ca-certificates,python3-minimal,libpython3-stdlib,python3-venv"
    done = run(["debootstrap", "--variant=minbase", packages, suite, str(folder)], 900)
    assert done.code == 0, f"debootstrap ended with {done.code}:\n{done.out[-1000:]}\n{done.err[-1000:]}"
    run(["chroot", str(folder), "update-ca-certificates"], 60)
    for place in _LEFT_OUT:
        for entry in (folder / place).iterdir() if (folder / place).exists() else ():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for cache in list((folder / "usr" / "lib").rglob("__pycache__")):
        shutil.rmtree(cache)
    (folder / "usr" / "local" / "bin" / "python3").symlink_to("/usr/bin/python3")
    unfinished = archive.with_suffix(".part")
    done = run(["tar", "--create", "--sort=name", f"--directory={folder}", f"--file={unfinished}", "."], 300)
    assert done.code == 0, done.err
    unfinished.rename(archive)
    shutil.rmtree(folder)


def build_secrets(folder: Path, secrets: Mapping[str, str]) -> list[str]:
    """The options that give a build this machine's way to PyPI, and further secrets by their names."""
    listed = run([sys.executable, "-m", "pip", "config", "list"], 60).out
    settings = dict(re.findall(r"^[^.\s]*\.([\w-]+)='(.*)'$", listed.replace(":env:.", "env."), re.MULTILINE))
    lines = ["[global]", *(f"# {value}" for value in secrets.values())]
    for name in ("index-url", "extra-index-url", "trusted-host", "proxy"):
        # What is in a folder of this machine is not in the build.
        if words := [word for word in settings.get(name, "").split() if not word.startswith(("file:", "/"))]:
            lines.append(f"{name} = {' '.join(words)}")
    files = {**secrets}
    if cert := settings.get("cert"):
        lines.append("cert = /run/secrets/ca")
        files["ca"] = Path(cert).read_text("utf-8")
    files["pip.conf"] = "\n".join(lines) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    return [f"--secret=id={name},src={folder / name}" for name in sorted(files)]
