"""An LLM microservice for RAG pipelines. Importing this starts nothing and reads no environment.

These names are the public API: for programs that add a model server or embed the service (docs/extending.md), and for
those that use LangChain or look at prompts (docs/python.md).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from comps.core.answers import collect, read
from comps.core.errors import (
    BodyTooLarge,
    BrokenOff,
    Forbidden,
    InvalidHTTP,
    InvalidRequest,
    LLMError,
    Malformed,
    ModelServerError,
    NotKept,
    NotSupported,
    Overloaded,
    PromptTooLong,
    Refused,
    SettingsError,
    TextTooLong,
    Timeout,
    Unauthorized,
    UnknownModel,
    UnknownRoute,
    Unreachable,
    UnsupportedEncoding,
)
from comps.core.generator import TextGenerator
from comps.core.models import Models
from comps.core.ports import Answer, Completes, CountsTokens, Embeds, Loads, ModelServer, Tokenizes
from comps.core.types import (
    Document,
    DocumentUse,
    Embeddings,
    Event,
    Finished,
    Generation,
    GenerationRequest,
    Message,
    ModelInfo,
    Prompt,
    Report,
    Sampling,
    TextDelta,
    Token,
    Usage,
)

if TYPE_CHECKING:
    from comps.chat import chat_model
    from comps.client import Previewed, PreviewedPrompt, PromptClient, reports_of

__all__ = [
    "Answer",
    "BodyTooLarge",
    "BrokenOff",
    "Completes",
    "CountsTokens",
    "Document",
    "DocumentUse",
    "Embeddings",
    "Embeds",
    "Event",
    "Finished",
    "Forbidden",
    "Generation",
    "GenerationRequest",
    "InvalidHTTP",
    "InvalidRequest",
    "LLMError",
    "Loads",
    "Malformed",
    "Message",
    "ModelInfo",
    "ModelServer",
    "ModelServerError",
    "Models",
    "NotKept",
    "NotSupported",
    "Overloaded",
    "Previewed",
    "PreviewedPrompt",
    "Prompt",
    "PromptClient",
    "PromptTooLong",
    "Refused",
    "Report",
    "Sampling",
    "SettingsError",
    "TextDelta",
    "TextGenerator",
    "TextTooLong",
    "Timeout",
    "Token",
    "Tokenizes",
    "Unauthorized",
    "UnknownModel",
    "UnknownRoute",
    "Unreachable",
    "UnsupportedEncoding",
    "Usage",
    "chat_model",
    "collect",
    "read",
    "reports_of",
]

_IMPORTED_LATER = {
    "chat_model": "comps.chat",
    "Previewed": "comps.client",
    "PreviewedPrompt": "comps.client",
    "PromptClient": "comps.client",
    "reports_of": "comps.client",
}
"""The names whose modules need LangChain or an HTTP client, which are imported when the name is used."""


def __getattr__(name: str) -> Any:
    if module := _IMPORTED_LATER.get(name):
        return getattr(import_module(module), name)
    raise AttributeError(f"module 'comps' has no attribute '{name}'")
