"""One file per thing that turns prompts into tokens; a vendor's package is imported only when its kind is chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from comps.core.errors import SettingsError
from comps.core.ports import ModelServer
from comps.model_servers.target import Target, need

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
"""Kinds by name: `module:Class`, where `Class.open(target)` makes a `ModelServer`, which loads nothing yet."""

WITHOUT_ENGINE_SETTINGS = frozenset(("vllm", "tgi", "ray_serve", "openai_api", "scripted"))
"""The kinds that read nothing of `Target.engine`: for these, a setting that the house does not know is a mistake."""

GROUP = "opea_llm.model_servers"
"""The entry points with which a package outside adds a kind."""

FRAMEWORKS = ("langchain", "native")

_LANGCHAIN = ("langchain_core", "langchain_huggingface", "langchain_openai")
"""What is imported of the extra `langchain`."""


def model_servers() -> dict[str, str]:
    """`MODEL_SERVERS`, and the kinds that other packages add with entry points of the group `opea_llm.model_servers`.

    None of these is imported yet. One with a name of ours is passed over, and a warning says so.
    """
    kinds = dict(MODEL_SERVERS)
    for name, point in _plug_ins().items():
        if name in MODEL_SERVERS:
            log.warning("%s offers a model server '%s': the service's own of that name is used", _package(point), name)
        else:
            kinds[name] = point.value
    return kinds


def open_model_server(kind: str, target: Target) -> ModelServer:
    """A model server of one of the kinds in `model_servers`; nothing is loaded or connected yet.

    Raises:
        SettingsError: The settings make no sense for the kind, or its package cannot be imported.
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
    """Looked for once: to read what every installed package says of itself takes longer than all else here."""
    return {
        point.name.lower(): point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name.lower())
    }


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist else f"the module {point.module}"


def through_framework(server: ModelServer, framework: str, model: str = "") -> ModelServer:
    """The same model server, reached natively or through LangChain (one of `FRAMEWORKS`), which calls it `model`; it
    can do all that it could before.

    Raises:
        SettingsError: LangChain is not installed.
    """
    if framework == "native":
        return server
    need(_LANGCHAIN, "langchain", "framework = langchain", "; or do without it: FRAMEWORK=native")
    from comps.model_servers.langchain.through import through_langchain

    return through_langchain(server, model)


def with_tokenizer(server: ModelServer, file: str) -> ModelServer:
    """The same model server, whose tokens are counted here by a tokenizer.json, unless `file` is empty.

    Raises:
        SettingsError: It is no such file.
    """
    if not file:
        return server
    from comps.model_servers.chat_templates.tokenizer_file import WithTokenizer

    return WithTokenizer(server, file)


def with_chat_template(server: ModelServer, template: str, model: str) -> ModelServer:
    """The same model server, which gets the conversations as text by a chat template of ours, unless that is empty.

    Raises:
        SettingsError: There is no such chat template, or none is known for `model`.
    """
    if not template:
        return server
    from comps.model_servers.chat_templates.templates import Templated, chat_template

    return Templated(server, chat_template(template, model))


def control_token_escaper(template: str, model: str) -> Callable[[str], str]:
    """What makes any text one that neither opens nor closes a turn of the model, whoever applies its chat template;
    see `with_chat_template`."""
    from comps.core.markers import control_token_escape
    from comps.model_servers.chat_templates.templates import markers_of

    return control_token_escape(markers_of(template, model))
