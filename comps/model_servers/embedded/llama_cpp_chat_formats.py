"""Chat formats of llama.cpp: the model's own Jinja template, or one of those that llama-cpp-python knows by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from jinja2 import TemplateError
from llama_cpp import llama_chat_format

from comps.core.errors import InvalidRequest, SettingsError
from comps.core.types import JSON
from comps.model_servers.embedded.engine_program import Messages

Rendered: TypeAlias = tuple[str, list[str], bool]
"""A conversation as text, the stop strings of its format, and whether a BOS token has to be put before it."""
ChatFormat: TypeAlias = Callable[[Messages, Sequence[JSON]], Rendered]
"""Renders messages and functions; raises `InvalidRequest` for messages that it does not take."""


def own_template(llama: Any) -> str | None:
    """The model's own chat template, in Jinja; None: it has none."""
    return llama.metadata.get("tokenizer.chat_template")  # type: ignore[no-any-return]


def chat_format(llama: Any, name: JSON) -> ChatFormat:
    """The chat format of a name, or else the model's own template.

    Args:
        llama: The model, a `llama_cpp.Llama`.
        name: One of llama-cpp-python's chat formats; None: the model's own.

    Raises:
        SettingsError: There is no format of that name.
    """
    if name is not None:
        return _named_format(name)
    template = own_template(llama)
    return _no_format if template is None else _template_format(llama, template)


def _template_format(llama: Any, template: str) -> ChatFormat:
    def token_text(token: int) -> str:
        return llama._model.token_get_text(token) if token >= 0 else ""

    formatter = llama_chat_format.Jinja2ChatFormatter(
        template, eos_token=token_text(llama.token_eos()), bos_token=token_text(llama.token_bos())
    )

    def render(messages: Messages, tools: Sequence[JSON]) -> Rendered:
        try:
            return str(formatter(messages=messages, tools=tools or None).prompt), [], False
        except (TemplateError, ValueError) as error:  # The template raises it for what it does not take.
            raise InvalidRequest(str(error), "messages") from None

    return render


def _no_format(messages: Messages, tools: Sequence[JSON]) -> Rendered:
    raise InvalidRequest(
        "the model has no chat template, so it continues texts and answers no conversation; the setting chat_format "
        "names a template",
        "messages",
    )


class _PromptCaptured(Exception):
    """A chat format has asked for a completion."""


class _PromptCapture:
    """Stands in for a `llama_cpp.Llama` that a chat format is given, and keeps the prompt that it would complete."""

    verbose = False
    text, begin = "", False
    stop: Sequence[str] = ()

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        self.text, self.begin = text.decode(), add_bos
        return []

    def create_completion(self, **arguments: Any) -> None:
        self.stop = arguments.get("stop") or ()
        raise _PromptCaptured


def _named_format(name: JSON) -> ChatFormat:
    known = llama_chat_format.LlamaChatCompletionHandlerRegistry()._chat_handlers
    if name not in known:
        raise SettingsError(f"chat_format = {name}: llama_cpp has {', '.join(sorted(known))}")

    def render(messages: Messages, tools: Sequence[JSON]) -> Rendered:
        capture = _PromptCapture()
        with suppress(_PromptCaptured):
            known[name](llama=capture, messages=messages)
        return capture.text, list(capture.stop), capture.begin

    return render
