"""OpenAI's Responses API: `POST /v1/responses` and `/v1/responses/input_tokens`.

https://platform.openai.com/docs/api-reference/responses

The shapes are those of the published reference and of the types in OpenAI's SDK for Python (`openai.types.responses`).
Items become messages of the chat API, functions and formats its options, since model servers speak that. Nothing is
kept from one response to the next: what refers to something kept is refused. Documents work as in every dialect; what
an answer cites comes back as annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from comps.core.errors import LLMError, NotKept
from comps.core.types import JSON, Generation, GenerationRequest, Sampling
from comps.dialects.responses import options
from comps.dialects.responses.events import ResponseEvents, event, whole_response
from comps.dialects.responses.objects import error_event
from comps.dialects.responses.prompt import RESPONSES, PromptCall, extra_of
from comps.dialects.shared.base import Dialect, PromptCountCall, Route, ServiceStatus, Switches, Writer
from comps.dialects.shared.examples import FACT
from comps.dialects.shared.fields import MANY, DocumentsCall, matters
from comps.dialects.shared.framing import ResponseMetadata
from comps.dialects.shared.openai_values import Schema

_WITH_RESULT = {
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "What time is it?"}]},
        {"type": "function_call", "call_id": "call_1", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "Half past twelve."},
    ],
    "tools": [{"type": "function", "name": "clock", "description": "The time in the user's city."}],
}
_LOGPROBS = "message.output_text.logprobs"
_NO_EFFECT = ("access_programs", "context_management", "image", "max_tool_calls", "store")
"""Fields of the API that are about what is not here."""


class StreamSettings(BaseModel):
    """What else a stream has."""

    model_config = ConfigDict(extra="allow")

    include_obfuscation: bool | None = Field(None, description="There is none here.")


class ResponsesCall(PromptCall, DocumentsCall):
    """A conversation in items, with documents if there are any."""

    examples = {
        "A question": {"input": "What is Deep Learning?", "max_output_tokens": 32},
        "With documents": {
            "instructions": "You answer in one sentence.",
            "input": [{"role": "user", "content": "How much memory does Gaudi 2 have?"}],
            "documents": [FACT],
            "max_output_tokens": 32,
        },
        "With a function and its result": {**_WITH_RESULT, "max_output_tokens": 32},
    }
    _switches: ClassVar[Any] = Switches()
    _events: ClassVar[ResponseEvents | None] = None
    """The stream, once it has begun; an instance has its own, see `_switches`."""

    max_output_tokens: int | None = Field(None, gt=0, le=MANY, description="The most tokens to generate.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="How many alternatives to each token.")
    include: list[str] | None = Field(None, description=f"What else the answer has: {_LOGPROBS}.")
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

    @property
    def streamed(self) -> bool:
        return bool(self.stream) and not self._switches.disable_streaming

    def requests(self) -> Sequence[GenerationRequest]:
        return [self.asked(self.sampling(), self.defaulted)]

    def sampling_fields(self) -> dict[str, Any]:
        fields = super().sampling_fields()
        if self.max_output_tokens:
            fields["max_tokens"] = min(self.max_output_tokens, fields.get("max_tokens", MANY))
        return fields

    def wishes(self) -> dict[str, JSON]:
        found = super().wishes()
        if self.top_logprobs or _LOGPROBS in (self.include or ()):
            found["logprobs"] = True
        if self.top_logprobs:
            found["top_logprobs"] = self.top_logprobs
        return found

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        lost = super().ignored(capabilities)
        if self.max_output_tokens and "max_tokens" not in capabilities:
            lost.append("max_output_tokens")
        lost += [name for name in _NO_EFFECT if matters(name, getattr(self, name))]
        lost += [f"include.{name}" for name in self.include or () if name != _LOGPROBS]
        lost += extra_of("stream_options", self.stream_options)
        if self.stream_options and self.stream_options.include_obfuscation:
            lost.append("stream_options.include_obfuscation")
        return lost

    def name_of(self, option: str) -> str:
        if option == "logprobs" and _LOGPROBS not in (self.include or ()):
            return "top_logprobs"
        return super().name_of(option)

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


class ResponsesCountCall(PromptCall, PromptCountCall):
    """A conversation whose tokens are counted, with its documents, as the model would read it"""

    examples = {
        "A question": {"input": "What is Deep Learning?"},
        "With documents": {"input": "How much memory does Gaudi 2 have?", "documents": [FACT]},
        "With a function and its result": _WITH_RESULT,
    }

    def request(self) -> GenerationRequest:
        return self.asked(Sampling())

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        of_answers = {
            "include_report": self.include_report,
            "citations": self.citations == "matched",
            "reasoning.summary": self.reasoning and self.reasoning.summary,
            "reasoning.generate_summary": self.reasoning and self.reasoning.generate_summary,
        }
        return super().ignored(self.read_in_prompts(capabilities)) + [name for name, sent in of_answers.items() if sent]

    def reply(self, tokens: int) -> JSON:
        return {"object": "response.input_tokens", "input_tokens": tokens}


def _not_kept(status: ServiceStatus) -> JSON:
    """No effect here: responses are not kept"""
    name = status.path["response"]
    raise NotKept(f"there is no response '{name}': responses are not kept here, and each says store: false")


_KEPT_ELSEWHERE = (
    *("GET /v1/responses/{response}", "DELETE /v1/responses/{response}"),
    *("GET /v1/responses/{response}/input_items", "POST /v1/responses/{response}/cancel"),
)


def responses(switches: Switches | None) -> Dialect:
    """The dialect with these switches."""
    return Dialect(
        name="responses",
        calls={"/v1/responses": (ResponsesCall,), "/v1/responses/input_tokens": (ResponsesCountCall,)},
        style=RESPONSES,
        routes=dict.fromkeys(_KEPT_ELSEWHERE, Route(_not_kept, asks_models=False)),
        switches=switches,
        about="OpenAI's Responses API, for its clients, LangChain and the AI SDK. A body may have `documents`.",
    )
