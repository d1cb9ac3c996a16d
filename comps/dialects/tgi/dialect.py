"""Text Generation Inference's own API: `inputs` and `parameters` in, `generated_text` or an event for each token out.

https://huggingface.github.io/text-generation-inference/ is its reference; what that leaves open is as in the source of
its router, https://github.com/huggingface/text-generation-inference, router/src.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson
from pydantic import Field, model_validator

from comps.core.errors import (
    BrokenOff,
    InvalidRequest,
    LLMError,
    ModelServerError,
    NotSupported,
    Overloaded,
    PromptTooLong,
    shortened,
)
from comps.core.model_names import other_spelling
from comps.core.types import CALLS_ON_DEMAND, JSON, Generation, GenerationRequest, Token
from comps.dialects.shared.base import (
    Dialect,
    GenerationCall,
    PromptTokenizeCall,
    Route,
    ServiceStatus,
    Style,
    TokenizeCall,
    Writer,
)
from comps.dialects.shared.bodies import Messages, unread_in
from comps.dialects.shared.completion import PromptForm, completion_prompt
from comps.dialects.shared.examples import FACT, WEATHER
from comps.dialects.shared.fields import GroundedCall, matters
from comps.dialects.shared.framing import ResponseMetadata
from comps.dialects.shared.openai_values import Schema, Tool
from comps.dialects.shared.tokens import token_texts
from comps.dialects.tgi.parameters import MAX_BEST_OF, NO_PARAMETERS, TGIParameters
from comps.dialects.tgi.tokens import LastEvent, Shown, TokenEvents, mean_logprob

_MAX_STOPS = 100


def _error(error: LLMError) -> JSON:
    """TGI's error, whose type says what its clients raise. What TGI has no type for has none."""
    if isinstance(error, Overloaded):
        return {"error": f"Model is overloaded: {error}", "error_type": "overloaded"}
    if isinstance(error, BrokenOff):
        return {"error": f"Incomplete generation: {error}", "error_type": "incomplete_generation"}
    if not isinstance(error, InvalidRequest):
        return {"error": f"Request failed during generation: {error}", "error_type": "generation"}
    if STYLE.status(error) != _INVALID:
        return {"error": str(error)}
    return {"error": f"Input validation error: {_said(error)}", "error_type": "validation"}


def _said(error: InvalidRequest) -> str:
    """What is wrong with a body. Clients find a field by its backticks, and a prompt too long by TGI's words."""
    said = str(error.args[0])
    if error.field:
        said = f"`{error.field.removeprefix('parameters.')}`: {said}"
    if isinstance(error, PromptTooLong) and error.context_window:
        most, tokens = error.context_window - 1, error.prompt_tokens
        said = f"{said}. `inputs` must have less than {most} tokens. Given: {tokens}"
    return said


_INVALID = 422
STYLE = Style(_error, {InvalidRequest: _INVALID, NotSupported: 404, ModelServerError: 424, BrokenOff: 500})


@dataclass(frozen=True, slots=True)
class Switches:
    """The dialect's settings.

    Attributes:
        prompt: How a text goes to the model; see `completion_prompt`.
        disable_streaming: A streamed answer is its last event only.
        max_concurrent_requests: How many requests a model answers or lets wait at once, which `/info` tells.
    """

    prompt: PromptForm = "auto"
    disable_streaming: bool = False
    max_concurrent_requests: int = 0


