"""The value of a preview."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from comps.core.planning import Plan
from comps.core.types import JSON, Prompt, Sampling


@dataclass(frozen=True, slots=True)
class Preview:
    """Preview: what the model server would receive for a request."""

    plan: Plan
    prompt: Prompt = field(repr=False)
    """The prompt as it would be sent; a conversation, unless the plan's prompt is text."""
    rendered: str | None = field(repr=False)
    """The rendered prompt; None if the model's chat template is unknown."""
    sampling: Sampling
    options: Mapping[str, JSON] = field(repr=False)
    answer: str | None = field(repr=False)
    """The answer that would be given without the model server; None: the model server would answer."""
