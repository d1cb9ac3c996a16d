"""The parts of request bodies: documents and messages, in all forms in which services send them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from comps.core.types import JSON, Document, Message

MOST = 10_000
"""The most items of a list in a body, such as documents or messages: to check more would block the event loop for too
long."""


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _as_document(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


Question = Annotated[str, AfterValidator(_not_blank)]


class DocumentBody(BaseModel):
    """A document as the pipelines send it; a plain string stands for one with only a text."""

    model_config = ConfigDict(extra="allow")

    text: str | list[str]
    title: str | None = None
    metadata: dict[str, Any] | None = None

    def documents(self) -> list[Document]:
        """The documents; one for each text of a list."""
        texts = [self.text] if isinstance(self.text, str) else self.text
        metadata = {**(self.model_extra or {}), **(self.metadata or {})}
        return [Document(text, self.title or "", metadata) for text in texts]


Documents = Annotated[
    list[Annotated[DocumentBody, BeforeValidator(_as_document)]], Field(max_length=MOST, fail_fast=True)
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


def _as_part(value: Any) -> Any:
    return {"type": "text", "text": value} if isinstance(value, str) else value


class MessageBody(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Annotated[dict[str, Any], BeforeValidator(_as_part), AfterValidator(_part)]] | None = None

    def message(self) -> Message:
        """The turn as the core's type."""
        return Message(self.role, "" if self.content is None else self.content, self.extra)

    @property
    def extra(self) -> dict[str, JSON]:
        """The other fields of the message: name, tool_calls, tool_call_id …"""
        if not self.model_extra:
            return {}
        return {name: value for name, value in self.model_extra.items() if value is not None}


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
