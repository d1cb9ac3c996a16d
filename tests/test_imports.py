"""Who may import what: the rooms of the house, the doors between them, and what each may bring in from outside."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import comps

ROOT = Path(comps.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# From comps: a room may always import itself.
ROOMS: dict[str, set[str]] = {
    "comps": {"core"},
    "core": set(),
    "config_files": {"core"},
    "dialects": {"core", "dialects.*"},
    "dialects.shared": {"core"},
    "dialects.square": {"core", "dialects.shared"},
    "dialects.llm_api": {"core", "dialects.shared"},
    "model_servers": {"core", "model_servers.*"},
    "model_servers.target": {"core"},
    "model_servers.chat_templates": {"core"},
    "model_servers.remote": {"core", "model_servers.target", "model_servers.chat_templates"},
    "model_servers.embedded": {"core", "model_servers.target", "model_servers.chat_templates"},
    "model_servers.langchain": {"core", "model_servers.target", "model_servers.remote"},
    "settings": {"core", "config_files"},
    "admission": {"core"},
    "responses": set(),
    "server": {"responses"},
    "telemetry": {"core"},
    "handler": {"core", "dialects.*", "admission", "telemetry", "responses"},
    "openapi": {"core", "dialects.*", "handler"},
    "routes": {"core", "dialects.*", "settings", "admission", "telemetry", "handler", "openapi", "responses"},
    "app": {"core", "dialects", "dialects.*", "model_servers", "model_servers.*", "settings", "routes"},
    "preview": {"core"},
    "cli": {"app", "settings", "core", "telemetry", "preview", "server"},
    "__main__": {"cli"},
}

# From outside, beyond the standard library.
PACKAGES: dict[str, set[str]] = {
    "config_files": {"yaml"},
    "dialects": {"pydantic", "orjson"},
    "dialects.shared": {"pydantic", "orjson"},
    "dialects.square": {"pydantic"},
    "dialects.llm_api": {"pydantic"},
    "settings": {"pydantic", "pydantic_settings"},
    "telemetry": {"prometheus_client"},
    "handler": {"starlette"},
    "responses": {"starlette"},
    "server": {"httptools", "uvicorn"},
    "openapi": {"fastapi"},
    "routes": {"fastapi", "starlette"},
    "app": {"fastapi", "fastapi_offline"},
    "preview": {"rich"},
    "cli": {"typer", "uvicorn"},
}

# A vendor's package, and an HTTP client, stays inside its own file.
VENDORS: dict[str, set[str]] = {
    "comps.model_servers.langchain.chat_openai": {"langchain_core", "langchain_openai", "pydantic"},
    "comps.model_servers.chat_templates.templates": {"jinja2"},
    "comps.model_servers.langchain.chat_model": {"langchain_core", "pydantic"},
    "comps.model_servers.langchain.chunks": {"langchain_core", "pydantic"},
    "comps.model_servers.langchain.class_arguments": {"langchain_core", "pydantic"},
    "comps.model_servers.langchain.langchain_model": {"langchain_core", "pydantic"},
    "comps.model_servers.langchain.messages": {"langchain_core", "pydantic"},
    "comps.model_servers.embedded.model_files": {"huggingface_hub"},
    "comps.model_servers.chat_templates.tokenizer_file": {"tokenizers"},
    "comps.model_servers.remote.chunks": {"orjson"},
    "comps.model_servers.remote.client": {"orjson"},
    "comps.model_servers.remote.connection": {"aiohappyeyeballs", "async_timeout", "httptools"},
    "comps.model_servers.remote.failures": {"orjson"},
    "comps.model_servers.remote.oauth": {"orjson"},
    "comps.model_servers.remote.tgi": {"orjson"},
    "comps.model_servers.langchain.through": {"langchain_core"},
    "comps.model_servers.langchain.chat_tgi": {"langchain_core", "langchain_huggingface", "pydantic"},
    "comps.model_servers.embedded.llama_cpp_chat_formats": {"jinja2", "llama_cpp"},
    "comps.model_servers.embedded.llama_cpp_context": {"llama_cpp", "numpy"},
    "comps.model_servers.embedded.llama_cpp_options": {"llama_cpp", "pydantic"},
    "comps.model_servers.embedded.openvino_embedder": {"numpy", "openvino", "openvino_genai"},
    "comps.model_servers.embedded.openvino_engine": {"numpy", "openvino", "openvino_genai"},
    "comps.model_servers.embedded.transformers_engine": {"jinja2", "torch", "transformers"},
    "comps.model_servers.embedded.transformers_loading": {"torch", "transformers"},
    "comps.model_servers.embedded.transformers_sampling": {"torch", "transformers"},
}

SDKS = {
    "aiohttp",
    "langchain",
    "langchain_core",
    "langchain_huggingface",
    "langchain_openai",
    "openai",
    "openvino",
    "openvino_genai",
    "huggingface_hub",
    "jinja2",
    "numpy",
    "llama_cpp",
    "torch",
    "transformers",
}

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file) for file in FILES}


WINGS = ("dialects", "model_servers")
"""Rooms whose folders are rooms of their own; so is `model_servers.target`, which all of them know."""


def room_of(module: str) -> str:
    """`core` for `comps.core.types`; `comps` itself is a room with nothing but the public names."""
    _, *parts = module.split(".")
    if len(parts) > 1 and parts[0] in WINGS:
        wing = f"{parts[0]}.{parts[1]}"
        return wing if (ROOT / parts[0] / parts[1]).is_dir() or wing == "model_servers.target" else parts[0]
    return parts[0] if parts else module


def may(room: str, other: str) -> bool:
    """Whether a room may import another; a name with a star stands for all rooms within."""
    allowed = ROOMS[room] | {room}
    return other in allowed or f"{other.split('.')[0]}.*" in allowed & {f"{one}.*" for one in WINGS if "." in other}


def imports_of(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, and every module of ours that it names to be imported later."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module, names, level):
                assert level == 0, f"{file}:{node.lineno}: a relative import; write it out"
                assert module
                within = [f"{module}.{alias.name}" for alias in names]
                yield from (name if name in MODULES else module for name in within)
            case ast.Call(ast.Name("import_module" | "__import__") | ast.Attribute(attr="import_module"), args):
                yield from (arg.value for arg in args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
            case ast.Constant(str(text)) if re.fullmatch(r"comps(\.\w+)+(:\w+)?", text):
                yield text.partition(":")[0]


def ours(file: Path) -> set[str]:
    return {module for module in imports_of(file) if module.split(".")[0] == "comps"}


def packages(file: Path) -> set[str]:
    tops = {module.split(".")[0] for module in imports_of(file)}
    return {top for top in tops if top not in sys.stdlib_module_names and top != "comps"}


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that are loaded in a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_every_room_is_in_the_table_and_no_other() -> None:
    assert set(ROOMS) == {room_of(module) for module in MODULES}
    assert set(PACKAGES) <= set(ROOMS)
    assert set(VENDORS) <= MODULES


@every_file
def test_a_room_imports_only_the_rooms_that_it_may(file: Path) -> None:
    room = room_of(name_of(file))
    assert [module for module in ours(file) if not may(room, room_of(module))] == []


@every_file
def test_a_room_imports_only_the_packages_that_it_may(file: Path) -> None:
    module = name_of(file)
    assert packages(file) <= PACKAGES.get(room_of(module), set()) | VENDORS.get(module, set())


def test_no_package_is_allowed_that_is_not_used() -> None:
    used: dict[str, set[str]] = {}
    for file in FILES:
        used.setdefault(room_of(name_of(file)), set()).update(packages(file))
    assert {room: names - used[room] for room, names in PACKAGES.items() if names - used[room]} == {}
    unused = {module: names - packages(file) for file in FILES if (names := VENDORS.get(module := name_of(file)))}
    assert not any(unused.values()), unused


def test_the_core_stands_on_the_standard_library_alone() -> None:
    for file in (ROOT / "core").rglob("*.py"):
        assert packages(file) == set(), file
        assert {room_of(module) for module in ours(file)} <= {"core"}, file


def test_dialects_and_model_servers_never_meet() -> None:
    for room, other in (("dialects", "model_servers"), ("model_servers", "dialects")):
        for file in (ROOT / room).rglob("*.py"):
            assert not any(room_of(module).startswith(other) for module in ours(file)), file


@every_file
def test_nothing_imports_how_it_is_run_or_tested(file: Path) -> None:
    assert not {module.split(".")[0] for module in imports_of(file)} & {"impl", "tests"}


@every_file
def test_every_module_of_ours_that_is_named_exists(file: Path) -> None:
    assert ours(file) <= MODULES


def test_importing_comps_loads_neither_web_nor_model() -> None:
    web = {"fastapi", "starlette", "uvicorn", "typer", "pydantic", "pydantic_settings", "orjson", "prometheus_client"}
    assert not loaded_by("import comps") & (web | SDKS)


@pytest.mark.parametrize("module", ["comps.app", "comps.cli", "comps.model_servers.embedded.openvino"])
def test_a_vendor_s_package_is_loaded_only_when_its_kind_is_chosen(module: str) -> None:
    assert not loaded_by(f"import {module}") & SDKS


def test_the_public_names_are_what_is_imported_there() -> None:
    public = {name for name, value in vars(comps).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert set(comps.__all__) == public
    assert comps.__all__ == sorted(comps.__all__)
