"""The sockets that the service listens on."""

from __future__ import annotations

import os
from errno import EADDRNOTAVAIL
from socket import AI_PASSIVE, SOCK_STREAM, create_server, gaierror, getaddrinfo, socket

from comps.core.errors import LLMError, SettingsError
from comps.settings import Settings


def sockets_of_workers(settings: Settings) -> list[list[socket]]:
    """Returns the listening sockets of each worker; see `listening_sockets` for the errors."""
    for one in listening_sockets(settings):  # Sockets that share a port would share it with another service as well.
        one.close()
    return [listening_sockets(settings, shared=True) for _ in range(settings.microservice.workers)]


def listening_sockets(settings: Settings, *, shared: bool = False) -> list[socket]:
    """Returns a listening socket for each address of the host that the settings name.

    Args:
        settings: The settings.
        shared: Whether other processes listen on the same port (SO_REUSEPORT).

    Raises:
        SettingsError: The host is none of this machine.
        LLMError: The port is taken, or not allowed.
    """
    host, port = settings.microservice.host, settings.microservice.port
    source = {one.key: one.source for one in settings.listing if one.section == "OPEA_Microservice"}
    sockets: list[socket] = []
    try:
        for family, _, _, _, address in getaddrinfo(host, port, type=SOCK_STREAM, flags=AI_PASSIVE):
            sockets.append(create_server(address[:2], family=family, reuse_port=shared))
    except OSError as error:
        for one in sockets:
            one.close()
        nowhere = isinstance(error, gaierror)
        said = error.strerror if nowhere or not error.errno else os.strerror(error.errno)
        why = f"cannot listen on {host}:{port}: {(said or str(error)).lower()}"
        if nowhere or error.errno == EADDRNOTAVAIL:
            told = f"[OPEA_Microservice] host = {host} ({source['host']}) is no address of this machine"
            raise SettingsError(f"{why}; {told}") from None
        told = f"[OPEA_Microservice] port = {port} ({source['port']}); USVC_PORT sets another one"
        raise LLMError(f"{why}; {told}") from None
    return sockets
