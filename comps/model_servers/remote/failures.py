"""Errors of a model server: maps HTTP statuses and error objects to exceptions."""

from __future__ import annotations

import os
import re
import socket
import ssl
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import ceil, isfinite
from types import TracebackType

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
from comps.model_servers.remote.parsing import parse_json

_LONGEST_WAIT = 86_400
_LOOKED_AT = 4000
"""Characters of a server's message that are looked at; an answer that is an error may have any number."""
_NAME = re.compile(r"[\w.\[\]-]{1,100}", re.ASCII)
_LIMITS = ("max_tokens", "max_completion_tokens")
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error", "context_window_exceeded")
"""The error codes of OpenAI, llama-server and others for a prompt that is too long."""
_SAYS_TOO_LONG = re.compile(
    r"^(?!.*_tokens' is too large)"
    r".*(maximum context length|longer than the (maximum model|model's context) length"
    r"|context (length|window|size) is only|exceeds? the (available |model's |maximum )*(context|input token)"
    r"|exceeds? the maximum number of tokens|exceeds? (the )?(context|maximum input)|longer than the model's context"
    r"|context length of only|too many tokens|context window exceeded|reduce the length of the (messages|prompt|input)"
    r"|(prompt|input) is too long|maximum allowed length)",
    re.IGNORECASE | re.DOTALL,
)
"""The messages of vLLM, SGLang, llama.cpp, Anthropic and others for it. vLLM's message about max_tokens is similar, and
excluded."""
_REDIRECTS = (301, 302, 303, 307, 308)
_TOLD = (400, 401, 403, 404, 413, 422, 429, 503, 529)
"""The statuses that an error in a response with the status 200 may stand for; others only say that it failed."""
_KINDS = (
    (
        re.compile(
            "rate_?limit|too_?many_?requests|insufficient_?quota|throttl|resource_?exhausted|^overloaded$",
            re.IGNORECASE,
        ),
        429,
    ),
    (re.compile("overloaded|unavailable", re.IGNORECASE), 503),
    (re.compile("authentication|invalid_?api_?key|unauthorized", re.IGNORECASE), 401),
    (re.compile("permission|forbidden", re.IGNORECASE), 403),
    (re.compile("not_?found", re.IGNORECASE), 404),
    (
        re.compile(
            "invalid_?(request|argument)|bad_?request|validation|value_?error|invalid_?value|context_?window",
            re.IGNORECASE,
        ),
        400,
    ),
    (re.compile("time_?out", re.IGNORECASE), 504),
)
"""The statuses that kinds of errors have: those of OpenAI, Anthropic, vLLM, TGI and others."""


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
    try:
        document = parse_json(body)
    except ValueError:
        document = {"error": body.decode("utf-8", "replace").strip() or _phrase(status) or "no reason"}
    document = document[0] if isinstance(document, list) and document else document
    error = document.get("error") or document if isinstance(document, dict) else document
    if isinstance(error, str) and isinstance(document, dict):  # Its kind is beside it.
        error = {**document, "message": error}
    held = _headers_of(error) if isinstance(error, dict) else {}
    return failure_of(status, {**held, **headers}, error)


def reported_failure(error: JSON) -> LLMError:
    """Returns the exception for an error that a server reports in a response whose status is 200.

    It is that of the status that the error's code or type stands for; without one, it is a ModelServerError.

    Args:
        error: The server's error, an object or a text.
    """
    status = _status_of(error) if isinstance(error, dict) else None
    message = error_message(error)
    if status is None and _is_too_long(error, message):
        status = 400
    if status is None or status not in _TOLD:
        return ModelServerError(f"the model server failed: {message}")
    return failure_of(status, _headers_of(error), error)


def failure_of(status: int, headers: Mapping[bytes, bytes], error: JSON) -> LLMError:
    """Returns the exception for a status, see `failure`.

    Args:
        status: The HTTP status.
        headers: The headers by lower-case name.
        error: The server's error, an object or a text.
    """
    message = error_message(error)
    if status in (401, 403):  # The message may contain our key, so callers do not get it.
        return Refused(status, "it does not accept this service's key")
    if status in (400, 413, 422) or (status == 500 and _is_too_long(error, message)):
        return _refusal(error if isinstance(error, dict) else {}, f"the model server refused it: {message}")
    if status == 429:
        return Overloaded(f"the model server is busy: {message}", _retry_after(headers))
    if status in (503, 529):
        return Unreachable(f"the model server is not ready: {message}", _retry_after(headers))
    return Refused(status, message)


def _status_of(error: Mapping[str, JSON]) -> int | None:
    """Returns the status that an error names, by its number or by its kind; None if it names none."""
    named = [error.get(name) for name in ("code", "status", "status_code", "statusCode", "type", "error_type")]
    for said in named:
        if isinstance(said, float) and said.is_integer():
            said = int(said)
        if isinstance(said, int | str) and re.fullmatch("[45][0-9]{2}", str(said), re.ASCII):
            return int(said)
    kinds = [said for said in named if isinstance(said, str)]
    if any(said in _TOO_LONG for said in kinds):
        return 400
    return next((status for pattern, status in _KINDS if any(map(pattern.search, kinds))), None)


