"""Where a model server is and what it shall serve: the values that every kind is opened with."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Target:
    """What the settings say of one model; a kind takes what it needs."""

    model_name: str
    endpoint: str = ""
    """A URL for a server, a file for `scripted`, empty for a model in this service."""
    api_key: str = field(default="", repr=False)
    verify: bool = True
    """Whether a server's TLS certificate is checked."""
    device: str = "CPU"
    """For an embedded engine: the device as the engine names it."""
