"""SQuARE's streamed answers: frames of JSON, each with the whole text so far and a NUL behind it."""

from __future__ import annotations

import json
from collections.abc import Callable

from comps.core.types import JSON, Finished, TextDelta, Usage
from comps.dialects.shared.framing import usage_object


class Frames:
    """Writes frames.

    Args:
        write: Sends one frame.
        echoed: What the text begins with.
        only_last: Write no frame but the last one, which says how the answer ended.
    """

    __slots__ = ("_frame", "_only_last", "_write")

    def __init__(self, write: Callable[[bytes], None], echoed: str, *, only_last: bool) -> None:
        self._write = write
        self._only_last = only_last
        self._frame = bytearray(b'{"text": "' + _escaped(echoed))
        """A frame up to the end of the text so far: a frame costs a copy of it, and no text is escaped twice."""

    def text(self, text: str, choice: int = 0) -> None:
        self._frame += _escaped(text)
        if not self._only_last:
            self._write(b"".join((self._frame, b'", "error_code": 0, "usage": {}}\0')))

    def delta(self, delta: TextDelta) -> None:
        if delta.text:
            self.text(delta.text)

    def finished(self, end: Finished) -> None:
        ended = f'"usage": {json.dumps(frame_usage(end.usage))}, "finish_reason": {json.dumps(end.reason)}'
        self._write(b"".join((self._frame, b'", "error_code": 0, ', ended.encode(), b"}\0")))

    def close(self) -> None:
        """Nothing follows the last frame."""


def frame_usage(usage: Usage | None) -> JSON:
    """OpenAI's `usage`; empty where the model server does not count."""
    return usage_object(usage) or {}


def _escaped(text: str) -> bytes:
    """The inside of a JSON string, in ASCII."""
    return json.dumps(text)[1:-1].encode()
