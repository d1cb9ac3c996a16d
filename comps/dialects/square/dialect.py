"""UKP-SQuARE's LLM Ops: FastChat's worker with a chat mode, behind `/api` or `/api/{model}`.

A conversation template that the body chooses turns a chat into text to continue; see `conversations`. For streamed
answers see `frames`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from comps.core.errors import (
    Forbidden,
    InvalidRequest,
    LLMError,
    Malformed,
    Overloaded,
    PromptTooLong,
    Timeout,
    Unauthorized,
    UnknownModel,
    Unreachable,
)
from comps.core.types import (
    JSON,
    Generation,
    GenerationRequest,
    Message,
    ModelInfo,
    Prompt,
)
from comps.dialects.shared.base import Call, Dialect, Route, ServiceStatus, Style, TokenCountCall, Writer
from comps.dialects.shared.bodies import MOST
from comps.dialects.shared.completion import completion_prompt
from comps.dialects.shared.fields import SampledCall
from comps.dialects.shared.framing import ResponseMetadata
from comps.dialects.square.conversations import Conversation, conversation_for, conversation_of
from comps.dialects.square.frames import Frames, frame_usage

_BASES = ("/api", "/api/{model:path}")
_ALMOST_GREEDY = 1e-5
"""Up to this temperature decoding is greedy; it is the smallest top_p as well."""

_CODES: Mapping[type[LLMError], int] = {
    InvalidRequest: 40001,
    Unauthorized: 40101,
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
    """The original's error where a prompt is missing. Any other error has the fields of both: SQuARE's clients read
    `error_message`, FastChat's show `text` if `error_code` is not 0."""
    if isinstance(error, InvalidRequest) and error.args == (_NO_PROMPT,):
        return {"error_code": 1, "error_message": _NO_PROMPT}
    return {"error_code": _code(error), "error_message": str(error), "text": str(error)}


def _code(error: LLMError) -> int:
    if isinstance(error, Malformed) and error.problems[0]["type"].startswith(("greater_than", "less_than", "finite")):
        return _OUT_OF_RANGE
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


SQUARE = Style(_error)
FRAMES = "application/octet-stream"
STREAMED = replace(SQUARE, encode=lambda document: SQUARE.encode(document) + b"\0", media_type=FRAMES)
"""An error before the first frame is a frame too: SQuARE's web page reads nothing else."""


@dataclass(frozen=True, slots=True)
class Switches:
    """The dialect's settings.

    Attributes:
        prompt: What the model is sent of a chat: `conversation`, text by a conversation template; `messages`, its
            turns, for the model's own template; `auto`, the former if the template is one for the model. With `auto`, a
            completion is a message as well, if the model answers such; see `completion_prompt`.
        conversations: Templates that are tried before the built-in ones.
        model: The model whose template is used where a body names none.
        disable_streaming: A streamed answer is its last frame only.
    """

    prompt: Literal["auto", "conversation", "messages"] = "auto"
    conversations: tuple[Conversation, ...] = ()
    model: str = ""
    disable_streaming: bool = False


class SquareMessage(BaseModel):
    """One turn of a chat, with the names of SQuARE or of OpenAI; an empty one is left open."""

    model_config = ConfigDict(extra="allow")

    role: Literal["human", "ai", "user", "assistant", "system"]
    text: str | None = Field(validation_alias=AliasChoices("text", "content"))


_WHO = {"human": 0, "user": 0, "ai": 1, "assistant": 1}
_AS_OPENAI = ("user", "assistant")


_NEEDED: dict[str, JSON] = {
    "if": {"properties": {"generation_mode": {"const": "chat"}}, "required": ["generation_mode"]},
    "then": {"properties": {"messages": {"type": "array", "minItems": 1}}, "required": ["messages"]},
    "else": {"properties": {"prompt": {"type": "string", "minLength": 1}}, "required": ["prompt"]},
}
"""What a body has to have, in its JSON schema."""


