"""Anthropic's Messages API: `POST /v1/messages` and `/v1/messages/count_tokens`, and what it tells of models.

The shapes are those of https://platform.claude.com/docs/en/api/messages and of the types in Anthropic's SDKs. Any
header `anthropic-version`, or none, is taken for 2023-06-01; `anthropic-beta` changes nothing.

Documents and search results are written into the prompt as in every dialect; those in results of tools stay there. If
their citations are enabled, each sentence of the answer is matched to the passage that it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from comps.core.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidRequest,
    LLMError,
    Overloaded,
    Timeout,
    Unauthorized,
    UnknownModel,
    UnknownRoute,
)
from comps.core.request_id import REQUEST_ID
from comps.core.types import CALLS_ON_DEMAND, JSON, Generation, GenerationRequest, Sampling
from comps.dialects.anthropic.answers import Form, MessageEvents, event, whole_message
from comps.dialects.anthropic.blocks import Blocks, unread
from comps.dialects.anthropic.conversation import REASONING, Conversation, conversation_of
from comps.dialects.anthropic.fields import (
    EFFORTS,
    Turn,
    checked_metadata,
    checked_output,
    checked_system,
    checked_thinking,
    checked_turn,
    checked_turns,
)
from comps.dialects.anthropic.models import MODELS
from comps.dialects.anthropic.tools import Tool, ToolChoice, options_of_tools, unread_of_tools
from comps.dialects.shared.base import (
    Call,
    Dialect,
    GenerationCall,
    PromptCountCall,
    Style,
    Switches,
    Writer,
)
from comps.dialects.shared.bodies import MOST
from comps.dialects.shared.fields import MANY, StopStrings, matters, or_all
from comps.dialects.shared.framing import ResponseMetadata, report_object, was_counted

_TYPES: Mapping[type[LLMError], str] = {
    Unauthorized: "authentication_error",
    Forbidden: "permission_error",
    UnknownModel: "not_found_error",
    BodyTooLarge: "request_too_large",
    InvalidRequest: "invalid_request_error",
    Overloaded: "rate_limit_error",
    Timeout: "timeout_error",
    LLMError: "api_error",
}
"""Anthropic's types of errors by class; a class that is not here has its parent's."""
_NOT_FOUND = 404


def error_object(error: LLMError) -> JSON:
    """Anthropic's error object. https://platform.claude.com/docs/en/api/errors"""
    kind = next(_TYPES[one] for one in type(error).__mro__ if one in _TYPES)
    if isinstance(error, UnknownRoute) and error.status == _NOT_FOUND:
        kind = "not_found_error"
    return {"type": "error", "error": {"type": kind, "message": str(error)}, "request_id": REQUEST_ID.get() or None}


STYLE = Style(error_object, id_header=b"request-id")


_PREFILL = {"continue_final_message": True, "add_generation_prompt": False}
"""vLLM's options to continue the last message."""
_FIELDS = {
    "tools": "tools",
    "tool_choice": "tool_choice",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "chat_template_kwargs": "thinking",
    "thinking_token_budget": "thinking.budget_tokens",
    "user": "metadata.user_id",
    "service_tier": "service_tier",
}
"""The fields of a body by the options of a model server that they become."""
_OF_MESSAGES = {"tool_calls": "tool_use", "tool_call_id": "tool_use_id", REASONING: "thinking"}
"""What becomes the further fields of OpenAI's messages."""
_WITHOUT_EFFECT = ("cache_control", "container", "context_management", "diagnostics", "inference_geo")


