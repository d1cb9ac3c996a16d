"""KAITO's presets: Llama 2's /generate and /chat (2023), and the /chat of Falcon, Mistral and Phi (to 2024).

Nothing is streamed. A body of Llama's holds several prompts or dialogs, which are answered at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.version import version_short

from comps.core.errors import InvalidRequest, LLMError, Malformed
from comps.core.types import JSON, Generation, GenerationRequest, Prompt, Sampling
from comps.dialects.shared.base import Dialect, GenerationCall, Route, ServiceStatus, Style
from comps.dialects.shared.bodies import MOST
from comps.dialects.shared.completion import completion_prompt
from comps.dialects.shared.fields import MANY, OF_SAMPLES, at_most_1, matters, or_all
from comps.dialects.shared.framing import ResponseMetadata
from comps.dialects.shared.llama import (
    DialogMessage,
    LlamaChatCall,
    LlamaGenerateCall,
    Switches,
    not_null,
    shut_down,
)

_LONGEST_INPUT, _LONGEST_TEXT = 1000, 16
"""The most bytes of a wrong value that an error echoes, and the most characters of a text in it: longer ones may be
prompts."""


def _error(error: LLMError) -> JSON:
    """FastAPI's error: a sentence, or a list of the problems of the body."""
    if not isinstance(error, Malformed):
        return {"detail": str(error)}
    return {"detail": [_problem(problem) for problem in error.problems]}


def _problem(problem: Mapping[str, Any]) -> JSON:
    """One of the problems, as pydantic reports it."""
    kind, message = problem["type"], problem["msg"]
    if kind == "model_type":  # The original has plain dictionaries there.
        kind, message = "dict_type", "Input should be a valid dictionary"
    item = {"type": kind, "loc": ["body", *problem["loc"]], "msg": message}
    if _can_be_echoed(wrong := problem.get("input", {})):
        item["input"] = wrong
    return {**item, "url": f"https://errors.pydantic.dev/{version_short()}/v/{kind}"}


def _texts(value: JSON) -> Iterator[str]:
    """Yields the texts in a value, and the names of its fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _texts(one)


def _can_be_echoed(value: JSON) -> bool:
    try:
        return len(orjson.dumps(value)) <= _LONGEST_INPUT and all(len(text) <= _LONGEST_TEXT for text in _texts(value))
    except TypeError:  # Half a character, or a number of more than 64 bits.
        return False


KAITO = Style(_error, {Malformed: 422})


class KaitoGenerateCall(LlamaGenerateCall):
    """Texts for Llama."""

    style = KAITO


class KaitoChatCall(LlamaChatCall):
    """Dialogs for Llama to answer. The answer to one with a tag of Llama's prompt format is an error message."""

    style = KAITO