class SquareCall(SampledCall):
    """A chat, or a text. `null` is the same as leaving a field out, but for echo."""

    model_config = ConfigDict(json_schema_extra=_NEEDED)

    marker = None
    defaults = {"max_tokens": 256, "temperature": 1.0, "top_p": 1.0}
    style = SQUARE
    any_model = True
    media_type = FRAMES

    generation_mode: Any = Field(None, description="chat: answer messages; anything else: prompt.")
    prompt: str | None = Field(
        None, description="A text, which a model for conversations answers and another one continues."
    )
    messages: Annotated[list[SquareMessage], Field(max_length=MOST)] | None = Field(
        None, description="The turns of a chat: human (or user), ai (or assistant), system; text (or content)."
    )
    system_message: str | None = Field(None, description="Of a chat; none if it is empty or left out.")
    model_identifier: str | None = Field(None, description="The name that chooses the conversation template of a chat.")
    top_p: float | None = Field(None, le=1)
    stop_token_ids: list[int | None] | None = Field(None, description="As stop, for model servers that know tokens.")
    echo: Any = Field(True, description="Whether the text begins with the prompt.")

    _switches: ClassVar[Switches] = Switches()

    @property
    def wanted_model(self) -> str | None:
        return self.model or self.model_identifier

    @property
    def _chat(self) -> bool:
        return bool(self.generation_mode == "chat")

    @property
    def _conversation(self) -> Conversation | None:
        """The conversation template that renders the chat; None: none does."""
        switches = self._switches
        if not self._chat or switches.prompt == "messages":
            return None
        named = self.model_identifier or self.model or ""
        if switches.prompt == "auto":
            return conversation_for(named, self._served, switches.conversations)
        return conversation_of(named or self._served.base or switches.model, switches.conversations)

    @property
    def _is_identifier_used(self) -> bool:
        """Whether the identifier, if there is one, has chosen the template of the chat."""
        named = self.model_identifier
        return not named or conversation_of(named, self._switches.conversations) == self._conversation

    def _completion_prompt(self) -> Prompt:
        if self.prompt is None:
            raise InvalidRequest(_NO_PROMPT)
        if not self.prompt:
            raise InvalidRequest("must not be empty", "prompt")
        return completion_prompt(self.prompt, "auto" if self._switches.prompt == "auto" else "text", self._served)

    def _chat_prompt(self) -> Prompt:
        if self.messages is None:
            raise InvalidRequest("a chat needs them", "messages")
        texts = [(body.role, body.text or "") for body in self.messages]
        system = "\n\n".join(filter(None, (self.system_message, *(text for role, text in texts if role == "system"))))
        turns = [(_WHO[role], text) for role, text in texts if role in _WHO]
        if not (turns or system):
            raise InvalidRequest("there is nothing to answer", "messages")
        if conversation := self._conversation:
            return conversation.render(system, turns)
        while turns and turns[-1] == (1, ""):  # An open turn, which the model's own template adds.
            turns.pop()
        opening = [Message("system", system)] if system else []
        return (*opening, *(Message(_AS_OPENAI[who], text) for who, text in turns))

    @property
    def _echoed(self) -> str:
        """The prompt that the answer begins with; empty for a chat that the model's own template renders, which is not
        known here."""
        if not self.echo:
            return ""
        prompt = self._chat_prompt() if self._chat else self.prompt
        return prompt if isinstance(prompt, str) else ""

    def requests(self) -> Sequence[GenerationRequest]:
        prompt = self._chat_prompt() if self._chat else self._completion_prompt()
        ids = [one for one in self.stop_token_ids or () if one is not None]
        if conversation := self._conversation:
            ids += conversation.stop_token_ids
        return [
            GenerationRequest(
                prompt,
                sampling=self.sampling(),
                defaulted=self.defaulted,
                options={"stop_token_ids": list(dict.fromkeys(ids))} if ids else {},
            )
        ]

    def sampling_fields(self) -> dict[str, Any]:
        fields = super().sampling_fields()
        if fields["temperature"] <= _ALMOST_GREEDY:
            fields.update(temperature=0.0, top_p=1.0)
        else:
            fields["top_p"] = max(fields["top_p"], _ALMOST_GREEDY)
        if conversation := self._conversation:
            fields["stop"] = (*fields.get("stop", ()), *conversation.stop_str)
        fields["stop"] = tuple(dict.fromkeys(fields.get("stop", ())))
        return fields

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        without_effect = ["prompt"] if self._chat else ["messages", "system_message"]
        lost = [name for name in without_effect if getattr(self, name)]
        if self.stop_token_ids and "stop_token_ids" not in capabilities:
            lost.append("stop_token_ids")
        if self._chat and self.model not in (None, "", self.model_identifier) and not self._is_identifier_used:
            lost.append("model_identifier")
        if self._chat and self._conversation is None and "echo" in self.model_fields_set and self.echo:
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
            "usage": frame_usage(answer.usage),
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
    """A chat, or a text, answered whole."""

    examples = {"A chat": _TURNS, "A completion": _COMPLETION}

    @property
    def streamed(self) -> bool:
        return False


