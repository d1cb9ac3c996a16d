"""Cohere's API, version 2: chats with documents and citations, tools, embeddings.

https://docs.cohere.com/reference/chat. Shapes are those of its published description (`cohere-openapi.yaml` in
https://github.com/cohere-ai/cohere-developer-experience) and of the types of its SDK for Python. A model is not told to
cite: citations are found by the words that an answer and its documents share, and come behind the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from comps.core.errors import InvalidRequest, LLMError
from comps.core.types import (
    CALLS_ON_DEMAND,
    JSON,
    Generation,
    GenerationRequest,
    ModelInfo,
    Sampling,
)
from comps.dialects.cohere import answers
from comps.dialects.cohere.bodies import Documents, Messages, Object, Source, in_capitals, sources_of, tool_sources
from comps.dialects.cohere.embeddings import STYLE, CohereEmbed, CohereEmbedV1, CohereTokenize
from comps.dialects.shared.base import (
    Dialect,
    GenerationCall,
    Route,
    ServiceStatus,
    Switches,
    Writer,
)
from comps.dialects.shared.examples import FACT
from comps.dialects.shared.fields import MANY, StopStrings, matters, or_all
from comps.dialects.shared.framing import ResponseMetadata, was_counted
from comps.dialects.shared.openai_values import Tool

_SAMPLING: Mapping[str, str] = {
    **{name: name for name in ("max_tokens", "temperature", "seed", "frequency_penalty", "presence_penalty")},
    "k": "top_k",
    "p": "top_p",
    "stop_sequences": "stop",
}
"""The fields of `Sampling` by the API's names."""
_NAMES: Mapping[str, str] = {
    **_SAMPLING,
    **{name: name for name in ("tools", "tool_choice", "response_format", "logprobs", "priority")},
    "thinking.type": "chat_template_kwargs",
    "thinking.token_budget": "thinking_token_budget",
}
"""These, and the options of model servers, by the API's names."""
_CHOICES = {"REQUIRED": "required", "NONE": "none"}
_UNCITED = ("OFF", "DISABLED")
_SEEDS = 2**63
"""Model servers take seeds below this; the API has twice as many."""


class Part(BaseModel):
    """An object in a body."""

    model_config = ConfigDict(extra="allow")


class CitationOptions(Part):
    """How an answer cites its documents."""

    mode: Annotated[Literal["ENABLED", "DISABLED", "FAST", "ACCURATE", "OFF"] | None, BeforeValidator(in_capitals)] = (
        Field(None, description="All but OFF and DISABLED are the same here: ENABLED.")
    )


class Thinking(Part):
    """How a model thinks before it answers."""

    type: Literal["enabled", "disabled"]
    token_budget: int | None = Field(None, ge=1, le=MANY, description="The most tokens of thinking.")


class Format(Part):
    """The form of an answer."""

    type: Literal["text", "json_object"]
    json_schema: Object | None = Field(None, description="A JSON schema of the object.")


def _with_older_name(form: Any) -> Any:
    """A format whose schema has the name of the API's first version, which LangChain's client still sends."""
    if isinstance(form, dict) and "schema" in form and "json_schema" not in form:
        return {**{name: value for name, value in form.items() if name != "schema"}, "json_schema": form["schema"]}
    return form


