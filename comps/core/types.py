"""The words of the house: pure values that travel between the rooms; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, TypeAlias

JSON: TypeAlias = Any
"""Whatever a JSON document may hold: None, bool, int, float, str, list or dict."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `content` is text, or a list of parts in the model server's own form, which is passed through.
    """

    role: str
    content: str | list[JSON]
    extra: Mapping[str, JSON] = field(default_factory=dict)
    """The other fields of an OpenAI message (name, tool_calls, tool_call_id), for a model server that knows them."""


Prompt: TypeAlias = str | tuple[Message, ...]
"""Text to continue as it stands, or a conversation to answer."""


@dataclass(frozen=True, slots=True)
class Document:
    """A passage to answer from. Documents arrive already reranked: the first is the best."""

    text: str
    title: str = ""
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    number: int | None = None
    """What it is called by in the prompt and in the marks of an answer; None: not yet decided."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. A field left at None (or an empty `stop`) is the model server's to decide."""

    max_tokens: int | None = None
    """The most tokens to generate, at least 1."""
    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    top_k: int | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    """Makes an answer repeatable on the same model server; without one, every answer is drawn anew."""
    stop: tuple[str, ...] = ()
    """Generation ends before the first of these texts, which is never shown."""
    max_total_tokens: int | None = None
    """The most tokens of the prompt, chat template included, and the answer together, at least 1."""


def only(sampling: Sampling, names: AbstractSet[str]) -> Sampling:
    """The sampling without the fields that have other names."""
    kept = {name: getattr(sampling, name) for name in Sampling.__dataclass_fields__ if name in names}
    return Sampling(**kept)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One question, in the words of the core."""

    prompt: Prompt
    documents: tuple[Document, ...] | None = None
    """None if there was no word of any; empty where a search for them found none."""
    template: str | None = None
    """A prompt template with `{context}` and `{question}`; None takes that of the language."""
    language: str = "auto"
    """Of the template, where the request has none: one that the settings know, or `auto` to go by the documents."""
    sampling: Sampling = Sampling()
    max_total_tokens: int | None = None
    """The most tokens of prompt and answer together, at least 1; where the model server cannot count, of the answer."""
    total_field: str | None = None
    """What callers know `max_total_tokens` as, for errors; None if this one did not say it."""
    total_is_default: bool = False
    """Nobody chose `max_total_tokens`: a prompt that fills it is no error, and its answer has one token."""
    model: str | None = None
    options: Mapping[str, JSON] = field(default_factory=dict)
    """Fields only an OpenAI-speaking model server knows: tools, response_format, logprobs, n …"""
    quoted: tuple[Document, ...] = ()
    """Documents that the caller has written into the prompt already, under their `citation_id`s."""


@dataclass(frozen=True, slots=True)
class DocumentUse:
    """What became of a document on its way into the prompt."""

    number: int
    """Its place in the request, from 1."""
    fate: str
    """`kept`, `cut` or `dropped`."""
    reason: str = ""
    """Why, if it was not kept."""
    tokens: int | None = None
    """As it came, with its title; None: nobody counted."""
    tokens_used: int | None = None
    """Of these, in the prompt."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a request on its way into a prompt, and how the context window is shared. All sizes in tokens."""

    context_window: int | None = None
    """None: nobody knows it."""
    counted: str = "not"
    """By whom: `model` (the served model's own tokenizer), `estimate` (a token for every three bytes), or `not`, where
    all surely fits."""
    documents: tuple[DocumentUse, ...] = ()
    nothing_found: bool = False
    """Whether documents were looked for, and there are none."""
    native: bool = False
    """Whether the documents went beside the messages, for the model's own chat template to write them down."""
    turns_dropped: int = 0
    """Of the messages before the question, the earliest."""
    prompt_tokens: int | None = None
    """Of all the prompt; None: nobody counted."""
    documents_tokens: int | None = None
    history_tokens: int | None = None
    question_tokens: int | None = None
    """With the templates around it, and the system's messages."""
    max_tokens: int | None = None
    """The most that the answer may have; None: the model server decides."""

    @property
    def headroom(self) -> int | None:
        """What neither the prompt nor the answer needs; None if one of them is not known."""
        if self.context_window is None or self.prompt_tokens is None or self.max_tokens is None:
            return None
        return self.context_window - self.prompt_tokens - self.max_tokens


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of an answer: valid Unicode, never half a character."""

    text: str
    choice: int = 0
    extra: Mapping[str, JSON] | None = None
    """The other fields of an OpenAI delta (tool_calls, reasoning, logprobs), untouched."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the model server counted them."""

    prompt_tokens: int
    completion_tokens: int
    details: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How many of them are of some kind, in the words of OpenAI: `prompt_tokens_details` has `cached_tokens` …"""

    def __add__(self, other: Usage) -> Usage:
        """Both together; a detail that one of them does not tell is not told."""
        details = {
            name: {kind: number + of_other[kind] for kind, number in details.items() if kind in of_other}
            for name, details in self.details.items()
            if (of_other := other.details.get(name))
        }
        prompt, completion = self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens
        return Usage(prompt, completion, details)


def total(usages: Iterable[Usage | None]) -> Usage | None:
    """All of them together; None if one is not known."""
    together: Usage | None = None
    for usage in usages:
        if usage is None:
            return None
        together = together + usage if together else usage
    return together or Usage(0, 0)


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of an answer, or of each of its choices; an answer that breaks off has none, but raises."""

    reason: str
    """`stop`, `length`, `tool_calls` or `content_filter`: what the model server said."""
    usage: Usage | None = None
    """Of all choices together, said with the first of them that has an end."""
    choice: int = 0


Event: TypeAlias = TextDelta | Finished


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer: its events, gathered."""

    text: str
    reason: str
    usage: Usage | None = None
    """Of all choices together."""
    extra: Mapping[str, JSON] | None = None
    """What came with the text (see `TextDelta.extra`), each field put together again."""
    further: tuple[Generation, ...] = ()
    """The other choices of an answer that has several."""

    @property
    def choices(self) -> tuple[Generation, ...]:
        """All choices, this one first."""
        return (self, *self.further)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Texts as vectors, all of one length."""

    vectors: tuple[Sequence[float], ...]
    prompt_tokens: int | None = None
    """Tokens of all the texts together; None if the model server does not say."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model server says of itself."""

    name: str
    context_window: int | None = None
    """In tokens, prompt and answer together; None if the server does not say."""
    capabilities: frozenset[str] = frozenset()
    """The names of the Sampling fields and options that it honours."""


@dataclass(frozen=True, slots=True)
class GPU:
    """A graphics card, at this moment. What its driver does not know is NaN."""

    id: int
    name: str
    load: float
    """In per cent."""
    temperature: float
    """In degrees Celsius."""
    memory_used: float
    """In MiB, as `memory_total`."""
    memory_total: float
