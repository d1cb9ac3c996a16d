"""Counts what happens on the way to model servers and clients, for the metrics. Labels are of a few fixed words."""

from __future__ import annotations

from collections import Counter

from comps.core.errors import InvalidRequest, LLMError, Overloaded, Refused, Timeout, Unreachable

RETRIES: Counter[tuple[str, str]] = Counter()
"""Requests that were sent to a model server again, since the process began, by the model's name and the reason:

- `kept_connection`: a kept connection turned out to be closed;
- `unreachable`: no connection, or the model server was not ready (503);
- `overloaded`: a replica was busy (429), and another one was asked;
- `failed`: a replica failed before its answer began, and another one was asked.
"""

TIMEOUTS: Counter[str] = Counter()
"""Missed deadlines since the process began: `connect`, `first_token`, `between_tokens` and `total` of model servers,
`client` for clients that took nothing of their answer."""

MODEL_SERVER_ERRORS: Counter[tuple[str, str]] = Counter()
"""Errors of model servers since the process began, by the model's name and the class of the error; see `class_of`."""


def class_of(error: LLMError) -> str:
    """Returns the class of a model server's error:

    - `unreachable`: no connection, or it is not ready (503);
    - `timeout`: a missed deadline;
    - `overloaded`: 429;
    - `rejected`: another 4xx, so that the request is at fault, or our credentials;
    - `failed`: another 5xx;
    - `broken`: the connection broke, or the answer makes no sense.
    """
    match error:
        case Unreachable():
            return "unreachable"
        case Timeout():
            return "timeout"
        case Overloaded():
            return "overloaded"
        case InvalidRequest():
            return "rejected"
        case Refused(status=status):
            return "rejected" if status < 500 else "failed"
    return "broken"
