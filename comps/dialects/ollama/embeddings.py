"""Ollama's bodies that ask for embeddings: the newer and the older form."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from math import sqrt
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from comps.core.errors import InvalidRequest
from comps.core.types import JSON, Embeddings
from comps.dialects.ollama.answers import durations_of
from comps.dialects.ollama.body import OllamaBody
from comps.dialects.shared.base import EmbeddingCall
from comps.dialects.shared.bodies import MOST
from comps.dialects.shared.framing import ResponseMetadata

_SHORTEST = 1e-12
"""The least length that a vector is divided by."""


def _listed(value: Any) -> Any:
    if value in (None, ""):
        return []
    return [value] if isinstance(value, str) else value


class OllamaEmbedCall(OllamaBody, EmbeddingCall):
    """Texts to embed, as vectors of length 1; without one, the model is loaded."""

    marker = "input"
    examples = {
        "One text": {"input": "Why is the sky blue?"},
        "Several": {"input": ["Deep learning", "Bread and butter"]},
    }

    input: Annotated[
        list[str], Field(max_length=MOST), BeforeValidator(_listed, json_schema_input_type=str | list[str])
    ] = Field([], description="A text, or a list of texts.")
    truncate: bool | None = Field(None, description="true is named as ignored: texts that are too long are refused.")
    dimensions: int | None = Field(None, gt=0, description="How many of a vector's numbers are kept.")
    options: dict[str, Any] | None = Field(None, description="No effect here, and named as ignored.")

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        return [*(["truncate"] if self.truncate else []), *_unread(self.options), *super().ignored(capabilities)]

    @property
    def asks(self) -> bool:
        return bool(self.input)

    def texts(self) -> Sequence[str]:
        return self.input

    def reply(self, embeddings: Embeddings, metadata: ResponseMetadata) -> JSON:
        length = len(embeddings.vectors[0]) if embeddings.vectors else 0
        if embeddings.vectors and self.dimensions is not None and self.dimensions > length:
            raise InvalidRequest(f"the vectors of {metadata.model} have {length} dimensions", "dimensions")
        counted = {} if embeddings.prompt_tokens is None else {"prompt_eval_count": embeddings.prompt_tokens}
        return {
            "model": self.model or metadata.model,
            "embeddings": [_of_length_1(vector[: self.dimensions]) for vector in embeddings.vectors],
            **durations_of(metadata.times),
            **counted,
        }


class OllamaEmbeddingsCall(OllamaBody, EmbeddingCall):
    """A text to embed, as the model has it: the older form; without one, the model is loaded."""

    marker = "prompt"
    examples = {"A text": {"prompt": "Why is the sky blue?"}}

    prompt: str | None = None
    options: dict[str, Any] | None = Field(None, description="No effect here, and named as ignored.")

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        return [*_unread(self.options), *super().ignored(capabilities)]

    @property
    def asks(self) -> bool:
        return bool(self.prompt)

    def texts(self) -> Sequence[str]:
        return [self.prompt] if self.prompt else []

    def reply(self, embeddings: Embeddings, metadata: ResponseMetadata) -> JSON:
        return {"embedding": list(embeddings.vectors[0]) if embeddings.vectors else []}


def _unread(options: dict[str, Any] | None) -> list[str]:
    return [f"options.{name}" for name, value in (options or {}).items() if value is not None]


def _of_length_1(vector: Sequence[float]) -> list[float]:
    length = max(sqrt(sum(number * number for number in vector)), _SHORTEST)
    return [number / length for number in vector]
