"""What an engine is asked: a request's prompt and options in the form that its process takes."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass

from comps.core.errors import InvalidRequest
from comps.core.types import JSON, Message, Prompt
from comps.model_servers.embedded.constraints import Constraint, constraint_of
from comps.model_servers.embedded.conversations import knows_tools, messages_for
from comps.model_servers.embedded.tool_calls import Reader, is_recognised, reader_of
from comps.model_servers.embedded.tools import Tools, tools_of


@dataclass(frozen=True)
class Question:
    """A prompt, and what its answer may be."""

    prompt: JSON
    """Text to continue, or messages; see `messages_for`."""
    tools: Tools | None
    """The functions that the answer may call."""
    tools_for_template: list[JSON]
    """Those that the model's chat template renders."""
    constraint: Constraint | None

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The messages of a conversation."""
        known = ("role", "content")
        return tuple(
            Message(turn["role"], turn["content"], {name: one for name, one in turn.items() if name not in known})
            for turn in self.prompt
        )

    @property
    def asked(self) -> dict[str, JSON]:
        """What the engine reads."""
        return {"prompt": self.prompt, "tools": self.tools_for_template}

    @property
    def constrained(self) -> dict[str, JSON]:
        """What its answer matches."""
        return {"constraint": self.constraint and asdict(self.constraint)}

    def reader(self) -> Reader | None:
        """What reads an answer; None: all of it is text."""
        return reader_of(self.tools) if self.tools else None


def question_of(
    prompt: Prompt, options: Mapping[str, JSON], chat_template: str, constraints: AbstractSet[str]
) -> Question:
    """What is asked of an engine.

    Args:
        prompt: As for `ModelServer.generate`.
        options: As for `ModelServer.generate`; those of tools count in a conversation only.
        chat_template: The model's, in Jinja; empty: unknown.
        constraints: The kinds of constraints that the engine has.

    Raises:
        InvalidRequest: An option is malformed, or asks for what the engine or the model cannot do.
    """
    tools = None if isinstance(prompt, str) else tools_of(options)
    if tools and not tools.demanded and not is_recognised(chat_template):
        tools = None  # The capabilities say so; see `Embedded.describe`.
    constraint = constraint_of(options)
    if tools and tools.demanded:
        constraint = tools.constraint()
    elif tools and constraint:
        said = "a model here either calls functions or answers in this form; tool_choice says which (none, required)"
        raise InvalidRequest(said, constraint.field)
    if constraint and constraint.kind not in constraints:
        known = ", ".join(sorted(constraints)) or "none"
        raise InvalidRequest(f"the model's engine has no constraint of this kind; known: {known}", constraint.field)
    for_template = tools.listed if tools and knows_tools(chat_template) else []
    return Question(messages_for(prompt, tools, chat_template), tools, for_template, constraint)
