"""The texts of a request with control tokens in them broken up: those of its messages, documents and template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import is_

from comps.core.prompts import TEXT_KEYS, text_key
from comps.core.types import JSON, Document, GenerationRequest, Message, Prompt


def escape_control_tokens(request: GenerationRequest, escape: Callable[[str], str]) -> GenerationRequest:
    """The request with every text in it escaped, except text to continue and its template: these may hold turns that
    the caller wrote."""
    documents = request.documents and escape_documents(request.documents, escape)
    if isinstance(request.prompt, str):
        return replace(request, documents=documents) if documents else request
    prompt = escape_prompt(join_texts(request.prompt), escape)
    return replace(request, prompt=prompt, documents=documents, template=request.template and escape(request.template))


def escape_prompt(prompt: Prompt, escape: Callable[[str], str]) -> Prompt:
    """A conversation with every message escaped, the same object if nothing changes; text to continue as it is."""
    if isinstance(prompt, str):
        return prompt
    messages = tuple([_escape_message(message, escape) for message in prompt])
    return prompt if all(map(is_, messages, prompt)) else messages


def escape_documents(documents: Sequence[Document], escape: Callable[[str], str]) -> tuple[Document, ...]:
    """The documents with each text in them escaped; one that does not change is the same object."""
    return tuple(_escape_document(document, escape) for document in documents)


def _escape_document(document: Document, escape: Callable[[str], str]) -> Document:
    metadata = _escape_json(document.metadata, escape) if document.metadata else document.metadata
    escaped = Document(escape(document.text), escape(document.title), metadata, document.number)
    return document if escaped == document else escaped


def _escape_message(message: Message, escape: Callable[[str], str]) -> Message:
    content = message.content
    escaped = escape(content) if isinstance(content, str) else [_escape_part(part, escape) for part in content]
    extra = _escape_json(message.extra, escape) if message.extra else message.extra
    if escaped == content and extra == message.extra:
        return message
    return Message(message.role, escaped, extra)


def _escape_part(part: JSON, escape: Callable[[str], str]) -> JSON:
    """A part of a content; what is no text to read in it, such as a picture's URL, stays as it is."""
    return {**part, **{key: escape(part[key]) for key in TEXT_KEYS if isinstance(part.get(key), str)}}


def _escape_json(value: JSON, escape: Callable[[str], str]) -> JSON:
    """A JSON value with every string in it escaped, except the keys."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, Mapping):
        return {key: _escape_json(one, escape) for key, one in value.items()}
    return [_escape_json(one, escape) for one in value] if isinstance(value, list) else value


def join_texts(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages with neighbouring text parts of a content joined by line breaks: a model server may put them side
    by side, where two harmless texts may form a marker."""
    if all(isinstance(message.content, str) for message in messages):
        return messages
    return tuple(
        one if isinstance(one.content, str) else replace(one, content=[*_joined_parts(one.content)]) for one in messages
    )


def _joined_parts(content: Sequence[JSON]) -> Iterator[JSON]:
    for key, run in groupby(content, text_key):
        parts = list(run)
        if key is None:
            yield from parts
        else:
            joined = {name: value for part in reversed(parts) for name, value in part.items()}
            yield {**joined, key: "\n".join(part[key] for part in parts)}