class TGIGenerateCall(GroundedCall, GenerationCall):
    """A text, which a model for conversations answers and another one continues, whole, with documents if there are
    any."""

    marker = "inputs"
    examples = {
        "A text": {"inputs": "What is Deep Learning?"},
        "With parameters": {
            "inputs": "What is Deep Learning?",
            "parameters": {
                "best_of": None,
                "do_sample": True,
                "temperature": 0.5,
                "top_k": 10,
                "top_p": 0.95,
                "typical_p": 0.95,
                "repetition_penalty": 1.03,
                "frequency_penalty": 0.1,
                "max_new_tokens": 17,
                "stop": ["\n\n"],
                "seed": 7,
                "return_full_text": True,
                "details": True,
            },
        },
        "With documents": {
            "inputs": "How much memory does Gaudi 2 have?",
            "documents": [FACT],
            "parameters": {"max_new_tokens": 32, "return_full_text": False},
        },
    }
    style = STYLE
    any_model = True

    inputs: str = Field(description="The text.", json_schema_extra={"minLength": 1})
    parameters: TGIParameters | None = None
    stream: bool | None = Field(None, description="No effect: /generate_stream streams, /generate does not.")

    _switches: ClassVar[Switches] = Switches()
    _shows_inputs: ClassVar[bool] = False
    """Whether an answer begins with `inputs` where the body does not say it."""

    @property
    def wanted_model(self) -> str | None:
        return self.model or self._parameters.adapter_id

    @property
    def _parameters(self) -> TGIParameters:
        return self.parameters or NO_PARAMETERS

    @property
    def _answers(self) -> int:
        """How many answers are made; without logprobs, none of several is the best."""
        return self._parameters.answers if "logprobs" in self._served.capabilities else 1

    def requests(self) -> Sequence[GenerationRequest]:
        self._check()
        parameters = self._parameters
        prompt = completion_prompt(self.inputs, self._switches.prompt, self._served)
        options = parameters.options(self._served.capabilities, isinstance(prompt, str))
        request = GenerationRequest(
            prompt=prompt,
            documents=self.all_documents(),
            **self.of_documents(),
            sampling=parameters.sampling(),
            defaulted=parameters.defaulted(),
            options={**options, **self.template_options},
        )
        return [request] * self._answers

    def _check(self) -> None:
        """Refuse what TGI refuses of fields that contradict each other, and an adapter that is not there."""
        parameters, name = self._parameters, self._served.name
        if not self.inputs:
            raise InvalidRequest("it cannot be empty", "inputs")
        if parameters.adapter_id and name and parameters.adapter_id not in (name, other_spelling(name)):
            said = f"'{shortened(parameters.adapter_id)}' is not served here; an adapter has to be a served model"
            raise InvalidRequest(said, "parameters.adapter_id")
        if parameters.answers > 1 and not parameters.samples:
            raise InvalidRequest("several answers need sampling (do_sample)", "parameters.best_of")
        if parameters.answers > 1 and parameters.seed is not None:
            raise InvalidRequest("it must not be set when best_of is more than 1", "parameters.seed")

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        shows_tokens = self.streamed or self._parameters.tells_details
        lost = self.parameters.ignored(capabilities, shows_tokens) if self.parameters else []
        if self.stream not in (None, self.streamed):
            lost.append("stream")
        return lost + super().ignored(capabilities)

    def _shown(self) -> Shown:
        parameters = self._parameters
        in_full = self._shows_inputs if parameters.return_full_text is None else parameters.return_full_text
        return Shown(
            before=self.inputs if in_full else "",
            details=parameters.tells_details,
            seed=parameters.seed,
            top=parameters.top_n_tokens or 0,
            citations=bool(self.include_report or self.citations),
            report=bool(self.include_report),
        )

    def ends(self, generations: Sequence[Generation]) -> Sequence[str]:
        return [generation.reason for generation in _best_first(generations)]

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        shown = self._shown()
        best, *others = _best_first(generations)
        reply: dict[str, JSON] = {"generated_text": shown.text_of(best)}
        if shown.details:
            reply["details"] = shown.details_of(best)
            if others:
                reply["details"]["best_of_sequences"] = [
                    {"generated_text": shown.text_of(one), **shown.details_of(one)} for one in others
                ]
        return self.with_report({**reply, **shown.citations_of(best.extra)}, metadata)

    def writer(self, metadata: ResponseMetadata, write: Callable[[bytes], None]) -> Writer:
        events = LastEvent if self._switches.disable_streaming else TokenEvents
        return events(write, self._shown(), metadata.reports)

    def error_item(self, error: LLMError) -> bytes:
        return b"data:" + orjson.dumps(_error(error)) + b"\n\n"


def _best_first(generations: Sequence[Generation]) -> list[Generation]:
    """The answers, the one with the likeliest tokens first."""
    if len(generations) == 1:
        return list(generations)
    best = max(generations, key=mean_logprob)
    return [best, *(one for one in generations if one is not best)]


class TGIStreamCall(TGIGenerateCall):
    """A text, answered as a stream of tokens."""

    @property
    def streamed(self) -> bool:
        return True

    def _check(self) -> None:
        super()._check()
        if not self.streamed:
            return
        parameters = self._parameters
        if parameters.answers > 1:
            raise InvalidRequest("several answers are not supported when streaming tokens", "parameters.best_of")
        if parameters.decoder_input_details:
            raise InvalidRequest("it is not supported when streaming tokens", "parameters.decoder_input_details")


