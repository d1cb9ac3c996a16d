"""What the images install: the same versions as a checkout, each with its hashes, and only what their target needs."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "requirements"
IN_AN_IMAGE = {
    **{name: str(value) for name, value in default_environment().items()},
    **{"python_version": "3.13", "python_full_version": "3.13.11", "sys_platform": "linux", "platform_system": "Linux"},
    **{"implementation_name": "cpython", "platform_python_implementation": "CPython", "platform_machine": "x86_64"},
}

EXTRAS = {
    "build": {"build"},
    "native": {"otel"},
    "langchain": {"langchain", "otel"},
    "embedded": {"openvino", "otel"},
    "ray": {"openvino", "otel"},
}
"""The extras of setup.cfg that each file has beside what the service needs in any case."""

NOT_OF_IMAGES = ("test", "client")
"""The extras that no image has. OpenAI's SDK, which LangChain brings, brings the package of the second."""


def locked(file: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """The version and the hashes of each package that a file installs in an image."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for line in file.read_text("utf-8").replace("\\\n", " ").splitlines():
        if line.strip().startswith("#"):
            continue
        requirement = Requirement(line.partition(" --hash")[0])
        if not requirement.marker or requirement.marker.evaluate(IN_AN_IMAGE):
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            hashes = frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line))
            assert hashes, f"{file.name}: {requirement.name} has no hash"
            found[canonicalize_name(requirement.name)] = (pin.version, hashes)
    return found


def asked(text: str) -> set[str]:
    """The packages that a list of setup.cfg names."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    wanted = [Requirement(line) for line in lines if line]
    return {canonicalize_name(one.name) for one in wanted if not one.marker or one.marker.evaluate(IN_AN_IMAGE)}


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_there_is_a_file_for_each_image_and_no_other() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(EXTRAS)


@pytest.mark.parametrize("name", EXTRAS)
def test_an_image_has_the_versions_of_a_checkout(name: str) -> None:
    checkout, image = locked(ROOT / "impl" / "microservice" / "requirements.txt"), locked(FOLDER / f"{name}.txt")
    if name != "ray":  # Ray has more packages than the checkout, but no others of these.
        assert set(image) <= set(checkout)
    for package in set(image) & set(checkout):
        assert image[package] == checkout[package], package


@pytest.mark.parametrize("name", EXTRAS)
def test_an_image_has_all_that_its_extras_ask_for_and_nothing_of_the_others(
    name: str, setup_cfg: configparser.ConfigParser
) -> None:
    always, extras = asked(setup_cfg["options"]["install_requires"]), setup_cfg["options.extras_require"]
    image = set(locked(FOLDER / f"{name}.txt"))
    wanted = set.union(always if name != "build" else set(), *(asked(extras[extra]) for extra in EXTRAS[name]))
    assert wanted <= image
    further = [asked(text) for extra, text in extras.items() if extra not in NOT_OF_IMAGES]
    others = set.union(*further) - wanted
    brought = {"numpy"} if name in ("langchain", "native") else set()  # bm25s needs it.
    assert not image & (others - brought)


def test_ray_is_the_version_that_its_folder_says() -> None:
    says = (ROOT / "impl" / "model_server" / "ray" / "requirements.txt").read_text("utf-8")
    assert f"ray[serve]=={locked(FOLDER / 'ray.txt')['ray'][0]}\n" in says
