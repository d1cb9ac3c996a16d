"""Conversation templates: the turns of a chat as the text that a model was trained to continue.

They are those of UKP-SQuARE, which are from FastChat (Apache-2.0). Names, separators and texts are the same to the
letter, since the models were trained with them. The settings add further ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache, cached_property
from typing import Any

from comps.core.errors import SettingsError
from comps.core.markers import control_token_escape, tags_in
from comps.core.model_names import name_parts
from comps.core.types import JSON, ModelInfo

_SYSTEM = "{system_message}"
_SAID = "\0"
"""A stand-in for the text of a turn, which no template contains."""
_WORDS = re.compile(r"#+ ?\w.*\S|\w.*:")
"""Words in a line that begin or end a turn for a model: `User:`, `### Human:`, `### End`."""


class SeparatorStyle(IntEnum):
    """How a template separates turns, with SQuARE's numbers; it has no 5."""

    ADD_COLON_SINGLE = 1
    LLAMA2 = 2
    VICUNA = 3
    DOLLY = 4
    FALCON_CHAT = 6
    RWKV = 7


_OF_TWO = (SeparatorStyle.LLAMA2, SeparatorStyle.VICUNA, SeparatorStyle.DOLLY)
"""The styles with `sep` behind even turns and `sep2` behind odd ones."""


@dataclass(frozen=True)
class Conversation:
    """One template, with the names of FastChat's class.

    Attributes:
        system_message: Only shown by the route for templates; a chat has its own, or none.
        roles: The role of the human and that of the model.
        messages: An example exchange before every chat: role and text of each turn.
        stop_str: Stop strings.
        stop_token_ids: Stop tokens, for model servers that know tokens.
        match: Parts of model names, in small letters, whose template this is; the built-in ones have rules of their
            own.
    """

    name: str
    system_template: str = _SYSTEM
    system_message: str = ""
    roles: tuple[str, str] = ("USER", "ASSISTANT")
    messages: tuple[tuple[str, str], ...] = ()
    sep_style: SeparatorStyle = SeparatorStyle.ADD_COLON_SINGLE
    sep: str = "\n"
    sep2: str | None = None
    stop_str: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    match: tuple[str, ...] = ()

    def render(self, system: str, turns: Sequence[tuple[int, str]]) -> str:
        """The text that the model continues, without a token for its beginning.

        In the texts, tags that open or close a turn in this template or any other (`<|im_end|>`) are broken up; a role
        that is a plain word, such as `User:`, only where the template has it: at the start of a line, or anywhere.

        Args:
            system: The system message; empty: none.
            turns: The index in `roles` and the text of each; an empty text is rendered like the open turn at the end.
        """
        escape = self._escape
        return self._rendered(escape(system), [(who, escape(text)) for who, text in turns])

    def _rendered(self, system: str, turns: Sequence[tuple[int, str]]) -> str:
        everything = [*self.messages, *((self.roles[who], text) for who, text in turns), (self.roles[1], "")]
        rendered = (self._turn(number, role, text) for number, (role, text) in enumerate(everything))
        return self._opening(system) + "".join(rendered)

    def _opening(self, system: str) -> str:
        filled = self.system_template.replace(_SYSTEM, system)
        match self.sep_style:
            case SeparatorStyle.LLAMA2:
                return filled if system else "[INST] "
            case SeparatorStyle.FALCON_CHAT:
                return filled + self.sep if system else ""
            case SeparatorStyle.ADD_COLON_SINGLE | SeparatorStyle.VICUNA:
                return filled + self.sep
            case SeparatorStyle.DOLLY | SeparatorStyle.RWKV:
                return filled

    def _turn(self, number: int, role: str, text: str) -> str:
        between = self.sep if number % 2 == 0 else self.sep2
        match self.sep_style:
            case SeparatorStyle.LLAMA2 if not text:
                return role
            case SeparatorStyle.LLAMA2:
                return f"{role} {text}{between}" if number else f"{text} "
            case SeparatorStyle.DOLLY:
                after = between if number % 2 == 0 else f"{between}\n\n"
                return f"{role}:\n{text}{after}" if text else f"{role}:\n"
            case _ if not text:
                return f"{role}:"
            case SeparatorStyle.VICUNA:
                return f"{role}: {text}{between}"
            case SeparatorStyle.RWKV:
                one_line_each = text.replace("\r\n", "\n").replace("\n\n", "\n")
                return f"{role}: {one_line_each}\n\n"
            case SeparatorStyle.ADD_COLON_SINGLE | SeparatorStyle.FALCON_CHAT:
                return f"{role}: {text}{self.sep}"

    @cached_property
    def _escape(self) -> Callable[[str], str]:
        """Breaks up the tags and words that open or close a turn."""
        own = (self.system_template, *self.roles, self.sep, self.sep2 or "", *self.stop_str)
        return control_token_escape({*(tag for text in own for tag in tags_in(text)), *self._words()})

    def _words(self) -> Iterator[str]:
        r"""The plain words that open or close a turn, found around the texts of a rendered chat. Those that do so at
        the start of a line begin with `\n`."""
        human, model = ("" if tags_in(role) else role for role in self.roles)
        bare = replace(self, messages=(), roles=(human, model))
        turns = bare._rendered("", [(0, _SAID), (1, _SAID), (0, _SAID)])
        for piece in f"\n{self.system_template}\n{turns}".replace(_SYSTEM, _SAID).split(_SAID):
            for place, line in enumerate(piece.splitlines()):
                for tag in tags_in(line):
                    line = line.replace(tag, " ")
                if words := _WORDS.search(line):
                    begins = place and words[0] == line.strip() and words[0][0] != "#"
                    yield f"\n{words[0]}" if begins else words[0]

    def as_fastchat(self) -> JSON:
        """The template as JSON, as FastChat's workers answer it."""
        stops = self.stop_str[0] if len(self.stop_str) == 1 else list(self.stop_str) or None
        return {
            "name": self.name,
            "system_template": self.system_template,
            "system_message": self.system_message,
            "roles": list(self.roles),
            "messages": [list(message) for message in self.messages],
            "offset": len(self.messages),
            "sep_style": int(self.sep_style),
            "sep": self.sep,
            "sep2": self.sep2,
            "stop_str": stops,
            "stop_token_ids": list(self.stop_token_ids) or None,
        }


