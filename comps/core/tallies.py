"""Counts what happens on the way to model servers and clients, for the metrics. Labels are of a few fixed words."""

from __future__ import annotations

from collections import Counter

RETRIES: Counter[str] = Counter()
"""Requests that were sent to a model server again, since the process began, by reason:

- `kept_connection`: a kept connection turned out to be closed;
- `unreachable`: no connection, or the model server was not ready (503);
- `overloaded`: a replica was busy (429), and another one was asked;
- `failed`: a replica failed before its answer began, and another one was asked.
"""

TIMEOUTS: Counter[str] = Counter()
"""Missed deadlines since the process began: `connect`, `first_token`, `between_tokens` and `total` of model servers,
`client` for clients that took nothing of their answer."""