def _headers_of(error: Mapping[str, JSON]) -> dict[bytes, bytes]:
    """Returns the headers that an error has in itself, and its `retry_after`, by lower-case name."""
    metadata = error.get("metadata")
    held = [error, error.get("headers"), metadata, metadata.get("headers") if isinstance(metadata, dict) else None]
    pairs = [pair for one in held if isinstance(one, dict) for pair in one.items()]
    return {
        name.lower().replace("_", "-").encode("latin-1", "replace"): str(value).encode("latin-1", "replace")
        for name, value in pairs
        if isinstance(value, str | int | float)
    }


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _is_too_long(error: JSON, message: str) -> bool:
    """Returns whether an error says that the prompt is too long for the context window."""
    fields = error if isinstance(error, dict) else {}
    if any(fields.get(name) in _TOO_LONG for name in ("code", "type", "error_code", "error_type")):
        return True
    return fields.get("param") not in _LIMITS and bool(_SAYS_TOO_LONG.match(message))


def _refusal(error: dict[str, JSON], said: str) -> InvalidRequest:
    """Returns the request error for the server's `error` object and our message."""
    field = param if isinstance(param := error.get("param"), str) and _NAME.fullmatch(param) else None
    if not _is_too_long(error, said):
        return InvalidRequest(said, field)
    tokens, window = error.get("n_prompt_tokens"), error.get("n_ctx")  # llama-server's numbers.
    if isinstance(tokens, int) and isinstance(window, int):
        return PromptTooLong(tokens, window)
    return PromptTooLong(0, 0, said=said)


def _retry_after(headers: Mapping[bytes, bytes]) -> int:
    """Returns the seconds of `retry-after-ms` or `Retry-After`, rounded up; 1 if there is neither."""
    milliseconds = _number(headers.get(b"retry-after-ms", b""))
    if milliseconds is not None:
        return min(max(ceil(milliseconds / 1000), 0), _LONGEST_WAIT)
    said = headers.get(b"retry-after", b"").decode("latin-1").strip()
    seconds = _number(said.removesuffix("s").encode("latin-1"))
    if seconds is not None:
        return min(max(ceil(seconds), 0), _LONGEST_WAIT)
    if until := _time(said):
        # Both dates are by the server's clock, which may not be ours.
        now = _time(headers.get(b"date", b"").decode("latin-1")) or time.time()
        return min(max(ceil(until - now), 1), _LONGEST_WAIT)
    return 1


def _time(date: str) -> float | None:
    """Returns the time of an HTTP date, in seconds since 1970; None if it is none."""
    with suppress(ValueError, OverflowError):
        return parsedate_to_datetime(date).timestamp()
    return None


def _number(said: bytes) -> float | None:
    """Returns a finite number; None if it is none."""
    with suppress(ValueError):
        if isfinite(number := float(said)):
            return number
    return None


def error_message(error: JSON) -> str:
    """Returns the message in a server's error, which may be an object, a string or any other JSON value."""
    said = error
    if isinstance(error, dict):
        said = next((error[name] for name in ("message", "detail", "msg") if error.get(name)), error)
    return brief(str(said))


def brief(text: str) -> str:
    """Returns text in one line, cut to 500 characters. Control characters, and others that are not displayed, become
    spaces."""
    return " ".join("".join(one if one.isprintable() else " " for one in text[:_LOOKED_AT]).split())[:500]


def why_unreachable(error: BaseException) -> tuple[str, str]:
    """Returns why no connection could be opened, for a caller, and what else is known, for the operator.

    The first has no address; the second may have one, and may be empty.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not trusted here", error.verify_message.rstrip(".")
    if isinstance(error, ssl.SSLError):
        return "no TLS connection could be made", (error.reason or "").replace("_", " ").lower()
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved", (error.strerror or "").lower()
    if isinstance(error, OSError):
        # aiohappyeyeballs joins the errors of several addresses in one text, without a number if they differ.
        numbers = [error.errno] if error.errno else map(int, re.findall(r"\[Errno (\d+)\]", str(error)))
        return ", ".join(dict.fromkeys(os.strerror(number).lower() for number in numbers)) or "no connection", ""
    return "no connection", ""


WRONG_STRUCTURE = (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error)
"""The errors of reading an answer whose structure is wrong."""


class CheckedAnswer:
    """Context manager for parsing an answer: errors of a wrong structure become a ModelServerError."""

    def __enter__(self) -> None:
        """Does nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, WRONG_STRUCTURE):
            raise ModelServerError("the model server's answer makes no sense") from error


_CHECKED_ANSWER = CheckedAnswer()


def checked_answer() -> CheckedAnswer:
    """Returns the context manager for parsing an answer; see `CheckedAnswer`."""
    return _CHECKED_ANSWER
