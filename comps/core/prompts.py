"""Requests and documents become prompts; the only place where documents are filled into templates.

What stays the same from request to request comes first (instructions, history, documents) and the question last, so
that a model server's prefix cache applies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice

from comps.core.errors import InvalidRequest, shown_name
from comps.core.repetitions import once_each
from comps.core.types import JSON, Document, GenerationRequest, Message, Prompt

RAG_TEMPLATES = {"en": "Context:\n{context}\n\n{question}", "zh": "上下文：\n{context}\n\n{question}"}
"""What is put around documents and a question, by language."""

INSTRUCTIONS = {
    "en": "Answer the question using only the context. Answer in one short sentence.",
    "zh": "只根据上下文回答问题。用一句简短的话回答。",
}
"""What the model is told to do, by language: the system message, or the beginning of the user message."""

CITING = {
    "en": "After each statement, put the number of its document in brackets, as in [{number}].",
    "zh": "在每个陈述后用方括号标出所依据文档的编号，例如[{number}]。",
}
"""What is added to an instruction where citation marks are wanted; other languages have it in English."""

AUTO = "auto"
"""The language that is detected in the documents: Chinese or English."""

DOCUMENT_TEMPLATE = "{title}: {text}"
"""A document is on a line of its own, without a number; docs/answers.md compares it with blocks and numbers."""
_NUMBER = "[{number}] "

_PLACEHOLDER = re.compile(r"\{(context|question)\}")
_BRACED = re.compile(r"\{\s?(\w{4,12})\s?\}")
"""What may be meant as a placeholder."""
_FIRST = 100
"""How many are looked at: thousands would hold the event loop."""
_ALIKE = 0.75
"""How alike it is to one, at least; see `difflib`."""
_REPEATED = 1_000_000
"""The characters that a caller's template may make of short texts by repeating them."""
_FIELD = re.compile(r"\{(\w+)\}(: (?=\{))?")
"""A field, and the colon between it and the next one."""
_CJK = re.compile("[\u4e00-\u9fff]")
TEXT_KEYS = ("text", "refusal", "thinking")
"""The keys of a content part that hold text to read."""
_DETECTED_LENGTH = 20_000
"""In characters: the beginning of the context in which the language is detected."""
_CHINESE_SHARE = 0.3
"""From this share of Chinese characters on, a context is Chinese: OPEA's own rule."""


@dataclass(frozen=True, slots=True)
class Templates:
    """How questions and documents become prompts.

    Attributes:
        rag: Templates with `{context}` and `{question}`, by language.
        document: A document in the context, with `{number}`, `{title}`, `{text}`, and any key of its metadata. A line
            none of whose fields has a value is left out, and so is a colon behind a field without one.
        escape: Breaks up turn markers in a text. It is applied to whole texts after they are filled in, since two
            harmless texts may form a marker where they meet: to each message that something was filled into, and, in
            text to continue, to each document.
        instructions: What the model is told to do, by language; a language may have none.
    """

    rag: Mapping[str, str] = field(default_factory=lambda: RAG_TEMPLATES)
    document: str = DOCUMENT_TEMPLATE
    escape: Callable[[str], str] = str
    instructions: Mapping[str, str] = field(default_factory=lambda: INSTRUCTIONS)

    @property
    def numbered(self) -> bool:
        """Whether the model sees the documents' numbers."""
        return "{number}" in self.document

    def with_numbers(self) -> Templates:
        """Returns the templates with a number before each document."""
        return self if self.numbered else replace(self, document=_NUMBER + self.document)

    @property
    def separator(self) -> str:
        """What is between two documents: a line break; a blank line if a document has several lines in the template."""
        return "\n\n" if "\n" in self.document else "\n"


DEFAULT_TEMPLATES = Templates()


def build_prompt(request: GenerationRequest, templates: Templates = DEFAULT_TEMPLATES) -> Prompt:
    """The prompt that the model gets: what was asked, with every document in it.

    Text to continue stays text, and a conversation stays a conversation: there, the documents go into the last user
    message, or where a system message asks for them with `{context}`, which is empty where a search found nothing.
    Messages that nothing is filled into stay as they are.

    Raises:
        InvalidRequest: There are documents and no user message to put them into, or no template for the language.
    """
    check_language(request, templates)
    if request.documents is None and request.template is None:
        return request.prompt
    documents = request.documents or ()
    if any(document.number is None for document in documents):
        documents = tuple(one for one in numbered(documents) if not one.left_out)
    contexts = [as_context(document, templates) for document in documents]
    if not isinstance(request.prompt, str):
        return _into_conversation(request, request.prompt, templates.separator.join(contexts), templates)
    if not _is_wrapped(request):
        return request.prompt
    context = templates.separator.join(map(templates.escape, contexts))
    return fill(_template(request, templates), context, request.prompt)


