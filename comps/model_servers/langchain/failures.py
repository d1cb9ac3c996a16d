"""Errors of whatever package a LangChain chat model uses as errors of ours, by what they have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from comps.core.errors import LLMError, ModelServerError, Timeout, Unreachable, told_at
from comps.model_servers.remote.failures import failure_of, why_unreachable

_CANNOT_BE_REACHED = "the model server cannot be reached"


def translated(error: BaseException, what: str, brief: Callable[[object], str], address: str = "") -> LLMError:
    """The error of ours that stands for an error, or for one that it came from.

    Args:
        error: What was raised.
        what: What raised it.
        brief: What an error says, shortened and without secrets.
        address: The URL that the settings name, without credentials, for the operator; empty: none.
    """
    found = next((ours for one in _causes(error) if (ours := _ours(one, brief))), None)
    at = f"{what} at {address}" if address else what
    if not found:
        why = f"failed: {type(error).__name__}: {brief(error)}"
        failure = ModelServerError(f"{what} {why}")
        failure.operator_text = f"{at} {why}"
        return failure
    if type(found) is Unreachable and str(found) == _CANNOT_BE_REACHED:
        said = ": ".join(dict.fromkeys((type(error).__name__, brief(error) or "no connection")))
        why, further = next(map(why_unreachable, _system_errors(error)), ("no connection", said))
        told = f"{why} ({further})" if further else why
        return Unreachable(f"{found}: {why}", operator_text=f"{found}: {at}: {told}")
    return told_at(found, at) if isinstance(found, ModelServerError) else found


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came from."""
    while error:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _system_errors(error: BaseException | None) -> Iterator[OSError]:
    """The errors of the operating system that an error came from, also suppressed ones, and those of a group."""
    while error:
        if isinstance(error, OSError) and error.errno:
            yield error
        for member in getattr(error, "exceptions", ()):
            yield from _system_errors(member)
        error = error.__cause__ or error.__context__


def _ours(error: BaseException, brief: Callable[[object], str]) -> LLMError | None:
    if isinstance(error, LLMError):
        return error
    response = getattr(error, "response", None)
    for holder, name in ((error, "status_code"), (error, "status"), (response, "status_code"), (error, "code")):
        if isinstance(status := getattr(holder, name, None), int) and 400 <= status < 600:
            held = getattr(response, "headers", None) or {}
            headers = {str(name).lower().encode(): str(value).encode() for name, value in held.items()}
            return failure_of(status, headers, {"message": brief(error)})
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    if "Timeout" in names and not re.search("Connect(ion)?Timeout", names):
        return Timeout("the model server did not answer in time")
    if "Connect" in names:
        return Unreachable(_CANNOT_BE_REACHED)
    return None
