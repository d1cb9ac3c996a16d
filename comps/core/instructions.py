"""The default prompt around a question with documents: its template, and the instruction that tells the model what to
do.

The instruction is a system message. It is at the beginning of the user message instead where the caller has a system
message, or the model's chat template writes none, as Gemma's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from comps.core.citations import marks
from comps.core.counting import NO_SUCH_ROUTE
from comps.core.errors import InvalidRequest, LLMError, Refused
from comps.core.prompts import CITING, Templates, check_language, chosen_language, is_text, question_of, text_of
from comps.core.tasks import at_once
from comps.core.types import JSON, GenerationRequest, Message, Prompt

log = logging.getLogger("opea_llm")

CountPrompt: TypeAlias = Callable[[Prompt, Mapping[str, JSON]], Coroutine[Any, Any, int]]
"""See `CountsPrompts`."""
Render: TypeAlias = Callable[[Prompt, Mapping[str, JSON]], Coroutine[Any, Any, str]]
"""See `Renders`."""

_PLACEHOLDER = re.compile(
    r"[\[【] ?(?:[#^]\d{1,3}|n|number|num|id|no\.|nr\.|编号|序号|数字"
    r"|(?:citation|cite|doc|document|source|ref|reference|文档|来源|资料)[ :#]*(?:\d{1,3}|n|x|id)) ?[\]】]",
    re.IGNORECASE,
)
"""What stands for a citation mark in an instruction: `[n]`, `[number]`, `[citation:1]`, `[Source 1]` …"""
_LAST_WORDS = 2000
"""How many of the last characters of a question are searched for a mark."""
_SYSTEM_ROLES = ("system", "developer")
_SHORT = "Answer in one word."
_LONG = f"{_SHORT} Answer politely, and say whether the weather in the harbour was good on the day before yesterday."
_LONGER_TOKENS = 8
"""The least number of tokens that the long one has more, in any vocabulary."""
_SYSTEM_REFUSED = re.compile(r"\b(?:system|developer) (?:role|message|instruction|prompt)|\broles?\b", re.IGNORECASE)
"""What errors about system messages say: `System role not supported` (Gemma), `Conversation roles must alternate
user/assistant/…` (Mistral), `Only user and assistant roles are supported` (Llama 2's relatives), `Developer
instruction is not enabled` (Google)."""


def asks_for_marks(request: GenerationRequest) -> bool:
    """Whether the request's own words ask for citation marks: one is in its template, a system message or the question.

    Returns:
        True for words such as `Cite the documents as [1]` and `Write [n] after each sentence`.
    """
    return any(map(_has_mark, _own_words(request)))


def _has_mark(text: str) -> bool:
    if "[" not in text and "【" not in text:
        return False
    return bool(_PLACEHOLDER.search(text)) or next(marks(text.replace("`", "")), None) is not None


def _own_words(request: GenerationRequest) -> Iterator[str]:
    yield request.template or ""
    yield question_of(request.prompt)[-_LAST_WORDS:]
    if not isinstance(request.prompt, str):
        yield from (text_of(message.content) for message in request.prompt if message.role in _SYSTEM_ROLES)


def instructed(
    request: GenerationRequest, templates: Templates, *, takes_system: bool, asks_to_cite: bool
) -> GenerationRequest:
    """Returns the request with the template of its language and the instruction, if it needs them.

    It needs none if it has no documents, a template of its own, or a place for the documents in a system message.

    Args:
        request: The request.
        templates: The templates.
        takes_system: Whether the model's chat template writes system messages.
        asks_to_cite: Whether the instruction asks for citation marks.

    Raises:
        InvalidRequest: There is no template for the language.
    """
    check_language(request, templates)
    language = chosen_language(request, templates)
    if language is None or not request.documents:
        if request.documents:
            log.debug("template: none of ours, since the request has its own")
        return request
    template, instruction = templates.rag[language], templates.instructions.get(language, "")
    if asks_to_cite:
        citing = CITING.get(language, CITING["en"]).replace("{number}", str(request.documents[0].number))
        instruction = f"{instruction} {citing}".strip()
    if not instruction:
        log.debug("template: %s, without an instruction", language)
        return replace(request, template=template)
    prompt = request.prompt
    if takes_system and not isinstance(prompt, str) and not any(one.role in _SYSTEM_ROLES for one in prompt):
        log.debug("template: %s, the instruction in a system message", language)
        return replace(request, template=template, prompt=(Message("system", instruction), *prompt))
    log.debug("template: %s, the instruction with the question", language)
    return replace(request, template=f"{instruction}\n\n{template}")


def has_instruction(asked: Prompt, prompt: Prompt) -> bool:
    """Returns whether `instructed` has added a system message to what was asked."""
    if isinstance(asked, str) or isinstance(prompt, str):
        return False
    return any(one.role == "system" for one in prompt[:1]) and not any(one.role in _SYSTEM_ROLES for one in asked)


def in_user_message(prompt: tuple[Message, ...]) -> Prompt:
    """Returns a conversation with its first message, the instruction, at the beginning of the last user message."""
    instruction, *messages = prompt
    last = max(place for place, message in enumerate(messages) if message.role == "user")
    before = f"{text_of(instruction.content)}\n\n"
    content = messages[last].content
    if isinstance(content, str):
        content = before + content
    elif is_text(content[0]):
        content = [{**content[0], "text": before + content[0]["text"]}, *content[1:]]
    else:
        content = [{"type": "text", "text": before}, *content]
    messages[last] = replace(messages[last], content=content)
    return tuple(messages)


def refuses_system(error: LLMError) -> bool:
    """Returns whether a model server's error may be about a system message."""
    return bool(_SYSTEM_REFUSED.search(str(error)))


async def takes_system_messages(count: CountPrompt | None, render: Render | None) -> bool | None:
    """Returns whether the model's chat template writes system messages; None if that cannot be found out.

    Two conversations are counted, whose system messages differ in length, or one is rendered. Some templates refuse
    system messages, and some leave them out.

    Args:
        count: Counts the tokens of a prompt; None: nothing does.
        render: Renders a prompt; None: nothing does.

    Raises:
        LLMError: The model server fails for another reason, so that it may be found out later.
    """
    if count is None and render is None:
        return None
    try:
        return await _writes_system(count, render)
    except (InvalidRequest, Refused) as error:
        if isinstance(error, Refused) and error.status in NO_SUCH_ROUTE:
            return None
        if isinstance(error, Refused) and not refuses_system(error):
            raise
    try:
        if count:
            await count(_sample(""), {})
        elif render:
            await render(_sample(""), {})
    except InvalidRequest:
        return None  # It refuses every conversation.
    return False


async def _writes_system(count: CountPrompt | None, render: Render | None) -> bool:
    if count:
        short, long = await at_once([count(_sample(text), {}) for text in (_SHORT, _LONG)])
        return long - short >= _LONGER_TOKENS
    assert render
    return _SHORT in await render(_sample(_SHORT), {})


def _sample(system: str) -> Prompt:
    """Returns a conversation with a system message, or without one if it is empty."""
    question = Message("user", "?")
    return (Message("system", system), question) if system else (question,)
