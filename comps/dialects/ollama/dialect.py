"""Ollama's API: chats, completions and embeddings, streamed as lines of JSON, and what it tells of models.

https://docs.ollama.com/api, with the types of its source: https://github.com/ollama/ollama/blob/main/api/types.go
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from comps.core.errors import InvalidRequest, LLMError
from comps.core.types import (
    CALLS_ON_DEMAND,
    JSON,
    Generation,
    GenerationRequest,
    Message,
    ModelInfo,
    Prompt,
)
from comps.dialects.ollama.answers import NDJSON, Frame, Lines
from comps.dialects.ollama.body import STYLE, Format, OllamaBody
from comps.dialects.ollama.embeddings import OllamaEmbedCall, OllamaEmbeddingsCall
from comps.dialects.ollama.messages import Images, OllamaMessage, content_of, conversation, ignored_in
from comps.dialects.ollama.models import ROUTES, show
from comps.dialects.ollama.options import NO_OPTIONS, OllamaOptions
from comps.dialects.ollama.templates import fill
from comps.dialects.shared.base import (
    DescriptionCall,
    Dialect,
    GenerationCall,
    Switches,
    Writer,
)
from comps.dialects.shared.bodies import MOST
from comps.dialects.shared.examples import FACT, WEATHER
from comps.dialects.shared.fields import GroundedCall, matters
from comps.dialects.shared.framing import ResponseMetadata
from comps.dialects.shared.openai_values import Tool

_EFFORTS = {"max": "high"}
"""OpenAI's words for the efforts of thinking, where they are not Ollama's."""
_WISHES = {"format": "response_format", "logprobs": "logprobs", "top_logprobs": "top_logprobs"}
"""The options of OpenAI's API, by the fields that ask for them."""
_ADDED = 8
"""The most tokens that a model server adds to a text to continue."""
_OF_QUESTIONS = dict.fromkeys(
    (
        *("format", "options", "think", "truncate", "shift", "logprobs", "top_logprobs", "tools", "documents"),
        *("suffix", "system", "template", "raw", "images", "context"),
        *("retrieved_docs", "reranked_docs", "data", "top_n", "chat_template", "language", "order", "citations"),
    )
)
"""Fields that have no effect where nothing is asked."""


