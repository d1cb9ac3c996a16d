"""llm-on-k8s, Llama 2 behind Flask (2023): the predecessor of KAITO's Llama, with Flask's JSON."""

from __future__ import annotations

import json
from typing import Any

from comps.core.errors import LLMError, Malformed
from comps.core.types import JSON
from comps.dialects.shared.base import Dialect, Route, ServiceStatus, Style, Text
from comps.dialects.shared.llama import LlamaChatCall, LlamaGenerateCall, Switches, shut_down

_HTML = "text/html; charset=utf-8"
_REQUIRED: dict[tuple[Any, ...], str] = {
    ("prompts",): "Prompts are required and should be an array",
    ("input_data",): "Input data is required",
}


def _error(error: LLMError) -> JSON:
    if isinstance(error, Malformed) and len(error.problems) == 1:
        (problem,) = error.problems
        if problem["type"] in ("missing", "list_type") or not problem.get("input", True):
            return {"error": _REQUIRED.get(problem["loc"], str(error))}
    return {"error": str(error)}


def _jsonify(document: JSON) -> bytes:
    """Flask's JSON: sorted keys, ASCII, and a line break at the end."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


FLASK = Style(_error, encode=_jsonify)


class LLMOnK8sGenerateCall(LlamaGenerateCall):
    """Texts, which a model for conversations answers and another one continues."""

    style = FLASK
    error_prefix = "Request Failed"


class LLMOnK8sChatCall(LlamaChatCall):
    """Dialogs to answer. The answer to one with a tag of Llama's prompt format is an error message."""

    style = FLASK


def _alive(status: ServiceStatus) -> Text:
    """Liveness: 200 as long as the service runs"""
    return Text("Server is running", _HTML)


def _healthy(status: ServiceStatus) -> Text:
    """Readiness: 200 when the model can answer, 503 until then"""
    if status.not_ready:
        raise status.not_ready
    return Text("Healthy", _HTML)


def _shut_down(status: ServiceStatus) -> Text:
    """End the service when what runs is answered, if the settings allow it"""
    shut_down(status)
    return Text("", _HTML)


def llm_on_k8s(switches: Switches) -> Dialect:
    """The dialect with these switches."""
    return Dialect(
        name="llm_on_k8s",
        calls={"/generate": (LLMOnK8sGenerateCall,), "/chat": (LLMOnK8sChatCall,)},
        style=FLASK,
        routes={
            "GET /": Route(_alive, asks_models=False),
            "GET /healthz": Route(_healthy),
            "POST /shutdown": Route(_shut_down, asks_models=False),
        },
        switches=switches,
        about="llm-on-k8s, for Llama.",
    )
