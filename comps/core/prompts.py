"""Request and documents into a prompt; the only place where documents meet a template.

The layout keeps what stays the same in front (instructions, history, documents) and the question last, so that a model
server's prefix cache can be of use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from comps.core.errors import InvalidRequest
from comps.core.types import JSON, Document, GenerationRequest, Message, Prompt

RAG_TEMPLATES = {
    "en": (
        "Answer the question with what the search results say about it. If they say nothing, answer that you do not "
        "know.\n\nSearch results:\n{context}\n\nQuestion: {question}"
    ),
    "zh": (
        "请根据搜索结果中与问题有关的内容回答问题。如果搜索结果没有提到,请回答不知道。\n\n"
        "搜索结果:\n{context}\n\n问题:{question}"
    ),
}

_PLACEHOLDER = re.compile(r"\{(context|question)\}")
_CJK = re.compile("[\u4e00-\u9fff]")
_LOOKED_AT = 20_000
"""Of so many characters the language is told."""
_CHINESE_SHARE = 0.3
"""From this share of Chinese characters on, a context is Chinese: OPEA's own rule."""


def build_prompt(request: GenerationRequest) -> Prompt:
    """The prompt that the model gets: what was asked, with every document in it.

    Text to continue stays text, and a conversation a conversation, in which the documents go into the last user turn
    (or where a system turn asks for them with `{context}`, which gives way to nothing where a search found nothing).

    Raises:
        InvalidRequest: There are documents, but no user turn to lay them before.
    """
    if request.documents is None and request.template is None:
        return request.prompt
    context = _join(request.documents or ())
    if isinstance(request.prompt, str):
        if not _is_wrapped(request):
            return request.prompt
        return fill(_template(request, context), context, request.prompt)
    return _into_conversation(request, request.prompt, context)


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


def _join(documents: Sequence[Document]) -> str:
    return "\n\n".join(f"{doc.title}\n{doc.text}" if doc.title else doc.text for doc in documents)


def _template(request: GenerationRequest, context: str) -> str:
    if request.template is not None:
        return request.template
    if request.language in RAG_TEMPLATES:
        return RAG_TEMPLATES[request.language]
    beginning = context[:_LOOKED_AT]
    chinese = bool(context) and len(_CJK.findall(beginning)) >= _CHINESE_SHARE * len(beginning)
    return RAG_TEMPLATES["zh" if chinese else "en"]


def _into_conversation(request: GenerationRequest, messages: tuple[Message, ...], context: str) -> Prompt:
    asking = any(_asks_for_context(message) for message in messages)
    if asking:
        messages = tuple(_with_context(one, context) if _asks_for_context(one) else one for one in messages)
    if not _is_wrapped(request) or (asking and request.template is None):
        return messages
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        raise InvalidRequest("documents need a message of role 'user' to go with", "messages")
    turn = messages[last]
    filled = fill(_template(request, context), context, text_of(turn.content))
    content: str | list[JSON] = filled
    if not isinstance(turn.content, str):
        content = [{"type": "text", "text": filled}, *(part for part in turn.content if not _is_text(part))]
    return (*messages[:last], replace(turn, content=content), *messages[last + 1 :])


def _asks_for_context(message: Message) -> bool:
    return (
        message.role in ("system", "developer") and isinstance(message.content, str) and "{context}" in message.content
    )


def _with_context(message: Message, context: str) -> Message:
    assert isinstance(message.content, str)
    return replace(message, content=message.content.replace("{context}", context))


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
