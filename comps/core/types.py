"""Value types that are passed between the packages. They do no I/O.

What a caller or a model says is in no `repr`, and so in no log that has one by accident.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import field
from typing import Any, TypeAlias

from comps.core.value_types import value_type

JSON: TypeAlias = Any
"""Any JSON value: None, bool, int, float, str, list or dict."""


MANY = 2**31 - 1
"""The largest count in a request. As `top_k`, it stands for all tokens."""


@value_type(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `content` is text, or a list of content parts in the model server's own form. Parts are passed through unchanged.
    """

    role: str
    content: str | list[JSON] = field(repr=False)
    extra: Mapping[str, JSON] = field(default_factory=dict, repr=False)
    """The other fields of an OpenAI message: name, tool_calls, tool_call_id …"""


Prompt: TypeAlias = str | tuple[Message, ...]
"""A prompt: text to continue, or a conversation (a tuple of messages) to answer."""


@value_type(frozen=True, slots=True)
class Document:
    """A document to answer from. Requests list documents in reranked order: the best comes first."""

    text: str = field(repr=False)
    title: str = field(default="", repr=False)
    metadata: Mapping[str, JSON] = field(default_factory=dict, repr=False)
    number: int | None = None
    """The citation number, at least 1, in the prompt and in the answer's citation marks; None: not assigned."""
    left_out: str = ""
    """The reason for which it is not in the prompt, whatever room there is; empty: it may be in it."""
    score: float | None = field(default=None, compare=False)
    """Its score by the last that ranked it, such as a reranker, the best being the greatest; None: unknown."""