class TransformersParameters(BaseModel):
    """The sampling parameters of transformers' `generate`; `null` is the same as leaving a field out."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    max_length: int | None = Field(None, gt=0, le=MANY, description="Of prompt and answer together; 200 if left out.")
    max_new_tokens: int | None = Field(None, gt=0, le=MANY, description="Of the answer; then max_length is void.")
    min_length: int | None = Field(None, ge=0)
    min_new_tokens: int | None = Field(None, ge=0, le=MANY)
    do_sample: bool | None = Field(None, description="false is greedy.")
    temperature: float | None = Field(None, ge=0, le=100, description="1.0 if left out; 0 is greedy.")
    top_k: Annotated[int | None, Field(ge=0, le=MANY), AfterValidator(or_all)] = Field(
        None, description="10 if left out; 0 is off."
    )
    top_p: Annotated[float | None, Field(ge=0), AfterValidator(at_most_1)] = Field(
        None, description="1 if left out, which is off, as is more."
    )
    typical_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    num_return_sequences: int | None = Field(None, gt=0, le=MOST, description="Answers, one behind the other.")
    early_stopping: bool | str | None = None
    num_beams: int | None = None
    num_beam_groups: int | None = None
    diversity_penalty: float | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: list[Any] | None = None
    output_scores: bool | None = None
    return_dict_in_generate: bool | None = None
    pad_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    remove_invalid_values: bool | None = None


_DEFAULTS: Mapping[str, JSON] = {"do_sample": True, "temperature": 1}
"""Values that are the same as leaving the field out."""
_WITHOUT_EFFECT = ("pad_token_id", "use_cache")
"""Fields that do not change the text."""
_CAPABILITIES = {
    "max_length": "max_total_tokens",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "do_sample": "temperature",
    **{name: name for name in ("temperature", "top_k", "top_p", "typical_p", "repetition_penalty")},
}
"""The capability of the model server that each parameter needs."""


class GenerateKwargs(TransformersParameters):
    """The parameters that the later server passes to `generate`."""


class TransformersCall(TransformersParameters, GenerationCall):
    """What the two bodies of the other models have in common: flat parameters, as of Falcon's server, or
    `generate_kwargs`, as of the later one; both have Falcon's defaults."""

    style = KAITO

    generate_kwargs: GenerateKwargs | None = Field(None, description="As the flat parameters, and beats them.")
    clean_up_tokenization_spaces: bool | None = Field(None, description="No spaces before . , ? ! and the like.")

    _switches: ClassVar[Switches] = Switches()

    def _flat(self) -> dict[str, JSON]:
        return {name: value for name, value in not_null(self).items() if name in TransformersParameters.model_fields}

    def _applied(self) -> dict[str, JSON]:
        """The parameters that apply."""
        return {**self._flat(), **not_null(self.generate_kwargs)}

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        applied = self._applied()
        lost = [
            name
            for name, value in self._flat().items()
            if value != applied[name] or self._is_without_effect(name, value, capabilities)
        ]
        for name, value in not_null(self.generate_kwargs).items():
            if self._is_without_effect(name, value, capabilities):
                lost.append(f"generate_kwargs.{name}")
        return lost + super().ignored(capabilities)

    def _is_without_effect(self, name: str, value: JSON, capabilities: AbstractSet[str]) -> bool:
        applied = self._applied()
        if name == "max_length" and "max_new_tokens" in applied:
            return True
        if name == "do_sample" and value and applied.get("temperature") == 0:
            return True
        if name in _WITHOUT_EFFECT or not matters(name, value) or value == _DEFAULTS.get(name):
            return False
        if name in OF_SAMPLES and applied.get("do_sample") is False:
            return name != "temperature" or value != 0
        return _CAPABILITIES.get(name) not in capabilities

    def _request(self, prompt: Prompt) -> GenerationRequest:
        applied = self._applied()
        within = "generate_kwargs." if "max_length" in not_null(self.generate_kwargs) else ""
        sent = {*applied, "temperature"} if "do_sample" in applied else applied.keys()
        sampling = Sampling(
            max_tokens=applied.get("max_new_tokens"),
            temperature=applied.get("temperature", 1.0) if applied.get("do_sample", True) else 0.0,
            top_k=applied.get("top_k", 10),
            top_p=applied.get("top_p", 1.0),
            typical_p=applied.get("typical_p"),
            repetition_penalty=applied.get("repetition_penalty"),
        )
        return GenerationRequest(
            prompt,
            sampling=sampling,
            defaulted={"temperature", "top_k", "top_p"} - sent,
            max_total_tokens=None if sampling.max_tokens else applied.get("max_length", 200),
            total_field=f"{within}max_length" if "max_length" in applied else None,
            total_is_default="max_length" not in applied,
            total_without_template=not isinstance(prompt, str),
            options={"min_tokens": least} if (least := applied.get("min_new_tokens")) else {},
        )

    def _answer_text(self, generation: Generation) -> str:
        if not self.clean_up_tokenization_spaces:
            return generation.text
        return _SPACES.sub(lambda found: found[0].strip(), generation.text)


_SPACES = re.compile(r" ' | (?=[.?!,]|n't|'(?:m|s|ve|re))")
"""Spaces that transformers removes as additions of a tokenizer."""


