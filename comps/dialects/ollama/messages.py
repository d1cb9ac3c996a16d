"""The messages of Ollama's chats, as the core's messages in OpenAI's form.

https://docs.ollama.com/api/chat
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import count
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from comps.core.errors import InvalidRequest
from comps.core.types import JSON, Message
from comps.dialects.shared.bodies import MOST
from comps.dialects.shared.openai_values import Schema

Images = Annotated[list[str], Field(max_length=MOST)]

_TYPES = {"iVBORw0KGgo": "png", "R0lGOD": "gif", "UklGR": "webp"}
"""The types of images by what they begin with, in base64; of all others, it is taken for JPEG."""
_NAMES = {
    "thinking": "reasoning_content",
    "tool_calls": "tool_calls",
    "tool_name": "name",
    "tool_call_id": "tool_call_id",
}
"""The fields of OpenAI's messages, by those of Ollama's."""


class OllamaMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[
        Literal["system", "developer", "user", "assistant", "tool"],
        BeforeValidator(lambda role: role.lower() if isinstance(role, str) else role),
    ]
    content: str | None = None
    thinking: str | None = Field(None, description="What the model thought before it said that.")
    images: Images | None = Field(None, description="Each in base64; for models that see.")
    tool_calls: list[Schema] | None = Field(
        None, description="Each with a `function` that has a `name` and `arguments`, an object."
    )
    tool_name: str | None = Field(None, description="Whose result it is, of role tool.")
    tool_call_id: str | None = Field(None, description="Of which call it is the result.")

    @model_validator(mode="after")
    def _has_content(self) -> OllamaMessage:
        if self.content is None and not (self.images or self.tool_calls or self.thinking):
            raise ValueError("a message needs content, images or tool_calls")
        return self


def conversation(turns: Sequence[OllamaMessage]) -> tuple[Message, ...]:
    """The messages of a chat.

    In OpenAI's form each call has an id, and its result names it. Where they have none, calls get one, and a result
    that of the first call without a result, by the tool's name if that is said.

    Raises:
        InvalidRequest: An image or a call is none.
    """
    ids = (f"call_{number}" for number in count())
    open_calls: dict[str, str] = {}
    """The names of the tools by the ids of the calls that have no result yet."""
    messages = []
    for place, turn in enumerate(turns):
        extra = {ours: value for theirs, ours in _NAMES.items() if (value := getattr(turn, theirs))}
        if turn.tool_calls:
            field = f"messages.{place}.tool_calls"
            calls = [_call(call, ids, field) for call in turn.tool_calls]
            open_calls = {call["id"]: call["function"]["name"] for call in calls}
            extra["tool_calls"] = calls
        if turn.role == "tool":
            found = turn.tool_call_id or _answered(open_calls, turn.tool_name)
            if found:
                extra["tool_call_id"] = found
                open_calls.pop(found, None)
        content = content_of(turn.content or "", turn.images, f"messages.{place}.images")
        messages.append(Message(turn.role, content, extra))
    return tuple(messages)


def content_of(text: str, images: Sequence[str] | None, field: str) -> str | list[JSON]:
    """A text with its images as the content of a message.

    Args:
        text: The text.
        images: Each in base64, or as a `data:` URL.
        field: Where they are, for the error.

    Raises:
        InvalidRequest: One of them is neither.
    """
    if not images:
        return text
    parts: list[JSON] = [{"type": "text", "text": text}] if text else []
    return [*parts, *({"type": "image_url", "image_url": {"url": _url(image, field)}} for image in images)]


def _url(image: str, field: str) -> str:
    if image.startswith("data:image/"):
        return image
    image = image.replace("\r", "").replace("\n", "")  # As Go reads base64, in whose lines some libraries break it.
    try:
        if not b64decode(image, validate=True):
            raise ValueError
    except (binascii.Error, ValueError):
        raise InvalidRequest("an image is not in base64", field) from None
    kind = next((kind for start, kind in _TYPES.items() if image.startswith(start)), "jpeg")
    return f"data:image/{kind};base64,{image}"


def _call(call: Schema, ids: Iterator[str], field: str) -> dict[str, Any]:
    """A call in OpenAI's form."""
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(name, str) or not isinstance(arguments, dict | str | None):
        raise InvalidRequest("a call needs a function with a name and arguments, an object", field)
    told = arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode()
    identity = call.get("id")
    return {
        "id": identity if isinstance(identity, str) and identity else next(ids),
        "type": "function",
        "function": {"name": name, "arguments": told},
    }


def _answered(open_calls: Mapping[str, str], tool_name: str | None) -> str | None:
    """The id of the call whose result has none; None if there is no such call."""
    return next((key for key, name in open_calls.items() if tool_name in (None, "", name)), None)


def ignored_in(turns: Iterable[OllamaMessage], capabilities: AbstractSet[str]) -> list[str]:
    """The names of the fields of messages that have no effect; see `Call.ignored`."""
    lost = set()
    for turn in turns:
        lost |= {name for name, value in (turn.model_extra or {}).items() if value is not None}
        if "messages.*" not in capabilities:
            lost |= {
                name for name, ours in _NAMES.items() if getattr(turn, name) and f"messages.{ours}" not in capabilities
            }
    return [f"messages.{name}" for name in sorted(lost)]
