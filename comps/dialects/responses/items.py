"""The items of `input`, as messages of OpenAI's chat API, which model servers speak.

https://platform.openai.com/docs/api-reference/responses/create#responses-create-input
"""

from __future__ import annotations

from collections.abc import Sequence

from comps.core.errors import InvalidRequest, shown_name
from comps.core.types import JSON, Message

_TOLD = frozenset(("type", "id", "status", "annotations", "logprobs", "encrypted_content"))
"""Fields that an answer has and that come back with it. They say nothing to a model."""
_TEXTS = ("input_text", "output_text", "text")
_PARTS = ("input_text", "output_text", "refusal", "input_image", "input_file", "input_audio")
_ITEMS = "message, function_call, function_call_output, reasoning"
_ROLES = ("user", "assistant", "system", "developer")
_NOT_KEPT = "files are not kept here: send the file itself, as {} with a data URL"
_NO_REFERENCES = "items are not kept here: send the item itself; with store: false, clients do"


class Conversation:
    """The messages that some items are.

    A call of a function, and the reasoning before it, belong to the assistant's message beside them.

    Args:
        instructions: The first message, of the system; empty: none.
        items: The items.

    Raises:
        InvalidRequest: An item is not valid, or refers to something that is not kept here.
    """

    def __init__(self, instructions: str, items: Sequence[dict[str, JSON]]) -> None:
        self.ignored: dict[str, None] = {}
        """The names of the fields without effect, in order."""
        self._turns: list[tuple[str, str | list[JSON], dict[str, JSON]]] = []
        """The role, the content and the other fields of each message."""
        self._reasoning: list[str] = []
        """What belongs to the next message of the assistant, by part."""
        self._calls: set[str] = set()
        """The ids of the calls so far."""
        if instructions:
            self._turns.append(("system", instructions, {}))
        for place, item in enumerate(items):
            self._read(item, f"input.{place}")
        self._end_reasoning()
        self.messages = tuple(Message(*turn) for turn in self._turns)

    def _read(self, item: dict[str, JSON], place: str) -> None:
        match item.get("type") or ("message" if "role" in item else "item_reference"):
            case "message":
                self._message(item, place)
            case "function_call":
                self._call(item, place)
            case "function_call_output":
                self._output(item, place)
            case "reasoning":
                self._reason(item, place)
            case "item_reference":
                raise InvalidRequest(_NO_REFERENCES, f"{place}.type")
            case other:
                raise InvalidRequest(
                    f"{shown_name(other)} is none of the types that are read: {_ITEMS}", f"{place}.type"
                )

    def _message(self, item: dict[str, JSON], place: str) -> None:
        self._name_ignored(item, "input", "role", "content")
        role = item.get("role")
        if role not in _ROLES:
            raise InvalidRequest(f"it must be one of {', '.join(_ROLES)}", f"{place}.role")
        content = self._content(item.get("content"), f"{place}.content")
        if role != "assistant":
            self._end_reasoning()
            self._turns.append((role, content, {}))
        elif self._goes_on() and not self._turns[-1][1]:
            self._turns[-1] = (role, content, self._turns[-1][2])
        else:
            self._begin_answer(content)

    def _call(self, item: dict[str, JSON], place: str) -> None:
        self._name_ignored(item, "input.function_call", "call_id", "name", "arguments")
        identity, name, arguments = (_text(item, field, place) for field in ("call_id", "name", "arguments"))
        self._calls.add(identity)
        if not self._goes_on():
            self._begin_answer("")
        call = {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._turns[-1][2].setdefault("tool_calls", []).append(call)

    def _output(self, item: dict[str, JSON], place: str) -> None:
        self._name_ignored(item, "input.function_call_output", "call_id", "output", "name")
        self._end_reasoning()
        identity = _text(item, "call_id", place)
        if identity not in self._calls:
            said = "there is no function_call with this id before it; answers are not kept here, so send that item, too"
            raise InvalidRequest(said, f"{place}.call_id")
        content = self._content(item.get("output"), f"{place}.output")
        self._turns.append(("tool", content, {"tool_call_id": identity}))

    def _reason(self, item: dict[str, JSON], place: str) -> None:
        self._name_ignored(item, "input.reasoning", "summary", "content")
        field = "content" if item.get("content") else "summary"
        parts = item.get(field) or []
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise InvalidRequest("it must be a list of parts", f"{place}.{field}")
        self._reasoning += [text for part in parts if (text := _text(part, "text", place))]
        if not parts and item.get("encrypted_content"):
            self.ignored["input.reasoning.encrypted_content"] = None

    def _content(self, given: JSON, place: str) -> str | list[JSON]:
        """The content of a message: text, or parts as the chat API has them."""
        if isinstance(given, str):
            return given
        if not isinstance(given, list):
            raise InvalidRequest("it must be a text or a list of parts", place)
        parts = [self._part(part, f"{place}.{at}") for at, part in enumerate(given)]
        return str(parts[0]["text"]) if len(parts) == 1 and parts[0]["type"] == "text" else parts

    def _part(self, part: JSON, place: str) -> dict[str, JSON]:
        if not isinstance(part, dict):
            raise InvalidRequest("it must be an object", place)
        kind = part.get("type")
        if kind in _TEXTS:
            self._name_ignored(part, "input.content", "text")
            return {"type": "text", "text": _text(part, "text", place)}
        if kind == "refusal":
            self._name_ignored(part, "input.content", "refusal")
            return {"type": "refusal", "refusal": _text(part, "refusal", place)}
        if kind == "input_image":
            return self._image(part, place)
        if kind == "input_file":
            return self._file(part, place)
        if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
            return {"type": "input_audio", "input_audio": part["input_audio"]}
        raise InvalidRequest(f"it must be one of {', '.join(_PARTS)}", f"{place}.type")

    def _image(self, part: dict[str, JSON], place: str) -> dict[str, JSON]:
        self._name_ignored(part, "input.content", "image_url", "detail", "file_id")
        if part.get("file_id"):
            raise InvalidRequest(_NOT_KEPT.format("image_url"), f"{place}.file_id")
        image = {"url": _text(part, "image_url", place)}
        return {"type": "image_url", "image_url": {**image, "detail": part["detail"]} if part.get("detail") else image}

    def _file(self, part: dict[str, JSON], place: str) -> dict[str, JSON]:
        self._name_ignored(part, "input.content", "file_data", "filename", "file_id", "file_url")
        if missing := next((name for name in ("file_id", "file_url") if part.get(name)), None):
            raise InvalidRequest(_NOT_KEPT.format("file_data"), f"{place}.{missing}")
        named = {"filename": part["filename"]} if part.get("filename") else {}
        return {"type": "file", "file": {**named, "file_data": _text(part, "file_data", place)}}

    def _goes_on(self) -> bool:
        """Whether the last message is the assistant's, and nothing was reasoned since."""
        return bool(self._turns) and self._turns[-1][0] == "assistant" and not self._reasoning

    def _begin_answer(self, content: str | list[JSON]) -> None:
        """Begin a message of the assistant, with the reasoning before it."""
        reasoning, self._reasoning = "\n".join(self._reasoning), []
        self._turns.append(("assistant", content, {"reasoning_content": reasoning} if reasoning else {}))

    def _end_reasoning(self) -> None:
        """Name reasoning that no message of the assistant follows."""
        if self._reasoning:
            self._reasoning = []
            self.ignored["input.reasoning"] = None

    def _name_ignored(self, item: dict[str, JSON], place: str, *read: str) -> None:
        """Name the fields of an item, or of a part, without effect."""
        for name, value in item.items():
            if name not in _TOLD and name not in read and value is not None:
                self.ignored[f"{place}.{name}"] = None


def _text(item: dict[str, JSON], field: str, place: str) -> str:
    if not isinstance(value := item.get(field), str):
        raise InvalidRequest("it must be a text" if field in item else "it is required", f"{place}.{field}")
    return value