class OllamaCall(OllamaBody, GroundedCall, GenerationCall):
    """What the bodies that ask for text have in common. One that asks nothing loads the model, or unloads it."""

    media_type = NDJSON
    is_chat: ClassVar[bool]
    """Whether the answer is a message."""

    stream: bool | None = Field(None, description="Whether the answer is streamed, as it is if this is left out.")
    format: Format = None
    options: OllamaOptions | None = Field(None, description="How to sample.")
    think: bool | Literal["low", "medium", "high", "max"] | None = Field(
        None, description="Whether the model thinks before it answers, and how hard; for model servers that know it."
    )
    truncate: bool | None = Field(
        None, description="false is named as ignored: early messages without room are left out."
    )
    shift: bool | None = Field(
        None, description="true is named as ignored: an answer ends where the context window does."
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="How many alternatives to each token.")

    _switches: ClassVar[Any] = Switches()

    @property
    def continues(self) -> bool:
        """Whether it is a text to continue, instead of a conversation."""
        return False

    def prompt_for(self) -> Prompt:
        """What is asked of the model: a conversation, or a text to continue.

        Raises:
            InvalidRequest: The fields contradict each other.
        """
        raise NotImplementedError(f"{type(self).__name__} asks for nothing")

    @property
    def streamed(self) -> bool:
        return self.asks and self.stream is not False and not self._switches.disable_streaming

    def requests(self) -> Sequence[GenerationRequest]:
        if not self.asks:
            return []
        prompt, sampling = self.prompt_for(), (self.options or NO_OPTIONS).sampling()
        room = self._room if self.continues and sampling.max_tokens is None else None
        request = GenerationRequest(
            prompt=prompt,
            documents=self.all_documents(),
            **self.of_documents(),
            sampling=sampling,
            max_total_tokens=room,
            total_is_default=room is not None,
            options={**self.wishes(), **self.template_options},
        )
        return [request]

    @property
    def _room(self) -> int | None:
        """The most tokens of a text and its continuation, since OpenAI's servers end it after 16 tokens if nothing is
        said; None if that cannot be told."""
        window = self._served.context_window
        counts = "max_total_tokens" in self._served.capabilities
        return window - _ADDED if window and window > _ADDED and counts else None

    def wishes(self) -> dict[str, JSON]:
        """The options that only some model servers know, by their names in OpenAI's API."""
        wishes = {**(self.options or NO_OPTIONS).passed(), **self._thinking}
        if self.format == "json":
            wishes["response_format"] = {"type": "json_object"}
        elif self.format:
            wishes["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "format", "schema": self.format},
            }
        if self.logprobs:
            alternatives = self.top_logprobs or 0
            of_text = alternatives if "top_logprobs" in self._served.capabilities else 0
            of_chat = {"logprobs": True, "top_logprobs": alternatives}
            wishes |= {"logprobs": of_text} if self.continues else of_chat
        return wishes

    @property
    def _thinking(self) -> dict[str, JSON]:
        """The options that say whether to think: an effort, or a variable of the chat templates of Qwen and others."""
        if self.think is None or self.continues:
            return {}
        if isinstance(self.think, str):
            return {"reasoning_effort": _EFFORTS.get(self.think, self.think)}
        if self.think and "chat_template_kwargs" not in self._served.capabilities:
            return {"reasoning_effort": "medium"}
        return {"chat_template_kwargs": {"enable_thinking": self.think}}

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        lost = super().ignored(capabilities)
        if not self.asks:
            sent = self.sent_fields(_OF_QUESTIONS)
            return [*lost, *(name for name, value in sent.items() if value and name not in lost)]
        for name, ours in _WISHES.items():
            if ours not in capabilities and matters(name, getattr(self, name)):
                lost.append(name)
        if self.top_logprobs and not self.logprobs and "top_logprobs" not in lost:
            lost.append("top_logprobs")
        if self.think is not None and self._thinking.keys().isdisjoint(capabilities):
            lost.append("think")
        lost += [*(["truncate"] if self.truncate is False else []), *(["shift"] if self.shift else [])]
        return lost + (self.options or NO_OPTIONS).ignored(capabilities, self._served.context_window)

    def ends(self, generations: Sequence[Generation]) -> Sequence[str]:
        return super().ends(generations) if self.asks else [self._loads]

    @property
    def _loads(self) -> str:
        """What a body that asks nothing does: `load` or `unload`."""
        return "unload" if self.unloads else "load"

    def _frame(self, metadata: ResponseMetadata) -> Frame:
        return Frame(self.model or metadata.model, metadata.created, self.is_chat)

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        frame = self._frame(metadata)
        if not self.asks:
            return frame.line("", done_reason=self._loads)
        return self.with_report(frame.whole(generations[0], metadata.times), metadata)

    def writer(self, metadata: ResponseMetadata, write: Callable[[bytes], None]) -> Writer:
        reports = metadata.reports if self.include_report else {}
        return Lines(self._frame(metadata), metadata.times, write, lambda: reports.get(0))

    def error_item(self, error: LLMError) -> bytes:
        return STYLE.encode(STYLE.error(error)) + b"\n"


class OllamaChatCall(OllamaCall):
    """A conversation, with documents if there are any; without messages, the model is loaded."""

    marker = "messages"
    is_chat = True
    examples = {
        "A conversation": {
            "messages": [
                {"role": "system", "content": "You answer in one sentence."},
                {"role": "user", "content": "What is Deep Learning?"},
            ],
            "options": {"num_predict": 32},
        },
        "With documents, whole": {
            "messages": [{"role": "user", "content": "How much memory does Gaudi 2 have?"}],
            "documents": [FACT],
            "stream": False,
        },
        "With a tool": {
            "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
            "tools": [WEATHER],
        },
    }

    messages: Annotated[list[OllamaMessage], Field(max_length=MOST, fail_fast=True)] | None = None
    tools: list[Tool] | None = None

    @property
    def asks(self) -> bool:
        return bool(self.messages)

    def prompt_for(self) -> Prompt:
        return conversation(self.messages or ())

    def wishes(self) -> dict[str, JSON]:
        wishes = super().wishes()
        return {**wishes, "tools": self.tools} if self.tools else wishes

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        lost = super().ignored(capabilities)
        if self.tools and ("tools" not in capabilities or CALLS_ON_DEMAND in capabilities):
            lost.append("tools")
        return lost + ignored_in(self.messages or (), capabilities)


