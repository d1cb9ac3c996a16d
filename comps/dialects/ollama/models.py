"""What Ollama tells of models: which there are, which are loaded, and the facts of one.

https://docs.ollama.com/api/tags, https://docs.ollama.com/api/ps, https://docs.ollama.com/api-reference/show-model-details
"""

from __future__ import annotations

from hashlib import sha256

from comps.core.errors import Forbidden
from comps.core.types import CALLS_ON_DEMAND, JSON, ModelInfo
from comps.dialects.ollama.answers import timestamp
from comps.dialects.shared.base import Route, ServiceStatus, Text

API_VERSION = "0.32.15"
"""The version of Ollama whose API this is, by which clients tell what it has."""
_FOREVER = 2**63 // 10**9
"""The seconds for which Ollama keeps a model that it never unloads."""
_UNKNOWN = "unknown"


def tagged(name: str) -> str:
    """A model's name with its tag, as Ollama lists it."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def show(info: ModelInfo) -> JSON:
    """The facts of a model. Those that are not known are left out, or empty where clients expect them."""
    architecture = _UNKNOWN
    window = {} if info.context_window is None else {f"{architecture}.context_length": info.context_window}
    return {
        "modelfile": f"FROM {info.name}",
        "parameters": "",
        "template": "",
        "details": _details(),
        "model_info": {"general.architecture": architecture, "general.basename": info.name, **window},
        "capabilities": _capabilities(info),
    }


def _details() -> JSON:
    return {
        "parent_model": "",
        "format": "",
        "family": "",
        "families": [],
        "parameter_size": "",
        "quantization_level": "",
    }


def _capabilities(info: ModelInfo) -> list[str]:
    """What a model can do, in Ollama's words, as far as its server's options say."""
    calls = "tools" in info.capabilities and CALLS_ON_DEMAND not in info.capabilities
    return ["completion", *(["tools"] if calls else []), *(["insert"] if "suffix" in info.capabilities else [])]


def _entry(info: ModelInfo) -> dict[str, JSON]:
    """A model in a list. Its digest is that of its names, since its files are not known."""
    name = tagged(info.name)
    digest = sha256(f"{name}\n{info.base}".encode()).hexdigest()
    return {"name": name, "model": name, "size": 0, "digest": digest, "details": _details()}


def _tags(status: ServiceStatus) -> JSON:
    """The models that answer here"""
    modified = {"modified_at": timestamp(status.started)}
    return {"models": [{**_entry(info), **modified, "capabilities": _capabilities(info)} for info in status.models]}


def _loaded(status: ServiceStatus) -> JSON:
    """The models that are loaded: those that can answer now, for as long as the service runs"""
    kept = {"expires_at": timestamp(status.started + _FOREVER), "size_vram": 0}
    return {"models": [{**_entry(info), **kept, "context_length": info.context_window or 0} for info in status.ready]}


def _version(status: ServiceStatus) -> JSON:
    """The version of Ollama whose API this is"""
    return {"version": API_VERSION}


def _running(status: ServiceStatus) -> Text:
    """Liveness: 200 as long as the service runs"""
    return Text("Ollama is running")


def _refused(status: ServiceStatus) -> JSON:
    """No effect here: models are chosen by the settings"""
    raise Forbidden("models are not pulled, made or deleted here: the settings [Model] and [Model.<name>] choose them")


_OF_LIBRARY = (
    *("POST /api/pull", "POST /api/push", "POST /api/create", "POST /api/copy", "DELETE /api/delete"),
    "POST /api/blobs/{digest}",
)
ROUTES = {
    "GET /": Route(_running, asks_models=False),
    "GET /api/version": Route(_version, asks_models=False),
    "GET /api/tags": Route(_tags),
    "GET /api/ps": Route(_loaded),
    **{route: Route(_refused, asks_models=False) for route in _OF_LIBRARY},
}