class WorkerGenerateStreamCall(SquareCall):
    """A chat, or a text, answered in frames."""

    style = STREAMED
    examples = {"A chat": _TURNS, "A completion": _COMPLETION}

    @property
    def streamed(self) -> bool:
        return True

    def writer(self, metadata: ResponseMetadata, write: Callable[[bytes], None]) -> Writer:
        return Frames(write, self._echoed, only_last=self._switches.disable_streaming)

    def error_item(self, error: LLMError) -> bytes:
        return json.dumps({"text": str(error), "error_code": _CODES[LLMError]}).encode() + b"\0"


class CountTokenCall(TokenCountCall):
    """A text whose tokens are counted, without a token for its beginning."""

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


def _requested_models(status: ServiceStatus) -> Sequence[ModelInfo]:
    """The model that the path names; all models if it names none."""
    if status.not_ready:
        raise status.not_ready
    name = status.path.get("model")
    if not name or len(status.models) == 1:
        return status.models
    known = [model for model in status.models if model.name == name]
    if not known:
        raise UnknownModel(name, ", ".join(model.name for model in status.models))
    return known


def _public_name(model: ModelInfo, status: ServiceStatus) -> str:
    """The model's name. If it is a path on this machine its last part, as in the originals, unless there are several
    models, which are asked for by their names."""
    is_path = model.name.startswith(("/", "./", "../", "~"))
    return model.name.rstrip("/").rpartition("/")[2] if is_path and len(status.models) == 1 else model.name


def _status(status: ServiceStatus) -> JSON:
    """Which models answer here, and how many answers are under way"""
    names = [_public_name(model, status) for model in _requested_models(status)]
    return {"model_names": names, "speed": 1, "queue_length": status.queue_length}


def _details(status: ServiceStatus) -> JSON:
    """The model's context window in tokens; null if it is not known"""
    return {"context_length": _requested_models(status)[0].context_window}


def _deployed(status: ServiceStatus) -> JSON:
    """The models that answer here, as SQuARE's model manager lists them for its user interface"""
    return [
        {
            "identifier": _public_name(model, status),
            "model_type": "llm",
            "model_name": _public_name(model, status),
            "disable_gpu": False,
            "batch_size": 1,
            "max_input": model.context_window,
            "model_class": "from_config",
            "return_plaintext_arrays": False,
        }
        for model in status.models
    ]


def square(switches: Switches) -> Dialect:
    """The dialect with these switches."""

    def conversation(status: ServiceStatus) -> JSON:
        """The conversation template of a chat that names no model_identifier"""
        name = _requested_models(status)[0].name
        return {"conv": conversation_of(status.path.get("model") or name, switches.conversations).as_fastchat()}

    named = {
        # SQuARE's names, and FastChat's own.
        "GET worker_status": Route(_status),
        "GET worker_conv_template": Route(conversation, asks_models=False),
        "GET model_details": Route(_details),
        "POST worker_get_status": Route(_status),
        "POST worker_get_conv_template": Route(conversation, asks_models=False),
        "POST model_details": Route(_details),
    }
    routes = {name.replace(" ", f" {base}/"): route for base in _BASES for name, route in named.items()}
    bodies: dict[str, Sequence[type[Call]]] = {
        "worker_generate": (WorkerGenerateCall,),
        "worker_generate_stream": (WorkerGenerateStreamCall,),
        "count_token": (CountTokenCall,),
    }
    return Dialect(
        name="square",
        calls={f"{base}/{name}": calls for base in _BASES for name, calls in bodies.items()},
        style=SQUARE,
        routes={**routes, "GET /api/models/deployed-models": Route(_deployed)},
        switches=switches,
        about="UKP-SQuARE's LLM Ops, and FastChat's worker.",
    )
