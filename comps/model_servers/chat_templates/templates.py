"""Conversations as text, by a chat template, for models and model servers that only continue text."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from comps.core.errors import InvalidRequest, SettingsError
from comps.core.markers import markers_in, tag_at
from comps.core.ports import ABILITIES, CountsPrompts, CountsTokens, ModelServer, Translates
from comps.core.prompts import only_text, plain_roles
from comps.core.types import JSON, Event, Message, ModelInfo, Prompt, Sampling
from comps.model_servers.chat_templates.formats import FORMATS, Format

_BOS = tuple({form.bos for form in FORMATS.values() if form.bos})

_SYSTEM, _USER, _ASSISTANT = "\ue000", "\ue001", "\ue002"
"""Contents that no template writes itself."""
_CONTENT = re.compile(f"[{_SYSTEM}{_USER}{_ASSISTANT}]")

_ONLY_IN_CHATS = frozenset(
    (
        "add_generation_prompt",
        "chat_template_kwargs",
        "continue_final_message",
        "function_call",
        "functions",
        "parallel_tool_calls",
        "tool_choice",
        "tools",
        "top_logprobs",
    )
)
"""Options that a text to continue has no place for."""
_AROUND = 8
"""Tokens left for those that a model server puts around a text."""

_OF_NO_FORMAT = (
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),  # Mistral, since Small 3.
    *("[|system|]", "[|user|]", "[|assistant|]", "[|tool|]", "[|endofturn|]"),  # EXAONE.
    *("]~!b[", "]~b]", "[e~["),  # MiniMax.
    *("<seed:bos>", "<seed:eos>"),  # Seed.
    *("<reserved_106>", "<reserved_107>"),  # Baichuan.
    *("[unused9]", "[unused10]"),  # Pangu.
)
"""Of models whose chat templates are not here."""
_OF_FORMATS = frozenset(mark for form in FORMATS.values() for mark in form.markers)
_OF_ANY_MODEL = frozenset((*_OF_NO_FORMAT, *(mark for mark in _OF_FORMATS if not (mark[0] + mark[-1]).strip("#:<[>]"))))
"""The markers of all models but for those that ordinary text has, such as `User:` and `### End`."""


class ChatTemplate:
    """One chat template.

    Args:
        name: What the settings call it.
        form: What it is; empty `stops` and `markers` are found out.
        roles: Those that it knows; None leaves that to it.

    Raises:
        SettingsError: It is no Jinja template.
    """

    def __init__(self, name: str, form: Format, roles: Sequence[str] | None = ("system", "user", "assistant")) -> None:
        self.name = name
        self._form = form
        self._roles = roles
        try:
            self._template = _environment().from_string(form.jinja)
        except jinja2.TemplateSyntaxError as error:
            raise SettingsError(f"chat_template = {name}: line {error.lineno}: {error.message}") from None
        seen = self._seen()
        self.stops = form.stops or _stops_in(seen)
        """What an answer ends before."""
        self.markers = form.markers or tuple(markers_in(_CONTENT.split(seen)))
        """What opens or closes a turn, besides special tokens."""

    def render(self, conversation: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text that the model continues.

        Contents are written as they are: what opens or closes a turn has been broken up in them (see `markers`). The
        token of the text's beginning is left out: whoever reads the text puts it there.

        Raises:
            InvalidRequest: The template does not take such a conversation, or there are parts that are no text.
        """
        messages = [self._plain(message) for message in conversation]
        try:
            text = self._rendered(messages, add_generation_prompt)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise InvalidRequest(f"the chat template {self.name} does not take it: {error}", "messages") from None
        return text.removeprefix(next((bos for bos in _BOS if text.startswith(bos)), ""))

    def _plain(self, message: Message) -> dict[str, str]:
        if self._roles is not None and message.role not in self._roles:
            known = ", ".join(self._roles)
            raise InvalidRequest(f"the chat template {self.name} knows no such role; known: {known}", "messages")
        return {"role": message.role, "content": only_text(message)}

    def _rendered(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        text: str = self._template.render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=self._form.bos,
            eos_token=self._form.eos,
        )
        return text

    def _seen(self) -> str:
        """What it writes around contents, with a system message if it takes one; empty if it takes neither."""
        turns = [("user", _USER), ("assistant", _ASSISTANT), ("user", _USER)]
        for conversation in ([("system", _SYSTEM), *turns], turns):
            try:
                return self._rendered([{"role": role, "content": content} for role, content in conversation], True)
            except (jinja2.TemplateError, TypeError, ValueError):
                continue
        return ""


