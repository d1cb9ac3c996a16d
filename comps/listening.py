"""The sockets that the service listens on, and the number of files that it may open for its connections."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from errno import EADDRNOTAVAIL
from ipaddress import ip_address
from socket import AI_PASSIVE, SOCK_STREAM, create_server, gaierror, getaddrinfo, socket

from comps.core.errors import LLMError, SettingsError
from comps.settings import Settings

_OTHER_FILES = 100
"""Files that the process has open beside its connections."""


def raise_file_limit(settings: Settings) -> tuple[int, str]:
    """Raise the limit of open files (RLIMIT_NOFILE) as far as it may be, since each connection is one.

    Returns:
        How many connections of clients fit, at most those that the settings allow; and a warning if not all do.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    wanted = settings.microservice.max_connections
    others = settings.microservice.max_running + _OTHER_FILES
    if most == resource.RLIM_INFINITY or most >= wanted + others:
        return wanted, ""
    fitting = max(most - others, most // 4)
    warning = (
        f"only {most} files may be open (ulimit -n), so that {fitting} connections are served instead of "
        f"[OPEA_Microservice] max_connections = {wanted}; {wanted + others} files are enough"
    )
    return fitting, warning


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


def is_reachable(sockets: Iterable[socket]) -> bool:
    """Whether other machines can reach one of the sockets."""
    return not all(ip_address(one.getsockname()[0].partition("%")[0]).is_loopback for one in sockets)
