"""Content blocks of the Messages API, as requests have them: what they need, and what is read of them.

https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from comps.core.errors import shown_name
from comps.core.types import JSON
from comps.dialects.shared.bodies import MOST

Block: TypeAlias = dict[str, Any]

OF_ROLES: Mapping[str, tuple[str, ...]] = {
    "user": ("text", "image", "document", "search_result", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}
"""The types of blocks that a message may have, by its role."""
_OF_RESULTS = ("text", "image", "document", "search_result")
"""The types of blocks in the result of a tool."""
CITABLE = ("document", "search_result")
_OF_SERVERS = ("server_tool_use", "_tool_result", "container_upload", "mcp_tool_use")
"""What the types of blocks of tools that Anthropic's servers run end with."""
_READ: Mapping[str, tuple[str, ...]] = {
    # The citations of an earlier answer say nothing to the model.
    "text": ("text", "citations"),
    "image": ("source",),
    "document": ("source", "title", "context", "citations"),
    "search_result": ("content", "source", "title", "citations"),
    "tool_result": ("tool_use_id", "content", "is_error"),
    # Who called is the same for all tools here: the model.
    "tool_use": ("id", "name", "input", "caller"),
    # A signature proves to Anthropic's servers that they wrote the thinking.
    "thinking": ("thinking", "signature"),
    "redacted_thinking": ("data",),
}
"""The fields that are read, by the type of block."""
_OF_SOURCES: Mapping[str, tuple[str, ...]] = {
    "text": ("media_type", "data"),
    "content": ("content",),
    "base64": ("media_type", "data"),
    "url": ("url",),
}
"""Those of the source of a document or an image, by its type."""


def _need(block: Mapping[str, Any], name: str, kind: type | tuple[type, ...], called: str) -> Any:
    if not isinstance(block.get(name), kind):
        raise ValueError(f"a block of type '{block.get('type')}' needs its {name}, {called}")
    return block[name]


def _check_optional(block: Block, name: str, kind: type | tuple[type, ...], called: str) -> None:
    if block.get(name) is not None:
        _need(block, name, kind, called)


def _check_text(block: Block) -> None:
    _need(block, "text", str, "a string")


def _check_image(block: Block) -> None:
    source = _need(block, "source", dict, "an object")
    match source.get("type"):
        case "base64":
            for name in ("media_type", "data"):
                _need(source, name, str, "a string")
        case "url":
            _need(source, "url", str, "a string")
        case "file":
            raise ValueError("files are not kept here; send the image with a source of type 'base64' or 'url'")
        case other:
            raise ValueError(f"the source of an image is of type 'base64' or 'url', not {shown_name(other)}")


def _check_document(block: Block) -> None:
    for name in ("title", "context"):
        _check_optional(block, name, str, "a string")
    _check_citations(block)
    source = _need(block, "source", dict, "an object")
    match source.get("type"):
        case "text":
            _need(source, "data", str, "a string")
        case "content":
            _check_texts(_need(source, "content", (str, list), "a string or a list of text blocks"))
        case "base64":
            raise ValueError("a document in base64, such as a PDF, is not read here; send its text, as source.data")
        case "url" | "file" as kind:
            raise ValueError(f"a document by its {kind} is not fetched here; send its text, as source.data")
        case other:
            raise ValueError(f"the source of a document is of type 'text' or 'content', not {shown_name(other)}")


def _check_search_result(block: Block) -> None:
    for name in ("source", "title"):
        _need(block, name, str, "a string")
    _check_citations(block)
    _check_texts(_need(block, "content", list, "a list of text blocks"))


def _check_texts(content: JSON) -> None:
    for one in content if isinstance(content, list) else ():
        if not isinstance(one, dict) or one.get("type") != "text":
            raise ValueError("the content of a document or a search result is text blocks here")
        _check_text(one)


def _check_citations(block: Block) -> None:
    _check_optional(block, "citations", dict, "an object")
    if not isinstance((block.get("citations") or {}).get("enabled"), bool | None):
        raise ValueError("citations.enabled is true or false")


