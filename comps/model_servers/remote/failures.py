"""What the failures of a model server stand for: HTTP statuses and error objects as errors of ours."""

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
"""What OpenAI and llama-server call a prompt that is too long."""
_SAYS_TOO_LONG = re.compile(
    r"^(?!.*_tokens' is too large)"
    r".*(maximum context length|longer than the (maximum model|model's context) length)"
)
"""How vLLM and SGLang say so; of max_tokens, vLLM says much the same."""
_REDIRECTS = (301, 302, 303, 307, 308)


def failure(status: int, headers: Mapping[bytes, bytes], body: bytes) -> LLMError:
    """The error that a response whose status is not 200 stands for.

    Args:
        status: The HTTP status.
        headers: By their names in lower case.
        body: Its beginning.
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
    if status in (401, 403):  # What it says of our key is not for a caller.
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
    """What the caller has to mend; `error` is the server's own."""
    field = param if isinstance(param := error.get("param"), str) and _NAME.fullmatch(param) else None
    coded = any(error.get(name) in _TOO_LONG for name in ("code", "type"))
    if not coded and (field in _LIMITS or not _SAYS_TOO_LONG.search(said)):
        return InvalidRequest(said, field)
    tokens, window = error.get("n_prompt_tokens"), error.get("n_ctx")  # llama-server's numbers.
    if isinstance(tokens, int) and isinstance(window, int):
        return PromptTooLong(tokens, window)
    return PromptTooLong(0, 0, said=said)


def _retry_after(headers: Mapping[bytes, bytes]) -> int:
    """Seconds: the header has them, or a date."""
    said = headers.get(b"retry-after", b"").decode("latin-1")
    with suppress(ValueError):
        return max(int(said), 0)
    with suppress(ValueError, OverflowError):
        return max(int(parsedate_to_datetime(said).timestamp() - time.time()) + 1, 1)
    return 1


def error_message(error: JSON) -> str:
    """What a server says in its error, which may be an object, a string or anything."""
    said = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
    return brief(str(said))


def brief(text: str) -> str:
    """A text in one line of at most 500 characters."""
    return " ".join(text.split())[:500]


class CheckedAnswer:
    """For reading an answer: one that is not built as it should be is an error of the model server."""

    def __enter__(self) -> None:
        """Nothing is to be set up."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, AttributeError | IndexError | KeyError | TypeError | ValueError | struct.error):
            raise ModelServerError("the model server's answer makes no sense") from error


_CHECKED_ANSWER = CheckedAnswer()


def checked_answer() -> CheckedAnswer:
    """The context in which an answer is read; see `CheckedAnswer`."""
    return _CHECKED_ANSWER