class Templated:
    """A model server that gets every conversation as text, by a chat template; text to continue passes as it is.

    It can do all else that the model server can.
    """

    def __init__(self, server: ModelServer, template: ChatTemplate) -> None:
        self._server = server
        self._template = template
        for ability in ABILITIES:
            if (method := getattr(server, ability, None)) and not hasattr(self, ability):
                setattr(self, ability, method)
        if isinstance(server, CountsPrompts):
            self.count_prompt = self._count_prompt

    async def _count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        assert isinstance(self._server, CountsPrompts)
        return await self._server.count_prompt(self._text(prompt), {})

    async def render(self, prompt: Prompt, options: Mapping[str, JSON]) -> str:
        """See `Renders`."""
        return self._text(prompt)

    def _text(self, prompt: Prompt) -> str:
        prompt = plain_roles(prompt)
        return prompt if isinstance(prompt, str) else self._template.render(prompt)

    async def describe(self) -> ModelInfo:
        info = await self._server.describe()
        lost = {name for name in info.capabilities if name in _ONLY_IN_CHATS or name.startswith("messages.")}
        return replace(info, capabilities=info.capabilities - lost)

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> AsyncGenerator[Event]:
        asked = await self._as_text(prompt, sampling, options)
        async with aclosing(self._server.generate(*asked)) as events:
            async for event in events:
                yield event

    async def translated(
        self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[Prompt, Sampling, Mapping[str, JSON]]:
        """See `Translates`."""
        asked = await self._as_text(prompt, sampling, options)
        return await self._server.translated(*asked) if isinstance(self._server, Translates) else asked

    async def _as_text(
        self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[str, Sampling, Mapping[str, JSON]]:
        """What is asked of whoever continues text. An answer may be as long as that to a chat: OpenAI's completions end
        after 16 tokens if nobody says more."""
        if isinstance(prompt, str):
            return prompt, sampling, options
        if options.get("logprobs"):
            raise InvalidRequest("there are none of a chat that goes to the model as text", "logprobs")
        text = self._text(prompt)
        stop = tuple(dict.fromkeys((*sampling.stop, *self._template.stops)))
        most = await self._room(text) if sampling.max_tokens is None else sampling.max_tokens
        kept = {name: value for name, value in options.items() if name not in _ONLY_IN_CHATS}
        return text, replace(sampling, stop=stop, max_tokens=most), kept

    async def _room(self, text: str) -> int | None:
        """How many tokens an answer has room for, where no token is shorter than a byte; None if nobody knows."""
        window = (await self._server.describe()).context_window
        if window is None:
            return None
        if isinstance(self._server, CountsTokens):
            tokens = await self._server.count_tokens(text)
        else:
            tokens = len(text.encode("utf-8", "replace"))
        return max(window - tokens - _AROUND, 0) or None

    async def aclose(self) -> None:
        await self._server.aclose()


def chat_template(wanted: str, model: str) -> ChatTemplate:
    """The chat template that a setting names.

    Args:
        wanted: One of `FORMATS`, `auto` for that of the model, or the path of a Jinja file, which gets the tokens of
            the text's ends from the model's format, if there is one.
        model: The model's name, with or without its owner, or its path.

    Raises:
        SettingsError: There is none, or the file is no Jinja template.
    """
    known = f"known: {', '.join(FORMATS)}, or the path of a .jinja file"
    own = _name_of(model)
    if Path(wanted).suffix in (".jinja", ".jinja2", ".j2"):
        tokens = FORMATS[own] if own else Format("", "")
        return ChatTemplate(wanted, Format("", _read(wanted), tokens.bos, tokens.eos), roles=None)
    if wanted == "auto":
        if own is None:
            raise SettingsError(f"chat_template = auto: none is known for the model {model}; {known}")
        return ChatTemplate(own, FORMATS[own])
    if wanted not in FORMATS:
        raise SettingsError(f"chat_template = {wanted}: unknown; {known}")
    return ChatTemplate(wanted, FORMATS[wanted])


def markers_of(wanted: str, model: str) -> Collection[str]:
    """What opens or closes a turn, besides special tokens, whoever applies the model's chat template.

    Args:
        wanted: As for `chat_template`; empty where that is not this service.
        model: The model's name, with or without its owner, or its path. One that is not known may have any template.

    Raises:
        SettingsError: There is no such chat template.
    """
    if wanted not in ("", "auto"):
        return chat_template(wanted, model).markers
    own = _name_of(model)
    return FORMATS[own].markers if own else _OF_ANY_MODEL


def _name_of(model: str) -> str | None:
    """The name of a model's format."""
    last = re.split(r"[/\\]", model.rstrip("/\\").lower())[-1]
    return next((name for name, form in FORMATS.items() if re.match(form.models, last)), None)


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise SettingsError(f"chat_template = {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"chat_template = {path}: cannot be read: it is not UTF-8 text") from None


def _environment() -> ImmutableSandboxedEnvironment:
    """What Hugging Face gives the templates of its models."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals.update(raise_exception=_raise, strftime_now=lambda form: datetime.now().strftime(form))
    environment.filters["tojson"] = _json
    return environment


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _stops_in(seen: str) -> tuple[str, ...]:
    """What a template closes an answer with, if that is a mark."""
    found = tag_at(seen.partition(_ASSISTANT)[2].lstrip())
    return (found,) if found else ()
