"""UKP-SQuARE's LLM Ops: FastChat's worker with a chat mode, behind `/api` or `/api/{model}`.

A chat becomes text to continue, by a conversation template that the body chooses; see `conversations`. A streamed
answer is JSON frames, each with the whole text so far and a NUL behind it, and its last one says how it ended.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr

from comps.core.errors import (
    Forbidden,
    InvalidRequest,
    LLMError,
    Malformed,
    Overloaded,
    PromptTooLong,
    Timeout,
    UnknownModel,
    Unreachable,
)
from comps.core.types import (
    JSON,
    Event,
    Finished,
    Generation,
    GenerationRequest,
    Message,
    ModelInfo,
    Prompt,
    Sampling,
    Usage,
)
from comps.dialects.shared import framing
from comps.dialects.shared.base import Call, Dialect, Route, ServiceStatus, Style, TokenCountCall
from comps.dialects.shared.bodies import MOST
from comps.dialects.shared.fields import SampledCall
from comps.dialects.shared.framing import ResponseMetadata
from comps.dialects.square.conversations import Conversation, conversation_of

_BASES = ("/api", "/api/{model:path}")
_ALMOST_GREEDY = 1e-5
"""Up to this temperature the likeliest token is always taken; it is the smallest top_p as well."""

_CODES: Mapping[type[LLMError], int] = {
    InvalidRequest: 40001,
    Forbidden: 40103,
    UnknownModel: 40301,
    PromptTooLong: 40303,
    Overloaded: 42903,
    Unreachable: 50005,
    Timeout: 50006,
    LLMError: 50001,
}
"""FastChat's codes by error class; a class that is not here has its parent's."""
_OUT_OF_RANGE = 40302
_NO_PROMPT = "Prompt is required."


def _error(error: LLMError) -> JSON:
    """What SQuARE and FastChat say where a prompt is missing; else what readers of either understand, who look at
    `error_message`, or show `text` if `error_code` is not 0."""
    if isinstance(error, InvalidRequest) and error.args == (_NO_PROMPT,):
        return {"error_code": 1, "error_message": _NO_PROMPT}
    return {"error_code": _code(error), "error_message": str(error), "text": str(error)}


def _code(error: LLMError) -> int:
    if isinstance(error, Malformed) and error.problems[0]["type"].startswith(("greater_than", "less_than", "finite")):
        return _OUT_OF_RANGE
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


SQUARE = Style(_error)
STREAMED = replace(SQUARE, encode=lambda document: SQUARE.encode(document) + b"\0")
"""What fails before the first frame is a frame too: SQuARE's web page looks at nothing else."""


@dataclass(frozen=True, slots=True)
class Switches:
    """How chats reach the model, and how answers leave.

    Attributes:
        prompt: What the model gets of a chat: `conversation`, text by a conversation template; `messages`, its turns,
            for the model's own template.
        conversations: Templates to look at before the built-in ones.
        model: Whose template is taken where a body names no model.
        disable_streaming: A streamed answer is its last frame only.
    """

    prompt: Literal["conversation", "messages"] = "conversation"
    conversations: tuple[Conversation, ...] = ()
    model: str = ""
    disable_streaming: bool = False


class SquareMessage(BaseModel):
    """One turn of a chat, in the words of SQuARE or of OpenAI; an empty one is left open."""

    model_config = ConfigDict(extra="allow")

    role: Literal["human", "ai", "user", "assistant", "system"]
    text: str | None = Field(validation_alias=AliasChoices("text", "content"))


_WHO = {"human": 0, "user": 0, "ai": 1, "assistant": 1}
_AS_OPENAI = ("user", "assistant")