class PromptCall(Call):
    """What the bodies have in common: all that the model reads."""

    marker = "messages"
    style: ClassVar[Style] = STYLE

    messages: Annotated[
        list[Annotated[Turn, AfterValidator(checked_turn)]],
        Field(min_length=1, max_length=MOST, fail_fast=True),
        AfterValidator(checked_turns),
    ] = Field(description="The content of each is a text or content blocks.")
    system: Annotated[Blocks, AfterValidator(checked_system)] | None = Field(
        None, description="The system prompt: a text or text blocks."
    )
    tools: list[Tool] | None = Field(None, description="Each with a name, a description and an input_schema.")
    tool_choice: ToolChoice | None = Field(None, description="Of the type auto, any, tool (with a name) or none.")
    thinking: Annotated[dict[str, Any], AfterValidator(checked_thinking)] | None = Field(
        None, description="Of the type enabled (with budget_tokens), adaptive, between_tools or disabled."
    )
    output_config: Annotated[dict[str, Any], AfterValidator(checked_output)] | None = Field(
        None, description="May have an effort, and a format with a JSON schema."
    )
    cache_control: dict[str, Any] | None = Field(None, description="No effect here.")
    context_management: dict[str, Any] | None = Field(None, description="No effect here.")
    mcp_servers: list[dict[str, Any]] | None = Field(None, description="Refused: none is called here.")
    speed: Literal["standard", "fast"] | None = Field(None, description="No effect here.")

    @cached_property
    def conversation(self) -> Conversation:
        """The messages in OpenAI's shapes, and the documents in them."""
        return conversation_of(self.system or [], ((turn.role, turn.content) for turn in self.messages))

    @property
    def cites(self) -> bool:
        """Whether citations are wanted.

        Raises:
            InvalidRequest: They are by some documents and not by others, or beside a JSON schema.
        """
        wanted = self.conversation.cites
        if len(wanted) > 1:
            said = "citations are enabled for all documents and search results of a request, or for none"
            raise InvalidRequest(said, "messages")
        if True in wanted and (self.output_config or {}).get("format"):
            raise InvalidRequest("there are no citations in JSON", "output_config.format")
        return True in wanted

    def _asked(self, sampling: Sampling) -> GenerationRequest:
        """What is asked of the model; raises `InvalidRequest` if the fields contradict each other."""
        if self.mcp_servers:
            raise InvalidRequest("MCP servers are not called here", "mcp_servers")
        conversation, cites = self.conversation, self.cites
        return GenerationRequest(
            prompt=tuple(conversation.messages),
            documents=tuple(conversation.documents) or None,
            sampling=sampling,
            options=self.options(),
            citations="matched" if cites else "off",
            passages=cites,
            quoted=tuple(conversation.quoted) if cites else (),
        )

    def options(self) -> dict[str, JSON]:
        """The options of the model server that fields of the body become."""
        options = options_of_tools(self.tools or (), self.tool_choice)
        config, thinking = self.output_config or {}, self.thinking or {}
        if form := config.get("format"):
            schema = {"name": "answer", "schema": form["schema"], "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        if effort := config.get("effort"):
            options["reasoning_effort"] = EFFORTS[effort]
        if thinking.get("type") in ("enabled", "disabled"):
            # Chat templates know it by one of these names.
            options["chat_template_kwargs"] = dict.fromkeys(
                ("enable_thinking", "thinking"), thinking["type"] == "enabled"
            )
        if thinking.get("type") == "enabled":
            options["thinking_token_budget"] = thinking["budget_tokens"]
        if self.messages[-1].role == "assistant":
            options.update(_PREFILL)
        return options

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        options = self.options()
        if CALLS_ON_DEMAND in capabilities and options.get("tool_choice", "auto") == "auto":
            capabilities = capabilities - {"tools"}
        lost = [
            _FIELDS[name]
            for name, value in options.items()
            if name not in capabilities and name in _FIELDS and matters(name, value)
        ]
        lost += [name for name in _WITHOUT_EFFECT if getattr(self, name, None)]
        lost += ["speed"] if self.speed == "fast" else []
        lost += ["thinking"] if (self.thinking or {}).get("type") == "between_tools" else []
        lost += sorted(set(self._unread(capabilities)))
        return lost + super().ignored(capabilities)

    def _unread(self, capabilities: AbstractSet[str]) -> Iterator[str]:
        """Yields the names of the fields within others that have no effect."""
        for turn in self.messages:
            yield from (f"messages.{name}" for name in (*unread(turn.content), *(turn.model_extra or ())))
        yield from (f"system.{name}" for name in unread(self.system or ()))
        yield from (f"tools.{name}" for name in unread_of_tools(self.tools or ()))
        yield from (f"tool_choice.{name}" for name in _others(self.tool_choice, _READ_OF_CHOICES))
        yield from (f"thinking.{name}" for name in _others(self.thinking, ("type", "budget_tokens", "display")))
        yield from (f"output_config.{name}" for name in _others(self.output_config, ("effort", "format")))
        if "messages.*" not in capabilities:
            extras = {name for one in self.conversation.messages for name in one.extra}
            yield from (f"messages.{_OF_MESSAGES[name]}" for name in extras if f"messages.{name}" not in capabilities)


_READ_OF_CHOICES = ("type", "name", "disable_parallel_tool_use")


def _others(value: Mapping[str, JSON] | None, read: Sequence[str]) -> list[str]:
    return [name for name, one in (value or {}).items() if name not in read and one is not None]


_QUESTION = {"role": "user", "content": "How much memory does Gaudi 2 have?"}
_DOCUMENT = {
    "type": "document",
    "source": {"type": "text", "media_type": "text/plain", "data": "Intel Gaudi 2 has 96 GB of HBM2E memory on board."},
    "title": "Gaudi 2",
    "citations": {"enabled": True},
}
_WEATHER = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_ASKED_FOR_WEATHER = {
    "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
    "tools": [_WEATHER],
}


class AnthropicCall(PromptCall, GenerationCall):
    """A conversation, with documents if there are any."""

    _switches: ClassVar[Switches] = Switches()

    examples = {
        "A conversation": {"system": "You answer in one sentence.", "messages": [_QUESTION], "max_tokens": 32},
        "With a document": {
            "messages": [{"role": "user", "content": [_DOCUMENT, {"type": "text", "text": _QUESTION["content"]}]}],
            "max_tokens": 32,
        },
        "With a tool": {**_ASKED_FOR_WEATHER, "max_tokens": 32},
    }

    max_tokens: int = Field(gt=0, le=MANY, description="The most tokens to generate.")
    stop_sequences: StopStrings | None = Field(
        None, description="Generation ends before any of these, which are not shown."
    )
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy.")
    top_k: Annotated[int | None, Field(ge=-1, le=MANY), AfterValidator(or_all)] = Field(
        None, description="-1 or 0: off."
    )
    top_p: float | None = Field(None, ge=0, le=1)
    stream: bool | None = None
    metadata: Annotated[dict[str, Any], AfterValidator(checked_metadata)] | None = Field(
        None, description="May have a user_id."
    )
    service_tier: Literal["auto", "standard_only"] | None = None
    container: str | dict[str, Any] | None = Field(None, description="No effect here.")
    diagnostics: dict[str, Any] | None = Field(None, description="No effect here.")
    inference_geo: str | None = Field(None, description="No effect here.")
    include_report: bool | None = Field(
        None, description="Say what became of the documents, in `report`; the API has none."
    )

    @property
    def streamed(self) -> bool:
        return bool(self.stream) and not self._switches.disable_streaming

    @property
    def wants_report(self) -> bool:
        return bool(self.include_report)

    def requests(self) -> Sequence[GenerationRequest]:
        stop = tuple(text for text in self.stop_sequences or () if text)
        return [self._asked(Sampling(stop=stop, **self.sent_fields(_SAMPLING)))]

    def options(self) -> dict[str, JSON]:
        options = super().options()
        if user := (self.metadata or {}).get("user_id"):
            options["user"] = user
        if self.service_tier:
            options["service_tier"] = "default" if self.service_tier == "standard_only" else "auto"
        return options

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        if self.messages[-1].role == "assistant" and not _PREFILL.keys() <= capabilities:
            said = "the last one has the role assistant, and this model server continues no message; end with a user's"
            raise InvalidRequest(said, "messages")
        sent = self.sent_fields(_SAMPLING)
        lost = [name for name, value in sent.items() if name not in capabilities and matters(name, value)]
        lost += ["stop_sequences"] if any(self.stop_sequences or ()) and "stop" not in capabilities else []
        lost += [f"metadata.{name}" for name in _others(self.metadata, ("user_id",))]
        return lost + super().ignored(capabilities)

    @property
    def _form(self) -> Form:
        thinking = self.thinking or {}
        shows = thinking.get("type") != "disabled" and thinking.get("display") != "omitted"
        return Form(self.conversation.sources, self.stop_sequences or (), shows)

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        reply = whole_message(generations[0], metadata, self._form)
        report = metadata.reports.get(0)
        if report and (self.include_report or was_counted(report)):
            return {**reply, "report": report_object(report)}
        return reply

    def writer(self, metadata: ResponseMetadata, write: Callable[[bytes], None]) -> Writer:
        return MessageEvents(metadata, write, self._form, bool(self.include_report))

    def error_item(self, error: LLMError) -> bytes:
        return event("error", error_object(error))


_SAMPLING = dict.fromkeys(("max_tokens", "temperature", "top_k", "top_p"))


class AnthropicCountCall(PromptCall, PromptCountCall):
    """A conversation whose tokens are counted, with its documents, as the model would read it"""

    examples = {
        "A conversation": {"system": "You answer in one sentence.", "messages": [_QUESTION]},
        "With a tool": _ASKED_FOR_WEATHER,
    }

    def request(self) -> GenerationRequest:
        return self._asked(Sampling())

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        return super().ignored(self.read_in_prompts(capabilities))

    def reply(self, tokens: int) -> JSON:
        return {"input_tokens": tokens}


def anthropic(switches: Switches) -> Dialect:
    """The dialect with these switches."""
    return Dialect(
        name="anthropic",
        calls={"/v1/messages": (AnthropicCall,), "/v1/messages/count_tokens": (AnthropicCountCall,)},
        style=STYLE,
        routes=MODELS,
        switches=switches,
        about="Anthropic's Messages API, for its SDKs and LangChain. Documents and search results may be in messages.",
    )
