"""Import rules: which packages of comps each package may import, and which packages from outside."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import comps

ROOT = Path(comps.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# The packages of comps that a package may import, beside itself. A single module counts as a package.
INTERNAL: dict[str, set[str]] = {
    "comps": {"core", "chat", "client"},
    "chat": {"core", "model_servers.*", "model_servers"},
    "client": {"core"},
    "core": set(),
    "config_files": {"core"},
    "dialects": {"core", "dialects.*"},
    "dialects.shared": {"core"},
    "dialects.square": {"core", "dialects.shared"},
    "dialects.llm_api": {"core", "dialects.shared"},
    "dialects.responses": {"core", "dialects.shared"},
    "dialects.anthropic": {"core", "dialects.shared"},
    "dialects.cohere": {"core", "dialects.shared"},
    "dialects.ollama": {"core", "dialects.shared"},
    "dialects.tgi": {"core", "dialects.shared"},
    "model_servers": {"core", "model_servers.*"},
    "model_servers.target": {"core"},
    "model_servers.chat_templates": {"core"},
    "model_servers.remote": {"core", "model_servers.target", "model_servers.chat_templates"},
    "model_servers.embedded": {"core", "model_servers.target", "model_servers.chat_templates"},
    "model_servers.langchain": {"core", "model_servers.target", "model_servers.remote"},
    "settings": {"core", "config_files"},
    "access": {"core", "watched_files"},
    "admission": {"core"},
    "watched_files": set(),
    "guard": {"core", "access", "logs", "telemetry"},
    "pages": set(),
    "keep_alive": set(),
    "responses": set(),
    "body_memory": {"core"},
    "requests": {"core", "body_memory", "responses"},
    "limits": set(),
    "memory": {"core"},
    "connections": {"core", "limits", "requests"},
    "refusals": {"core", "dialects.*"},
    "exchange": {"core", "access", "admission"},
    "trace_exporters": set(),
    "tracing": {"core", "access", "admission", "exchange", "logs", "settings", "trace_exporters"},
    "metrics": set(),
    "answer_metrics": {"exchange", "metrics"},
    "telemetry": {
        "core",
        "access",
        "admission",
        "answer_metrics",
        "exchange",
        "limits",
        "logs",
        "metrics",
        "shared_metrics",
    },
    "logs": {"core"},
    "gpus": {"core", "logs"},
    "direct_routes": {"core", "guard", "limits", "refusals", "requests", "responses"},
    "direct_response": {"responses"},
    "server": {"connections", "direct_response", "limits", "memory", "responses"},
    "shared_metrics": set(),
    "replies": {"core", "dialects.*", "admission", "exchange", "keep_alive", "requests", "responses"},
    "computing": {"core", "dialects.*", "exchange", "replies"},
    "opening": {"core", "logs", "model_servers", "model_servers.*", "relevance", "settings"},
    "handler": {
        "computing",
        *("core", "dialects.*", "admission", "body_memory", "exchange", "logs", "telemetry"),
        *("requests", "responses", "replies"),
    },
    "openapi": {"core", "dialects.*", "openapi_examples", "openapi_fields"},
    "openapi_examples": {"core", "dialects.*"},
    "openapi_fields": set(),
    "loading": {"core", "logs"},
    "unknown_routes": {"core", "access", "guard", "logs", "refusals", "telemetry"},
    "routes": {
        "gpus",
        "loading",
        "logs",
        "unknown_routes",
        "core",
        "dialects.*",
        "settings",
        "access",
        "admission",
        "body_memory",
        "telemetry",
        "trace_exporters",
        "tracing",
        "guard",
        "handler",
        "limits",
        "openapi",
        "refusals",
        "pages",
        "requests",
        "responses",
        "ui",
        "version",
        "watched_files",
    },
    "app": {
        "direct_routes",
        "core",
        "dialects",
        "dialects.*",
        "model_servers",
        "settings",
        "access",
        "guard",
        "opening",
        "pages",
        "recording",
        "routes",
        "tls",
    },
    "preview": {"core"},
    "document_files": set(),
    "ui": {"core", "admission", "body_memory", "document_files", "requests"},
    "relevance": {"core"},
    "listening": {"core", "settings"},
    "tls": {"core", "settings", "watched_files"},
    "exit_codes": set(),
    "workers": {"exit_codes"},
    "serving": {
        "app",
        "core",
        "exit_codes",
        "listening",
        "memory",
        "messages",
        "server",
        "settings",
        "trace_exporters",
        "workers",
    },
    "messages": {"logs"},
    "recording": {"core", "logs", "messages", "settings", "version"},
    "version": set(),
    "cli": {
        "logs",
        "app",
        "core",
        "document_files",
        "exit_codes",
        "listening",
        "messages",
        "model_servers",
        "model_servers.*",
        "opening",
        "preview",
        "recording",
        "serving",
        "settings",
        "telemetry",
        "version",
        "workers",
    },
    "__main__": {"cli"},
}

# The packages from outside, beside the standard library.
EXTERNAL: dict[str, set[str]] = {
    "config_files": {"yaml"},
    "dialects": {"pydantic", "orjson"},
    "dialects.shared": {"pydantic", "orjson"},
    "dialects.square": {"pydantic"},
    "dialects.llm_api": {"pydantic"},
    "dialects.responses": {"pydantic", "orjson"},
    "dialects.anthropic": {"orjson", "pydantic"},
    "dialects.cohere": {"orjson", "pydantic"},
    "dialects.ollama": {"pydantic", "orjson"},
    "dialects.tgi": {"pydantic", "orjson"},
    "settings": {"pydantic", "pydantic_settings"},
    "recording": {"pydantic"},
    "client": {"httpx"},
    "metrics": {"prometheus_client"},
    "answer_metrics": {"prometheus_client"},
    "shared_metrics": {"prometheus_client"},
    "telemetry": {"prometheus_client"},
    "handler": {"starlette"},
    "requests": {"starlette"},
    "responses": {"starlette"},
    "connections": {"uvicorn"},
    "refusals": {"starlette"},
    "server": {"httptools", "uvicorn"},
    "openapi": {"fastapi"},
    "routes": {"fastapi", "starlette"},
    "unknown_routes": {"fastapi", "starlette"},
    "guard": {"starlette"},
    "direct_routes": {"starlette"},
    "pages": {"fastapi", "fastapi_offline", "starlette"},
    "app": {"fastapi"},
    "preview": {"rich"},
    "document_files": {"bs4", "docx", "pypdf"},
    "ui": {"starlette"},
    "direct_response": {"uvicorn"},
    "serving": {"uvicorn"},
    "cli": {"typer"},
}

# The packages from outside that only one module may import, such as those of a vendor.
MODULE_EXTERNAL: dict[str, set[str]] = {
    "comps.relevance": {"bm25s"},
    "comps.trace_exporters": {"opentelemetry"},
    "comps.tracing": {"opentelemetry", "starlette"},
    "comps.model_servers.langchain.chat_openai": {"langchain_core", "langchain_openai", "pydantic"},
    "comps.model_servers.chat_templates.bounded": {"jinja2"},
    "comps.model_servers.chat_templates.work": {"jinja2"},
    "comps.model_servers.chat_templates.templates": {"jinja2"},
    "comps.model_servers.langchain.chat_model": {"langchain_core", "pydantic"},
    "comps.model_servers.langchain.chunks": {"langchain_core", "pydantic"},
    "comps.model_servers.langchain.class_arguments": {"langchain_core", "openai", "pydantic"},
    "comps.model_servers.langchain.langchain_model": {"langchain_core", "pydantic"},
    "comps.model_servers.langchain.messages": {"langchain_core", "pydantic"},
    "comps.model_servers.embedded.model_files": {"huggingface_hub"},
    "comps.model_servers.chat_templates.tokenizer_file": {"tokenizers"},
    "comps.model_servers.remote.chunks": {"orjson"},
    "comps.model_servers.remote.client": {"orjson"},
    "comps.model_servers.remote.connection": {"httptools"},
    "comps.model_servers.remote.connections": {"aiohappyeyeballs", "async_timeout"},
    "comps.model_servers.remote.oauth": {"orjson"},
    "comps.model_servers.remote.parsing": {"msgspec", "orjson"},
    "comps.model_servers.remote.whole_answers": {"orjson"},
    "comps.model_servers.langchain.standalone": {"langchain_core"},
    "comps.model_servers.langchain.through": {"langchain_core", "pydantic"},
    "comps.model_servers.langchain.chat_tgi": {"langchain_core", "langchain_huggingface", "pydantic"},
    "comps.model_servers.embedded.llama_cpp_chat_formats": {"jinja2", "llama_cpp"},
    "comps.model_servers.embedded.llama_cpp_context": {"llama_cpp", "numpy"},
    "comps.model_servers.embedded.llama_cpp_options": {"llama_cpp", "pydantic"},
    "comps.model_servers.embedded.llama_cpp_grammars": {"llama_cpp", "numpy"},
    "comps.model_servers.embedded.openvino_embedder": {"numpy", "openvino", "openvino_genai"},
    "comps.model_servers.embedded.openvino_engine": {"numpy", "openvino", "openvino_genai"},
    "comps.model_servers.embedded.openvino_prompts": {"numpy"},
    "comps.model_servers.embedded.openvino_options": {"openvino", "openvino_genai"},
    "comps.model_servers.embedded.openvino_grammars": {"numpy", "openvino", "openvino_genai"},
    "comps.model_servers.embedded.transformers_engine": {"jinja2", "torch", "transformers"},
    "comps.model_servers.embedded.transformers_grammars": {"llguidance", "torch"},
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


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file) for file in FILES}


DIVIDED = ("dialects", "model_servers")
"""Packages whose folders have rules of their own, as has the module `model_servers.target`."""


def package_of(module: str) -> str:
    """The package whose rules a module has: `core` for `comps.core.types`, `comps` for `comps` itself."""
    _, *parts = module.split(".")
    if len(parts) > 1 and parts[0] in DIVIDED:
        inner = f"{parts[0]}.{parts[1]}"
        return inner if (ROOT / parts[0] / parts[1]).is_dir() or inner == "model_servers.target" else parts[0]
    return parts[0] if parts else module


def may(package: str, other: str) -> bool:
    """Whether a package may import another. In the rules, `name.*` stands for all packages within `name`."""
    allowed = INTERNAL[package] | {package}
    return other in allowed or f"{other.split('.')[0]}.*" in allowed & {f"{one}.*" for one in DIVIDED if "." in other}


@cache
def imports_of(file: Path) -> frozenset[str]:
    """All modules that a file imports, anywhere in it, and those of ours that it names in strings to import later."""
    return frozenset(_imports_of(file))


def _imports_of(file: Path) -> Iterator[str]:
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


def external(file: Path) -> set[str]:
    tops = {module.split(".")[0] for module in imports_of(file)}
    return {top for top in tops if top not in sys.stdlib_module_names and top != "comps"}


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a statement loads in a new interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_rules_name_every_package_and_no_other() -> None:
    assert set(INTERNAL) == {package_of(module) for module in MODULES}
    assert set(EXTERNAL) <= set(INTERNAL)
    assert set(MODULE_EXTERNAL) <= MODULES


def test_a_package_imports_only_the_packages_of_comps_that_it_may() -> None:
    pairs = ((file, module) for file in FILES for module in ours(file))
    assert [pair for pair in pairs if not may(package_of(name_of(pair[0])), package_of(pair[1]))] == []


def test_a_package_imports_only_the_packages_from_outside_that_it_may() -> None:
    for module, file in ((name_of(file), file) for file in FILES):
        assert external(file) <= EXTERNAL.get(package_of(module), set()) | MODULE_EXTERNAL.get(module, set()), module


def test_no_package_is_allowed_that_is_not_used() -> None:
    used: dict[str, set[str]] = {}
    for file in FILES:
        used.setdefault(package_of(name_of(file)), set()).update(external(file))
    assert {package: names - used[package] for package, names in EXTERNAL.items() if names - used[package]} == {}
    unused = {
        module: names - external(file) for file in FILES if (names := MODULE_EXTERNAL.get(module := name_of(file)))
    }
    assert not any(unused.values()), unused


def test_the_core_needs_the_standard_library_alone() -> None:
    for file in (ROOT / "core").rglob("*.py"):
        assert external(file) == set(), file
        assert {package_of(module) for module in ours(file)} <= {"core"}, file


def test_dialects_and_model_servers_do_not_import_each_other() -> None:
    for package, other in (("dialects", "model_servers"), ("model_servers", "dialects")):
        for file in (ROOT / package).rglob("*.py"):
            assert not any(package_of(module).startswith(other) for module in ours(file)), file


def test_nothing_imports_how_it_is_run_or_tested() -> None:
    for file in FILES:
        assert not {module.split(".")[0] for module in imports_of(file)} & {"impl", "tests"}, file


def test_every_module_of_ours_that_is_named_exists() -> None:
    for file in FILES:
        assert ours(file) <= MODULES, file


def test_importing_comps_loads_neither_web_nor_model() -> None:
    web = {"fastapi", "starlette", "uvicorn", "typer", "pydantic", "pydantic_settings", "orjson", "prometheus_client"}
    assert not loaded_by("import comps") & (web | SDKS)


@pytest.mark.parametrize("module", ["comps.app", "comps.cli", "comps.model_servers.embedded.openvino"])
def test_a_vendor_s_package_is_loaded_only_when_its_kind_is_chosen(module: str) -> None:
    assert not loaded_by(f"import {module}") & SDKS


def test_the_public_names_are_what_is_imported_there_or_when_it_is_used() -> None:
    helpers = {"TYPE_CHECKING", "Any", "import_module"}
    now = {name for name, value in vars(comps).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert set(comps.__all__) == (now - helpers) | comps._IMPORTED_LATER.keys()
    assert all(getattr(comps, name) for name in comps.__all__)
    with pytest.raises(AttributeError, match="no attribute 'chat_modell'"):
        comps.chat_modell  # noqa: B018  # Looking it up is what fails.
    assert comps.__all__ == sorted(comps.__all__)
