"""Connections to hosts that may vanish."""

from __future__ import annotations

import socket

VANISHED_SECONDS = 20
"""How long another host may keep silent where TCP asks for a sign of life, until it counts as gone."""


def notice_silence(connection: socket.socket) -> None:
    """Let a TCP socket fail once the other host has vanished: a cut link or a lost power supply says no goodbye.

    Of a listening socket, all connections to it have that. Without it, Linux sends again for a quarter of an hour, and
    never asks whoever it only listens to.
    """
    third = VANISHED_SECONDS // 3
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, third)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, third)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_SECONDS * 1000)
