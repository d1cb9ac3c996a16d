"""Errors of whatever package a LangChain chat model uses as errors of ours, by what they have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from comps.core.errors import InvalidRequest, LLMError, ModelServerError, Overloaded, Refused, Timeout, Unreachable


def translated(error: BaseException, what: str, brief: Callable[[object], str]) -> LLMError:
    """The error of ours that stands for an error, or for one that it came from.

    Args:
        error: What was raised.
        what: What raised it.
        brief: What an error says, shortened and without secrets.
    """
    found = next((ours for one in _causes(error) if (ours := _ours(one, brief))), None)
    return found or ModelServerError(f"{what} failed: {type(error).__name__}: {brief(error)}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came from."""
    while error:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _ours(error: BaseException, brief: Callable[[object], str]) -> LLMError | None:
    if isinstance(error, LLMError):
        return error
    response = getattr(error, "response", None)
    for holder, name in ((error, "status_code"), (error, "status"), (response, "status_code"), (error, "code")):
        if isinstance(status := getattr(holder, name, None), int) and 400 <= status < 600:
            return _of_status(status, brief(error), getattr(response, "headers", None) or {})
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    if "Timeout" in names and not re.search("Connect(ion)?Timeout", names):
        return Timeout("the model server did not answer in time")
    if "Connect" in names:
        return Unreachable("the model server cannot be reached")
    return None


def _of_status(status: int, said: str, headers: Mapping[str, str]) -> LLMError:
    if status in (401, 403):  # What it says of our key is not for a caller.
        return Refused(status, "it does not accept this service's key")
    if status in (400, 413, 422):
        return InvalidRequest(f"the model server refused it: {said}")
    wait = str(headers.get("retry-after", ""))
    seconds = int(wait) if wait.isdigit() else 1
    if status == 429:
        return Overloaded(f"the model server is busy: {said}", seconds)
    if status == 503:
        return Unreachable(f"the model server is not ready: {said}", seconds)
    return Refused(status, said)
