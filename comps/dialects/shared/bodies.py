"""The parts of request bodies: documents and messages, in all forms in which services send them."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from comps.core.ordering import number_of
from comps.core.types import JSON, Document, Message

MOST = 10_000
"""The most items of a list in a body, such as documents or messages: to check more would block the event loop for too
long."""


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


Question = Annotated[str, AfterValidator(_not_blank), Field(json_schema_extra={"pattern": r"\S"})]

_TEXTS = ("text", "page_content", "content", "snippet")
"""The fields that may hold a document's text, the first one that is there: of OPEA, LangChain, Haystack and Cohere."""
_AROUND = ("kwargs", "node", "text_resource", "data", "document", "payload", "_source", "__data__")
"""The fields that may hold the document itself: of LangChain's serialised form, LlamaIndex (two) and Cohere (two)."""
_METADATA = ("meta", "extra_info")
"""The fields besides `metadata` that may hold a document's metadata: of Haystack, and of LlamaIndex's older nodes."""
_SCORES = ("relevance_score", "reranker_score", "rerank_score", "score", "_score")
"""The fields beside a text that may hold its score by the last that ranked it, the first one that is there: of Cohere,
Enterprise-RAG, Haystack, LlamaIndex and Elasticsearch. One in the metadata may be older."""
_SERIALISED = ("lc", "type", "id")
"""The fields beside `kwargs` in LangChain's serialised form: its version, and the class."""
_NO_TEXT = "a document needs a text, as text, page_content, content, snippet, node.text, data.text or document.text"


def _as_document(value: Any) -> Any:
    """A document as an object with one of `_TEXTS`, if it has one anywhere; what is around it is kept beside it.

    Pairs of a document and its score are LangChain's, and a document that is text those of rerankers (Cohere, Jina).
    """
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list) and len(value) == 2 and number_of(value[1]) is not None:
        document = _as_document(value[0])
        return {"score": value[1], **document} if isinstance(document, dict) else value
    if not isinstance(value, dict):
        return value
    if value.keys().isdisjoint(_TEXTS) and isinstance(value.get("document"), str):
        return _as_document({**value, "text": value["document"]})
    empty = (None, "") if any(value.get(name) for name in _TEXTS) else (None,)
    value = {name: one for name, one in value.items() if name not in _TEXTS or one not in empty}
    if value.keys().isdisjoint(_TEXTS) and (found := [name for name in _AROUND if isinstance(value.get(name), dict)]):
        inner = value.pop(found[0])
        around = {name: one for name, one in value.items() if found[0] != "kwargs" or name not in _SERIALISED}
        return _as_document({**around, **inner})
    return value


def _not_missing(text: Any) -> Any:
    if text is None:
        raise ValueError(_NO_TEXT)
    return text


def _as_title(title: Any) -> Any:
    return str(title) if isinstance(title, int | float) and not isinstance(title, bool) else title


def _as_metadata(metadata: Any) -> Any:
    """None for an empty list, which PHP writes for an empty object."""
    return None if metadata == [] else metadata


def _describe_forms(schema: dict[str, Any]) -> None:
    """Say in a document's JSON schema what `_as_document` reads."""
    text = schema["properties"]["text"]
    del text["default"]
    with_text = [{"required": [name], "properties": {name: {**text, "title": name}}} for name in _TEXTS]
    forms = with_text
    for names in (("text_resource",), _AROUND):
        inner = {"type": "object", "anyOf": forms}
        forms = with_text + [{"required": [name], "properties": {name: inner}} for name in names]
    schema["allOf"] = [{"anyOf": forms}]


