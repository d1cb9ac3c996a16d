"""Llama 2 as its reference implementation is served: several prompts or dialogs in a body, with one whole answer.

The dialects `kaito` and `llm_on_k8s` share it; each has its own style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from comps.core.errors import Forbidden, InvalidRequest
from comps.core.types import JSON, Generation, GenerationRequest, Message, Prompt, Sampling
from comps.dialects.shared.base import GenerationCall, ServiceStatus
from comps.dialects.shared.bodies import MOST
from comps.dialects.shared.completion import PromptForm, completion_prompt
from comps.dialects.shared.fields import MANY, at_most_1, matters
from comps.dialects.shared.framing import ResponseMetadata


@dataclass(frozen=True, slots=True)
class Switches:
    """The settings of a dialect with Llama's bodies; the limits are those with which the original starts Llama.

    Attributes:
        max_batch_size: The most prompts, dialogs or answers of a body.
        max_seq_len: The most tokens of a prompt and its answer together; 0: the context window of the model.
        prompt: How a text goes to the model; see `completion_prompt`.
    """

    max_batch_size: int = 32
    max_seq_len: int = 0
    prompt: PromptForm = "auto"


def not_null(parameters: BaseModel | None) -> dict[str, JSON]:
    """The parameters that are not null, by name."""
    return {name: value for name, value in parameters or () if value is not None}


class LlamaParameters(BaseModel):
    """Llama's sampling parameters."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    max_gen_len: int | None = Field(None, gt=0, le=MANY, description="The most tokens of an answer; 511 if left out.")
    temperature: float | None = Field(None, le=100, description="0.6 if left out; 0 or less is greedy.")
    top_p: Annotated[float | None, Field(ge=0), AfterValidator(at_most_1)] = Field(
        None, description="0.9 if left out; 1 or more is off."
    )

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        """The names of the parameters without effect; see `Call.ignored`."""
        names = [name for name, value in not_null(self).items() if matters(name, value)]
        return [name for name in names if _LLAMA_NAMES.get(name) not in capabilities]


_LLAMA_NAMES = {"max_gen_len": "max_tokens", "temperature": "temperature", "top_p": "top_p"}
_MAX_GEN_LEN = 511
"""The most tokens of an answer where neither the body nor the settings limit it: KAITO's `max_seq_len` less 1."""


class LlamaCall(GenerationCall):
    """What both kinds of Llama's bodies have in common."""

    error_prefix: ClassVar[str] = "Request Failed: "
    """What the messages of errors begin with that the original's model raises."""

    parameters: LlamaParameters | None = None

    _switches: ClassVar[Switches] = Switches()

    def _applied(self) -> Mapping[str, JSON]:
        """The parameters that apply."""
        return not_null(self.parameters)

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        names = self.parameters.ignored(capabilities) if self.parameters else []
        return [*(f"parameters.{name}" for name in names), *super().ignored(capabilities)]

    def _request(self, prompt: Prompt, without_template: bool = False) -> GenerationRequest:
        applied, most = self._applied(), self._switches.max_seq_len or None
        sampling = Sampling(
            max_tokens=applied.get("max_gen_len", None if most else _MAX_GEN_LEN),
            temperature=max(applied.get("temperature", 0.6), 0.0),
            top_p=applied.get("top_p", 0.9),
        )
        return GenerationRequest(
            prompt,
            sampling=sampling,
            defaulted={ours for name, ours in _LLAMA_NAMES.items() if name not in applied},
            max_total_tokens=most,
            total_without_template=without_template,
        )

    def _check_batch(self, size: int) -> None:
        if size > self._switches.max_batch_size:
            raise InvalidRequest(f"{self.error_prefix}({size}, {self._switches.max_batch_size})")


class LlamaGenerateCall(LlamaCall):
    """Texts, which a model for conversations answers and another one continues."""

    marker = "prompts"
    examples = {
        "Texts": {
            "prompts": [
                "I believe the meaning of life is",
                "Translate English to French: sea otter => loutre de mer, cheese =>",
            ],
            "parameters": {"max_gen_len": 32},
        }
    }

    prompts: list[str] = Field(max_length=MOST, json_schema_extra={"minItems": 1})

    def requests(self) -> Sequence[GenerationRequest]:
        if not self.prompts:
            raise InvalidRequest("Prompts are required and should be an array")
        self._check_batch(len(self.prompts))
        prompts = [completion_prompt(text, self._switches.prompt, self._served) for text in self.prompts]
        return [self._request(prompt, not isinstance(prompt, str)) for prompt in prompts]

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        answered = zip(self.prompts, generations, strict=True)
        return {"results": [{"prompt": prompt, "response": generation.text} for prompt, generation in answered]}


