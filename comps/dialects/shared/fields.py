"""What most bodies that ask for text have in common: the sampling fields and documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from comps.core import types
from comps.core.errors import InvalidRequest
from comps.core.prompts import misspelled
from comps.core.types import JSON, Document, Sampling
from comps.dialects.shared.base import Call, GenerationCall
from comps.dialects.shared.bodies import DataBody, DocumentBody, Documents
from comps.dialects.shared.framing import ResponseMetadata, report_object, was_counted

MANY = types.MANY
StopStrings = Annotated[list[str], Field(max_length=100)]
"""Few enough to look for each of them at every token."""
_OTHER_LIMITS = dict.fromkeys(("max_new_tokens", "max_completion_tokens"))
_LIMITS = dict.fromkeys(("max_tokens", *_OTHER_LIMITS))
_SAMPLING = dict.fromkeys(name for name in Sampling.__dataclass_fields__ if name not in ("stop", "max_total_tokens"))
_SAMPLING_AND_STOP = dict.fromkeys((*_SAMPLING, "stop"))
SAMPLED = frozenset(_SAMPLING_AND_STOP)
"""The fields of a body that only say how to sample."""
_DOCUMENTS = ("documents", "reranked_docs", "retrieved_docs", "data")
_RERANKED = "there are reranked documents"
"""Why a document of `retrieved_docs` is left out."""
OF_SAMPLES = ("temperature", "top_k", "top_p", "typical_p")
"""Fields without effect in greedy decoding."""
_NEUTRAL: Mapping[str, tuple[JSON, ...]] = {
    # How to sample.
    "top_k": (MANY,),
    **dict.fromkeys(("top_p", "typical_p", "repetition_penalty", "repeat_penalty"), (1,)),
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), (0,)),
    # Of OpenAI's API.
    "n": (1,),
    "best_of": (0, 1),
    **dict.fromkeys(("echo", "logprobs", "store"), (False,)),
    **dict.fromkeys(("function_call", "tool_choice"), ("none", "auto")),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    # Of transformers.
    **dict.fromkeys(("length_penalty", "encoder_repetition_penalty"), (1,)),
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), (1,)),
    **dict.fromkeys(("min_length", "min_new_tokens", "min_p", "diversity_penalty"), (0,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "epsilon_cutoff", "eta_cutoff"), (0,)),
    **dict.fromkeys(("early_stopping", "renormalize_logits", "remove_invalid_values"), (False,)),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_scores"), (False,)),
    "return_dict_in_generate": (False,),
    "use_cache": (True,),
}
"""Values by field with which it has no effect, so that nothing is lost where it is not honoured."""


def matters(name: str, value: JSON) -> bool:
    """Whether a field with this value has an effect. Empty values have none; 0 and False are different values."""
    neutral = _NEUTRAL.get(name, ())
    return value not in (None, [], "", {}) and not any(
        value == one and isinstance(value, bool) is isinstance(one, bool) for one in neutral
    )


def or_all(top_k: int | None) -> int | None:
    """`top_k`, with all tokens for one that is 0 or less; None stays None, for the model server's default."""
    return MANY if top_k is not None and top_k <= 0 else top_k


def at_most_1(share: float | None) -> float | None:
    """`top_p`, with 1 for what is more; both switch it off."""
    return None if share is None else min(share, 1.0)


def _spelled(template: str) -> str:
    """A template without misspelled placeholders; those of Jinja are the model server's."""
    if not is_jinja(template) and (wrong := misspelled(template)):
        raise ValueError(wrong)
    return template


def is_jinja(template: str) -> bool:
    """Whether a template is one for Jinja, and none of ours."""
    if "{question}" in template or "{context}" in template:
        return False
    return any(opening in template for opening in ("{%", "{{", "{#"))