class SquareCall(SampledCall):
    """A chat, or text to continue. `null` is the same as leaving a field out, but for echo."""

    marker = None
    defaults = {"max_tokens": 256, "temperature": 1.0, "top_p": 1.0}
    style = SQUARE
    any_model = True
    media_type = "application/octet-stream"

    generation_mode: Any = Field(None, description="chat: answer messages; anything else: continue prompt.")
    prompt: str | None = Field(None, description="Text to continue.")
    messages: Annotated[list[SquareMessage], Field(max_length=MOST)] | None = Field(
        None, description="The turns of a chat: human (or user), ai (or assistant), system; text (or content)."
    )
    system_message: str | None = Field(None, description="Of a chat; none if it is empty or left out.")
    model_identifier: str | None = Field(None, description="The name that chooses the conversation template of a chat.")
    top_p: float | None = Field(None, le=1)
    stop_token_ids: list[int | None] | None = Field(None, description="As stop, for model servers that know tokens.")
    echo: Any = Field(True, description="Whether the text begins with the prompt.")

    _switches: Switches = PrivateAttr(default=Switches())

    def model_post_init(self, context: Any) -> None:
        self._switches = context or Switches()

    @property
    def wanted_model(self) -> str | None:
        return self.model or self.model_identifier

    @property
    def _chat(self) -> bool:
        return bool(self.generation_mode == "chat")

    @property
    def _rendered(self) -> bool:
        """Whether a conversation template is used."""
        return self._chat and self._switches.prompt == "conversation"

    @property
    def _conversation(self) -> Conversation:
        named = self.model_identifier or self.model or self._switches.model
        return conversation_of(named, self._switches.conversations)

    @cached_property
    def asked(self) -> Prompt:
        """What the model gets."""
        if not self._chat:
            if self.prompt is None:
                raise InvalidRequest(_NO_PROMPT)
            if not self.prompt:
                raise InvalidRequest("must not be empty", "prompt")
            return self.prompt
        if self.messages is None:
            raise InvalidRequest("a chat needs them", "messages")
        said = [(body.role, body.text or "") for body in self.messages]
        system = "\n\n".join(filter(None, (self.system_message, *(text for role, text in said if role == "system"))))
        turns = [(_WHO[role], text) for role, text in said if role in _WHO]
        if not (turns or system):
            raise InvalidRequest("there is nothing to answer", "messages")
        if self._rendered:
            return self._conversation.render(system, turns)
        opening = [Message("system", system)] if system else []
        return (*opening, *(Message(_AS_OPENAI[who], text) for who, text in turns))

    @property
    def _echoed(self) -> str:
        """What stands before the answer; a model's own template is not known here, and is not echoed."""
        return self.asked if self.echo and isinstance(self.asked, str) else ""

    def requests(self) -> Sequence[GenerationRequest]:
        prompt = self.asked
        ids = [one for one in self.stop_token_ids or () if one is not None]
        if self._rendered:
            ids += self._conversation.stop_token_ids
        return [
            GenerationRequest(
                prompt,
                sampling=self.sampling(),
                options={"stop_token_ids": list(dict.fromkeys(ids))} if ids else {},
            )
        ]

    def sampling(self) -> Sampling:
        said = super().sampling()
        assert said.temperature is not None
        assert said.top_p is not None
        greedy = said.temperature <= _ALMOST_GREEDY
        stops = (*said.stop, *(self._conversation.stop_str if self._rendered else ()))
        return replace(
            said,
            temperature=0.0 if greedy else said.temperature,
            top_p=1.0 if greedy else max(said.top_p, _ALMOST_GREEDY),
            stop=tuple(dict.fromkeys(stops)),
        )

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        without_effect = ["prompt"] if self._chat else ["messages", "system_message"]
        lost = [name for name in without_effect if getattr(self, name)]
        if self.stop_token_ids and "stop_token_ids" not in capabilities:
            lost.append("stop_token_ids")
        if self._chat and not self._rendered and "echo" in self.model_fields_set and self.echo:
            lost.append("echo")
        if self.stream not in (None, self.streamed):
            lost.append("stream")
        extra = {name for body in self.messages or () for name, value in (body.model_extra or {}).items() if value}
        return super().ignored(capabilities) + lost + [f"messages.{name}" for name in sorted(extra)]

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        answer = generations[0]
        return {
            "text": self._echoed + answer.text,
            "error_code": 0,
            "usage": _usage(answer.usage),
            "finish_reason": answer.reason,
        }


_TURNS: JSON = {
    "model_identifier": "Llama-2-7b-chat",
    "messages": [
        {"role": "user", "text": "Hellow!"},
        {"role": "ai", "text": "Hey! How can I help you today?"},
        {"role": "user", "text": "Tell me a short funny joke."},
    ],
    "system_message": "The following is a friendly conversation between a human and an AI.",
    "temperature": 0.7,
    "top_p": 0.9,
    "echo": False,
    "generation_mode": "chat",
}
_COMPLETION: JSON = {
    "prompt": "Hellow! Can you tell me a joke?",
    "max_new_tokens": 64,
    "temperature": 0.7,
    "echo": False,
}


class WorkerGenerateCall(SquareCall):
    """A chat, or text to continue, answered whole."""

    examples = {"A chat": _TURNS, "A completion": _COMPLETION}

    @property
    def streamed(self) -> bool:
        return False