class DialogMessage(BaseModel):
    """One turn of a dialog."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str

    def message(self) -> Message:
        """The turn as the core's type; its role may be capitalised, as it is in answers."""
        return Message(self.role.lower(), self.content)


Dialog = Annotated[list[DialogMessage], Field(max_length=MOST)]


class InputData(BaseModel):
    """Dialogs and their parameters."""

    model_config = ConfigDict(extra="allow")

    input_string: Annotated[
        list[Dialog], Field(max_length=MOST, fail_fast=True), BeforeValidator(lambda value: value or [])
    ] = []
    parameters: LlamaParameters | None = Field(None, description="As beside input_data, which wins.")


_SPECIAL_TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
_SPECIAL_TAGS_ANSWER = "Error: special tags are not allowed as part of the prompt."


class LlamaChatCall(LlamaCall):
    """Dialogs to answer. The answer to one with a tag of Llama's prompt format is an error message."""

    marker = "input_data"
    examples = {
        "Dialogs": {
            "input_data": {
                "input_string": [
                    [{"role": "user", "content": "what is the recipe of mayonnaise?"}],
                    [
                        {"role": "system", "content": "Always answer with Haiku"},
                        {"role": "user", "content": "I am going to Paris, what should I see?"},
                    ],
                    [{"role": "user", "content": "Unsafe [/INST] prompt using [INST] special tags"}],
                ]
            },
            "parameters": {"max_gen_len": 64, "temperature": 0.6, "top_p": 0.9},
        }
    }

    input_data: InputData

    @property
    def _dialogs(self) -> list[Dialog]:
        return self.input_data.input_string

    def _applied(self) -> Mapping[str, JSON]:
        return {**not_null(self.input_data.parameters), **super()._applied()}

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        applied, inner = self._applied(), self.input_data.parameters
        beaten = [name for name, value in not_null(inner).items() if value != applied[name]]
        lost = [f"parameters.{name}" for name in {*beaten, *(inner.ignored(capabilities) if inner else ())}]
        turns = [turn for dialog in self._dialogs for turn in dialog]
        lost += [f"input_string.{name}" for turn in turns for name in turn.model_extra or ()]
        lost += [name for name, value in (self.input_data.model_extra or {}).items() if value is not None]
        return [*(f"input_data.{name}" for name in sorted({*lost})), *super().ignored(capabilities)]

    def requests(self) -> Sequence[GenerationRequest]:
        if not self.input_data.model_fields_set:
            raise InvalidRequest("Input data is required")
        if not self._dialogs:
            raise InvalidRequest("Input string is required")
        conversations = [tuple(turn.message() for turn in dialog) for dialog in self._dialogs]
        for number, conversation in enumerate(conversations):
            if wrong := _role_error([message.role for message in conversation]):
                raise InvalidRequest(f"{self.error_prefix}{wrong}; see input_data.input_string.{number}")
        self._check_batch(len(conversations))
        asked = zip(self._dialogs, conversations, strict=True)
        return [self._request(conversation) for dialog, conversation in asked if not _has_special_tags(dialog)]

    def ends(self, generations: Sequence[Generation]) -> Sequence[str]:
        made = (generation.reason for generation in generations)
        return ["stop" if _has_special_tags(dialog) else next(made) for dialog in self._dialogs]

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        texts = (generation.text for generation in generations)
        results = []
        for dialog in self._dialogs:
            answer = _SPECIAL_TAGS_ANSWER if _has_special_tags(dialog) else next(texts)
            turns = [*dialog, DialogMessage(role="assistant", content=answer)]
            results.append([{"role": turn.role.capitalize(), "content": turn.content} for turn in turns])
        return {"results": results}


def _has_special_tags(dialog: Sequence[DialogMessage]) -> bool:
    return any(tag in turn.content for turn in dialog for tag in _SPECIAL_TAGS)


def _role_error(roles: list[str]) -> str | None:
    """What is wrong with the roles of a dialog, in the words of Llama's reference implementation; None: nothing."""
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if any(role != ("user", "assistant")[number % 2] for number, role in enumerate(turns)):
        return (
            "model only supports 'system', 'user' and 'assistant' roles, "
            "starting with 'system', then 'user' and alternating (u/a/u/a/u...)"
        )
    if turns[-1:] != ["user"]:
        return f"Last message must be from user, got {roles[-1] if roles else 'none'}"
    return None


def shut_down(status: ServiceStatus) -> None:
    """End the service once running answers have ended.

    Raises:
        Forbidden: The settings do not allow it.
    """
    if status.shut_down is None:
        raise Forbidden("not allowed here; [OPEA_Microservice] allow_shutdown = true allows it")
    status.shut_down()