class SampledCall(GenerationCall):
    """A body with the sampling fields under the names of `Sampling`. `null` is the same as leaving a field out."""

    defaults: ClassVar[Mapping[str, float]] = {}
    """The sampling fields that apply where the body has none."""

    max_tokens: int | None = Field(None, gt=0, le=MANY, description="The same as max_new_tokens; the smaller counts.")
    max_new_tokens: int | None = Field(None, gt=0, le=MANY, description="The most tokens to generate.")
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy.")
    top_k: Annotated[int | None, Field(ge=-1, le=MANY), AfterValidator(or_all)] = Field(
        None, description="-1 or 0: off."
    )
    top_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | StopStrings | None = Field(
        None, description="Generation ends before any of these, which are not shown."
    )
    stream: bool | None = None

    @property
    def streamed(self) -> bool:
        return bool(self.stream)

    def sampling(self) -> Sampling:
        """How to sample: the body's fields, and the defaults for the rest."""
        return Sampling(**self.sampling_fields())

    @property
    def defaulted(self) -> AbstractSet[str]:
        """The sampling fields that are defaults, since the body does not have them."""
        return self.not_sent(self.defaults)

    def not_sent(self, defaults: Mapping[str, float]) -> AbstractSet[str]:
        """Those of the defaults that the body does not override."""
        if not defaults:
            return frozenset()
        sent = self.model_fields_set
        left = defaults.keys() - sent
        if nulls := defaults.keys() & sent:
            left |= {name for name in nulls if getattr(self, name) is None}
        if "max_tokens" in left and not sent.isdisjoint(_LIMITS) and self.sent_fields(_LIMITS):
            left.discard("max_tokens")
        return left

    def sampling_fields(self) -> dict[str, Any]:
        """The fields of `Sampling` that are set."""
        fields = {**self.defaults, **self.sent_fields(_SAMPLING)}
        if limits := self.sent_fields(_LIMITS):
            fields["max_tokens"] = min(limits.values())
        if self.stop:
            stops = [self.stop] if isinstance(self.stop, str) else self.stop
            fields["stop"] = tuple(text for text in stops if text)
        return fields

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        sent = self.sent_fields(_SAMPLING_AND_STOP)
        lost = [name for name, value in sent.items() if name not in capabilities and matters(name, value)]
        if "max_tokens" not in capabilities:
            lost += self.sent_fields(_OTHER_LIMITS)
        return lost + super().ignored(capabilities)


