"""Where a model server is and what it shall serve: the values that every kind is opened with."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from comps.core.errors import SettingsError
from comps.core.types import JSON


@dataclass(frozen=True, slots=True)
class Access:
    """How a model server is reached over HTTP: credentials, TLS and deadlines. Times are in seconds."""

    api_key: str = field(default="", repr=False)
    """Sent as a bearer token."""
    token_url: str = ""
    """Where `client_id` and `client_secret` are changed for a bearer token (OAuth 2.0, RFC 6749, 4.4)."""
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    verify: bool = True
    """Whether the server's TLS certificate is checked."""
    ca_file: str = ""
    """A PEM file of certificate authorities to trust instead of the system's."""
    client_certificate: str = ""
    """A PEM file with this service's own certificate, and its key unless that is in `client_key`."""
    client_key: str = ""
    connect_seconds: float = 10.0
    first_token_seconds: float = 300.0
    """From the request to the first piece of the answer, which of a whole answer is all of it; 0: no limit."""
    between_tokens_seconds: float = 120.0
    """From one piece of the answer to the next; 0: no limit."""
    total_seconds: float = 0.0
    """From the request to the end of the answer; 0: no limit."""
    streams_whole: bool = False
    """Whether whole answers are asked for as streams, for a proxy in between that cuts idle connections."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the settings say of one model; a kind takes what it needs."""

    model_name: str
    endpoint: str = ""
    """A URL for a server, a file for `scripted`, empty for a model in this service."""
    access: Access = Access()
    context_window: int | None = None
    """In tokens, prompt and answer together; None asks the model server."""
    device: str = "CPU"
    """For an embedded engine: the device as the engine names it."""
    engine: Mapping[str, JSON] = field(default_factory=dict, repr=False)
    """Settings that are the engine's own, under the engine's names: `n_ctx`, `device_map`, `torch_dtype` …"""


def need(packages: Sequence[str], extra: str, setting: str, otherwise: str = "") -> None:
    """See that packages can be imported, and import none of them.

    Args:
        packages: By the names that they are imported by.
        extra: The extra of setup.cfg that brings them.
        setting: What asks for them, as `key = value`.
        otherwise: What else would mend it.

    Raises:
        SettingsError: One is not installed; says how to get it.
    """
    if missing := [package for package in packages if find_spec(package) is None]:
        raise SettingsError(
            f"{setting}: it needs {' and '.join(missing)}, not installed here; "
            f"mend it with: {sys.executable} -m pip install 'opea-llm-microservice[{extra}]'{otherwise}"
        )
