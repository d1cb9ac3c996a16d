"""Several hosts on this machine: network namespaces with an address each, on a switch whose cables can be cut, slow
and lossy.

Linux has netem for such cables, but many kernels are built without it. So the hosts' network cards are TAP devices, and
the switch is a thread that hands their Ethernet frames on. It needs root, the command `ip` and /dev/net/tun.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

_TUN = Path("/dev/net/tun")
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_CLONE_NEWNET = 0x40000000
_LARGEST = 65535
"""Bytes of a frame; cards hand over larger ones than a cable would take."""
_T = TypeVar("_T")


def missing() -> str | None:
    """What this machine lacks for it; None if nothing."""
    if os.geteuid():
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "the command ip is missing: install iproute2"
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return f"{_TUN} is missing: load the module tun"
    return None


@dataclass
class Host:
    """A machine of its own, as far as the network is concerned.

    Attributes:
        delay: Seconds that each frame takes on its cable, in either direction.
        loss: The share of frames that its cable loses, in either direction.
        cut: Whether its cable is cut: all frames are lost, without an error.
    """

    namespace: str
    address: str
    card: int
    delay: float = 0.0
    loss: float = 0.0
    cut: bool = False
    lost: int = field(default=0, init=False)
    """Frames that its cable has lost."""

    @property
    def within(self) -> tuple[str, ...]:
        """The command that runs another one on this host."""
        return ("ip", "netns", "exec", self.namespace)

    def socket(self) -> socket.socket:
        """A TCP socket of this host, for a client in this process."""
        return self._there(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))

    def _there(self, make: Callable[[], _T]) -> _T:
        """What is made by a thread that has moved to this host; what it opens belongs there for ever."""
        made: list[_T | OSError] = []

        def go() -> None:
            with Path(f"/run/netns/{self.namespace}").open("rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    made.append(OSError(ctypes.get_errno(), "setns"))
                    return
            made.append(make())

        thread = threading.Thread(target=go)
        thread.start()
        thread.join()
        (one,) = made
        if isinstance(one, OSError):
            raise one
        return one


class Switch:
    """Hands frames from card to card, in a thread of its own.

    Args:
        hosts: Those that are plugged in.
        seed: Which frames are lost, where some are.
    """

    def __init__(self, hosts: list[Host], seed: int = 0) -> None:
        self._hosts = hosts
        self._learnt: dict[bytes, Host] = {}
        """Whose Ethernet address is whose."""
        self._random = Random(seed)
        self._loop = asyncio.new_event_loop()
        for host in hosts:
            self._loop.add_reader(host.card, self._take, host)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def close(self) -> None:
        """Unplug all."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _take(self, sender: Host) -> None:
        with suppress(BlockingIOError):
            while frame := os.read(sender.card, _LARGEST):
                self._learnt[frame[6:12]] = sender
                if not self._is_lost(sender):
                    known = self._learnt.get(frame[:6])
                    for receiver in [known] if known else self._hosts:
                        if receiver is not sender and not self._is_lost(receiver):
                            self._loop.call_later(sender.delay + receiver.delay, self._give, receiver, frame)

    def _is_lost(self, host: Host) -> bool:
        lost = host.cut or (host.loss > 0 and self._random.random() < host.loss)
        host.lost += lost
        return lost

    def _give(self, receiver: Host, frame: bytes) -> None:
        with suppress(OSError):  # Its card is full, or gone.
            os.write(receiver.card, frame)


@contextmanager
def network(*names: str) -> Iterator[dict[str, Host]]:
    """Hosts by their names, on one switch; all of it is gone after the block."""
    made: list[Host] = []
    try:
        for number, name in enumerate(names, 1):
            made.append(_make_host(f"opea-{os.getpid()}-{name}", f"tap{os.getpid()}-{number}", f"10.77.0.{number}"))
        switch = Switch(made)
        try:
            yield dict(zip(names, made, strict=True))
        finally:
            switch.close()
    finally:
        for host in made:
            os.close(host.card)
            _ip("netns", "del", host.namespace)


def _make_host(namespace: str, device: str, address: str) -> Host:
    _ip("netns", "add", namespace)
    card = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(card, _TUNSETIFF, struct.pack("16sH", device.encode(), _IFF_TAP | _IFF_NO_PI))
    _ip("link", "set", device, "netns", namespace, "name", "eth0")
    _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
    for interface in ("lo", "eth0"):
        _ip("-n", namespace, "link", "set", interface, "up")
    return Host(namespace, address, card)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
