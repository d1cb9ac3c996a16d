"""The default prompt around a question with documents: its template, and the instruction that tells the model what to
do.

The instruction is a system message. It is at the beginning of the user message instead where the caller has a system
message, or the model's chat template writes none, as Gemma's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from comps.core.errors import InvalidRequest, LLMError
from comps.core.ports import CountsPrompts, ModelServer, Renders
from comps.core.prompts import CITING, Templates, check_language, chosen_language, text_of
from comps.core.tasks import at_once
from comps.core.types import GenerationRequest, Message, Prompt

_MARK = re.compile(r"[\[【] ?(?:\d{1,3}|[nNiIxX]|number|No\.|Nr\.|编号|序号|数字) ?[\]】]")
"""A citation mark, or what stands for one."""
_SYSTEM_ROLES = ("system", "developer")
_SHORT = "Answer in one word."
_LONG = f"{_SHORT} Answer politely, and say whether the weather in the harbour was good on the day before yesterday."
_LONGER_TOKENS = 8
"""The least number of tokens that the long one has more, in any vocabulary."""
_SYSTEM_REFUSED = re.compile(r"\bsystem\b|\broles?\b", re.IGNORECASE)
"""What errors of chat templates without system messages say: `System role not supported` (Gemma), `Conversation roles
must alternate user/assistant/…` (Mistral), `Only user and assistant roles are supported` (Llama 2's relatives)."""


def asks_for_marks(request: GenerationRequest) -> bool:
    """Whether the request's own words ask for citation marks: one is in its template, a system message or the question.

    Returns:
        True for words such as `Cite the documents as [1]` and `Write [n] after each sentence`.
    """
    return any(_MARK.search(text) for text in _own_words(request))


def _own_words(request: GenerationRequest) -> Iterator[str]:
    yield request.template or ""
    if isinstance(request.prompt, str):
        return
    yield from (text_of(message.content) for message in request.prompt if message.role in _SYSTEM_ROLES)
    yield next((text_of(one.content) for one in reversed(request.prompt) if one.role == "user"), "")


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
    if language is None:
        return request
    template, instruction = templates.rag[language], templates.instructions.get(language, "")
    if instruction and asks_to_cite:
        instruction = " ".join((instruction, CITING.get(language, "")))
    if not instruction:
        return replace(request, template=template)
    prompt = request.prompt
    if takes_system and not isinstance(prompt, str) and not any(one.role in _SYSTEM_ROLES for one in prompt):
        return replace(request, template=template, prompt=(Message("system", instruction), *prompt))
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
    content = messages[last].content
    text = text_of(instruction.content)
    whole = f"{text}\n\n{content}" if isinstance(content, str) else [{"type": "text", "text": text}, *content]
    messages[last] = replace(messages[last], content=whole)
    return tuple(messages)


def refuses_system(error: InvalidRequest) -> bool:
    """Returns whether a model server's error may be about a system message."""
    return bool(_SYSTEM_REFUSED.search(str(error)))


async def takes_system_messages(server: ModelServer) -> bool | None:
    """Returns whether the model's chat template writes system messages; None if it is not known.

    Two conversations are counted, whose system messages differ in length, or one is rendered. Some templates refuse
    system messages, and some leave them out.
    """
    try:
        if isinstance(server, CountsPrompts):
            asked = [server.count_prompt(_sample(text), {}) for text in (_SHORT, _LONG)]
            short, long = await at_once(asked)
            return long - short >= _LONGER_TOKENS
        return _SHORT in await server.render(_sample(_SHORT), {}) if isinstance(server, Renders) else None
    except LLMError:
        pass
    try:
        if isinstance(server, CountsPrompts):
            await server.count_prompt(_sample(""), {})
        elif isinstance(server, Renders):
            await server.render(_sample(""), {})
    except LLMError:
        return None
    return False


def _sample(system: str) -> Prompt:
    """Returns a conversation with a system message, or without one if it is empty."""
    question = Message("user", "?")
    return (Message("system", system), question) if system else (question,)
