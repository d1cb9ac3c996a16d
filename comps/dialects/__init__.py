"""The dialects, a module or a folder each: what their request bodies mean, and how their answers are encoded."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from comps.dialects.shared.base import Dialect

DIALECTS = {
    "opea": "comps.dialects.opea:opea",
    "openai": "comps.dialects.openai:openai",
    "square": "comps.dialects.square.dialect:square",
    "llm_api": "comps.dialects.llm_api.dialect:llm_api",
    "kaito": "comps.dialects.kaito:kaito",
    "llm_on_k8s": "comps.dialects.llm_on_k8s:llm_on_k8s",
    "responses": "comps.dialects.responses.dialect:responses",
    "anthropic": "comps.dialects.anthropic.dialect:anthropic",
    "cohere": "comps.dialects.cohere.dialect:cohere",
    "ollama": "comps.dialects.ollama.dialect:ollama",
    "tgi": "comps.dialects.tgi.dialect:tgi",
}
"""Dialects by name: `module:function`, where `function(switches)` makes a `Dialect`."""


def open_dialect(name: str, switches: Any) -> Dialect:
    """One of the dialects in `DIALECTS`, with its switches."""
    module, _, function = DIALECTS[name].partition(":")
    dialect: Dialect = getattr(import_module(module), function)(switches)
    return dialect
