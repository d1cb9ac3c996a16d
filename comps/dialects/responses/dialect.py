"""OpenAI's Responses API, `POST /v1/responses`. https://platform.openai.com/docs/api-reference/responses

The shapes are those of the published reference and of the types in OpenAI's SDK for Python (`openai.types.responses`).
Items become messages of the chat API, functions and formats its options, since model servers speak that. Nothing is
kept from one response to the next: what refers to something kept is refused. Documents work as in every dialect; what
an answer cites comes back as annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from comps.core.errors import InvalidRequest, LLMError
from comps.core.types import CALLS_ON_DEMAND, JSON, Generation, GenerationRequest
from comps.dialects.responses import options
from comps.dialects.responses.events import ResponseEvents, event, whole_response
from comps.dialects.responses.items import Conversation
from comps.dialects.responses.objects import error_event
from comps.dialects.shared import framing
from comps.dialects.shared.base import Dialect, Style, Switches, Writer
from comps.dialects.shared.bodies import MOST
from comps.dialects.shared.examples import FACT
from comps.dialects.shared.fields import MANY, DocumentsCall, matters
from comps.dialects.shared.framing import ResponseMetadata
from comps.dialects.shared.openai_values import Schema

RESPONSES = Style(framing.openai_error)

_CLOCK = {"type": "function", "name": "clock", "description": "The time in the user's city."}
_LOGPROBS = "message.output_text.logprobs"
_KEPT: Mapping[str, str] = {
    "previous_response_id": "responses are not kept here: send the items before in input",
    "conversation": "conversations are not kept here: send their items in input",
    "background": "responses are not kept here, so none can be fetched later: leave it out, or stream",
    "prompt": "prompts are not kept here: send the text in instructions and input",
}
"""Why a field is refused that refers to something kept."""
_NO_EFFECT = ("access_programs", "context_management", "image", "max_tool_calls", "store")
"""Fields of the API that are about what is not here."""
_OF_TOOLS = ("parallel_tool_calls", "tool_choice")
"""Fields that have an effect beside tools alone. The chat API refuses them without tools; this API does not."""


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


class StreamSettings(BaseModel):
    """What else a stream has."""

    model_config = ConfigDict(extra="allow")

    include_obfuscation: bool | None = Field(None, description="There is none here.")


class ResponsesCall(DocumentsCall):
    """A conversation in items, with documents if there are any."""

    marker = "input"
    examples = {
        "A question": {"input": "What is Deep Learning?", "max_output_tokens": 32},
        "With documents": {
            "instructions": "You answer in one sentence.",
            "input": [{"role": "user", "content": "How much memory does Gaudi 2 have?"}],
            "documents": [FACT],
            "max_output_tokens": 32,
        },
        "With a function and its result": {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "What time is it?"}]},
                {"type": "function_call", "call_id": "call_1", "name": "clock", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "call_1", "output": "Half past twelve."},
            ],
            "tools": [_CLOCK],
            "max_output_tokens": 32,
        },
    }
    style = RESPONSES
    _switches: ClassVar[Any] = Switches()
    _events: ClassVar[ResponseEvents | None] = None
    """The stream, once it has begun; an instance has its own, see `_switches`."""

    input: str | Annotated[list[Schema], Field(min_length=1, max_length=MOST, fail_fast=True)] | None = Field(
        None, description="A question, or a list of items: messages, calls of functions, their outputs, reasoning."
    )
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: int | None = Field(None, gt=0, le=MANY, description="The most tokens to generate.")
    text: TextConfig | None = Field(None, description="The format of the answer, and its verbosity.")
    reasoning: ReasoningConfig | None = Field(None, description="The effort, and whether a summary is wanted.")
    tools: list[Schema] | None = Field(None, description="Functions that the model may call; no other tools are here.")
    tool_choice: Literal["none", "auto", "required"] | Schema | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="How many alternatives to each token.")
    include: list[str] | None = Field(None, description=f"What else the answer has: {_LOGPROBS}.")
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto: the oldest messages give way where they do not fit; disabled: that is an error."
    )
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None, Field(max_length=16)
    ] = Field(None, description="Pairs that come back with the response.")
    stream_options: StreamSettings | None = Field(None, description="There is nothing to choose here.")
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Schema | None = None
    service_tier: str | None = None
    moderation: Schema | None = None
    store: bool | None = Field(None, description="Nothing is stored.")
    max_tool_calls: int | None = Field(None, description="Of OpenAI's own tools; no effect here.")
    context_management: list[Schema] | None = Field(None, description="No effect here.")
    access_programs: Schema | None = Field(None, description="No effect here.")
    image: Schema | None = Field(None, description="No effect here.")
    previous_response_id: str | None = Field(None, description="Refused: responses are not kept.")
    conversation: str | Schema | None = Field(None, description="Refused: conversations are not kept.")
    background: bool | None = Field(None, description="Refused if true: responses are not kept.")
    prompt: Schema | None = Field(None, description="Refused: prompts are not kept.")

    @property
    def streamed(self) -> bool:
        return bool(self.stream) and not self._switches.disable_streaming

    def requests(self) -> Sequence[GenerationRequest]:
        for name, reason in _KEPT.items():
            if getattr(self, name):
                raise InvalidRequest(reason, name)
        if self.input is None:
            raise InvalidRequest("Field required", "input")
        return [
            GenerationRequest(
                prompt=self._conversation.messages,
                documents=self.all_documents(),
                **self.of_documents(),
                sampling=self.sampling(),
                defaulted=self.defaulted,
                options={**self._options, **self.template_options, **self._further_options},
                drops_turns=self.truncation != "disabled",
            )
        ]

    @cached_property
    def _conversation(self) -> Conversation:
        asked = self.input or ""
        items = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        return Conversation(self.instructions or "", items)

    @cached_property
    def _options(self) -> dict[str, JSON]:
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
        if self.top_logprobs or _LOGPROBS in (self.include or ()):
            found["logprobs"] = True
        if self.top_logprobs:
            found["top_logprobs"] = self.top_logprobs
        return found

    @property
    def _further_options(self) -> dict[str, JSON]:
        """Undeclared fields, which may be options of a model server."""
        extra = self.model_extra or {}
        return {name: value for name, value in extra.items() if value is not None and options.may_be(name)}

    def sampling_fields(self) -> dict[str, Any]:
        fields = super().sampling_fields()
        if self.max_output_tokens:
            fields["max_tokens"] = min(self.max_output_tokens, fields.get("max_tokens", MANY))
        return fields

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        further = self._further_options
        lost = [name for name in super().ignored(capabilities) if name not in further]
        lost += [name for name, value in further.items() if name not in capabilities and matters(name, value)]
        if self.max_output_tokens and "max_tokens" not in capabilities:
            lost.append("max_output_tokens")
        if CALLS_ON_DEMAND in capabilities and options.leaves_calls_to_the_model(self._options.get("tool_choice")):
            capabilities = capabilities - {"tools"}
        wishes = [name for name, one in self._options.items() if name not in capabilities and matters(name, one)]
        lost += dict.fromkeys(self._name_of(name) for name in wishes)
        without_effect = _NO_EFFECT if self.tools else (*_OF_TOOLS, *_NO_EFFECT)
        lost += [name for name in without_effect if matters(name, getattr(self, name))]
        return lost + self._ignored_parts() + self._ignored_in_input(capabilities)

    def _name_of(self, option: str) -> str:
        """The field that an option comes from."""
        if option == "logprobs" and _LOGPROBS not in (self.include or ()):
            return "top_logprobs"
        return options.NAMES.get(option, option)

    def _ignored_parts(self) -> list[str]:
        """The values of fields that are read which have no effect themselves."""
        lost = [f"include.{name}" for name in self.include or () if name != _LOGPROBS]
        for name in ("text", "reasoning", "stream_options"):
            config = getattr(self, name)
            extra = (config.model_extra if config else None) or {}
            lost += [f"{name}.{field}" for field, value in extra.items() if matters(field, value)]
        if self.stream_options and self.stream_options.include_obfuscation:
            lost.append("stream_options.include_obfuscation")
        return lost + options.ignored_of_tools(self.tools or ())

    def _ignored_in_input(self, capabilities: AbstractSet[str]) -> list[str]:
        lost = list(self._conversation.ignored)
        if "messages.*" in capabilities:
            return lost
        found = {name for message in self._conversation.messages for name in message.extra}
        return lost + [
            said for name, said in _OF_ITEMS.items() if name in found and f"messages.{name}" not in capabilities
        ]

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        response = whole_response(generations[0], metadata, self._response(metadata), summarises=self._summarises)
        return self.with_report(response, metadata)

    def writer(self, metadata: ResponseMetadata, write: Callable[[bytes], None]) -> Writer:
        events = ResponseEvents(
            metadata,
            write,
            self._response(metadata),
            summarises=self._summarises,
            include_report=bool(self.include_report),
        )
        self.__dict__["_events"] = events
        return events

    def error_item(self, error: LLMError) -> bytes:
        return self._events.failed(error) if self._events else event("error", 0, error_event(error))

    @property
    def _summarises(self) -> bool:
        return bool(self.reasoning and (self.reasoning.summary or self.reasoning.generate_summary))

    def _response(self, metadata: ResponseMetadata) -> dict[str, JSON]:
        """The response before it begins: what was asked for, as OpenAI repeats it."""
        reasoning = self.reasoning.model_dump(exclude_none=True) if self.reasoning else {}
        text = self.text.model_dump(exclude_none=True) if self.text else {}
        if "format" in text:
            text["format"] = options.told_format(text["format"])
        return {
            "id": f"resp_{metadata.id}",
            "object": "response",
            "created_at": metadata.created,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "model": metadata.model,
            "output": [],
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None, **reasoning},
            "store": False,
            "temperature": self.temperature,
            "text": {"format": {"type": "text"}, **text},
            "tool_choice": options.told_choice(self.tool_choice or "auto"),
            "tools": [options.told(tool) for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": self.truncation or "auto",
            "usage": None,
            "user": self.user,
        }


_OF_ITEMS: Mapping[str, str] = {
    "tool_calls": "input.function_call",
    "tool_call_id": "input.function_call_output",
    "reasoning_content": "input.reasoning",
}
"""What is named as ignored for each further field of messages."""


def responses(switches: Switches | None) -> Dialect:
    """The dialect with these switches."""
    return Dialect(
        name="responses",
        calls={"/v1/responses": (ResponsesCall,)},
        style=RESPONSES,
        switches=switches,
        about="OpenAI's Responses API, for its clients, LangChain and the AI SDK. A body may have `documents`.",
    )