class DocumentBody(BaseModel):
    """A document as pipelines send it, in the form of OPEA, LangChain, Haystack, LlamaIndex or Cohere."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_describe_forms)

    text: Annotated[str | list[str], BeforeValidator(_not_missing)] = Field(
        None, validate_default=True, validation_alias=AliasChoices(*_TEXTS)
    )
    title: Annotated[str | None, BeforeValidator(_as_title)] = None
    metadata: Annotated[dict[str, Any] | None, BeforeValidator(_as_metadata)] = None

    def documents(self) -> list[Document]:
        """The documents; one for each text of a list."""
        texts = [self.text] if isinstance(self.text, str) else self.text
        further = dict(self.model_extra or {})
        known = [further.pop(name) for name in _METADATA if isinstance(further.get(name), dict)]
        metadata = further | {name: value for one in (*known, self.metadata or {}) for name, value in one.items()}
        title = self.title or metadata.get("title")
        score = next((number for name in _SCORES if (number := number_of(further.get(name))) is not None), None)
        return [Document(text, title if isinstance(title, str) else "", metadata, score=score) for text in texts]


def _as_list(value: Any) -> Any:
    """A list of one document for an object that is in none."""
    return [value] if isinstance(value, dict) else value


Documents = Annotated[
    list[Annotated[DocumentBody, BeforeValidator(_as_document, json_schema_input_type=str | DocumentBody)]],
    Field(max_length=MOST, fail_fast=True),
    BeforeValidator(_as_list),
]


class DataBody(BaseModel):
    """What Enterprise-RAG sends with the messages."""

    model_config = ConfigDict(extra="allow")

    reranked_docs: Documents | None = None


_PARTS = ("image_url", "input_audio", "file", "refusal")
"""The types of message parts in OpenAI's API besides text; a model server may know others."""


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(part.get("type"), str):
        raise ValueError("a part needs a type")
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        raise ValueError("a part of type 'text' needs its text, a string")
    if part["type"] in _PARTS and not part.get(part["type"]):
        raise ValueError(f"a part of type '{part['type']}' needs its {part['type']}")
    return part


def _as_content(value: Any) -> Any:
    """A list of one part for a part that is in none."""
    return [value] if isinstance(value, dict) else value


def _as_part(value: Any) -> Any:
    return {"type": "text", "text": value} if isinstance(value, str) else value


class MessageBody(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        str | list[Annotated[dict[str, Any], BeforeValidator(_as_part), AfterValidator(_part)]] | None,
        BeforeValidator(_as_content),
    ] = None

    def message(self) -> Message:
        """The turn as the core's type."""
        return Message(self.role, "" if self.content is None else self.content, self.extra)

    @property
    def extra(self) -> dict[str, JSON]:
        """The other fields of the message: name, tool_calls, tool_call_id …"""
        if not self.model_extra:
            return {}
        return {name: value for name, value in self.model_extra.items() if value is not None}


def unread_in(messages: Sequence[MessageBody], capabilities: AbstractSet[str]) -> list[str]:
    """The names of the further fields of messages that a model server does not take (`messages.tool_calls` …)."""
    if "messages.*" in capabilities:
        return []
    extras = [body.model_extra for body in messages if body.model_extra]
    return sorted({f"messages.{name}" for extra in extras for name, value in extra.items() if value} - capabilities)


def _as_messages(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _asking(messages: list[MessageBody]) -> list[MessageBody]:
    for message in reversed(messages):
        if message.role == "user":
            asked = message.content
            if not (asked.strip() if isinstance(asked, str) else asked):
                raise ValueError("the last message of role 'user' must not be empty")
            break
    return messages


Messages = Annotated[
    list[MessageBody], Field(min_length=1, max_length=MOST, fail_fast=True), BeforeValidator(_as_messages)
]
AskingMessages = Annotated[Messages, AfterValidator(_asking)]
"""Messages in which the last one of role `user`, if there is any, is not empty."""


def echoed(document: Document) -> JSON:
    """A document as Enterprise-RAG returns it to its user interface."""
    known = document.metadata
    scores = {"vector_distance": 1.0, "reranker_score": 0.0, "citation_id": 0}
    echoed = {"text": document.text, **{name: known.get(name, default) for name, default in scores.items()}}
    if document.title:
        echoed["title"] = document.title
    if "url" in known:
        return {"type": "link", "url": known["url"], **echoed}
    if "bucket_name" in known and "object_name" in known:
        file = {name: known[name] for name in ("bucket_name", "object_name")}
        return {"type": "file", **file, **echoed}
    return echoed
