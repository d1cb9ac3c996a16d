"""Chat templates applied here, for models and model servers that only continue text."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import jinja2

from comps.core.answers import Forwarding
from comps.core.beside import LONG, beside
from comps.core.counting import prompt_texts
from comps.core.errors import InvalidRequest, SettingsError
from comps.core.markers import markers_in, tag_at
from comps.core.ports import ABILITIES, Answer, Completes, CountsPrompts, CountsTokens, ModelServer, Translates
from comps.core.prompts import only_text, plain_roles
from comps.core.types import JSON, Finished, Generation, Message, ModelInfo, Prompt, Sampling
from comps.model_servers.chat_templates.bounded import BoundedEnvironment
from comps.model_servers.chat_templates.formats import FORMATS, Format
from comps.model_servers.chat_templates.work import TooMuchWork

_BOS = tuple({form.bos for form in FORMATS.values() if form.bos})

_SYSTEM, _USER, _ASSISTANT = "\ue000", "\ue001", "\ue002"
"""Private-use characters that stand for contents: no template writes them itself."""
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
"""Options that only a conversation can have."""
_ENVIRONMENT = BoundedEnvironment()
_WRONG = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, MemoryError, RecursionError)
"""What a template raises that does not take a conversation."""
_MANY = 100
"""Messages from which on they are rendered beside the event loop; published templates take up to 0.1 ms for each."""
_WORK_AT_ONCE = 500_000
"""The most work of a rendering within the event loop: some milliseconds."""
_AROUND = 100
"""Characters that a template may write around each message, for its limits."""
_MARGIN = 8
"""Tokens left for those that a model server adds to a text, such as BOS."""

_OTHER_MARKERS = (
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),  # Mistral, since Small 3.
    *("[|system|]", "[|user|]", "[|assistant|]", "[|tool|]", "[|endofturn|]"),  # EXAONE.
    *("]~!b[", "]~b]", "[e~["),  # MiniMax.
    *("<seed:bos>", "<seed:eos>"),  # Seed.
    *("<reserved_106>", "<reserved_107>"),  # Baichuan.
    *("[unused9]", "[unused10]"),  # Pangu.
)
"""Markers of models whose chat templates are not in `FORMATS`."""
_FORMAT_MARKERS = frozenset(mark for form in FORMATS.values() for mark in form.markers)
_ALL_MARKERS = frozenset(
    (*_OTHER_MARKERS, *(mark for mark in _FORMAT_MARKERS if not (mark[0] + mark[-1]).strip("#:<[>]")))
)
"""The markers of all models, except those that ordinary text may have, such as `User:` and `### End`."""


class ChatTemplate:
    """One chat template.

    Args:
        name: Its name in the settings.
        form: The template; empty `stops` and `markers` are found by rendering a conversation.
        roles: Those that it knows; None: the template itself decides.

    Raises:
        SettingsError: It is no Jinja template.
    """

    def __init__(self, name: str, form: Format, roles: Sequence[str] | None = ("system", "user", "assistant")) -> None:
        self.name = name
        self._form = form
        self._roles = roles
        try:
            self._template = _ENVIRONMENT.from_string(form.jinja)
        except jinja2.TemplateSyntaxError as error:
            raise SettingsError(f"chat_template = {name}: line {error.lineno}: {error.message}") from None
        except _WRONG as error:
            raise SettingsError(f"chat_template = {name}: it is no Jinja template: {error}") from None
        example = self._example()
        self.stops = form.stops or _stops_in(example)
        """Stop strings: what an answer ends before."""
        self.markers = form.markers or tuple(markers_in(_CONTENT.split(example)))
        """What opens or closes a turn, beside special tokens."""

    def render(
        self, conversation: Sequence[Message], *, add_generation_prompt: bool = True, at_once: bool = False
    ) -> str:
        """The text that the model continues.

        Contents are written as they are: markers in them have been escaped before (see `markers`). The BOS token is
        left out, since model servers put it before every text.

        Args:
            conversation: The messages.
            add_generation_prompt: End with what opens the assistant's turn.
            at_once: Give up after some milliseconds.

        Raises:
            TooMuchWork: It gave up.
            InvalidRequest: The template does not take such a conversation, or a content has a part that is no text.
        """
        messages = [self._as_dict(message) for message in conversation]
        try:
            text = self._rendered(messages, add_generation_prompt, _WORK_AT_ONCE if at_once else None)
        except _WRONG as error:
            if at_once and isinstance(error, TooMuchWork):
                raise
            raise InvalidRequest(f"the chat template {self.name} does not take it: {error}", "messages") from None
        return text.removeprefix(next((bos for bos in _BOS if text.startswith(bos)), ""))

    def _as_dict(self, message: Message) -> dict[str, str]:
        if self._roles is not None and message.role not in self._roles:
            known = ", ".join(self._roles)
            raise InvalidRequest(f"the chat template {self.name} knows no such role; known: {known}", "messages")
        return {"role": message.role, "content": only_text(message)}

    def _rendered(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool, most_work: int | None = None
    ) -> str:
        return _ENVIRONMENT.rendered(
            self._template,
            sum(len(message["content"]) + _AROUND for message in messages),
            most_work,
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=self._form.bos,
            eos_token=self._form.eos,
        )

    def _example(self) -> str:
        """A rendered conversation, with a system message if the template takes one; empty if it takes neither."""
        turns = [("user", _USER), ("assistant", _ASSISTANT), ("user", _USER)]
        for conversation in ([("system", _SYSTEM), *turns], turns):
            try:
                return self._rendered([{"role": role, "content": content} for role, content in conversation], True)
            except _WRONG:
                continue
        return ""


class Templated:
    """A model server that gets every conversation as text, by a chat template. Text to continue is passed on as it is.

    It has the optional abilities of the model server.

    Args:
        server: Where the texts go.
        template: The chat template.
    """

    def __init__(self, server: ModelServer, template: ChatTemplate) -> None:
        self._server = server
        self._template = template
        for ability in ABILITIES:
            if (method := getattr(server, ability, None)) and not hasattr(self, ability):
                setattr(self, ability, method)
        # These two take a prompt, so what is passed on to them is text.
        if isinstance(server, Completes):
            self.complete = partial(self._complete, server.complete)
        if isinstance(server, CountsPrompts):
            self.count_prompt = partial(self._count_prompt, server.count_prompt)

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        to = _StoppedByCaller(answer, sampling.stop) if self._template.stops else answer
        await self._server.generate(*await self._as_text(prompt, sampling, options), to)

    async def _complete(
        self,
        complete: Callable[[Prompt, Sampling, Mapping[str, JSON]], Awaitable[Generation]],
        prompt: Prompt,
        sampling: Sampling,
        options: Mapping[str, JSON],
    ) -> Generation:
        generation = await complete(*await self._as_text(prompt, sampling, options))
        first, *others = (
            replace(one, stop_string=_named(one.stop_string, sampling.stop)) for one in generation.choices
        )
        return replace(first, further=tuple(others))

    async def _count_prompt(
        self,
        count_prompt: Callable[[Prompt, Mapping[str, JSON]], Awaitable[int]],
        prompt: Prompt,
        options: Mapping[str, JSON],
    ) -> int:
        return await count_prompt(await self._rendered(prompt), {})

    async def render(self, prompt: Prompt, options: Mapping[str, JSON]) -> str:
        """See `Renders`."""
        return await self._rendered(prompt)

    async def _rendered(self, prompt: Prompt) -> str:
        prompt = plain_roles(prompt)
        if isinstance(prompt, str):
            return prompt
        if len(prompt) <= _MANY and sum(map(len, prompt_texts(prompt, {}))) <= LONG:
            with suppress(TooMuchWork):
                return self._template.render(prompt, at_once=True)
        return await beside(self._template.render, prompt)

    async def describe(self) -> ModelInfo:
        info = await self._server.describe()
        lost = {name for name in info.capabilities if name in _ONLY_IN_CHATS or name.startswith("messages.")}
        lost.discard("top_logprobs")  # Of texts it says that their logprobs have alternatives.
        return replace(info, capabilities=info.capabilities - lost, has_chat_template=True)

    async def translated(
        self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[Prompt, Sampling, Mapping[str, JSON]]:
        """See `Translates`."""
        asked = await self._as_text(prompt, sampling, options)
        return await self._server.translated(*asked) if isinstance(self._server, Translates) else asked

    async def _as_text(
        self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[str, Sampling, Mapping[str, JSON]]:
        """What the model server is asked instead. `max_tokens` is set where the context window is known: OpenAI's
        completions have a default of 16."""
        if isinstance(prompt, str):
            return prompt, sampling, options
        if options.get("logprobs"):
            raise InvalidRequest("there are none of a chat that goes to the model as text", "logprobs")
        text = await self._rendered(prompt)
        stop = tuple(dict.fromkeys((*sampling.stop, *self._template.stops)))
        most = await self._room(text) if sampling.max_tokens is None else sampling.max_tokens
        kept = {name: value for name, value in options.items() if name not in _ONLY_IN_CHATS}
        return text, replace(sampling, stop=stop, max_tokens=most), kept

    async def _room(self, text: str) -> int | None:
        """How many tokens an answer has room for; None if the window is unknown. Where the model server counts no
        tokens, the text's bytes are an upper bound on them."""
        window = (await self._server.describe()).context_window
        if window is None:
            return None
        if isinstance(self._server, CountsTokens):
            tokens = await self._server.count_tokens(text)
        else:
            tokens = len(text.encode("utf-8", "replace"))
        return max(window - tokens - _MARGIN, 0) or None

    async def aclose(self) -> None:
        await self._server.aclose()