@value_type(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. The model server decides a field that is None, or an empty `stop`."""

    max_tokens: int | None = None
    """The maximum number of tokens to generate, at least 1."""
    temperature: float | None = None
    """At least 0; 0 is greedy decoding."""
    top_p: float | None = None
    top_k: int | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    """The random seed: with the same one, the same model server gives the same answer. None: a new seed each time."""
    stop: tuple[str, ...] = field(default=(), repr=False)
    """Stop strings. Generation ends before the first of them; it is not part of the answer."""
    max_total_tokens: int | None = None
    """The maximum number of tokens of prompt (with its chat template) and answer together, at least 1."""


SAMPLING_FIELDS = tuple(Sampling.__dataclass_fields__)
"""The names of the fields of `Sampling`."""


def only(sampling: Sampling, names: AbstractSet[str]) -> Sampling:
    """Returns the sampling with the named fields alone; all others are unset."""
    kept = {name: getattr(sampling, name) for name in SAMPLING_FIELDS if name in names}
    return Sampling(**kept)


@value_type(frozen=True, slots=True)
class GenerationRequest:
    """A generation request, independent of the dialect in which it came."""

    prompt: Prompt = field(repr=False)
    documents: tuple[Document, ...] | None = None
    """None: the request has no documents. Empty: a search found none."""
    template: str | None = field(default=None, repr=False)
    """A prompt template with `{context}` and `{question}`; None: the template of `language`."""
    language: str = "auto"
    """The language whose template is used if `template` is None; `auto` detects it from the documents."""
    sampling: Sampling = Sampling()
    max_total_tokens: int | None = None
    """The maximum number of tokens of prompt and answer together, at least 1. If nothing can count the prompt, it is
    the maximum of the answer alone."""
    total_field: str | None = None
    """The request field that set `max_total_tokens`, for error messages; None if no field did."""
    total_is_default: bool = False
    """Whether `max_total_tokens` is a default: a prompt that fills a default is answered with one token."""
    defaulted: AbstractSet[str] = field(default=frozenset(), compare=False)
    """The fields of `sampling` and the options that are defaults of a dialect, which nobody sent. A model server that
    refuses one of them is asked without it."""
    total_without_template: bool = False
    """Whether `max_total_tokens` counts of the prompt only the contents of its messages."""
    model: str | None = None
    options: Mapping[str, JSON] = field(default_factory=dict, repr=False)
    """Options of OpenAI's API that are not sampling: tools, response_format, logprobs, n …"""
    citations: str | None = None
    """How the answer cites its documents: `auto`, `on`, `off` or `matched`; see `CITATION_MODES`. None: as set."""
    passages: bool = False
    """Whether `matched` citations have the passage of the document, and are written in a stream as soon as a sentence
    has ended; see `CitedSentences`."""
    order: str | None = None
    """The order of the documents: `auto`, `given`, `relevance` or `ends`; see `Ordering`. None: as set."""
    ranked: bool = True
    """Whether the documents were reranked, the best first."""
    quoted: tuple[Document, ...] = ()
    """Documents that the prompt already contains, numbered by their `citation_id`s."""
    drops_turns: bool = True
    """Whether earlier messages give way where a conversation does not fit; if not, it is refused."""
    is_large: bool = field(default=False, compare=False)
    """Whether it is planned beside the event loop, since its texts are long or many; see `core.beside`."""


@value_type(frozen=True, slots=True)
class DocumentUse:
    """How a document was used in the prompt."""

    number: int
    """The position in the request, from 1."""
    fate: str
    """`kept`, `cut` or `dropped`."""
    reason: str = ""
    """The reason, if `fate` is not `kept`."""
    tokens: int | None = None
    """The tokens of the whole document with its title; None: not counted."""
    tokens_used: int | None = None
    """The tokens of it that are in the prompt; None: not counted."""
    position: int | None = None
    """The position in the prompt, from 1; None if it is not there."""


@value_type(frozen=True, slots=True)
class Report:
    """How a request became a prompt, and how the context window is divided. All sizes are in tokens."""

    context_window: int | None = None
    """None: unknown."""
    counted: str = "not"
    """The counting method: `model` (the served model's tokenizer), `estimate` (a token for every three bytes), or `not`
    (the prompt fits for certain)."""
    documents: tuple[DocumentUse, ...] = ()
    order: str = "given"
    """How the documents were ordered: `given`, `scores`, `relevance` or `ends`."""
    nothing_found: bool = False
    """Whether a search found no documents."""
    native: bool = False
    """Whether the documents are passed as an option, and the model's own chat template renders them."""
    turns_dropped: int = 0
    """The number of messages before the question that were dropped, the earliest first."""
    prompt_tokens: int | None = None
    """The tokens of the whole prompt; None: not counted."""
    documents_tokens: int | None = None
    history_tokens: int | None = None
    question_tokens: int | None = None
    """The tokens of the question with its templates, and of the system messages."""
    max_tokens: int | None = None
    """The maximum number of tokens of the answer; None: the model server decides."""

    @property
    def headroom(self) -> int | None:
        """The tokens of the window that neither prompt nor answer needs; None if a size is unknown."""
        if self.context_window is None or self.prompt_tokens is None or self.max_tokens is None:
            return None
        return self.context_window - self.prompt_tokens - self.max_tokens


@value_type(frozen=True, slots=True)
class TextDelta:
    """A text delta: the next piece of an answer, in valid Unicode, with whole characters only."""

    text: str = field(repr=False)
    choice: int = 0
    extra: Mapping[str, JSON] | None = field(default=None, repr=False)
    """The other fields of an OpenAI delta (tool_calls, reasoning, logprobs), unchanged."""


@value_type(frozen=True, slots=True)
class Usage:
    """Token usage, as the model server counted it."""

    prompt_tokens: int
    completion_tokens: int
    details: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """OpenAI's usage details, each a number of tokens by kind: `prompt_tokens_details` has `cached_tokens` …"""

    def __add__(self, other: Usage) -> Usage:
        """Returns the sum. A detail that one of the two lacks is left out."""
        details = {
            name: {kind: number + of_other[kind] for kind, number in details.items() if kind in of_other}
            for name, details in self.details.items()
            if (of_other := other.details.get(name))
        }
        prompt, completion = self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens
        return Usage(prompt, completion, details)


def total(usages: Iterable[Usage | None]) -> Usage | None:
    """Returns the sum of the usages; None if one of them is None."""
    together: Usage | None = None
    for usage in usages:
        if usage is None:
            return None
        together = together + usage if together else usage
    return together or Usage(0, 0)


@value_type(frozen=True, slots=True)
class Finished:
    """The last event of a choice. An answer that breaks off has none: it raises a ModelServerError."""

    reason: str
    """The finish reason from the model server: `stop`, `length`, `tool_calls`, `function_call` or `content_filter`."""
    usage: Usage | None = None
    """The usage of all choices together. One `Finished` event of an answer has it, the others have None."""
    choice: int = 0
    stop_string: str | None = field(default=None, repr=False)
    """The stop string before which the answer ended; None if it ended otherwise, or the model server does not say."""


Event: TypeAlias = TextDelta | Finished


@value_type(frozen=True, slots=True)
class Generation:
    """A complete answer, collected from its events."""

    text: str = field(repr=False)
    reason: str
    usage: Usage | None = None
    """The usage of all choices together."""
    extra: Mapping[str, JSON] | None = field(default=None, repr=False)
    """The extra fields of the deltas (see `TextDelta.extra`), joined."""
    further: tuple[Generation, ...] = ()
    """The other choices, if the answer has several."""
    stop_string: str | None = field(default=None, repr=False)
    """See `Finished.stop_string`."""

    @property
    def choices(self) -> tuple[Generation, ...]:
        """All choices; the first is this one."""
        return (self, *self.further)


@value_type(frozen=True, slots=True)
class Token:
    """A token of a text."""

    id: int
    """Its number in the vocabulary of the served model."""
    end: int | None
    """Where it ends in the text, in characters; 0 for a special token in front of the text. None: unknown."""


@value_type(frozen=True, slots=True)
class Embeddings:
    """Embeddings: one vector for each text, all of the same length."""

    vectors: tuple[Sequence[float], ...] = field(repr=False)
    prompt_tokens: int | None = None
    """The tokens of all texts together; None if the model server does not say."""


CALLS_ON_DEMAND = "tool_choice.required"
"""The capability of a model that calls functions only where `tool_choice` demands a call: by itself, it calls none."""


@value_type(frozen=True, slots=True)
class ModelInfo:
    """The model that a model server serves."""

    name: str
    context_window: int | None = None
    """The maximum number of tokens of prompt and answer together; None if the server does not say."""
    capabilities: frozenset[str] = frozenset()
    """The names of the `Sampling` fields and options that the server supports."""
    base: str = ""
    """The name or path of the model itself, if the server says it and `name` is another one."""
    has_chat_template: bool | None = None
    """Whether the model server can apply a chat template of the model's; None: unknown."""


@value_type(frozen=True, slots=True)
class GPU:
    """The current state of a GPU. A value that its driver does not report is NaN."""

    id: int
    name: str
    load: float
    """In per cent."""
    temperature: float
    """In degrees Celsius."""
    memory_used: float
    """In MiB, as `memory_total`."""
    memory_total: float
