"""Tool calls in the text of an answer, read piece by piece into deltas of OpenAI's API."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Protocol, TypeAlias

from comps.core.types import JSON
from comps.model_servers.embedded.tools import ARGUMENTS, NAME, Tools

Piece: TypeAlias = "str | dict[str, JSON]"
"""The next piece of an answer: text, or the extra fields of a delta (see `TextDelta.extra`)."""

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"
"""The markers of Hermes and Qwen around a call, `{"name": …, "arguments": {…}}`."""
_NO_JSON = ("<function=", "<arg_key>")
"""What stands between these markers in chat templates whose calls are no JSON, such as Qwen3-Coder's and GLM's."""
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')


def is_recognised(chat_template: str) -> bool:
    """Whether the calls of a model with this chat template are recognised in its answers."""
    is_json = ARGUMENTS in chat_template and not any(mark in chat_template for mark in _NO_JSON)
    return _OPENING in chat_template and is_json


class Reader(Protocol):
    """Reads the text of one answer."""

    called: bool
    """Whether there was a call so far."""
    reason: str
    """The finish reason of an answer with a call that ended by itself."""

    def push(self, text: str) -> list[Piece]:
        """Returns the pieces that the next text makes."""
        ...

    def flush(self) -> list[Piece]:
        """Returns what is left at the end."""
        ...


def reader_of(tools: Tools) -> Reader:
    """What reads the answer to a request with tools."""
    if not tools.demanded:
        return MarkedCalls(tools)
    return OnlyCall(tools) if len(tools.functions) == 1 else ChosenCall(tools)


class _Deltas:
    """Makes deltas of calls."""

    def __init__(self, is_older_form: bool) -> None:
        self._is_older_form = is_older_form
        self._calls = 0
        self.reason = "function_call" if is_older_form else "tool_calls"

    def begin(self, name: str) -> dict[str, JSON]:
        """The first delta of the next call."""
        self._calls += 1
        function = {"name": name, "arguments": ""}
        if self._is_older_form:
            return {"function_call": function}
        call = {"index": self._calls - 1, "id": f"call_{secrets.token_hex(12)}", "type": "function"}
        return {"tool_calls": [{**call, "function": function}]}

    def arguments(self, text: str) -> dict[str, JSON]:
        """A further delta of the call, with a piece of its arguments."""
        if self._is_older_form:
            return {"function_call": {"arguments": text}}
        return {"tool_calls": [{"index": self._calls - 1, "function": {"arguments": text}}]}


class OnlyCall:
    """Reads an answer that is the arguments of one function."""

    def __init__(self, tools: Tools) -> None:
        self._deltas = _Deltas(tools.is_older_form)
        self._name = str(tools.functions[0]["name"])
        self.called = False
        self.reason = self._deltas.reason

    def push(self, text: str) -> list[Piece]:
        if not text:
            return []
        first: list[Piece] = [] if self.called else [self._deltas.begin(self._name)]
        self.called = True
        return [*first, self._deltas.arguments(text)]

    def flush(self) -> list[Piece]:
        return []


class ChosenCall:
    """Reads an answer that is an object with the name of a function and its arguments."""

    def __init__(self, tools: Tools) -> None:
        self._deltas = _Deltas(tools.is_older_form)
        self._unread = ""
        self._end = _ObjectEnd()
        self.called = False
        self.reason = self._deltas.reason

    def push(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        if not self.called:
            self._unread += text
            head = _HEAD.match(self._unread)
            if head is None or head.end() == len(self._unread):
                return []
            self.called = True
            pieces.append(self._deltas.begin(json.loads(head[1])))
            text = self._unread[head.end() :]
        if arguments := self._end.before(text):
            pieces.append(self._deltas.arguments(arguments))
        return pieces

    def flush(self) -> list[Piece]:
        return []


class _ObjectEnd:
    """Finds the end of a JSON object in text that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._ended = False

    def before(self, text: str) -> str:
        """The part of the next text that belongs to the object."""
        if self._ended:
            return ""
        for at, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = not self._in_string
            elif character in "{}" and not self._in_string:
                self._depth += 1 if character == "{" else -1
                self._ended = self._depth == 0
                if self._ended:
                    return text[: at + 1]
        return text


class MarkedCalls:
    """Reads an answer in which calls stand between markers. What is no call to one of the functions stays text."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._deltas = _Deltas(tools.is_older_form)
        self._unread = ""
        self.called = False
        self.reason = self._deltas.reason

    def push(self, text: str) -> list[Piece]:
        self._unread += text
        pieces: list[Piece] = []
        while (opening := self._unread.find(_OPENING)) >= 0:
            closing = self._unread.find(_CLOSING, opening)
            if closing < 0:
                break
            end = closing + len(_CLOSING)
            pieces += self._text(self._unread[:opening])
            pieces += self._call(self._unread[opening:end])
            self._unread = self._unread[end:]
        kept = len(self._unread) - opening if opening >= 0 else _begun(self._unread)
        known = self._unread[: len(self._unread) - kept]
        self._unread = self._unread[len(known) :]
        return pieces + self._text(known)

    def flush(self) -> list[Piece]:
        """A call that was cut is shown as the text that it is; some models leave out the last marker."""
        unread, self._unread = self._unread, ""
        return self._call(unread) if unread.startswith(_OPENING) else self._text(unread)

    def _text(self, text: str) -> list[Piece]:
        """Text beside calls; line breaks around them are no text."""
        shown = text.lstrip("\n") if self.called else text
        return [shown] if shown else []

    def _call(self, marked: str) -> list[Piece]:
        call = _read_call(marked.removeprefix(_OPENING).removesuffix(_CLOSING))
        if call is None or call[0] not in self._tools.names:
            return [marked]
        if self.called and not self._tools.several:
            return []
        self.called = True
        return [self._deltas.begin(call[0]), self._deltas.arguments(call[1])]


def _begun(text: str) -> int:
    """How many characters at the end of a text may be the beginning of the opening marker."""
    return next((size for size in range(len(_OPENING) - 1, 0, -1) if text.endswith(_OPENING[:size])), 0)


def _read_call(text: str) -> tuple[str, str] | None:
    """The name and the arguments, as JSON, of a call; None if it is none."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name, arguments = (call.get(NAME), call.get(ARGUMENTS)) if isinstance(call, dict) else (None, None)
    if not isinstance(name, str):
        return None
    if isinstance(arguments, Mapping):
        return name, json.dumps(arguments, ensure_ascii=False)
    return (name, arguments or "{}") if isinstance(arguments, str | None) else None