class _StoppedByCaller(Forwarding):
    """Answer that is not told of the stop strings of the template, since its caller named none of them.

    Args:
        answer: The answer to write to.
        stops: The caller's stop strings.
    """

    def __init__(self, answer: Answer, stops: Collection[str]) -> None:
        super().__init__(answer)
        self._stops = stops

    def finished(self, end: Finished) -> None:
        self._answer.finished(replace(end, stop_string=_named(end.stop_string, self._stops)))


def _named(stop_string: str | None, stops: Collection[str]) -> str | None:
    return stop_string if stop_string in stops else None


def chat_template(wanted: str, model: str) -> ChatTemplate:
    """The chat template that a setting names.

    Args:
        wanted: One of `FORMATS`; `auto`: the model's own; or the path of a Jinja file, which gets BOS and EOS from the
            model's own format, if there is one.
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
    """What opens or closes a turn, beside special tokens, wherever the model's chat template is applied.

    Args:
        wanted: As for `chat_template`; empty where it is not applied here.
        model: The model's name, with or without its owner, or its path. Of an unknown model, the markers of all.

    Raises:
        SettingsError: There is no such chat template.
    """
    if wanted not in ("", "auto"):
        return chat_template(wanted, model).markers
    own = _name_of(model)
    return FORMATS[own].markers if own else _ALL_MARKERS


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


def _stops_in(example: str) -> tuple[str, ...]:
    """The marker behind the assistant's content in an example conversation, if there is one."""
    found = tag_at(example.partition(_ASSISTANT)[2].lstrip())
    return (found,) if found else ()
