"""What all bodies of Ollama's have in common: the style of errors, `keep_alive`, and types of fields."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from comps.core.errors import LLMError, UnknownModel
from comps.core.types import JSON
from comps.dialects.shared.base import Call, Style
from comps.dialects.shared.openai_values import Schema

_DURATION = re.compile(r"[-+]?(0|((\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))+)", re.ASCII)
"""A duration as Go parses it: https://pkg.go.dev/time#ParseDuration"""
_ZERO = re.compile(r"[-+]?[0.a-zµμ]+")
"""A duration that is none, of those that `_DURATION` matches, or of numbers."""
_LONGEST_DURATION = 100
"""In characters."""


def _error(error: LLMError) -> JSON:
    if isinstance(error, UnknownModel):
        return {"error": f"model '{error.name}' not found: {error.args[0]}"}
    return {"error": str(error)}


STYLE = Style(_error)


def _checked_duration(value: Any) -> Any:
    is_none = isinstance(value, str) and (len(value) > _LONGEST_DURATION or not _DURATION.fullmatch(value))
    if isinstance(value, bool) or is_none:
        raise ValueError("a duration is a number of seconds, or a text such as '5m' or '1h30m'")
    return value


def _checked_format(value: Any) -> Any:
    if isinstance(value, str) and value not in ("", "json"):
        raise ValueError("it is 'json', or a JSON schema")
    return value


KeepAlive = Annotated[
    float | str | None,
    BeforeValidator(_checked_duration, json_schema_input_type=float | str | None),
    Field(description="A model stays loaded as long as the service runs; only 0, to unload it, is named as ignored."),
]
Format = Annotated[
    Schema | str | None, AfterValidator(_checked_format), Field(description="`json`, or the JSON schema of the answer.")
]


class OllamaBody(Call):
    """What all bodies of this dialect have in common."""

    style = STYLE

    keep_alive: KeepAlive = None

    @property
    def asks(self) -> bool:
        """Whether it asks for more than that the model is loaded."""
        return bool(self.model_fields_set or self.model_extra)

    @property
    def unloads(self) -> bool:
        """Whether it asks for the model to be unloaded."""
        return self.keep_alive is not None and bool(_ZERO.fullmatch(str(self.keep_alive)))

    @model_validator(mode="after")
    def _has_model_or_question(self) -> OllamaBody:
        if not self.model and not self.asks:
            raise ValueError("model is required")
        return self

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        return [*(["keep_alive"] if self.unloads else []), *super().ignored(capabilities)]
