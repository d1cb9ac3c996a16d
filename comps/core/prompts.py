"""Request and documents into a prompt; the only place where documents meet a template.

The layout keeps what stays the same in front (instructions, history, documents) and the question last, so that a model
server's prefix cache can be of use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from comps.core.errors import InvalidRequest
from comps.core.types import JSON, Document, GenerationRequest, Message, Prompt

RAG_TEMPLATES = {
    "en": "Answer the question from these search results.\n\n{context}\n\n{question}",
    "zh": "请根据以下搜索结果回答问题。\n\n{context}\n\n{question}",
}
"""Chosen by `tests/benchmarks/answers.py`: more words about how to answer cost a small model a quarter of its facts."""

AUTO = "auto"
"""The language that goes by the documents: Chinese where they are, else English."""

DOCUMENT_TEMPLATE = "[{number}] {title}\n{text}"

_PLACEHOLDER = re.compile(r"\{(context|question)\}")
_FIELD = re.compile(r"\{(\w+)\}")
_CJK = re.compile("[\u4e00-\u9fff]")
_TEXTS = ("text", "refusal", "thinking")
"""What parts of a content call the text that they hold."""
_LOOKED_AT = 20_000
"""Of so many characters the language is told."""
_CHINESE_SHARE = 0.3
"""From this share of Chinese characters on, a context is Chinese: OPEA's own rule."""


@dataclass(frozen=True, slots=True)
class Templates:
    """How questions and documents become prompts.

    Attributes:
        rag: Templates with `{context}` and `{question}`, by language.
        document: A document in the context, with `{number}`, `{title}`, `{text}`, and any name in its metadata. A line
            none of whose fields has a value is left out.
        escape: Makes a text one that neither opens nor closes a turn: a document, and a turn that something was
            filled into, are looked at as the model reads them, too, since what was filled in may be harmless until it
            stands beside something else.
    """

    rag: Mapping[str, str] = field(default_factory=lambda: RAG_TEMPLATES)
    document: str = DOCUMENT_TEMPLATE
    escape: Callable[[str], str] = str

    @property
    def numbered(self) -> bool:
        """Whether a model can tell the documents by their numbers."""
        return "{number}" in self.document


DEFAULT_TEMPLATES = Templates()


def build_prompt(request: GenerationRequest, templates: Templates = DEFAULT_TEMPLATES) -> Prompt:
    """The prompt that the model gets: what was asked, with every document in it.

    Text to continue stays text, and a conversation a conversation, in which the documents go into the last user turn
    (or where a system turn asks for them with `{context}`, which gives way to nothing where a search found nothing).

    Raises:
        InvalidRequest: There are documents, but no user turn to lay them before; or no template for the language.
    """
    if request.language not in (AUTO, *templates.rag):
        known = ", ".join([AUTO, *sorted(templates.rag)])
        raise InvalidRequest(f"there is no prompt template for '{request.language}'; known: {known}", "language")
    if request.documents is None and request.template is None:
        return request.prompt
    documents = request.documents or ()
    if any(document.number is None for document in documents):
        documents = numbered(documents)
    context = "\n\n".join(as_context(document, templates) for document in documents)
    if isinstance(request.prompt, str):
        if not _is_wrapped(request):
            return request.prompt
        return fill(_template(request, context, templates), context, request.prompt)
    return _into_conversation(request, request.prompt, context, templates)


def numbered(documents: Sequence[Document]) -> tuple[Document, ...]:
    """The documents with their numbers: the `citation_id`s of the caller, if there is another for each, else their
    places."""
    given = [one for document in documents if (one := own_number(document)) is not None]
    called = given if len(set(given)) == len(documents) else range(1, len(documents) + 1)
    return tuple(replace(document, number=number) for document, number in zip(documents, called, strict=True))


def own_number(document: Document) -> int | None:
    """The `citation_id` of the caller, if a mark can say it."""
    own = document.metadata.get("citation_id")
    return own if isinstance(own, int) and not isinstance(own, bool) and own > 0 else None


def escape_control_tokens(request: GenerationRequest, escape: Callable[[str], str]) -> GenerationRequest:
    """The request with every text in it made escape, but for one to continue: that may hold turns of the caller's."""

    def each(value: JSON) -> JSON:
        if isinstance(value, str):
            return escape(value)
        if isinstance(value, dict):
            return {name: each(one) for name, one in value.items()}
        return [each(one) for one in value] if isinstance(value, list) else value

    def part(one: JSON) -> JSON:
        # What is no text, such as the URL of a picture, is not for reading.
        texts = {name: one[name] for name in _TEXTS if isinstance(one.get(name), str)}
        return {**one, **each(texts)}

    def message(one: Message) -> Message:
        said = one.content
        content = escape(said) if isinstance(said, str) else [part(each) for each in _with_texts_together(said)]
        return replace(one, content=content, extra=each(dict(one.extra)))

    def document(one: Document) -> Document:
        return replace(one, text=escape(one.text), title=escape(one.title), metadata=each(dict(one.metadata)))

    if request.documents:
        request = replace(request, documents=tuple(map(document, request.documents)))
    if isinstance(request.prompt, str):
        return request
    prompt = tuple(map(message, request.prompt))
    return replace(request, prompt=prompt, template=request.template and escape(request.template))


