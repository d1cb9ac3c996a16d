"""One file per thing that turns prompts into tokens; a vendor's package is imported only when its kind is chosen."""

from __future__ import annotations

from importlib import import_module

from comps.core.ports import ABILITIES, ModelServer
from comps.model_servers.target import Target

MODEL_SERVERS = {
    "openvino": "comps.model_servers.openvino:OpenVINO",
    "vllm": "comps.model_servers.vllm:VLLM",
    "tgi": "comps.model_servers.tgi:TGI",
    "ray_serve": "comps.model_servers.ray_serve:RayServe",
    "openai_api": "comps.model_servers.openai_api:OpenAIAPI",
    "scripted": "comps.model_servers.scripted:Scripted",
}
"""Kinds by name: `module:Class`, where `Class.open(target)` makes a `ModelServer`, which loads nothing yet."""

WITHOUT_ENGINE_SETTINGS = frozenset(("openvino", "vllm", "tgi", "ray_serve", "openai_api", "scripted"))
"""The kinds that read nothing of `Target.engine`: for these, a setting that the house does not know is a mistake."""

FRAMEWORKS = ("langchain", "native")


def open_model_server(kind: str, target: Target) -> ModelServer:
    """A model server of one of the kinds in `MODEL_SERVERS`; nothing is loaded or connected yet."""
    module, _, name = MODEL_SERVERS[kind].partition(":")
    server: ModelServer = getattr(import_module(module), name).open(target)
    return server


def through_framework(server: ModelServer, framework: str, model: str = "") -> ModelServer:
    """The same model server, reached natively or through LangChain (one of `FRAMEWORKS`), which calls it `model`; it
    can do all that it could before."""
    if framework == "native":
        return server
    from comps.model_servers.langchain import ChatModelServer, ThroughLangChain

    through = ThroughLangChain(ChatModelServer(server=server, model=model), server)
    for ability in ABILITIES:
        if getattr(server, ability, None) and not hasattr(through, ability):
            setattr(through, ability, getattr(server, ability))
    return through
