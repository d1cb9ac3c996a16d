"""An LLM microservice for RAG pipelines. Importing this starts nothing and reads no environment.

These names are the public API, for programs that add a model server or embed the service; see CONTRIBUTING.md.
"""

from comps.core.answers import collect, read
from comps.core.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidHTTP,
    InvalidRequest,
    LLMError,
    Malformed,
    ModelServerError,
    Overloaded,
    PromptTooLong,
    Refused,
    SettingsError,
    TextTooLong,
    Timeout,
    Unauthorized,
    UnknownModel,
    Unreachable,
    UnsupportedEncoding,
)
from comps.core.generator import TextGenerator
from comps.core.models import Models
from comps.core.ports import Answer, Completes, CountsTokens, Embeds, Loads, ModelServer
from comps.core.types import (
    Document,
    Embeddings,
    Event,
    Finished,
    Generation,
    GenerationRequest,
    Message,
    ModelInfo,
    Prompt,
    Sampling,
    TextDelta,
    Usage,
)

__all__ = [
    "Answer",
    "BodyTooLarge",
    "Completes",
    "CountsTokens",
    "Document",
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
    "Overloaded",
    "Prompt",
    "PromptTooLong",
    "Refused",
    "Sampling",
    "SettingsError",
    "TextDelta",
    "TextGenerator",
    "TextTooLong",
    "Timeout",
    "Unauthorized",
    "UnknownModel",
    "Unreachable",
    "UnsupportedEncoding",
    "Usage",
    "collect",
    "read",
]