LLAMA_2 = Conversation(
    name="llama-2",
    system_template="[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n",
    roles=("[INST]", "[/INST]"),
    sep_style=SeparatorStyle.LLAMA2,
    sep=" ",
    sep2=" </s><s>",
)
MISTRAL = Conversation(
    name="mistral",
    system_template="[INST]{system_message}\n",
    roles=("[INST]", "[/INST]"),
    sep_style=SeparatorStyle.LLAMA2,
    sep=" ",
    sep2="</s>",
)
VICUNA = Conversation(
    name="vicuna_v1.1",
    system_message="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    roles=("USER", "ASSISTANT"),
    sep_style=SeparatorStyle.VICUNA,
    sep=" ",
    sep2="</s>",
)
DOLLY = Conversation(
    name="dolly_v2",
    system_message="Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n",
    roles=("### Instruction", "### Response"),
    sep_style=SeparatorStyle.DOLLY,
    sep="\n\n",
    sep2="### End",
)
FALCON_CHAT = Conversation(
    name="falcon-chat",
    system_template="System: {system_message}",
    roles=("User", "Falcon"),
    sep_style=SeparatorStyle.FALCON_CHAT,
    sep="\n",
    sep2="<|endoftext|>",
    stop_str=("\nUser:",),
)
FALCON = Conversation(
    name="falcon",
    roles=("User", "Assistant"),
    sep_style=SeparatorStyle.RWKV,
    sep="\n",
    sep2="<|endoftext|>",
    stop_str=("\nUser",),
    stop_token_ids=tuple(range(12)),
)
_PARTY = (
    "Of course! Here are some creative ideas for a 10-year-old's birthday party:\n"
    "1. Treasure Hunt: Organize a treasure hunt in your backyard or nearby park. Create clues and riddles for the kids "
    "to solve, leading them to hidden treasures and surprises.\n"
    "2. Science Party: Plan a science-themed party where kids can engage in fun and interactive experiments. You can "
    "set up different stations with activities like making slime, erupting volcanoes, or creating simple chemical "
    "reactions.\n"
    "3. Outdoor Movie Night: Set up a backyard movie night with a projector and a large screen or white sheet. Create "
    "a cozy seating area with blankets and pillows, and serve popcorn and snacks while the kids enjoy a favorite movie "
    "under the stars.\n"
    "4. DIY Crafts Party: Arrange a craft party where kids can unleash their creativity. Provide a variety of craft "
    "supplies like beads, paints, and fabrics, and let them create their own unique masterpieces to take home as party "
    "favors.\n"
    "5. Sports Olympics: Host a mini Olympics event with various sports and games. Set up different stations for "
    "activities like sack races, relay races, basketball shooting, and obstacle courses. Give out medals or "
    "certificates to the participants.\n"
    "6. Cooking Party: Have a cooking-themed party where the kids can prepare their own mini pizzas, cupcakes, or "
    "cookies. Provide toppings, frosting, and decorating supplies, and let them get hands-on in the kitchen.\n"
    "7. Superhero Training Camp: Create a superhero-themed party where the kids can engage in fun training activities. "
    "Set up an obstacle course, have them design their own superhero capes or masks, and organize superhero-themed "
    "games and challenges.\n"
    "8. Outdoor Adventure: Plan an outdoor adventure party at a local park or nature reserve. Arrange activities like "
    "hiking, nature scavenger hunts, or a picnic with games. Encourage exploration and appreciation for the outdoors.\n"
    "Remember to tailor the activities to the birthday child's interests and preferences. Have a great celebration!"
)
ONE_SHOT = Conversation(
    name="one_shot",
    system_message="A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    roles=("Human", "Assistant"),
    messages=(
        ("Human", "Got any creative ideas for a 10 year old\N{RIGHT SINGLE QUOTATION MARK}s birthday?"),
        ("Assistant", _PARTY),
    ),
    sep_style=SeparatorStyle.ADD_COLON_SINGLE,
    sep="\n### ",
    stop_str=("###",),
)