class OllamaGenerateCall(OllamaCall):
    """A text to answer, to continue or to fill in, with documents if there are any; without it, the model is loaded."""

    marker = "prompt"
    is_chat = False
    examples = {
        "A text": {"prompt": "Why is the sky blue?", "options": {"num_predict": 32}},
        "A text to continue, whole": {"prompt": "Deep learning is", "raw": True, "stream": False},
    }

    prompt: str | None = None
    suffix: str | None = Field(None, description="The text behind what is to be filled in; refused by most models.")
    system: str | None = Field(None, description="The system message.")
    template: str | None = Field(
        None,
        max_length=100_000,
        description="A template with .System, .Prompt and .Suffix, instead of the model's own.",
    )
    raw: bool | None = Field(None, description="Whether the text is continued as it is.")
    images: Images | None = Field(None, description="Each in base64; for models that see.")
    context: list[int] | None = Field(None, description="Refused: send messages to /api/chat.")

    @property
    def asks(self) -> bool:
        return bool(self.prompt)

    @property
    def continues(self) -> bool:
        if self.raw or self.template or self.suffix:
            return True
        return self._served.has_chat_template is False and not (self.system or self.images)

    def prompt_for(self) -> Prompt:
        text, system = self.prompt or "", self.system or ""
        if self.context:
            why = "token ids of an earlier answer are not read here; send the conversation to /api/chat"
            raise InvalidRequest(why, "context")
        if self.raw and (self.template or system):
            field = "template" if self.template else "system"
            raise InvalidRequest("raw mode does not support template, system, or context", field)
        if self.continues:
            if self.images:
                raise InvalidRequest("a text to continue has no images; leave raw, template and suffix out", "images")
            values = {"System": system, "Prompt": text, "Suffix": self.suffix or ""}
            return fill(self.template, values) if self.template else text
        question = Message("user", content_of(text, self.images, "images"))
        return (Message("system", system), question) if system else (question,)

    def wishes(self) -> dict[str, JSON]:
        wishes = super().wishes()
        return {**wishes, "suffix": self.suffix} if self._fills_in else wishes

    @property
    def _fills_in(self) -> bool:
        """Whether the model server puts the suffix behind the text, since no template does."""
        return bool(self.suffix) and not self.template

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        if self.asks and self._fills_in and "suffix" not in capabilities:
            raise InvalidRequest(f'"{self.model or self._served.name}" does not support insert', "suffix")
        return self._left_out() + super().ignored(capabilities)

    def _left_out(self) -> list[str]:
        """The fields whose texts have no place in the prompt: those that the template does not name, or the system
        message where the model server fills in."""
        if not self.asks:
            return []
        if self.template:
            named = {"prompt": ".Prompt", "system": ".System", "suffix": ".Suffix"}
            return [name for name, one in named.items() if getattr(self, name) and one not in self.template]
        return ["system"] if self.system and self._fills_in else []


class OllamaShowCall(OllamaBody, DescriptionCall):
    """A model to describe."""

    marker = "model"
    examples = {"The facts of a model": {"verbose": False}}

    name: str | None = Field(None, description="An older name of model.")
    verbose: bool | None = Field(None, description="true is named as ignored.")

    @property
    def wanted_model(self) -> str | None:
        return self.model or self.name

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        lost = ["name"] if self.model and self.name not in (None, "", self.model) else []
        return [*lost, *(["verbose"] if self.verbose else []), *super().ignored(capabilities)]

    def reply(self, info: ModelInfo) -> JSON:
        return show(info)


def ollama(switches: Switches) -> Dialect:
    """The dialect with these switches."""
    return Dialect(
        name="ollama",
        calls={
            "/api/chat": (OllamaChatCall,),
            "/api/generate": (OllamaGenerateCall,),
            "/api/show": (OllamaShowCall,),
            "/api/embed": (OllamaEmbedCall,),
            "/api/embeddings": (OllamaEmbeddingsCall,),
        },
        style=STYLE,
        routes=ROUTES,
        switches=switches,
        about="Ollama's API, for its clients, Open WebUI and LangChain. A body may have `documents`.",
    )
