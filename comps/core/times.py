"""When what happened in an exchange."""

from __future__ import annotations


class Times:
    """When what happened in an exchange, in seconds of `time.monotonic`; 0.0: not yet."""

    started = 0.0
    """When the request came."""
    asked_at = 0.0
    """When the model server was asked, with the first prompt if there are several."""
    first_token_at = 0.0
    """When the first text, reasoning or tool call of a stream came; whole answers have no such time."""
    answered_at = 0.0
    """When the model server had answered, the last prompt if there are several."""