class WorkerGenerateStreamCall(SquareCall):
    """A chat, or text to continue, answered in frames."""

    style = STREAMED
    examples = {"A chat": _TURNS, "A completion": _COMPLETION}

    @property
    def streamed(self) -> bool:
        return True

    async def reply_stream(self, events: AsyncGenerator[Event], metadata: ResponseMetadata) -> AsyncGenerator[bytes]:
        # Text that has been sent once is escaped already: a frame costs a copy of it, and no more.
        frame = bytearray(b'{"text": "' + _escaped(self._echoed))
        async for event in events:
            if isinstance(event, Finished):
                ended = f'"usage": {json.dumps(_usage(event.usage))}, "finish_reason": {json.dumps(event.reason)}'
                yield b"".join((frame, b'", "error_code": 0, ', ended.encode(), b"}\0"))
            elif event.text:
                frame += _escaped(event.text)
                if not self._switches.disable_streaming:
                    yield b"".join((frame, b'", "error_code": 0, "usage": {}}\0'))

    def error_item(self, error: LLMError) -> bytes:
        return json.dumps({"text": str(error), "error_code": _CODES[LLMError]}).encode() + b"\0"


def _escaped(text: str) -> bytes:
    """The inside of a JSON string, in ASCII."""
    return json.dumps(text)[1:-1].encode()


def _usage(usage: Usage | None) -> JSON:
    return framing.usage_object(usage) or {}


class CountTokenCall(TokenCountCall):
    """A text whose tokens are counted, without the one that a model server may lay before it as its beginning."""

    marker = None
    style = SQUARE
    any_model = True
    examples: ClassVar[Mapping[str, JSON]] = {"Three words": {"prompt": "a b c"}}

    prompt: str
    model: str | None = Field(None, validation_alias=AliasChoices("model", "model_identifier"))

    def text(self) -> str:
        return self.prompt

    def reply(self, tokens: int) -> JSON:
        return {"count": tokens, "error_code": 0}


def _asked_for(status: ServiceStatus) -> Sequence[ModelInfo]:
    """The model that the path names, and where it names none all of them."""
    if status.not_ready:
        raise status.not_ready
    name = status.path.get("model")
    if not name or len(status.models) == 1:
        return status.models
    known = [model for model in status.models if model.name == name]
    if not known:
        raise UnknownModel(name, ", ".join(model.name for model in status.models))
    return known


def _told_name(model: ModelInfo, status: ServiceStatus) -> str:
    """Of a path on this machine the last part, as the originals have it, if the model is not asked for by the whole:
    the only one is asked for by any name."""
    is_path = model.name.startswith(("/", "./", "../", "~"))
    return model.name.rstrip("/").rpartition("/")[2] if is_path and len(status.models) == 1 else model.name


def _status(status: ServiceStatus) -> JSON:
    """Which models answer here, and how many answers are under way"""
    names = [_told_name(model, status) for model in _asked_for(status)]
    return {"model_names": names, "speed": 1, "queue_length": status.queue_length}


def _details(status: ServiceStatus) -> JSON:
    """The model's context window in tokens; null if it is not known"""
    return {"context_length": _asked_for(status)[0].context_window}


def _deployed(status: ServiceStatus) -> JSON:
    """The models that answer here, as SQuARE's model manager lists them for its user interface"""
    return [
        {
            "identifier": _told_name(model, status),
            "model_type": "llm",
            "model_name": _told_name(model, status),
            "disable_gpu": False,
            "batch_size": 1,
            "max_input": model.context_window,
            "model_class": "from_config",
            "return_plaintext_arrays": False,
        }
        for model in status.models
    ]


def square(switches: Switches) -> Dialect:
    """The dialect, as the switches have it."""

    def conversation(status: ServiceStatus) -> JSON:
        """The conversation template of a chat that names no model_identifier"""
        name = _asked_for(status)[0].name
        return {"conv": conversation_of(status.path.get("model") or name, switches.conversations).told()}

    told = {
        # SQuARE's names, and FastChat's own.
        "GET worker_status": Route(_status),
        "GET worker_conv_template": Route(conversation, asks_models=False),
        "GET model_details": Route(_details),
        "POST worker_get_status": Route(_status),
        "POST worker_get_conv_template": Route(conversation, asks_models=False),
        "POST model_details": Route(_details),
    }
    routes = {route.replace(" ", f" {base}/"): fact for base in _BASES for route, fact in told.items()}
    read: dict[str, Sequence[type[Call]]] = {
        "worker_generate": (WorkerGenerateCall,),
        "worker_generate_stream": (WorkerGenerateStreamCall,),
        "count_token": (CountTokenCall,),
    }
    return Dialect(
        name="square",
        calls={f"{base}/{name}": calls for base in _BASES for name, calls in read.items()},
        style=SQUARE,
        routes={**routes, "GET /api/models/deployed-models": Route(_deployed)},
        switches=switches,
    )
