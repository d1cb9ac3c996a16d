"""The fields of Anthropic's bodies: the turns of a conversation, and checks of what pydantic's types do not tell.

A check returns the value, and raises a ValueError with what is wrong.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from comps.dialects.anthropic.blocks import OF_ROLES, Block, Blocks, check_type
from comps.dialects.shared.fields import MANY

EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""OpenAI's `reasoning_effort`, as far as all model servers know it."""


class Turn(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="allow")

    role: Literal["user", "assistant", "system"]
    content: Blocks


def checked_turn(turn: Turn) -> Turn:
    """Check the types of its content blocks."""
    for block in turn.content:
        check_type(block, OF_ROLES[turn.role], f"a message of the role {turn.role}")
    if turn.role == "user" and not any(block["type"] != "text" or block["text"].strip() for block in turn.content):
        raise ValueError("the content of a message of the role user must not be empty")
    return turn


def checked_turns(turns: list[Turn]) -> list[Turn]:
    """Check that instructions do not come first."""
    if turns[0].role == "system":
        raise ValueError("the first one does not have the role system; instructions before it are in the field system")
    return turns


def checked_system(blocks: list[Block]) -> list[Block]:
    """Check the types of the system prompt's blocks."""
    for block in blocks:
        check_type(block, OF_ROLES["system"], "the system prompt")
    return blocks


def checked_thinking(thinking: dict[str, Any]) -> dict[str, Any]:
    """Check what is wished of thinking."""
    kind, budget = thinking.get("type"), thinking.get("budget_tokens")
    if kind not in ("enabled", "disabled", "adaptive", "between_tools"):
        raise ValueError("its type is enabled, disabled, adaptive or between_tools")
    if kind == "enabled" and not (isinstance(budget, int) and 0 < budget <= MANY):
        raise ValueError("the type enabled needs budget_tokens, at least 1")
    if thinking.get("display") not in (None, "summarized", "omitted"):
        raise ValueError("display is summarized or omitted")
    return thinking


def checked_output(config: dict[str, Any]) -> dict[str, Any]:
    """Check the form and the effort of the answer."""
    form = config.get("format")
    if config.get("effort") not in (None, *EFFORTS):
        raise ValueError(f"effort is one of {', '.join(EFFORTS)}")
    if form is not None and not (
        isinstance(form, dict) and form.get("type") == "json_schema" and isinstance(form.get("schema"), dict)
    ):
        raise ValueError("format is an object with the type json_schema and a schema, an object")
    return config


def checked_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Check the id of the user."""
    if not isinstance(metadata.get("user_id"), str | None):
        raise ValueError("user_id is a string")
    return metadata
