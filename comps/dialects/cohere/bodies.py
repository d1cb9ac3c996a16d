"""What is in the bodies of Cohere's API: messages, documents and results of tools, and what they are for a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from comps.core.types import JSON, Document, Message
from comps.dialects.shared.bodies import MOST

Object = dict[str, Any]

_TEXTS = ("text", "snippet", "content")
"""The keys of a document's data that usually have its text, the first one that is there."""
_PARTS: Mapping[str, Mapping[str, type]] = {
    "user": {"text": str, "image_url": dict},
    "system": {"text": str},
    "assistant": {"text": str, "thinking": str},
    "tool": {"text": str, "document": dict},
}
"""The types of content parts by role. A part has its value under the name of its type."""
_FIELDS: Mapping[str, frozenset[str]] = {
    "user": frozenset(),
    "system": frozenset(),
    "assistant": frozenset(("tool_calls", "tool_plan")),
    "tool": frozenset(("tool_call_id",)),
}
"""The fields that a model reads of a message beside its content, by role."""


_LONGEST = 10_000
"""The most characters of a source that each of its citations has: an answer may cite one a thousand times."""


def in_capitals(value: Any) -> Any:
    """A word in capitals, as the API's reference has the words of its options; its texts have small letters as well."""
    return value.upper() if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Source:
    """What an answer may cite."""

    document: Document
    told: dict[str, JSON]
    """The source in a citation."""

    @property
    def is_long(self) -> bool:
        """Whether it is too long to be repeated with each of its citations."""
        return len(self.document.text) + len(self.document.title) > _LONGEST

    @property
    def name(self) -> JSON:
        """The source in a further citation of a long one."""
        return {name: self.told[name] for name in ("type", "id")}


class DocumentBody(BaseModel):
    """A document: any keys and values, all of which the model reads."""

    model_config = ConfigDict(extra="allow")

    data: Object = Field(description="Such as title, text, author, date.")
    id: str | None = Field(None, description="By which citations name it; doc:0, doc:1 … if left out.")


def _as_document(value: Any) -> Any:
    return {"data": {"text": value}} if isinstance(value, str) else value


Documents = Annotated[
    list[Annotated[DocumentBody, BeforeValidator(_as_document, json_schema_input_type=str | DocumentBody)]],
    Field(max_length=MOST, fail_fast=True),
]


def sources_of(documents: Sequence[DocumentBody]) -> list[Source]:
    """The documents of a body."""
    named = [(f"doc:{place}" if one.id is None else one.id, one.data) for place, one in enumerate(documents)]
    return [
        Source(_document(data), {"type": "document", "id": name, "document": {"id": name, **data}})
        for name, data in named
    ]


def _document(data: Object, metadata: Mapping[str, JSON] = MappingProxyType({})) -> Document:
    """A document with all of its data: its title, its text, and a line for each other key."""
    others = dict(data)
    title = others.pop("title") if isinstance(data.get("title"), str) else ""
    text = next((name for name in _TEXTS if isinstance(data.get(name), str)), None)
    lines = [] if text is None else [others.pop(text)]
    lines += [f"{name}: {_as_text(value)}" for name, value in others.items()]
    return Document("\n".join(lines), title, metadata)


def _as_text(value: JSON) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _as_parts(value: Any) -> Any:
    """Parts that are text, in the form of the others; a part that is in no list is one of one."""
    parts = [value] if isinstance(value, dict) else value
    if not isinstance(parts, list):
        return value
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]


def _calls(calls: list[Object]) -> list[Object]:
    for call in calls:
        function = call.get("function")
        if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
            raise ValueError("a tool call needs a function with a name")
        if not isinstance(function.get("arguments", ""), str):
            raise ValueError("the arguments of a tool call are JSON as a string")
    return calls


