"""One file per thing that turns prompts into tokens; a vendor's package is imported only when its kind is chosen."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from comps.core.errors import SettingsError
from comps.core.ports import ABILITIES, ModelServer
from comps.model_servers.target import Target

log = logging.getLogger("opea_llm")

MODEL_SERVERS = {
    "openvino": "comps.model_servers.openvino:OpenVINO",
    "llama_cpp": "comps.model_servers.llama_cpp:LlamaCpp",
    "transformers": "comps.model_servers.transformers:Transformers",
    "vllm": "comps.model_servers.vllm:VLLM",
    "tgi": "comps.model_servers.tgi:TGI",
    "ray_serve": "comps.model_servers.ray_serve:RayServe",
    "openai_api": "comps.model_servers.openai_api:OpenAIAPI",
    "langchain": "comps.model_servers.langchain_model:LangChainModel",
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


def need(packages: Sequence[str], extra: str, setting: str, otherwise: str = "") -> None:
    """See that packages can be imported, and import none of them.

    Args:
        packages: By the names that they are imported by.
        extra: The extra of setup.cfg that brings them.
        setting: What asks for them, as `key = value`.
        otherwise: What else would mend it.

    Raises:
        SettingsError: One is not installed; says how to get it.
    """
    if missing := [package for package in packages if find_spec(package) is None]:
        raise SettingsError(
            f"{setting}: it needs {' and '.join(missing)}, not installed here; "
            f"mend it with: {sys.executable} -m pip install 'opea-llm-microservice[{extra}]'{otherwise}"
        )


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
    from comps.model_servers.langchain import ChatModelServer, ThroughLangChain
    from comps.model_servers.langchain_model import LangChainModel

    if isinstance(server, LangChainModel):  # It is LangChain's in any case.
        return server
    own = getattr(server, "chat_model", None)
    through = ThroughLangChain(own(model) if own else ChatModelServer(server=server, model=model), server)
    for ability in ABILITIES:
        if getattr(server, ability, None) and not hasattr(through, ability):
            setattr(through, ability, getattr(server, ability))
    return through


def with_tokenizer(server: ModelServer, file: str) -> ModelServer:
    """The same model server, whose tokens are counted here by a tokenizer.json, unless `file` is empty.

    Raises:
        SettingsError: It is no such file.
    """
    if not file:
        return server
    from comps.model_servers.tokenizer_file import WithTokenizer

    return WithTokenizer(server, file)


def with_chat_template(server: ModelServer, template: str, model: str) -> ModelServer:
    """The same model server, which gets the conversations as text by a chat template of ours, unless that is empty.

    Raises:
        SettingsError: There is no such chat template, or none is known for `model`.
    """
    if not template:
        return server
    from comps.model_servers.chat_templates import Templated, chat_template

    return Templated(server, chat_template(template, model))


def harmless_for(template: str, model: str) -> Callable[[str], str]:
    """What makes any text one that neither opens nor closes a turn of the model, whoever applies its chat template;
    see `with_chat_template`."""
    from comps.core.markers import breaking_up
    from comps.model_servers.chat_templates import markers_of

    return breaking_up(markers_of(template, model))