class CohereChat(GenerationCall):
    """A conversation, with documents to answer from, cited in the answer."""

    marker = "messages"
    examples = {
        "A conversation": {
            "messages": [{"role": "user", "content": "What is Deep Learning?"}],
            "max_tokens": 32,
        },
        "With documents": {
            "messages": [{"role": "user", "content": "How much memory does Gaudi 2 have?"}],
            "documents": [{"id": "gaudi", "data": {"title": "Gaudi 2", "text": FACT}}],
            "max_tokens": 32,
        },
    }
    style = STYLE
    _switches: ClassVar[Switches] = Switches()

    messages: Messages
    documents: Documents | None = Field(None, description="Texts, or objects with data and id, the best first.")
    citation_options: CitationOptions | None = None
    stream: bool | None = None
    max_tokens: int | None = Field(None, gt=0, le=MANY, description="The most tokens to generate.")
    stop_sequences: StopStrings | None = Field(None, description="Generation ends before any of these.")
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy.")
    seed: int | None = Field(None, ge=0, lt=2 * _SEEDS)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    k: Annotated[int | None, Field(ge=0, le=MANY), AfterValidator(or_all)] = Field(None, description="0: off.")
    p: float | None = Field(None, ge=0, le=1)
    logprobs: bool | None = None
    tools: list[Tool] | None = None
    strict_tools: bool | None = Field(None, description="Calls follow the schemas of the tools strictly.")
    tool_choice: Annotated[Literal["REQUIRED", "NONE"] | None, BeforeValidator(in_capitals)] = None
    response_format: Annotated[Format | None, BeforeValidator(_with_older_name)] = None
    thinking: Thinking | None = None
    priority: int | None = Field(None, ge=0, le=999, description="0 is first.")
    safety_mode: Annotated[Literal["CONTEXTUAL", "STRICT", "OFF"] | None, BeforeValidator(in_capitals)] = Field(
        None, description="No effect: no instruction about safety is added."
    )
    include_report: bool | None = Field(None, description="Say what became of the documents; a field of ours.")

    @property
    def streamed(self) -> bool:
        return bool(self.stream) and not self._switches.disable_streaming

    @property
    def wants_report(self) -> bool:
        return bool(self.include_report)

    def requests(self) -> Sequence[GenerationRequest]:
        self._check()
        given, results = self._documents, self._results
        return [
            GenerationRequest(
                prompt=tuple(message.message() for message in self.messages),
                documents=None if self.documents is None else tuple(one.document for one in given),
                quoted=tuple(one.document for one in results),
                citations="matched" if self._cites else "off",
                sampling=Sampling(**self._sampling()),
                options=self._options(),
            )
        ]

    def _check(self) -> None:
        if self.tool_choice == "REQUIRED" and not self.tools:
            raise InvalidRequest("it demands a call, and there are no tools", "tool_choice")
        form = self.response_format
        if form and form.type == "text" and form.json_schema is not None:
            raise InvalidRequest("it needs the type json_object", "response_format.json_schema")

    @property
    def _cites(self) -> bool:
        return not (self.citation_options and self.citation_options.mode in _UNCITED)

    @cached_property
    def _documents(self) -> list[Source]:
        return sources_of(self.documents or ())

    @cached_property
    def _results(self) -> list[Source]:
        """The results of tools, which the messages have already."""
        return tool_sources(self.messages, len(self.documents or ()) + 1) if self._cites else []

    def _sampling(self) -> dict[str, Any]:
        """The fields of `Sampling` that are set."""
        fields = {name: value for own, name in _SAMPLING.items() if (value := getattr(self, own)) is not None}
        if "stop" in fields:
            fields["stop"] = tuple(text for text in fields["stop"] if text)
        if "seed" in fields:
            fields["seed"] %= _SEEDS
        return fields

    def _options(self) -> dict[str, JSON]:
        """The options for the model server that have an effect, in OpenAI's form."""
        options = {
            "tools": self._strict_tools() if self.strict_tools and self.tools else self.tools,
            "tool_choice": self.tool_choice and self.tools and _CHOICES[self.tool_choice],
            "response_format": _openai_format(self.response_format),
            "logprobs": self.logprobs,
            "priority": self.priority or None,
        }
        if self.thinking:
            if self.thinking.type == "disabled":
                options["chat_template_kwargs"] = {"enable_thinking": False}
            options["thinking_token_budget"] = self.thinking.token_budget
        return {name: value for name, value in options.items() if value not in (None, [], False)}

    def _strict_tools(self) -> list[JSON]:
        """The tools, whose functions say that they are strict."""
        return [
            {**tool, "function": {**tool["function"], "strict": True}} if tool["type"] == "function" else tool
            for tool in self.tools or ()
        ]

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        if CALLS_ON_DEMAND in capabilities and self.tool_choice != "REQUIRED":
            capabilities = capabilities - {"tools"}
        asked = {**self._sampling(), **self._options()}
        names = {own: name for own, name in _NAMES.items() if name in asked and name not in capabilities}
        lost = [own for own, name in names.items() if matters(name, asked[name])]
        if self.strict_tools and ("tools" not in capabilities or not self.tools):
            lost.append("strict_tools")
        if self.safety_mode not in (None, "OFF"):
            lost.append("safety_mode")
        return [*lost, *self._ignored_inside(capabilities), *super().ignored(capabilities)]

    def _ignored_inside(self, capabilities: AbstractSet[str]) -> Iterator[str]:
        """Yields the names of the fields without effect that are in other fields."""
        for place in ("citation_options", "thinking", "response_format"):
            part: Part | None = getattr(self, place)
            yield from (f"{place}.{name}" for name in (part and part.model_extra) or ())
        yield from {f"documents.{name}": None for one in self.documents or () for name in one.model_extra or ()}
        names = {f"messages.{name}" for message in self.messages for name in message.ignored(capabilities)}
        yield from sorted(names)

    def reply(self, generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
        answer = answers.whole(generations[0], metadata, [*self._documents, *self._results])
        if self.include_report or any(map(was_counted, metadata.reports.values())):
            answer |= answers.told(metadata)
        return answer

    def writer(self, metadata: ResponseMetadata, write: Callable[[bytes], None]) -> Writer:
        is_plan = self.tool_choice == "REQUIRED" and "tool_choice" in self._served.capabilities
        sources = [*self._documents, *self._results] if self._cites else []
        return answers.Events(metadata, write, sources, is_plan, bool(self.include_report))

    def error_item(self, error: LLMError) -> bytes:
        return answers.error_event(error)


def _openai_format(form: Format | None) -> JSON:
    if form is None or form.type == "text":
        return None
    if form.json_schema is None:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.json_schema}}


def _models(status: ServiceStatus) -> JSON:
    """The models that answer here, the default one first"""
    return {"models": [_model_object(model, status) for model in status.models]}


def _model(status: ServiceStatus) -> JSON:
    """One of the models that answer here"""
    return _model_object(status.named_model(), status)


def _model_object(model: ModelInfo, status: ServiceStatus) -> JSON:
    return {
        "name": model.name,
        "is_deprecated": False,
        "endpoints": ["chat"],
        "finetuned": False,
        "context_length": model.context_window,
        "default_endpoints": ["chat"] if model is status.models[0] else [],
    }


def cohere(switches: Switches) -> Dialect:
    """The dialect with these switches."""
    return Dialect(
        name="cohere",
        calls={
            "/v2/chat": (CohereChat,),
            "/v2/embed": (CohereEmbed,),
            "/v1/embed": (CohereEmbedV1,),
            "/v1/tokenize": (CohereTokenize,),
        },
        style=STYLE,
        routes={"GET /v1/models": Route(_models), "GET /v1/models/{model:path}": Route(_model)},
        switches=switches,
        about="Cohere's API, version 2, for its SDKs and LangChain: `documents` to answer from, cited in the answer.",
    )