class MessageBody(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="allow")

    role: Literal["user", "assistant", "system", "tool"]
    content: Annotated[str | list[Object] | None, BeforeValidator(_as_parts)] = Field(
        None,
        description="Text, or parts: text and image_url of a user, text of a system message, text and thinking of an "
        "assistant, text and document of a tool.",
    )
    tool_calls: Annotated[list[Object], AfterValidator(_calls)] | None = None
    tool_plan: str | None = None
    tool_call_id: str | None = Field(None, description="The call whose results these are.")
    citations: list[Object] | None = Field(None, description="Of an earlier answer; no effect.")

    @model_validator(mode="after")
    def _check(self) -> MessageBody:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role '{self.role}' needs a content")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a message of role 'tool' needs a tool_call_id")
        for part in self.parts:
            self._check_part(part)
        return self

    def _check_part(self, part: Object) -> None:
        known, kind = _PARTS[self.role], str(part.get("type"))
        if kind not in known:
            raise ValueError(f"a part of a message of role '{self.role}' has the type {' or '.join(known)}")
        if not isinstance(part.get(kind), known[kind]):
            raise ValueError(f"a part of type '{kind}' needs its {kind}, {_JSON_NAMES[known[kind]]}")
        if kind == "image_url" and not isinstance(part[kind].get("url"), str):
            raise ValueError("a picture needs its url, a string")
        if kind == "document" and not isinstance(part[kind].get("data"), dict):
            raise ValueError("a document needs its data, an object")
        if kind == "document" and not isinstance(part[kind].get("id"), str | None):
            raise ValueError("the id of a document is a string")

    @property
    def parts(self) -> list[Object]:
        """The parts of the content; text is one part."""
        if self.content is None:
            return []
        return [{"type": "text", "text": self.content}] if isinstance(self.content, str) else self.content

    def message(self) -> Message:
        """The turn in OpenAI's form, which model servers read."""
        if self.role == "user":
            return Message("user", self.content or "")
        if self.role == "system":
            return Message("system", self._text("text"))
        if self.role == "tool":
            texts = [
                part["text"] if part["type"] == "text" else _as_text(part["document"]["data"]) for part in self.parts
            ]
            return Message("tool", "\n".join(texts), {"tool_call_id": self.tool_call_id})
        extra: dict[str, JSON] = {"tool_calls": [_call(call) for call in self.tool_calls]} if self.tool_calls else {}
        if thinking := self._text("thinking"):
            extra["reasoning_content"] = thinking
        return Message("assistant", "\n".join(filter(None, (self.tool_plan, self._text("text")))), extra)

    def _text(self, kind: str) -> str:
        return "\n".join(part[kind] for part in self.parts if part["type"] == kind)

    def results(self) -> Iterator[tuple[str, JSON]]:
        """Yields the results of a tool, each with its id: its data, or a text as the object that it is as JSON."""
        if self.role != "tool":
            return
        for place, part in enumerate(self.parts):
            name = f"{self.tool_call_id}:{place}"
            if part["type"] == "document":
                given = part["document"].get("id")
                yield name if given is None else given, part["document"]["data"]
            else:
                yield name, _object_in(part["text"])

    def ignored(self, capabilities: AbstractSet[str]) -> Iterator[str]:
        """Yields the names of the fields that have no effect."""
        sent = {name for name in ("tool_calls", "tool_plan", "tool_call_id", "citations") if getattr(self, name)}
        yield from sent - _FIELDS[self.role]
        yield from (name for name, value in (self.model_extra or {}).items() if value is not None)
        if "messages.*" not in capabilities:
            extra = self.message().extra
            yield from (_OWN_NAMES.get(name, name) for name in extra if f"messages.{name}" not in capabilities)
        if self.role != "user":
            for part in self.parts:
                inner = part.get("document") or {}
                yield from (f"content.{name}" for name in part.keys() - {"type", part["type"]})
                yield from (f"content.document.{name}" for name in inner.keys() - {"data", "id"})


_OWN_NAMES = {"reasoning_content": "content.thinking"}
"""The API's names of what is a field of a message in OpenAI's form."""
_JSON_NAMES: Mapping[type, str] = {str: "a string", dict: "an object"}

Messages = Annotated[list[MessageBody], Field(min_length=1, max_length=MOST, fail_fast=True)]


def tool_sources(messages: Sequence[MessageBody], number: int) -> list[Source]:
    """The results of tools in messages, with citation numbers.

    Args:
        messages: The messages.
        number: The first citation number.
    """
    found = [result for message in messages for result in message.results()]
    return [
        Source(
            _document(data, {"citation_id": number + place}),
            {"type": "tool", "id": name, "tool_output": data},
        )
        for place, (name, data) in enumerate(found)
    ]


def _call(call: Object) -> JSON:
    return {**call, "type": "function", "function": {"arguments": "", **call["function"]}}


def _object_in(text: str) -> Object:
    """The JSON object that a text is; an object with the text if it is none."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {"content": text}
