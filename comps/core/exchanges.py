"""The exchanges of a conversation: the earlier messages, in the groups in which they are dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from comps.core.counting import message_text
from comps.core.types import Prompt


def exchanges_of(prompt: Prompt) -> list[list[int]]:
    """The exchanges before the question, the earliest first, each as the places of its messages.

    An exchange is a user message with all messages up to the next one. System messages are in none: they are always
    kept. The question is the last user message, with all that follows. Text to continue has no exchanges.
    """
    if isinstance(prompt, str):
        return []
    last = max((place for place, message in enumerate(prompt) if message.role == "user"), default=0)
    exchanges: list[list[int]] = []
    for place, message in enumerate(prompt[:last]):
        if message.role == "user":
            exchanges.append([place])
        elif message.role not in ("system", "developer"):
            exchanges = exchanges or [[]]
            exchanges[-1].append(place)
    return exchanges


def exchange_text(prompt: Prompt, exchange: Sequence[int]) -> str:
    """The text of an exchange, for its tokens to be counted."""
    assert not isinstance(prompt, str)
    return "\n".join(message_text(prompt[place]) for place in exchange)


def without(prompt: Prompt, exchanges: Iterable[Sequence[int]]) -> Prompt:
    """The prompt without the messages of these exchanges."""
    places = {place for exchange in exchanges for place in exchange}
    if isinstance(prompt, str) or not places:
        return prompt
    return tuple(message for place, message in enumerate(prompt) if place not in places)