def conversation_of(model: str, further: Sequence[Conversation] = ()) -> Conversation:
    """The template of a model, by its name or its path: of `further`, else of the built-in ones, else `one_shot`. The
    last part of the name is tried before the whole."""
    last = model.rstrip("/").rpartition("/")[2]
    for name in (last.lower(), model.lower()):
        for conversation in further:
            if any(part in name for part in conversation.match):
                return conversation
    for name in (last.lower(), model.lower()):
        if "vicuna" in name:
            return ONE_SHOT if "v0" in last else VICUNA
        for part, conversation in _BY_PART.items():
            if part in name:
                return conversation
        if "falcon" in name:
            return FALCON_CHAT if "chat" in name else FALCON
    return ONE_SHOT


def conversation_for(named: str, served: ModelInfo, further: Sequence[Conversation] = ()) -> Conversation | None:
    """The template by which a chat is rendered for the served model; None: the model's own chat template is.

    It is the named one if it is of `further`, or if the model was trained with it. Otherwise the model's own chat
    template is used, unless there is one of `further` for the model, or it is known to have none.

    Args:
        named: The name by which a body chooses; empty: that of the served model.
        served: The model that answers.
        further: As for `conversation_of`.
    """
    chosen = conversation_of(named or served.base, further)
    if chosen in further or _suits(chosen.name, served.base):
        return chosen
    own = conversation_of(served.base, further)
    if own in further:
        return own
    if served.has_chat_template is not False:
        return None
    return own if _suits(own.name, served.base) else chosen


@cache
def _suits(name: str, model: str) -> bool:
    """Whether a model was trained with a built-in template."""
    return any(_TRAINED_WITH[name].fullmatch(part) for part in name_parts(model))