class KaitoPromptCall(TransformersCall):
    """A text, which a model for conversations answers and another one continues; the answer begins with it."""

    marker = "prompt"
    examples = {
        "A text": {"prompt": "What is the capital of France?"},
        "To Falcon's server": {
            "prompt": "What is the capital of France?",
            "max_length": 200,
            "do_sample": True,
            "top_k": 10,
        },
        "To the later server": {
            "prompt": "What is the capital of France?",
            "return_full_text": False,
            "clean_up_tokenization_spaces": True,
            "generate_kwargs": {"max_length": 200, "do_sample": False},
        },
    }

    prompt: str
    return_full_text: bool | None = Field(None, description="false leaves the prompt out of the answer.")
    prefix: str | None = Field(None, description="Laid before the prompt, and not shown.")
    handle_long_generation: Literal["hole"] | None = Field(None, description="No effect here.")

    def requests(self) -> Sequence[GenerationRequest]:
        if not self.prompt:
            raise InvalidRequest("Text generation parameter prompt required")
        answers, most = self._applied().get("num_return_sequences", 1), self._switches.max_batch_size
        if answers > most:
            raise InvalidRequest(f"{answers} are asked for, and {most} allowed", "num_return_sequences")
        text = (self.prefix or "") + self.prompt
        return [self._request(completion_prompt(text, self._switches.prompt, self._served))] * answers

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        lost = ["handle_long_generation"] if self.handle_long_generation else []
        return lost + super().ignored(capabilities)

    def _is_without_effect(self, name: str, value: JSON, capabilities: AbstractSet[str]) -> bool:
        return name != "num_return_sequences" and super()._is_without_effect(name, value, capabilities)

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        before = "" if self.return_full_text is False else self.prompt
        return {"Result": "".join(before + self._answer_text(generation) for generation in generations)}


def _lowered(value: JSON) -> JSON:
    return value.lower() if isinstance(value, str) else value


class ConversationMessage(DialogMessage):
    """One turn of a conversation."""

    role: Annotated[Literal["system", "user", "assistant"], BeforeValidator(_lowered)]


class KaitoMessagesCall(TransformersCall):
    """A conversation to answer; the answer is Python's text of its last message."""

    marker = "messages"
    examples = {
        "A conversation": {
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "generate_kwargs": {"max_new_tokens": 32, "do_sample": False},
        }
    }

    messages: list[ConversationMessage] = Field(max_length=MOST)

    def requests(self) -> Sequence[GenerationRequest]:
        if not self.messages:
            raise InvalidRequest("Conversational parameter messages required")
        return [self._request(tuple(message.message() for message in self.messages))]

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        names = sorted({f"messages.{name}" for message in self.messages for name in message.model_extra or ()})
        return names + super().ignored(capabilities)

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        return {"Result": str({"role": "assistant", "content": self._answer_text(generations[0])})}


def _alive(status: ServiceStatus) -> JSON:
    """Liveness: 200 as long as the service runs"""
    return ["Server is running", 200]


def _healthy(status: ServiceStatus) -> JSON:
    """Readiness: 200 when the model can answer, 503 until then"""
    if status.not_ready:
        raise status.not_ready
    return {"status": "Healthy"}


def _shut_down(status: ServiceStatus) -> JSON:
    """End the service when what runs is answered, if the settings allow it"""
    shut_down(status)
    return {}


async def _gpus(status: ServiceStatus) -> JSON:
    """The graphics cards"""
    try:
        gpus = await status.gpus()
    except LLMError as error:
        return {"error": str(error)}
    return {
        "gpu_info": [
            {
                "id": gpu.id,
                "name": gpu.name,
                "load": f"{gpu.load:.2f}%",
                "temperature": f"{gpu.temperature} C",
                "memory": {
                    "used": f"{gpu.memory_used / 1024:.2f} GB",
                    "total": f"{gpu.memory_total / 1024:.2f} GB",
                },
            }
            for gpu in gpus
        ]
    }


def kaito(switches: Switches) -> Dialect:
    """The dialect with these switches."""
    return Dialect(
        name="kaito",
        calls={
            "/generate": (KaitoGenerateCall,),
            "/chat": (KaitoChatCall, KaitoPromptCall, KaitoMessagesCall),
        },
        style=KAITO,
        routes={
            "GET /": Route(_alive, asks_models=False),
            "GET /healthz": Route(_healthy),
            "POST /shutdown": Route(_shut_down, asks_models=False),
            "GET /metrics?format=kaito": Route(_gpus, asks_models=False),
        },
        switches=switches,
        about="KAITO's presets, for Llama and for transformers' models.",
    )