class GroundedCall(Call):
    """A body that may have documents, in any of the fields that OPEA's services use for them."""

    documents: Documents | None = Field(
        None,
        description="Reranked documents: strings or objects with text and title, or as LangChain, Haystack, LlamaIndex "
        "and Cohere have them.",
    )
    retrieved_docs: Documents | None = Field(
        None, description="Documents not reranked; the first top_n are taken, and none if there are reranked ones."
    )
    reranked_docs: Documents | None = None
    top_n: int | None = Field(None, gt=0, description="How many of retrieved_docs are taken; 1 if left out.")
    data: DataBody | None = Field(None, description="Enterprise-RAG 2: may hold reranked_docs.")
    chat_template: Annotated[str, Field(max_length=100_000), AfterValidator(_spelled)] | None = Field(
        None, description="A prompt template with {context} and {question}."
    )
    language: str | None = Field(
        None, description="Of the default prompt template: auto (by the documents), en, zh, or another of the settings."
    )
    include_report: bool | None = Field(None, description="Say in a stream, too, what became of the documents.")
    order: Literal["auto", "given", "relevance", "ends"] | None = Field(
        None, description="Of the documents in the prompt; as set, if left out."
    )
    citations: Literal["auto", "on", "off", "matched"] | bool | None = Field(
        None, description="How the answer cites its documents; true is on, false is off; as set, if left out."
    )

    def of_documents(self) -> dict[str, Any]:
        """The fields of `GenerationRequest` that say how the documents become a part of the prompt."""
        mode = self.citations
        if isinstance(mode, bool):
            mode = "on" if mode else "off"
        return {
            "template": self.prompt_template,
            "language": self.language or "auto",
            "citations": mode or self.promised_citations,
            "order": self.order,
            "ranked": self._are_ranked,
        }

    @property
    def promised_citations(self) -> str | None:
        """How answers of this form cite their documents, whatever is set; None: as set."""
        return None

    @property
    def _are_ranked(self) -> bool:
        """Whether somebody has put the documents in order: all but those that come from a retriever alone."""
        return not self.retrieved_docs or bool(self.documents) or self._is_reranked

    @property
    def prompt_template(self) -> str | None:
        """`chat_template`, if it is a prompt template of ours."""
        return None if self.template_options else self.chat_template

    @property
    def template_options(self) -> dict[str, JSON]:
        """`chat_template`, if it is a Jinja template, which vLLM applies instead of the model's own."""
        template = self.chat_template
        return {"chat_template": template} if template and is_jinja(template) else {}

    def ignored(self, capabilities: AbstractSet[str]) -> list[str]:
        if self.template_options and "chat_template" not in capabilities:
            message = "it is a Jinja template, which this model server does not take; a prompt template has {question}"
            raise InvalidRequest(f"{message} and {{context}}", "chat_template")
        lost = [f"data.{name}" for name in self.data.model_extra or ()] if self.data else []
        if (further := self._further_documents()) and not self._is_reranked:
            texts = {document.text.strip() for document in self.all_documents() or ()}
            if any(document.text.strip() not in texts for document in further):
                lost.append(f"retrieved_docs[{self.top_n or 1}:]")
        return lost + super().ignored(capabilities)

    @property
    def wants_report(self) -> bool:
        return bool(self.include_report)

    def with_report(self, reply: dict[str, JSON], metadata: ResponseMetadata) -> JSON:
        """A whole answer, with its `report`, or the `reports` of several prompts in their order, if they are asked for
        or a prompt had to be counted."""
        reports = [report for _, report in sorted(metadata.reports.items())]
        if not (reports and self.include_report) and not any(map(was_counted, reports)):
            return reply
        if len(reports) == 1:
            return {**reply, "report": report_object(reports[0])}
        return {**reply, "reports": [report_object(report) for report in reports]}

    def all_documents(self) -> tuple[Document, ...] | None:
        """The documents of all fields, best first; None if there is no such field, or the messages quote them all, or
        `documents` is null beside empty lists: so GenAIComps' objects say that nobody has searched."""
        if self.model_fields_set.isdisjoint(_DOCUMENTS):
            return None
        fields = (self.documents, self.reranked_docs, self.retrieved_docs, self.data and self.data.reranked_docs)
        if all(field is None for field in fields):
            return None
        best = _documents_of((self.documents or []) + (self.reranked_docs or []))
        found = (*best, *self._retrieved_documents(best), *self.unquoted_documents())
        is_none_found = not self.quoted_documents and ("documents" not in self.model_fields_set or self.documents == [])
        return found if found or is_none_found else None

    @property
    def _is_reranked(self) -> bool:
        """Whether there are documents from a reranker, which take the place of those from a retriever."""
        bodies = (self.reranked_docs or []) + ((self.data and self.data.reranked_docs) or [])
        return any(document.text.strip() for document in _documents_of(bodies))

    def _retrieved_documents(self, best: Sequence[Document]) -> list[Document]:
        """Those of `retrieved_docs` that have a place: all, marked, if there are reranked ones; else the first `top_n`,
        and of the others those whose texts are there already, since they may say more about these."""
        if not self.retrieved_docs:
            return []
        if self._is_reranked:
            return [replace(document, left_out=_RERANKED) for document in _documents_of(self.retrieved_docs)]
        first = _documents_of(self.retrieved_docs[: self.top_n or 1])
        texts = {document.text.strip() for document in (*best, *first)}
        return first + [document for document in self._further_documents() if document.text.strip() in texts]

    def _further_documents(self) -> list[Document]:
        """Those of `retrieved_docs` behind the first `top_n`."""
        return _documents_of((self.retrieved_docs or [])[self.top_n or 1 :])

    @property
    def quoted_documents(self) -> tuple[Document, ...]:
        """The documents in `data` that the messages quote."""
        return ()

    def unquoted_documents(self) -> list[Document]:
        """The documents in `data` that the messages do not quote."""
        texts = {document.text for document in self.quoted_documents}
        return [document for document in self.data_documents() if document.text not in texts]

    def data_documents(self) -> list[Document]:
        """The documents in `data`."""
        return _documents_of((self.data and self.data.reranked_docs) or [])


class DocumentsCall(GroundedCall, SampledCall):
    """A body that may have documents, and the sampling fields under the names of `Sampling`."""


def _documents_of(bodies: Sequence[DocumentBody]) -> list[Document]:
    return [document for body in bodies for document in body.documents()]
