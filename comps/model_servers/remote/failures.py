"""Errors of a model server: maps HTTP statuses and error objects to exceptions."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import TracebackType

import orjson

from comps.core.errors import (
    InvalidRequest,
    LLMError,
    ModelServerError,
    Overloaded,
    PromptTooLong,
    Refused,
    Unreachable,
)
from comps.core.types import JSON

_NAME = re.compile(r"[\w.\[\]-]{1,100}", re.ASCII)
_LIMITS = ("max_tokens", "max_completion_tokens")
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error")
"""The error codes of OpenAI and llama-server for a prompt that is too long."""
_SAYS_TOO_LONG = re.compile(
    r"^(?!.*_tokens' is too large)"
    r".*(maximum context length|longer than the (maximum model|model's context) length)"
)
"""The messages of vLLM and SGLang for it. vLLM's message about max_tokens is similar and excluded."""
_REDIRECTS = (301, 302, 303, 307, 308)


def failure(status: int, headers: Mapping[bytes, bytes], body: bytes) -> LLMError:
    """Returns the exception for a response whose status is not 200.

    It is InvalidRequest or PromptTooLong for 400, 413 and 422, Overloaded for 429, Unreachable for 503, and Refused for
    all others.

    Args:
        status: The HTTP status.
        headers: The headers by lower-case name.
        body: The beginning of the body.
    """
    if status in _REDIRECTS:
        return Refused(status, "it redirects to another URL, which is not followed")
    text = body.decode("utf-8", "replace")
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        document = {"error": text.strip() or _phrase(status)}
    error = document.get("error", document) if isinstance(document, dict) else document
    message = error_message(error)
    if status in (401, 403):  # The message may contain our key, so callers do not get it.
        return Refused(status, "it does not accept this service's key")
    if status in (400, 413, 422):
        return _refusal(error if isinstance(error, dict) else {}, f"the model server refused it: {message}")
    if status == 429:
        return Overloaded(f"the model server is busy: {message}", _retry_after(headers))
    if status == 503:
        return Unreachable(f"the model server is not ready: {message}", _retry_after(headers))
    return Refused(status, message)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _refusal(error: dict[str, JSON], said: str) -> InvalidRequest:
    """Returns the request error for the server's `error` object and our message."""
    field = param if isinstance(param := error.get("param"), str) and _NAME.fullmatch(param) else None
    coded = any(error.get(name) in _TOO_LONG for name in ("code", "type"))
    if not coded and (field in _LIMITS or not _SAYS_TOO_LONG.search(said)):
        return InvalidRequest(said, field)
    tokens, window = error.get("n_prompt_tokens"), error.get("n_ctx")  # llama-server's numbers.
    if isinstance(tokens, int) and isinstance(window, int):
        return PromptTooLong(tokens, window)
    return PromptTooLong(0, 0, said=said)


def _retry_after(headers: Mapping[bytes, bytes]) -> int:
    """Returns the seconds in `Retry-After`, which is a number or a date; 1 if it is neither."""
    said = headers.get(b"retry-after", b"").decode("latin-1")
    with suppress(ValueError):
        return max(int(said), 0)
    with suppress(ValueError, OverflowError):
        return max(int(parsedate_to_datetime(said).timestamp() - time.time()) + 1, 1)
    return 1


def error_message(error: JSON) -> str:
    """Returns the message in a server's error, which may be an object, a string or any other JSON value."""
    said = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
    return brief(str(said))


def brief(text: str) -> str:
    """Returns text in one line, cut to 500 characters."""
    return " ".join(text.split())[:500]


class CheckedAnswer:
    """Context manager for parsing an answer: errors of a wrong structure become a ModelServerError."""

    def __enter__(self) -> None:
        """Does nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, AttributeError | IndexError | KeyError | TypeError | ValueError | struct.error):
            raise ModelServerError("the model server's answer makes no sense") from error


_CHECKED_ANSWER = CheckedAnswer()


def checked_answer() -> CheckedAnswer:
    """Returns the context manager for parsing an answer; see `CheckedAnswer`."""
    return _CHECKED_ANSWER
