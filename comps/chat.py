"""LangChain's chat model over any kind of model server, for programs without the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from comps.core.errors import SettingsError
from comps.core.types import JSON
from comps.model_servers import model_servers, need_langchain, open_model_server
from comps.model_servers.target import Access, Target

if TYPE_CHECKING:
    from comps.model_servers.langchain.chat_model import AnswersChat

_BUNDLED = "SmolLM2-135M-Instruct"
_NAMES = {"scripted": "scripted"}
"""What is not the bundled model, by the kind of model server."""
_STANDALONE = "comps.model_servers.langchain.standalone:StandaloneChatModel"


def chat_model(
    model_server: str = "openvino",
    model_name: str = "",
    endpoint: str = "",
    *,
    api_key: str = "",
    device: str = "CPU",
    engine: Mapping[str, JSON] | None = None,
    **fields: Any,
) -> AnswersChat:
    """Returns a LangChain chat model. A model that runs here is loaded at the first call.

    >>> chat_model("scripted").invoke("Hi").text
    'This answer was written beforehand.'

    Args:
        model_server: The kind of model server, as in the settings: openvino, llama_cpp, transformers, vllm, tgi …
        model_name: The model's name; for one that runs here also a path, or a Hugging Face repository; empty: that of
            the bundled model, or `scripted` for the kind scripted.
        endpoint: The model server's URL; for scripted, a file of answers; empty where the model runs here.
        api_key: The model server's key.
        device: Where the model runs here: CPU, GPU or NPU.
        engine: The engine's own settings.
        fields: Fields of the chat model, such as `temperature` and `max_tokens`.

    Raises:
        SettingsError: There is no such kind or field, a value is wrong, the kind does not support the settings, or a
            package is missing.
    """
    kinds = sorted(model_servers().keys() - {"langchain"})  # That one is for chat models that LangChain has.
    if model_server not in kinds:
        raise SettingsError(f"model_server = {model_server}: it is one of {', '.join(kinds)}")
    need_langchain("chat_model")
    from comps.model_servers.langchain.through import CHAT_MODELS, chat_model_over

    model_name = model_name or _NAMES.get(model_server, _BUNDLED)
    target = Target(model_name, endpoint, Access(api_key=api_key), device=device, engine=engine or {})
    server = open_model_server(model_server, target)
    return chat_model_over(server, model_name, {**CHAT_MODELS, object: _STANDALONE}, **fields)
