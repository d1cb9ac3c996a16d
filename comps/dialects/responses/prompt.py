"""What a body of the Responses API says of the prompt: its items, functions and formats."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from comps.core.errors import InvalidRequest
from comps.core.types import CALLS_ON_DEMAND, JSON, GenerationRequest, Sampling
from comps.dialects.responses import options
from comps.dialects.responses.items import Conversation
from comps.dialects.shared import framing
from comps.dialects.shared.base import Style
from comps.dialects.shared.bodies import MOST
from comps.dialects.shared.fields import GroundedCall, matters
from comps.dialects.shared.openai_values import Schema

RESPONSES = Style(framing.openai_error)

_KEPT: Mapping[str, str] = {
    "previous_response_id": "responses are not kept here: send the items before in input",
    "conversation": "conversations are not kept here: send their items in input",
    "background": "responses are not kept here, so none can be fetched later: leave it out, or stream",
    "prompt": "prompts are not kept here: send the text in instructions and input",
}
"""Why a field is refused that refers to something kept."""
_OF_TOOLS = ("parallel_tool_calls", "tool_choice")
"""Fields that have an effect beside tools alone. The chat API refuses them without tools; this API does not."""
_OF_ITEMS: Mapping[str, str] = {
    "tool_calls": "input.function_call",
    "tool_call_id": "input.function_call_output",
    "reasoning_content": "input.reasoning",
}
"""What is named as ignored for each further field of messages."""


class TextConfig(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(extra="allow")

    format: Schema | None = Field(None, description="Of the type text, json_object or json_schema.")
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(BaseModel):
    """How the model reasons, and what is shown of it."""

    model_config = ConfigDict(extra="allow")

    effort: str | None = Field(None, description="For model servers that know it.")
    summary: str | None = Field(
        None, description="If there is any, reasoning comes as its summary, in full; else as reasoning_text."
    )
    generate_summary: str | None = Field(None, description="An older name of summary.")


class PromptCall(GroundedCall):
    """A body with all that the model reads."""

    marker = "input"
    style: ClassVar[Style] = RESPONSES

    input: str | Annotated[list[Schema], Field(min_length=1, max_length=MOST, fail_fast=True)] | None = Field(
        None, description="A question, or a list of items: messages, calls of functions, their outputs, reasoning."
    )
    instructions: str | None = Field(None, description="A system message before the input.")
    text: TextConfig | None = Field(None, description="The format of the answer, and its verbosity.")
    reasoning: ReasoningConfig | None = Field(None, description="The effort, and whether a summary is wanted.")
    tools: list[Schema] | None = Field(None, description="Functions that the model may call; no other tools are here.")
    tool_choice: Literal["none", "auto", "required"] | Schema | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto: the oldest messages give way where they do not fit; disabled: that is an error."
    )
    previous_response_id: str | None = Field(None, description="Refused: responses are not kept.")
    conversation: str | Schema | None = Field(None, description="Refused: conversations are not kept.")
    background: bool | None = Field(None, description="Refused if true: responses are not kept.")
    prompt: Schema | None = Field(None, description="Refused: prompts are not kept.")

    def asked(self, sampling: Sampling, defaulted: AbstractSet[str] = frozenset()) -> GenerationRequest:
        """What is asked of the model.

        Args:
            sampling: How to sample.
            defaulted: The names of the sampling fields that the body does not have.

        Raises:
            InvalidRequest: The fields contradict each other, or refer to something kept.
        """
        for name, reason in _KEPT.items():
            if getattr(self, name):
                raise InvalidRequest(reason, name)
        if self.input is None:
            raise InvalidRequest("Field required", "input")
        return GenerationRequest(
            prompt=self._conversation.messages,
            documents=self.all_documents(),
            **self.of_documents(),
            sampling=sampling,
            defaulted=defaulted,
            options={**self._options, **self.template_options, **self._further_options},
            drops_turns=self.truncation != "disabled",
        )

    @cached_property
    def _conversation(self) -> Conversation:
        asked = self.input or ""
        items = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        return Conversation(self.instructions or "", items)

    @cached_property
    def _options(self) -> dict[str, JSON]:
        return self.wishes()

    def wishes(self) -> dict[str, JSON]:
        """The fields that only some model servers know, under the names of the chat API."""
        found = self.sent_fields(options.SAME)
        if self.tools:
            found["tools"] = options.tools(self.tools)
        else:
            found.pop("parallel_tool_calls", None)
        if self.tool_choice is not None:
            choice = options.tool_choice(self.tool_choice)
            if self.tools:
                found["tool_choice"] = choice
            elif choice != "none" and not options.leaves_calls_to_the_model(choice):
                raise InvalidRequest("it demands a call, and there are no tools", "tool_choice")
        if self.text and self.text.format is not None:
            found["response_format"] = options.response_format(self.text.format)
        if self.text and self.text.verbosity:
            found["verbosity"] = self.text.verbosity
        if self.reasoning and self.reasoning.effort:
            found["reasoning_effort"] = self.reasoning.effort
        return found

    @property
    def _further_options(self) -> dict[str, JSON]:
        """Undeclared fields, which may be options of a model server."""
        extra = self.model_extra or {}
        return {name: value for name, value in extra.items() if value is not None and options.may_be(name)}

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        further = self._further_options
        lost = [name for name in super().ignored(capabilities) if name not in further]
        lost += [name for name, value in further.items() if name not in capabilities and matters(name, value)]
        if CALLS_ON_DEMAND in capabilities and options.leaves_calls_to_the_model(self._options.get("tool_choice")):
            capabilities = capabilities - {"tools"}
        wishes = [name for name, one in self._options.items() if name not in capabilities and matters(name, one)]
        lost += dict.fromkeys(self.name_of(name) for name in wishes)
        lost += [name for name in _OF_TOOLS if not self.tools and matters(name, getattr(self, name))]
        for name in ("text", "reasoning"):
            lost += extra_of(name, getattr(self, name))
        lost += options.ignored_of_tools(self.tools or ())
        return list(dict.fromkeys(lost + self._ignored_in_input(capabilities)))

    def name_of(self, option: str) -> str:
        """The field that an option comes from."""
        return options.NAMES.get(option, option)

    def _ignored_in_input(self, capabilities: AbstractSet[str]) -> list[str]:
        lost = list(self._conversation.ignored)
        if "messages.*" in capabilities:
            return lost
        found = {name for message in self._conversation.messages for name in message.extra}
        return lost + [
            said for name, said in _OF_ITEMS.items() if name in found and f"messages.{name}" not in capabilities
        ]


def extra_of(name: str, config: BaseModel | None) -> list[str]:
    """The names of the undeclared fields of an object in a body, which have no effect."""
    extra: Mapping[str, Any] = (config.model_extra if config else None) or {}
    return [f"{name}.{field}" for field, value in extra.items() if matters(field, value)]
