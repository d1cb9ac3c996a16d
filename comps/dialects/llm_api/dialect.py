"""1b5d's llm-api: a text and free-form parameters in, its continuation out, as a bare JSON string or as raw text in
server-sent events. https://github.com/1b5d/llm-api
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, PrivateAttr

from comps.core.errors import LLMError, Malformed
from comps.core.generator import collect
from comps.core.types import JSON, Embeddings, Event, Finished, Generation, GenerationRequest, TextDelta
from comps.dialects.llm_api.params import DEFAULTS, Family, LLMAPIParams
from comps.dialects.shared import framing
from comps.dialects.shared.base import Dialect, EmbeddingCall, GenerationCall, Route, ServiceStatus, Style
from comps.dialects.shared.framing import ResponseMetadata

STYLE = Style(framing.pydantic_1_error, {Malformed: 422})

_SILENT = LLMAPIParams.model_validate({})
_Text = Annotated[str, Field(coerce_numbers_to_str=True)]
"""A number stands for its digits, as with pydantic 1."""


@dataclass(frozen=True, slots=True)
class Switches:
    """What llm-api's own settings say.

    Attributes:
        family: The family of the model, whose defaults count where a body's parameters are silent.
        disable_streaming: A streamed answer is one event.
    """

    family: Family = "llama"
    disable_streaming: bool = False


class LLMAPICall(GenerationCall):
    """A text to continue, whole."""

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

    _switches: Switches = PrivateAttr(default=Switches())

    def model_post_init(self, context: Any) -> None:
        self._switches = context or Switches()

    @property
    def wanted_model(self) -> str | None:
        return self.model or self._params.model

    @property
    def _default(self) -> LLMAPIParams:
        return DEFAULTS[self._switches.family]

    @property
    def _params(self) -> LLMAPIParams:
        return self.params or _SILENT

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        lost = [f"params.{name}" for name in self._params.ignored(self._default, capabilities)]
        if None not in (self.model, self._params.model) and self.model != self._params.model:
            lost.append("params.model")
        if self.stream is not None and self.stream is not self.streamed:
            lost.append("stream")
        return lost + super().ignored(capabilities)

    def requests(self) -> Sequence[GenerationRequest]:
        most, own = self._params.max_total_tokens(self._default), self._params.max_length
        request = GenerationRequest(
            prompt=self.prompt,
            sampling=self._params.sampling(self._default),
            max_total_tokens=most,
            total_field="params.max_length" if own else None,
            total_is_default=most is not None and own is None,
            options={"min_tokens": self._params.min_new_tokens} if self._params.min_new_tokens else {},
        )
        return [request]

    @property
    def _around(self) -> tuple[str, str]:
        """What comes before the continuation, and what behind it."""
        return self.prompt if self._params.echo else "", self._params.suffix or ""

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        before, behind = self._around
        return before + generations[0].text + behind


class StreamedLLMAPICall(LLMAPICall):
    """A text to continue, piece by piece.

    Its clients know nothing but text: what went wrong, and that an answer was cut short, is said in comments, which
    they pass over, and a stream that fails loses its connection.
    """

    cuts_off = True

    @property
    def streamed(self) -> bool:
        return True

    async def reply_stream(self, events: AsyncGenerator[Event], metadata: ResponseMetadata) -> AsyncGenerator[bytes]:
        before, behind = self._around
        finished: Finished | None = None
        within_line_break = False
        if self._switches.disable_streaming:
            events = _at_once(events)
        if before:
            yield text_event(before)
        async for event in events:
            if isinstance(event, Finished):
                finished = event
            elif event.text:
                # A line break of two characters may come in two pieces.
                yield text_event(event.text.removeprefix("\n") if within_line_break else event.text)
                within_line_break = event.text.endswith("\r")
        if behind:
            yield text_event(behind)
        if finished and finished.reason != "stop":
            yield _comment(f"finish_reason={finished.reason}")

    def error_item(self, error: LLMError) -> bytes:
        return _comment(f"error: {error}")


async def _at_once(events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
    """The same answer in one piece."""
    whole = await collect(events)
    yield TextDelta(whole.text)
    yield Finished(whole.reason, whole.usage)


def text_event(text: str) -> bytes:
    """A piece of text as an event, with a `data:` for each of its lines. All line breaks are the same to clients."""
    lines = text.encode().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return b"data: " + lines.replace(b"\n", b"\r\ndata: ") + b"\r\n\r\n"


def _comment(text: str) -> bytes:
    return f": {' '.join(text.split())}\r\n\r\n".encode()


class LLMAPIEmbeddingCall(EmbeddingCall):
    """A text to turn into a vector."""

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
    """The dialect, as the switches have it."""
    return Dialect(
        name="llm_api",
        calls={"/generate": (LLMAPICall,), "/agenerate": (StreamedLLMAPICall,), "/embeddings": (LLMAPIEmbeddingCall,)},
        style=STYLE,
        routes={"GET /check": Route(_check)},
        switches=switches,
    )
