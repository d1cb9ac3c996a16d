"""Texts that the older services let their model continue, for models that answer conversations."""

from __future__ import annotations

from typing import Literal, TypeAlias

from comps.core.markers import is_rendered
from comps.core.types import Message, ModelInfo, Prompt

PromptForm: TypeAlias = Literal["auto", "text", "messages"]
"""How a text goes to the model: as text to continue, as a message to answer, or by what the model is."""


def completion_prompt(text: str, form: PromptForm, served: ModelInfo) -> Prompt:
    """The prompt for a text of a body.

    `auto` makes it a message for a model that has a chat template, since such a model, asked to continue a question,
    often says nothing. A text that already has a chat template's markers is continued, as is one for a model that is
    not known to have a chat template.

    Args:
        text: The text.
        form: The setting.
        served: The model that answers.
    """
    if form == "auto":
        wrapped = served.has_chat_template and text.strip() and not is_rendered(text)
    else:
        wrapped = form == "messages"
    return (Message("user", text),) if wrapped else text