def _check_tool_result(block: Block) -> None:
    _need(block, "tool_use_id", str, "a string")
    _check_optional(block, "is_error", bool, "true or false")
    _check_optional(block, "content", (str, list), "a string or a list of blocks")
    for one in blocks_in(block):
        check_type(checked(one), _OF_RESULTS, "the result of a tool")


def _check_tool_use(block: Block) -> None:
    for name in ("id", "name"):
        _need(block, name, str, "a string")
    _need(block, "input", dict, "an object")


_CHECKS: Mapping[str, Callable[[Block], object]] = {
    "text": _check_text,
    "image": _check_image,
    "document": _check_document,
    "search_result": _check_search_result,
    "tool_result": _check_tool_result,
    "tool_use": _check_tool_use,
    "thinking": lambda block: _need(block, "thinking", str, "a string"),
    "redacted_thinking": lambda block: _need(block, "data", str, "a string"),
}


def checked(block: Any) -> Block:
    """Returns a block.

    Raises:
        ValueError: It is of an unknown type, lacks something, or has what is not read here.
    """
    kind = block.get("type") if isinstance(block, dict) else None
    check = _CHECKS.get(kind) if isinstance(kind, str) else None
    if check is None:
        of_servers = isinstance(kind, str) and kind.endswith(_OF_SERVERS)
        why = "tools that Anthropic's servers run are not here" if of_servers else f"known: {', '.join(_CHECKS)}"
        raise ValueError(f"a block of type {shown_name(kind)} is not read here; {why}")
    check(block)
    read: Block = block
    return read


def check_type(block: Block, types: Sequence[str], what: str) -> None:
    """Refuse a block that is not of one of these types.

    Raises:
        ValueError: It is not.
    """
    if block["type"] not in types:
        raise ValueError(f"{what} has no block of type '{block['type']}'; it may have: {', '.join(types)}")


def blocks_in(block: Block, name: str = "content") -> list[Block]:
    """Returns the blocks of a content, which may be a text or missing."""
    blocks: list[Block] = _as_blocks(block.get(name) or [])
    return blocks


def _as_blocks(value: Any) -> Any:
    """A list of one text block for a text."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Blocks = Annotated[
    list[Annotated[dict[str, Any], AfterValidator(checked)]],
    Field(max_length=MOST),
    BeforeValidator(_as_blocks, json_schema_input_type=str | list[dict[str, Any]]),
]
"""A content: blocks, or a text, which is the same as one text block."""


def all_blocks(blocks: Iterable[Block]) -> Iterator[Block]:
    """Yields the blocks, and those within them: in results of tools, in documents and in search results."""
    for block in blocks:
        yield block
        inner = block["source"] if block["type"] == "document" and block["source"]["type"] == "content" else block
        if inner is not block or block["type"] in ("tool_result", "search_result"):
            yield from all_blocks(blocks_in(inner))


def unread(blocks: Iterable[Block]) -> Iterator[str]:
    """Yields the names of the fields of blocks that have no effect, and the types of blocks that have none."""
    for block in all_blocks(blocks):
        if block["type"] == "redacted_thinking":
            yield "redacted_thinking"
        yield from _others(block, _READ[block["type"]])
        if block["type"] in ("document", "image"):
            source = block["source"]
            yield from (f"source.{name}" for name in _others(source, _OF_SOURCES[source["type"]]))


def _others(said: Mapping[str, Any], read: Sequence[str]) -> list[str]:
    return [name for name, value in said.items() if value and name not in ("type", *read)]


def texts_of(block: Block) -> tuple[str, ...]:
    """Returns the texts of a document or a search result, which are what its citations count."""
    source = block["source"] if block["type"] == "document" else block
    if source.get("type") == "text" and block["type"] == "document":
        return (source["data"],)
    return tuple(one["text"] for one in blocks_in(source))
