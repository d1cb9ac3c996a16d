"""What a client's connection may take: sizes, deadlines, and how many connections there may be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of the connections of clients; the settings of the same names explain them.

    Times are in seconds, infinite for no limit; sizes are in bytes.
    """

    max_connections: int = 4096
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 5.0
    stalled_client_seconds: float = 120.0
    max_header: int = 32_000
    max_target: int = 8_000
    max_body: int = 16_000_000

    @property
    def sweep_seconds(self) -> float:
        """How often the deadlines are looked at: every second, and for short deadlines more often."""
        times = (self.header_seconds, self.body_seconds, self.idle_seconds, self.stalled_client_seconds)
        return min(1.0, min(times) / 4)


class ConnectionCounts:
    """How many connections there are, and how many were ended by a limit."""

    def __init__(self) -> None:
        self.open = 0
        self.ended: Counter[str] = Counter()
        """By reason: `connections`, `late_head`, `late_body`, `large_head`, `large_body`, `malformed`, `stalled`."""


CONNECTIONS = ConnectionCounts()
"""Those of this process."""
