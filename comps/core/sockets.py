"""Connections to hosts that may vanish."""

from __future__ import annotations

import socket

_SILENT_SECONDS = 10
"""How long nothing may come, before TCP asks for a sign of life."""
_ASK_SECONDS = 5
"""How long it waits before it asks again; after three times in vain the other host is gone."""


def notice_silence(connection: socket.socket, stalled_seconds: float) -> None:
    """Let a TCP socket fail once the other host has vanished: a cut link or a lost power supply says no goodbye.

    Of a listening socket, all connections to it have that. Without it, Linux sends again for a quarter of an hour, and
    never asks whoever it only listens to.

    Args:
        connection: The socket.
        stalled_seconds: How long what was sent may stay without a receipt, or a peer that reads nothing may take no
            more, which TCP counts alike; 0: as long as the system says.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASK_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stalled_seconds * 1000))
