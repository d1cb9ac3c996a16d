"""Messages of the Messages API → a conversation in OpenAI's shapes, and the documents and search results in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any

import orjson

from comps.core.types import JSON, Document, Message
from comps.dialects.anthropic.blocks import CITABLE, Block, blocks_in, texts_of

REASONING = "reasoning_content"
"""The field of a message with the reasoning, as model servers read it that write it."""


@dataclass(frozen=True, slots=True)
class Source:
    """A document or a search result, as it was sent."""

    block: Block
    place: int
    """Its place among those of its kind in the request, from 0, those in results of tools included."""
    texts: tuple[str, ...]
    ends: tuple[int, ...]
    """Where each text ends, in characters, where they are joined by line breaks; a break belongs to the text before."""


@dataclass(slots=True)
class Conversation:
    """What the model is asked.

    Documents and search results have their places among all of them, from 1, as numbers of citations.
    """

    messages: list[Message] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    """All documents and search results, in their order."""
    documents: list[Document] = field(default_factory=list)
    """Those that are to be written into the prompt."""
    quoted: list[Document] = field(default_factory=list)
    """Those that the messages contain: they are in results of tools, and stay there."""
    _counts: Counter[str] = field(default_factory=Counter)
    """How many sources there are of each kind."""

    @property
    def cites(self) -> set[bool]:
        """Whether citations are wanted, as the documents and search results say."""
        return {bool((source.block.get("citations") or {}).get("enabled")) for source in self.sources}

    def add_user(self, blocks: Sequence[Block]) -> None:
        """Add a user's turn: the results of tools, a message each, and then the rest."""
        rest = [block for block in blocks if block["type"] != "tool_result"]
        for block in blocks:
            if block["type"] == "tool_result":
                content = _content([self._part(one, is_quoted=True) for one in blocks_in(block)])
                if block.get("is_error"):
                    content = _failed(content)
                self.messages.append(Message("tool", content, {"tool_call_id": block["tool_use_id"]}))
        if rest:
            parts = [self._part(block, is_quoted=False) for block in rest]
            content = _content([part for part in parts if part is not None])
            self.messages.append(Message("user", content or _titles(rest)))

    def add_assistant(self, blocks: Sequence[Block]) -> None:
        """Add a turn of the model's. An answer is divided into text blocks where its citations are, and joined here."""
        extra: dict[str, JSON] = {}
        if thoughts := [block["thinking"] for block in blocks if block["type"] == "thinking"]:
            extra[REASONING] = "\n".join(thoughts)
        if calls := [_call(block) for block in blocks if block["type"] == "tool_use"]:
            extra["tool_calls"] = calls
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        self.messages.append(Message("assistant", text, extra))

    def add_system(self, blocks: Sequence[Block]) -> None:
        """Add instructions."""
        if blocks:
            self.messages.append(Message("system", "\n".join(block["text"] for block in blocks)))

    def _part(self, block: Block, *, is_quoted: bool) -> Any:
        """A block as a part of OpenAI's; None for one that goes into the prompt as a document."""
        if block["type"] == "image":
            return {"type": "image_url", "image_url": {"url": _url(block["source"])}}
        if block["type"] not in CITABLE:
            return {"type": "text", "text": block["text"]}
        document = self._add_source(block)
        if not is_quoted:
            self.documents.append(document)
            return None
        self.quoted.append(document)
        return {"type": "text", "text": f"{document.title}: {document.text}" if document.title else document.text}

    def _add_source(self, block: Block) -> Document:
        """Note a document or a search result; what is no text of it to cite is in the title."""
        texts = texts_of(block)
        ends = tuple(accumulate(len(text) + 1 for text in texts))
        self.sources.append(Source(block, self._counts[block["type"]], texts, ends))
        self._counts[block["type"]] += 1
        title = block.get("title") or ""
        about = block.get("context") if block["type"] == "document" else block["source"]
        titled = f"{title} ({about})" if title and about else title or about or ""
        return Document("\n".join(texts), titled, {"citation_id": len(self.sources)})


def conversation_of(system: Sequence[Block], turns: Iterable[tuple[str, Sequence[Block]]]) -> Conversation:
    """Reads messages; neighbouring ones of the same role are one turn.

    Args:
        system: The system prompt.
        turns: The role and the content of each message.
    """
    conversation = Conversation()
    conversation.add_system(system)
    add = {"user": conversation.add_user, "assistant": conversation.add_assistant, "system": conversation.add_system}
    for role, group in groupby(turns, key=lambda turn: turn[0]):
        add[role]([block for _, blocks in group for block in blocks])
    return conversation


def _content(parts: list[JSON]) -> str | list[JSON]:
    """Returns the content of a message: text, if that is all that it has."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _titles(blocks: Sequence[Block]) -> str:
    """Returns the text of a turn that has documents alone. They go into the prompt with the last question; here the
    model reads that they were sent."""
    return "\n".join(block.get("title") or "Document" for block in blocks if block["type"] in CITABLE)


def _failed(content: str | list[JSON]) -> str | list[JSON]:
    """Returns the result of a tool that failed, which OpenAI's messages have no field for."""
    if isinstance(content, str):
        return f"Error: {content}"
    return [{"type": "text", "text": "Error:"}, *content]


def _url(source: Block) -> str:
    if source["type"] == "url":
        return str(source["url"])
    return f"data:{source['media_type']};base64,{source['data']}"


def _call(block: Block) -> JSON:
    function = {"name": block["name"], "arguments": orjson.dumps(block["input"]).decode()}
    return {"id": block["id"], "type": "function", "function": function}
