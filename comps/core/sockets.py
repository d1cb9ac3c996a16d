"""TCP keepalive and timeouts: connections whose peer has disappeared are closed."""

from __future__ import annotations

import socket

_SILENT_SECONDS = 10
"""TCP_KEEPIDLE: seconds without data before the first keepalive probe."""
_ASK_SECONDS = 5
"""TCP_KEEPINTVL: seconds between probes. After three unanswered probes the connection fails."""


def notice_silence(connection: socket.socket, stalled_seconds: float) -> None:
    """Set keepalive and TCP_USER_TIMEOUT on a socket, so that it fails after its peer has disappeared without closing.

    Accepted connections inherit both from a listening socket. Without them, Linux retransmits for about 15 minutes, and
    never probes an idle connection.

    Args:
        connection: A TCP socket.
        stalled_seconds: How long sent data may stay unacknowledged, or a peer's receive window closed; 0: the system's
            default.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASK_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stalled_seconds * 1000))