_TRAINED_WITH = {
    LLAMA_2.name: re.compile(r"(meta-)?llama-?2(-\d+b)?-chat|code-?llama-\d+b-instruct"),
    MISTRAL.name: re.compile(r"mistral-7b-instruct(-v0\.\d)?|mixtral-8x7b-instruct(-v0\.\d)?"),
    VICUNA.name: re.compile(r"(wizard-)?vicuna(?!.*v0).*"),
    DOLLY.name: re.compile(r"dolly-v2.*"),
    FALCON.name: re.compile(r"falcon-\d+b(-instruct)?"),
    FALCON_CHAT.name: re.compile(r"falcon-\d+b-chat"),
    ONE_SHOT.name: re.compile(r"vicuna.*v0.*"),
}
"""The models of each built-in template, as `name_parts` spells them; a model that was trained further is none of
them."""
_BY_PART = {"llama-2": LLAMA_2, "dolly-v2": DOLLY, "mistral": MISTRAL}


def read_conversation(name: str, written: Mapping[str, str]) -> Conversation:
    r"""A template of the settings.

    Text may be quoted, to keep the spaces at its ends; `\n`, `\r`, `\t` and `\\` are escapes as in Python.

    Args:
        name: Its name, which is also a part of the names of its models unless there is a `match`.
        written: The keys of `Conversation` as text: `match` and `roles` separated by commas, `sep_style` by name or
            number, `stop_str` a text or a JSON list of several, `stop_token_ids` separated by commas.

    Raises:
        SettingsError: A key is unknown, or its value is wrong.
    """
    values: dict[str, Any] = {"match": (name.lower(),)}
    for key, text in written.items():
        if key not in _READERS:
            raise SettingsError(f"unknown key {key} = {text}; known: {', '.join(_READERS)}")
        try:
            values[key] = _READERS[key](text.strip())
        except ValueError as error:
            raise SettingsError(f"{key} = {text}: {error}") from None
    conversation = Conversation(name, **values)
    if conversation.sep_style in _OF_TWO and conversation.sep2 is None:
        raise SettingsError(f"sep_style = {conversation.sep_style.name}: needs sep2 as well")
    return conversation


_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def _text(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return re.sub(r"\\([nrt\\])", lambda found: _ESCAPES[found[1]], text)


def _system_template(text: str) -> str:
    if _SYSTEM not in text:
        raise ValueError(f"needs {_SYSTEM} where the system message shall stand")
    return _text(text)


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(_text(part.strip()).lower() for part in text.split(","))
    if "" in parts:
        raise ValueError("must not be empty, nor a part between its commas")
    return parts


def _roles(text: str) -> tuple[str, ...]:
    roles = tuple(_text(role.strip()) for role in text.split(","))
    if len(roles) != 2 or "" in roles:
        raise ValueError("must be two, separated by a comma: the human's and the model's")
    return roles


def _style(text: str) -> SeparatorStyle:
    for style in SeparatorStyle:
        if text.upper() in (style.name, str(int(style))):
            return style
    known = ", ".join(f"{style.name} ({int(style)})" for style in SeparatorStyle)
    raise ValueError(f"unknown; known: {known}")


def _stops(text: str) -> tuple[str, ...]:
    try:
        several = json.loads(text)
    except ValueError:  # Such as [INST], or ###.
        several = None
    if isinstance(several, list) and all(isinstance(stop, str) for stop in several):
        return tuple(stop for stop in several if stop)
    return (_text(text),) if text else ()


def _ids(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"(\d+(\s*,\s*\d+)*)?", text):
        raise ValueError("must be token ids, separated by commas")
    return tuple(int(one) for one in text.split(",") if one)


_READERS: Mapping[str, Callable[[str], Any]] = {
    "match": _parts,
    "system_template": _system_template,
    "roles": _roles,
    "sep_style": _style,
    "sep": _text,
    "sep2": _text,
    "stop_str": _stops,
    "stop_token_ids": _ids,
}
