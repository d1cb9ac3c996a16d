"""What is in an image: every layer by itself, and where the space goes."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

PACKAGES = re.compile(r"opt/llm/lib/python[\d.]+/site-packages/")


@dataclass
class Layer:
    """One layer: its files and folders by their paths, and what is in them that shall not be."""

    digest: str
    sizes: dict[str, int] = field(default_factory=dict)
    """Files and links alone have a size above 0."""
    found: list[str] = field(default_factory=list)
    """The files that hold what was looked for."""
    records: dict[str, list[str]] = field(default_factory=dict)
    """The files of each installed package, by its name and version."""

    @property
    def size(self) -> int:
        return sum(self.sizes.values())


@dataclass
class Contents:
    """A saved image."""

    config: dict[str, Any]
    layers: list[Layer]

    @property
    def merged(self) -> dict[str, int]:
        """The files of a container's root, by their paths; none of our layers takes one away again."""
        return {name: size for layer in self.layers for name, size in layer.sizes.items()}


def read(archive: Path, unwanted: bytes) -> Contents:
    """Read what `docker save` or `podman save` has written, and look for `unwanted` in every file of every layer."""
    with tarfile.open(archive) as whole:
        (manifest,) = json.load(_file(whole, "manifest.json"))
        text = _file(whole, manifest["Config"]).read()
        config = json.loads(text)
        digests = config["rootfs"]["diff_ids"]
        layers = [
            _layer(digest, _file(whole, name), unwanted)
            for digest, name in zip(digests, manifest["Layers"], strict=True)
        ]
    if unwanted in text:
        layers[0].found.append("the image's own configuration")
    return Contents(config, layers)


def _file(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    file = archive.extractfile(name)
    assert file, name
    return file


def _layer(digest: str, packed: IO[bytes], unwanted: bytes) -> Layer:
    layer = Layer(digest)
    with tarfile.open(fileobj=packed, mode="r|*") as archive:
        for member in archive:
            name = member.name.removeprefix("./").strip("/")
            layer.sizes[name] = member.size
            if file := archive.extractfile(member) if member.isfile() else None:
                content = file.read()
                if unwanted in content:
                    layer.found.append(name)
                if name.endswith(".dist-info/RECORD"):
                    package = name.split("/")[-2].removesuffix(".dist-info")
                    folder = name.rpartition("/")[0].rpartition("/")[0]
                    layer.records[package] = [
                        f"{folder}/{line.split(',')[0]}" for line in content.decode().splitlines()
                    ]
    return layer


def table(images: dict[str, tuple[Contents, int]]) -> Iterator[str]:
    """What takes the space in each image, of which that many layers are the base's, in Markdown."""
    for name, (contents, base) in images.items():
        own = contents.layers[base:]
        spent = _spent(own)
        yield f"## {name}"
        yield ""
        below = sum(layer.size for layer in contents.layers[:base])
        yield f"{_mb(sum(layer.size for layer in contents.layers))} in {len(contents.layers)} layers, uncompressed; "
        yield f"{_mb(sum(contents.merged.values()))} as one root. The base has {_mb(below)} of it."
        yield ""
        yield "| what | MB |"
        yield "|---|---:|"
        for what, size in spent.most_common(25):
            yield f"| {what} | {size / 1e6:.1f} |"
        rest = spent.most_common()[25:]
        yield f"| {len(rest)} others | {sum(size for _, size in rest) / 1e6:.1f} |"
        yield ""


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _spent(layers: list[Layer]) -> Counter[str]:
    owners = {file: package for layer in layers for package, files in layer.records.items() for file in files}
    spent: Counter[str] = Counter()
    for layer in layers:
        for name, size in layer.sizes.items():
            spent[owners.get(name) or _place(name)] += size
    return spent


def _place(name: str) -> str:
    if name.startswith("app/bytecode/"):
        return "bytecode of what a start imports"
    return "/" + name.split("/")[0]