def _with_texts_together(content: Sequence[JSON]) -> Iterator[JSON]:
    """The parts of a content, with neighbouring texts as one: a model server may lay them side by side, where what is
    harmless in each would be so no more."""
    for name, run in groupby(content, _name_of_text):
        parts = list(run)
        if name is None:
            yield from parts
        else:
            whole = {key: value for part in reversed(parts) for key, value in part.items()}
            yield {**whole, name: "\n".join(part[name] for part in parts)}


def _name_of_text(part: JSON) -> str | None:
    """What a part that is a text calls it."""
    name = str(part.get("type")).removeprefix("input_").removeprefix("output_")
    return name if name in _TEXTS and isinstance(part.get(name), str) else None


def as_context(document: Document, templates: Templates = DEFAULT_TEMPLATES) -> str:
    """A document as the model reads it."""
    values = {name: str(value) for name, value in document.metadata.items() if isinstance(value, str | int | float)}
    values |= {"number": str(document.number), "title": document.title, "text": document.text}
    lines = []
    for line in templates.document.splitlines(keepends=True):
        fields = [values.get(name, "") for name in _FIELD.findall(line)]
        if fields and not any(fields):
            continue
        filled = _FIELD.sub(lambda found: values.get(found[1], ""), line)
        # Where what a line ends with is missing, the next one goes on there.
        lines.append(filled.rstrip("\n") if line.endswith("}\n") and not fields[-1] else filled)
    return templates.escape("".join(lines))


def _is_wrapped(request: GenerationRequest) -> bool:
    """Whether there is something to lay around the question."""
    return bool(request.documents) or request.template is not None


def fill(template: str, context: str, question: str) -> str:
    """`template` with `{context}` and `{question}` replaced, in one pass: what is filled in is never read as template.

    A template without one of the two still gets it: neither a document nor the question is ever lost.
    """
    if context and "{context}" not in template:
        template = "{context}\n\n" + template
    if "{question}" not in template:
        template += "\n\n{question}"
    values = {"context": context, "question": question}
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)


def chosen_template(request: GenerationRequest, templates: Templates = DEFAULT_TEMPLATES) -> str | None:
    """The template that is laid around the question, whichever of the documents are kept; None if none is."""
    asking = not isinstance(request.prompt, str) and any(map(asks_for_context, request.prompt))
    if not _is_wrapped(request) or (asking and request.template is None):
        return None
    context = "\n\n".join(f"{document.title}\n{document.text}" for document in request.documents or ())
    return _template(request, context, templates)


def _template(request: GenerationRequest, context: str, templates: Templates) -> str:
    if request.template is not None:
        return request.template
    if request.language in templates.rag:
        return templates.rag[request.language]
    beginning = context[:_LOOKED_AT]
    chinese = bool(context) and len(_CJK.findall(beginning)) >= _CHINESE_SHARE * len(beginning)
    return templates.rag["zh" if chinese else "en"]


def _into_conversation(
    request: GenerationRequest, messages: tuple[Message, ...], context: str, templates: Templates
) -> Prompt:
    asking = any(asks_for_context(message) for message in messages)
    if asking:
        messages = tuple(_with_context(one, context, templates) if asks_for_context(one) else one for one in messages)
    if not _is_wrapped(request) or (asking and request.template is None):
        return messages
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        raise InvalidRequest("documents need a message of role 'user' to go with", "messages")
    turn = messages[last]
    filled = templates.escape(fill(_template(request, context, templates), context, text_of(turn.content)))
    content: str | list[JSON] = filled
    if not isinstance(turn.content, str):
        content = [{"type": "text", "text": filled}, *(part for part in turn.content if not _is_text(part))]
    return (*messages[:last], replace(turn, content=content), *messages[last + 1 :])


def asks_for_context(message: Message) -> bool:
    """Whether documents belong into this message."""
    return (
        message.role in ("system", "developer") and isinstance(message.content, str) and "{context}" in message.content
    )


def _with_context(message: Message, context: str, templates: Templates) -> Message:
    assert isinstance(message.content, str)
    return replace(message, content=templates.escape(message.content.replace("{context}", context)))


def plain_roles(prompt: Prompt) -> Prompt:
    """The prompt for a model's chat template, which seldom knows `developer`: OpenAI's newer name of `system`."""
    if isinstance(prompt, str):
        return prompt
    return tuple(replace(one, role="system") if one.role == "developer" else one for one in prompt)


def text_of(content: str | list[JSON]) -> str:
    """The text of a message's content, its parts joined by newlines."""
    if isinstance(content, str):
        return content
    return "\n".join(str(part["text"]) for part in content if _is_text(part))


def only_text(message: Message) -> str:
    """The text of a message for a model that reads nothing else.

    Raises:
        InvalidRequest: There are parts that are no text.
    """
    if isinstance(message.content, str):
        return message.content
    foreign = next((part for part in message.content if part.get("type") != "text"), None)
    if foreign is not None:
        raise InvalidRequest(f"this model takes text only, no '{foreign.get('type')}'", "messages")
    return "\n".join(part["text"] for part in message.content)


def _is_text(part: JSON) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and "text" in part
