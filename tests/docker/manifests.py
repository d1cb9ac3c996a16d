"""The manifests of docker/kubernetes, as their files say it and as kustomize or kubectl renders them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "kubernetes"
OVERLAYS = sorted(folder.name for folder in (FOLDER / "overlays").iterdir())
TREES = {"base": FOLDER / "base", **{name: FOLDER / "overlays" / name for name in OVERLAYS}}
RENDERER = shutil.which("kustomize") or shutil.which("kubectl")
HANDLERS = ("startupProbe", "livenessProbe", "readinessProbe")

Document = dict[str, Any]


class Tree:
    """All resources that `kubectl apply -k` would make of a folder."""

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents

    def of(self, *kinds: str) -> list[Document]:
        return [document for document in self.documents if document["kind"] in kinds]

    def one(self, kind: str, name: str) -> Document:
        """The one of that kind with that name, whatever hash Kustomize adds to it."""
        (found,) = [one for one in self.of(kind) if plain(one["metadata"]["name"]) == plain(name)]
        return found

    @property
    def workloads(self) -> list[Document]:
        return self.of("Deployment", "StatefulSet")

    @property
    def microservice(self) -> Document:
        return self.one("Deployment", "opea-llm")

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the microservice's container."""
        return variables(self, the_container(self))

    @property
    def model_servers(self) -> list[Document]:
        """Those of our own; KAITO makes one of a Workspace."""
        return self.of("StatefulSet")

    def selected(self, selector: Mapping[str, str]) -> list[Document]:
        """The workloads whose pods have these labels."""
        return [one for one in self.workloads if selects(selector, pod_labels(one))]


def plain(name: str) -> str:
    """The names of generated ConfigMaps, without their hashes."""
    return re.sub(r"\b(opea-llm-(?:config|model|name))-[a-z0-9]{10}\b", r"\1", name)


def read(file: Path) -> list[Document]:
    return parsed(file.read_text("utf-8"))


def parsed(text: str) -> list[Document]:
    quick = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(text, quick) if document]


def kustomization(folder: Path) -> Document:
    (found,) = read(folder / "kustomization.yaml")
    return found


def trees_below(folder: Path) -> Iterator[Path]:
    """The folders whose kustomizations one is made of, itself last."""
    said = kustomization(folder)
    for entry in (*said.get("resources", ()), *said.get("components", ())):
        if (folder / entry).is_dir():
            yield from trees_below((folder / entry).resolve())
    yield folder


@cache
def _written(folder: Path) -> tuple[Document, ...]:
    documents: list[Document] = []
    generated: dict[str, dict[str, str]] = {}
    for part in trees_below(folder):
        said = kustomization(part)
        for entry in said.get("resources", ()):
            if (part / entry).is_file():
                documents += read(part / entry)
        for generator in said.get("configMapGenerator", ()):
            assert (generator["name"] in generated) == (generator.get("behavior") == "merge")
            data = generated.setdefault(generator["name"], {})
            data.update(literal.split("=", 1) for literal in generator.get("literals", ()))
            data.update({name: (part / name).read_text("utf-8") for name in generator.get("files", ())})
        for image in said.get("images", ()):
            documents = _renamed(documents, image["name"], image["newName"])
    documents += [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        for name, data in generated.items()
    ]
    return tuple(documents)


def _renamed(documents: list[Document], name: str, new: str) -> list[Document]:
    documents = deepcopy(documents)
    for document in documents:
        if document["kind"] in ("Deployment", "StatefulSet"):
            for container in containers(document):
                image, _, tag = container["image"].rpartition(":")
                container["image"] = f"{new if image == name else image}:{tag}"
    return documents


@cache
def _rendered(folder: Path) -> tuple[Document, ...]:
    assert RENDERER
    command = [RENDERER, "build"] if Path(RENDERER).name == "kustomize" else [RENDERER, "kustomize"]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(parsed(done.stdout))


def written(folder: Path) -> Tree:
    return Tree(list(deepcopy(_written(folder))))


def rendered(folder: Path) -> Tree:
    if not RENDERER:
        pytest.skip("neither kustomize nor kubectl is on the PATH: what they would render is not looked at")
    return Tree(list(deepcopy(_rendered(folder))))


def pod(workload: Document) -> Document:
    spec: Document = workload["spec"]["template"]["spec"]
    return spec


def pod_labels(workload: Document) -> dict[str, str]:
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def containers(workload: Document) -> list[Document]:
    return [*pod(workload).get("initContainers", ()), *pod(workload)["containers"]]


def the_container(tree: Tree, name: str = "opea-llm") -> Document:
    """A container of the microservice."""
    (found,) = [one for one in containers(tree.microservice) if one["name"] == name]
    return found


def ports_of(workload: Document) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for one in containers(workload) for port in one.get("ports", ())}


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def variables(tree: Tree, container: Document) -> dict[str, str]:
    """The environment of a container; without what comes from a Secret, of which there is none here."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= tree.one("ConfigMap", source["configMapRef"]["name"])["data"]
    for one in container.get("env", ()):
        if "value" in one:
            found[one["name"]] = one["value"]
        elif reference := one["valueFrom"].get("configMapKeyRef"):
            found[one["name"]] = tree.one("ConfigMap", reference["name"])["data"][reference["key"]]
    return found
