"""1b5d's llm-api: a text and free-form parameters in, its continuation out, as a bare JSON string or as raw text in
server-sent events. https://github.com/1b5d/llm-api
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from comps.core.errors import LLMError, Malformed
from comps.core.types import JSON, Embeddings, Generation, GenerationRequest
from comps.dialects.llm_api.events import OneEvent, TextEvents, text_comment
from comps.dialects.llm_api.params import DEFAULTS, Family, LLMAPIParams
from comps.dialects.shared import framing
from comps.dialects.shared.base import Dialect, EmbeddingCall, GenerationCall, Route, ServiceStatus, Style, Writer
from comps.dialects.shared.completion import PromptForm, completion_prompt
from comps.dialects.shared.fields import OF_SAMPLES
from comps.dialects.shared.framing import ResponseMetadata

STYLE = Style(framing.pydantic_1_error, {Malformed: 422})

_NO_PARAMS = LLMAPIParams.model_validate({})
_Text = Annotated[str, Field(coerce_numbers_to_str=True)]
"""A number stands for its digits, as with pydantic 1."""


@dataclass(frozen=True, slots=True)
class Switches:
    """The dialect's settings.

    Attributes:
        family: The family of the model, whose defaults apply where a body has no parameters.
        prompt: How a text goes to the model; see `completion_prompt`.
        disable_streaming: A streamed answer is one event.
    """

    family: Family = "llama"
    prompt: PromptForm = "auto"
    disable_streaming: bool = False


class LLMAPICall(GenerationCall):
    """A text, which a model for conversations answers and another one continues, whole."""

    marker = "prompt"
    examples = {
        "A text": {"prompt": "What is the capital of France?", "params": {}},
        "With parameters of llama": {
            "prompt": "What is the capital of France?",
            "params": {
                "suffix": None,
                "max_tokens": 128,
                "temperature": 0.8,
                "top_p": 0.95,
                "logprobs": None,
                "echo": False,
                "stop": ["\n\n"],
                "frequency_penalty": 0.0,
                "presence_penalty": 0.0,
                "repeat_penalty": 1.1,
                "top_k": 40,
            },
        },
        "With parameters of huggingface and autoawq": {
            "prompt": "What is the capital of France?",
            "params": {"max_new_tokens": 25, "do_sample": True, "top_k": 40, "top_p": 0.95},
        },
        "With parameters of gptq_llama": {
            "prompt": "What is the capital of France?",
            "params": {"temp": 0.8, "top_p": 0.95, "max_length": 50},
        },
    }
    style = STYLE
    any_model = True

    prompt: _Text
    params: LLMAPIParams | None = Field(None, description="How to continue it; the parameters of all model families.")
    stream: Any = Field(None, description="No effect: /agenerate streams, /generate does not.")

    _switches: ClassVar[Switches] = Switches()

    @property
    def wanted_model(self) -> str | None:
        return self.model or self._params.model

    @property
    def _default(self) -> LLMAPIParams:
        return DEFAULTS[self._switches.family]

    @property
    def _params(self) -> LLMAPIParams:
        return self.params or _NO_PARAMS

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        lost = [f"params.{name}" for name in self._params.ignored(self._default, capabilities)]
        if None not in (self.model, self._params.model) and self.model != self._params.model:
            lost.append("params.model")
        if self.stream is not None and self.stream is not self.streamed:
            lost.append("stream")
        return lost + super().ignored(capabilities)

    def requests(self) -> Sequence[GenerationRequest]:
        most, own = self._params.max_total_tokens(self._default), self._params.max_length
        prompt = completion_prompt(self.prompt, self._switches.prompt, self._served)
        request = GenerationRequest(
            prompt=prompt,
            sampling=self._params.sampling(self._default),
            defaulted=set(OF_SAMPLES) - self._params.model_fields_set,
            max_total_tokens=most,
            total_field="params.max_length" if own else None,
            total_is_default=most is not None and own is None,
            total_without_template=prompt is not self.prompt,
            options={"min_tokens": self._params.min_new_tokens} if self._params.min_new_tokens else {},
        )
        return [request]

    @property
    def _affixes(self) -> tuple[str, str]:
        """The texts before and behind the continuation."""
        return self.prompt if self._params.echo else "", self._params.suffix or ""

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        before, behind = self._affixes
        return before + generations[0].text + behind


class StreamedLLMAPICall(LLMAPICall):
    """A text, answered as a stream.

    Its clients understand only text. An error, and the finish reason of an answer that was cut short, are comments,
    which clients skip; after an error the connection is closed.
    """

    cuts_off = True

    @property
    def streamed(self) -> bool:
        return True

    def writer(self, metadata: ResponseMetadata, write: Callable[[bytes], None]) -> Writer:
        kind = OneEvent if self._switches.disable_streaming else TextEvents
        return kind(write, *self._affixes)

    def error_item(self, error: LLMError) -> bytes:
        return text_comment(f"error: {error}")


class LLMAPIEmbeddingCall(EmbeddingCall):
    """A text to embed."""

    marker = "text"
    examples = {"A text": {"text": "What is the capital of France?"}}
    style = STYLE
    any_model = True

    text: _Text

    def texts(self) -> Sequence[str]:
        return [self.text]

    def reply(self, embeddings: Embeddings, metadata: ResponseMetadata) -> JSON:
        return list(embeddings.vectors[0])


def _check(status: ServiceStatus) -> JSON:
    """Readiness: "Ok" when the model can answer, 503 until then"""
    if status.not_ready:
        raise status.not_ready
    return "Ok"


def llm_api(switches: Switches) -> Dialect:
    """The dialect with these switches."""
    return Dialect(
        name="llm_api",
        calls={"/generate": (LLMAPICall,), "/agenerate": (StreamedLLMAPICall,), "/embeddings": (LLMAPIEmbeddingCall,)},
        style=STYLE,
        routes={"GET /check": Route(_check)},
        switches=switches,
        about="1b5d's llm-api.",
    )