def check_language(request: GenerationRequest, templates: Templates) -> None:
    """Refuse a language that has no template.

    Raises:
        InvalidRequest: There is none.
    """
    if request.language != AUTO and request.language not in templates.rag:
        known = ", ".join([AUTO, *sorted(templates.rag)])
        raise InvalidRequest(
            f"there is no prompt template for {shown_name(request.language)}; known: {known}", "language"
        )


def numbered(documents: Sequence[Document]) -> tuple[Document, ...]:
    """The documents, repetitions left out (`once_each`), with their numbers: the caller's `citation_id`s if every other
    one has one of its own, else their places, from 1. What is left out has no number."""
    documents = once_each(documents)
    given = [own_number(document) for document in documents if not document.left_out]
    are_own = None not in given and len(set(given)) == len(given)
    numbers = map(own_number, documents) if are_own else range(1, len(documents) + 1)
    return tuple(
        Document(one.text, one.title, one.metadata, None if one.left_out else number, one.left_out, one.score)
        for one, number in zip(documents, numbers, strict=True)
    )


def own_number(document: Document) -> int | None:
    """The caller's `citation_id`, if it can be a document's number: an integer from 1 on."""
    own = document.metadata.get("citation_id")
    return own if isinstance(own, int) and not isinstance(own, bool) and own > 0 else None


