"""Registry of model servers. The module of a kind, and its vendor's package, is imported only when the kind is used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from comps.core.errors import SettingsError
from comps.core.ports import ModelServer
from comps.model_servers.target import Access, Target, need
from comps.model_servers.with_deadlines import WithDeadlines

log = logging.getLogger("opea_llm")

MODEL_SERVERS = {
    "openvino": "comps.model_servers.embedded.openvino:OpenVINO",
    "llama_cpp": "comps.model_servers.embedded.llama_cpp:LlamaCpp",
    "transformers": "comps.model_servers.embedded.transformers:Transformers",
    "vllm": "comps.model_servers.remote.vllm:VLLM",
    "tgi": "comps.model_servers.remote.tgi:TGI",
    "ray_serve": "comps.model_servers.remote.ray_serve:RayServe",
    "openai_api": "comps.model_servers.remote.openai_api:OpenAIAPI",
    "langchain": "comps.model_servers.langchain.langchain_model:LangChainModel",
    "scripted": "comps.model_servers.scripted:Scripted",
}
"""The built-in kinds by name, as `module:Class`. `Class.open(target)` returns a `ModelServer` that has loaded
nothing."""

WITHOUT_ENGINE_SETTINGS = frozenset(("vllm", "tgi", "ray_serve", "openai_api", "scripted"))
"""The kinds without engine settings (`Target.engine`). For these, an unknown key in the settings is an error."""

GROUP = "opea_llm.model_servers"
"""The entry point group in which other packages register kinds."""

FRAMEWORKS = ("langchain", "native")

_LANGCHAIN = ("langchain_core", "langchain_huggingface", "langchain_openai")
"""The packages of the extra `langchain`."""


def model_servers() -> dict[str, str]:
    """Returns all kinds: `MODEL_SERVERS`, and those that other packages register in the group `opea_llm.model_servers`.

    Nothing is imported yet. A registered kind with the name of a built-in one is ignored, with a warning.
    """
    kinds = dict(MODEL_SERVERS)
    for name, point in _plug_ins().items():
        if name in MODEL_SERVERS:
            log.warning("%s offers a model server '%s': the service's own of that name is used", _package(point), name)
        else:
            kinds[name] = point.value
    return kinds


def open_model_server(kind: str, target: Target) -> ModelServer:
    """Returns a model server; nothing is loaded or connected yet.

    Args:
        kind: A name from `model_servers`.
        target: The model, and the settings to reach it.

    Raises:
        SettingsError: The kind does not support the settings, or its package cannot be imported.
    """
    if kind == "langchain":
        need(_LANGCHAIN[:1], "langchain", f"model_server = {kind}")
    if kind in MODEL_SERVERS:
        module, _, name = MODEL_SERVERS[kind].partition(":")
        found = getattr(import_module(module), name)
    else:
        found = _plugged_in(kind)
    server: ModelServer = found.open(target)
    return server


def _plugged_in(kind: str) -> Any:
    point = _plug_ins()[kind]
    try:
        found = point.load()
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise SettingsError(f"model_server = {kind}: {_package(point)} cannot be imported: {why}") from error
    if not hasattr(found, "open"):
        raise SettingsError(f"model_server = {kind}: {point.value} of {_package(point)} has no open(target)")
    return found


@cache
def _plug_ins() -> dict[str, EntryPoint]:
    """Returns the registered kinds. They are cached, since reading the metadata of all installed packages is slow."""
    return {
        point.name.lower(): point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name.lower())
    }


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist else f"the module {point.module}"


def need_langchain(by: str, otherwise: str = "") -> None:
    """Check that LangChain's packages are installed; see `need`.

    Raises:
        SettingsError: One is not.
    """
    need(_LANGCHAIN, "langchain", by, otherwise)


def through_framework(server: ModelServer, framework: str, model: str = "") -> ModelServer:
    """Returns the model server, natively or behind a LangChain chat model. It keeps its optional abilities.

    Args:
        server: The model server.
        framework: One of `FRAMEWORKS`.
        model: The model's name for LangChain.

    Raises:
        SettingsError: LangChain is not installed.
    """
    if framework == "native":
        return server
    need_langchain("framework = langchain", "; or do without it: FRAMEWORK=native")
    from comps.model_servers.langchain.through import through_langchain

    return through_langchain(server, model)


def with_deadlines(server: ModelServer, access: Access) -> ModelServer:
    """Returns the model server with the deadlines of `access`, unless it keeps them itself (`keeps_deadlines`).

    A deadline that is at its default is none here: it is meant for model servers over HTTP, and reading a long prompt
    on a CPU may take longer.

    Args:
        server: The model server.
        access: The deadlines.
    """
    deadlines = None if getattr(server, "keeps_deadlines", False) else access.chosen_deadlines()
    return WithDeadlines(server, deadlines) if deadlines else server


def with_tokenizer(server: ModelServer, file: str) -> ModelServer:
    """Returns the model server with a local tokenizer that counts tokens.

    Args:
        server: The model server.
        file: The path of a tokenizer.json; empty: the server is returned unchanged.

    Raises:
        SettingsError: The file is no valid tokenizer.json.
    """
    if not file:
        return server
    from comps.model_servers.chat_templates.tokenizer_file import WithTokenizer

    return WithTokenizer(server, file)


def with_chat_template(server: ModelServer, template: str, model: str) -> ModelServer:
    """Returns the model server behind a chat template, which renders conversations as text to continue.

    Args:
        server: The model server.
        template: A template's name, a .jinja file, or `auto`; empty: the server is returned unchanged.
        model: The model's name, by which `auto` chooses a template.

    Raises:
        SettingsError: The chat template does not exist, or none is known for the model.
    """
    if not template:
        return server
    from comps.model_servers.chat_templates.templates import Templated, chat_template

    return Templated(server, chat_template(template, model))


def control_token_escaper(template: str, model: str) -> Callable[[str], str]:
    """Returns the function that escapes control tokens in text, so that the text neither opens nor closes a turn.

    It escapes special tokens and the turn markers of the model's chat template, whether the service or the model server
    applies it. For an unknown model it escapes the markers of all known templates.

    Args:
        template: As for `with_chat_template`.
        model: The model's name.
    """
    from comps.core.markers import control_token_escape
    from comps.model_servers.chat_templates.templates import markers_of

    return control_token_escape(markers_of(template, model))