class TGICompatibleCall(TGIStreamCall):
    """A text, answered whole, in a list, or as a stream; the answer begins with the text unless return_full_text is
    false."""

    examples = {
        **TGIGenerateCall.examples,
        "Streamed": {"inputs": "What is Deep Learning?", "parameters": {"max_new_tokens": 17}, "stream": True},
    }

    stream: bool | None = None

    _shows_inputs = True

    @property
    def streamed(self) -> bool:
        return bool(self.stream)

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        return [super().reply(generations, metadata)]


class TGITokenizeCall(TokenizeCall):
    """A text to tokenize as the model reads it."""

    marker = "inputs"
    examples: ClassVar[Mapping[str, JSON]] = {"A text": {"inputs": "Deep learning"}}
    style = STYLE
    any_model = True

    inputs: str
    parameters: dict[str, Any] | None = Field(None, description="No effect here, and named as ignored.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_bodies_of_vllm(cls, body: Any) -> Any:
        """vLLM's route has the same path; its clients know by 404 that a server does not have it."""
        if isinstance(body, dict) and "inputs" not in body and not body.keys().isdisjoint(("prompt", "messages")):
            raise NotSupported("the route /tokenize of vLLM is not here; a text to tokenize is in `inputs`")
        return body

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        sent = [f"parameters.{name}" for name, value in (self.parameters or {}).items() if value is not None]
        return sent + super().ignored(capabilities)

    def text(self) -> str:
        return self.inputs

    def reply(self, tokens: Sequence[Token]) -> JSON:
        return _simple_tokens(self.inputs, tokens)


def _simple_tokens(inputs: str, tokens: Sequence[Token]) -> list[JSON]:
    """The tokens of a text. TGI counts `start` and `stop` in bytes; of a tokenizer that does not tell them, they are
    0."""
    told: list[JSON] = []
    start = 0
    for token, text in zip(tokens, token_texts(inputs, tokens), strict=True):
        stop = start + len(text.encode())
        told.append({"id": token.id, "text": text, "start": start, "stop": stop})
        start = stop
    return told


class TGIChatTokenizeCall(PromptTokenizeCall):
    """A conversation to write as text with the model's chat template, and to tokenize."""

    marker = "messages"
    examples: ClassVar[Mapping[str, JSON]] = {
        "A conversation": {"messages": [{"role": "user", "content": "What is Deep Learning?"}]},
        "With a tool": {
            "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
            "tools": [WEATHER],
        },
    }
    style = STYLE
    any_model = True

    messages: Messages = Field(description="A list of messages, or one question as a string.")
    tools: list[Tool] | None = None
    tool_choice: str | Schema | None = None

    def request(self) -> GenerationRequest:
        return GenerationRequest(
            tuple(message.message() for message in self.messages), options=self.sent_fields(_OF_TOOLS)
        )

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        read = self.read_in_prompts(capabilities)
        if CALLS_ON_DEMAND in read and self.tool_choice in (None, "auto"):
            read = read - {"tools"}
        sent = self.sent_fields(_OF_TOOLS)
        lost = [name for name, value in sent.items() if name not in read and matters(name, value)]
        return lost + super().ignored(capabilities) + unread_in(self.messages, read)

    def reply(self, text: str, tokens: Sequence[Token]) -> JSON:
        return {"tokenize_response": _simple_tokens(text, tokens), "templated_text": text}


_OF_TOOLS = dict.fromkeys(("tools", "tool_choice"))


def _info(status: ServiceStatus, max_concurrent_requests: int) -> JSON:
    if status.not_ready:
        raise status.not_ready
    model = status.models[0]
    window = model.context_window
    return {
        "model_id": model.name,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": max_concurrent_requests,
        "max_best_of": MAX_BEST_OF,
        "max_stop_sequences": _MAX_STOPS,
        "max_input_tokens": window and window - 1,
        "max_total_tokens": window,
        "validation_workers": 1,
        "max_client_batch_size": 1,
        "router": status.name,
        "version": status.version,
        "sha": None,
        "docker_label": None,
    }


def tgi(switches: Switches | None) -> Dialect:
    """The dialect with these switches."""
    most = (switches or Switches()).max_concurrent_requests

    def info(status: ServiceStatus) -> JSON:
        """What is known of the default model, and the limits of requests"""
        return _info(status, most)

    return Dialect(
        name="tgi",
        calls={
            "/": (TGICompatibleCall,),
            "/generate": (TGIGenerateCall,),
            "/generate_stream": (TGIStreamCall,),
            "/tokenize": (TGITokenizeCall,),
            "/chat_tokenize": (TGIChatTokenizeCall,),
        },
        style=STYLE,
        routes={"GET /info": Route(info)},
        switches=switches,
        about="Hugging Face's Text Generation Inference (TGI): its own API.",
    )