def text_key(part: JSON) -> str | None:
    """The key under which a part holds its text; None if it is no text."""
    if not isinstance(part, dict):
        return None
    key = str(part.get("type")).removeprefix("input_").removeprefix("output_")
    return key if key in TEXT_KEYS and isinstance(part.get(key), str) else None


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a document template, parsed."""

    pattern: str
    """With `%s` for each field."""
    fields: tuple[tuple[str, str], ...]
    """The names, and what follows each if it has a value: a colon, or nothing."""
    is_joined: bool
    """Whether the next line follows without a line break where the last field, which ends this line, is empty."""


@lru_cache(16)
def _lines(template: str) -> tuple[_Line, ...]:
    lines = []
    for line in template.splitlines(keepends=True):
        fields = tuple(_FIELD.findall(line))
        pattern = "%s".join(text.replace("%", "%%") for text in _FIELD.split(line)[::3])
        lines.append(_Line(pattern, fields, bool(fields) and line.endswith("}\n")))
    return tuple(lines)


def as_context(document: Document, templates: Templates = DEFAULT_TEMPLATES) -> str:
    """A document as the model reads it, not escaped."""
    values = {name: str(value) for name, value in document.metadata.items() if isinstance(value, str | int | float)}
    values["number"], values["title"], values["text"] = str(document.number), document.title, document.text
    filled = []
    for line in _lines(templates.document):
        fields = tuple([value + colon if (value := values.get(name, "")) else "" for name, colon in line.fields])
        if not fields or any(fields):
            text = line.pattern % fields
            filled.append(text.rstrip("\n") if line.is_joined and not fields[-1] else text)
    return "".join(filled)


def _is_wrapped(request: GenerationRequest) -> bool:
    """Whether a template is put around the question."""
    return bool(request.documents) or request.template is not None


def fill(template: str, context: str, question: str) -> str:
    """`template` with `{context}` and `{question}` replaced, in one pass: placeholders in what is filled in stay.

    A template without one of the two gets it all the same: neither a document nor the question is ever lost.
    """
    if context and "{context}" not in template:
        template = "{context}\n\n" + template
    if "{question}" not in template:
        template += "\n\n{question}"
    values = {"context": context, "question": question}
    _check_filled(template, len(context), len(question), "chat_template")
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)


def misspelled(template: str) -> str | None:
    """Returns what is wrong with a template that has `{contxt}` or `{qestion}` and not the placeholder itself."""
    for found in islice(_BRACED.finditer(template), _FIRST):
        for meant in get_close_matches(found[1].lower(), ("context", "question"), 1, _ALIKE):
            if f"{{{meant}}}" not in template:
                return f"{found[0]} is no placeholder; did you mean {{{meant}}}?"
    return None


def _check_filled(template: str, context: int, question: int, field: str) -> None:
    """Refuse a template that would repeat long texts, of so many characters, until they fill the memory."""
    most = _REPEATED + 4 * (context + question)
    if len(template) * (context + question) <= most:
        return
    times = template.count("{context}"), template.count("{question}")
    if times[0] * context + times[1] * question > most:
        said = f"{times[0]} times {{context}} and {times[1]} times {{question}}"
        raise InvalidRequest(f"it has {said}, which is too much for texts as long as these", field)


def chosen_language(request: GenerationRequest, templates: Templates = DEFAULT_TEMPLATES) -> str | None:
    """The language whose template is put around the question; None if none is, or the request has its own."""
    has_place = not isinstance(request.prompt, str) and any(map(asks_for_context, request.prompt))
    if not request.documents or request.template is not None or has_place:
        return None
    if request.language in templates.rag:
        return request.language
    texts = [document.title + document.text[:_DETECTED_LENGTH] for document in request.documents]
    return "zh" if _is_chinese("".join(texts)) else "en"


def _template(request: GenerationRequest, templates: Templates) -> str:
    if request.template is not None:
        return request.template
    language = chosen_language(request, templates)
    assert language
    return templates.rag[language]


def _is_chinese(context: str) -> bool:
    beginning = context[:_DETECTED_LENGTH]
    return not beginning.isascii() and len(_CJK.findall(beginning)) >= _CHINESE_SHARE * len(beginning)


def _into_conversation(
    request: GenerationRequest, messages: tuple[Message, ...], context: str, templates: Templates
) -> Prompt:
    has_place = any(map(asks_for_context, messages))
    if has_place:
        messages = tuple(_with_context(one, context, templates) if asks_for_context(one) else one for one in messages)
    if not _is_wrapped(request) or (has_place and request.template is None):
        return messages
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        raise InvalidRequest("documents need a message of role 'user' to go with", "messages")
    question = messages[last]
    filled = fill(_template(request, templates), context, text_of(question.content))
    content: str | list[JSON] = templates.escape(filled)
    if not isinstance(question.content, str):
        content = [{"type": "text", "text": content}, *(part for part in question.content if not is_text(part))]
    return (*messages[:last], Message(question.role, content, question.extra), *messages[last + 1 :])


def asks_for_context(message: Message) -> bool:
    """Whether a message has a place for the documents: `{context}` in a system message."""
    return (
        message.role in ("system", "developer") and isinstance(message.content, str) and "{context}" in message.content
    )


def _with_context(message: Message, context: str, templates: Templates) -> Message:
    assert isinstance(message.content, str)
    _check_filled(message.content, len(context), 0, "messages")
    return replace(message, content=templates.escape(message.content.replace("{context}", context)))


def plain_roles(prompt: Prompt) -> Prompt:
    """The prompt with `system` in place of `developer`, OpenAI's newer name for it, which few chat templates know."""
    if isinstance(prompt, str):
        return prompt
    return tuple(replace(one, role="system") if one.role == "developer" else one for one in prompt)


def text_of(content: str | list[JSON]) -> str:
    """The text of a message's content, its parts joined by newlines."""
    if isinstance(content, str):
        return content
    return "\n".join(str(part["text"]) for part in content if is_text(part))


def question_of(prompt: Prompt) -> str:
    """The question: the text of the last user message, or the text to continue."""
    if isinstance(prompt, str):
        return prompt
    return next((text_of(message.content) for message in reversed(prompt) if message.role == "user"), "")


def all_text_of(content: str | list[JSON]) -> str:
    """The same, with the text of parts of other types, such as `input_text`, `refusal` and `thinking`."""
    if isinstance(content, str):
        return content
    return "\n".join(part[key] for part in content if (key := text_key(part)))


def only_text(message: Message) -> str:
    """The text of a message for a model that takes only text.

    Raises:
        InvalidRequest: It has parts that are not text.
    """
    if isinstance(message.content, str):
        return message.content
    other = next((part for part in message.content if part.get("type") != "text"), None)
    if other is not None:
        raise InvalidRequest(f"this model takes text only, no {shown_name(other.get('type'))}", "messages")
    return "\n".join(part["text"] for part in message.content)


def is_text(part: JSON) -> bool:
    """Whether a part of a content is text."""
    return isinstance(part, dict) and part.get("type") == "text" and "text" in part
