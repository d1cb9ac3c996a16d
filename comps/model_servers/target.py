"""`Target` and `Access`: the settings with which a model server is opened."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from typing import Any, Literal

from comps.core.errors import SettingsError
from comps.core.retries import Retries
from comps.core.types import JSON

_NAMES = {"verify": "tls_skip_verify", "retries": "retry_budget, retries_per_request"}
"""What settings are called that are called otherwise in `Access`."""
_OF_ANSWERS = ("first_token_seconds", "between_tokens_seconds", "total_seconds")
"""The deadlines that every kind of model server has."""


@dataclass(frozen=True, slots=True)
class Access:
    """HTTP access to a model server: credentials, TLS and deadlines. Deadlines are in seconds; 0 means no limit."""

    api_key: str = field(default="", repr=False)
    """The API key, sent as a bearer token."""
    token_url: str = field(default="", repr=False)
    """The OAuth 2.0 token endpoint that gives a bearer token for `client_id` and `client_secret` (RFC 6749, 4.4)."""
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
    """From the request to the first piece of a streamed answer, or to the end of a whole answer."""
    between_tokens_seconds: float = 120.0
    """From one piece of a streamed answer to the next."""
    total_seconds: float = 0.0
    """From the request to the end of the answer."""
    whole_answers: Literal["auto", "whole", "stream"] = "auto"
    """How to request a whole answer: `whole`; `stream`, for a proxy in between that closes idle connections; `auto`:
    whole if the kind of model server stops generating when the connection of such a request closes."""
    retries: Retries = field(default_factory=Retries, repr=False)
    """The budget of retries, which all replicas of a model share."""
    repeats: bool = True
    """Whether a request that the server has not begun is sent to it again; if not, another replica is asked."""

    def chosen_deadlines(self) -> Access | None:
        """Returns the access with those deadlines of answers alone that are not at their defaults; None: all are."""
        default = Access()
        unset = [name for name in _OF_ANSWERS if getattr(self, name) == getattr(default, name)]
        none: dict[str, Any] = dict.fromkeys(unset, 0.0)
        return replace(self, **none) if len(unset) < len(_OF_ANSWERS) else None

    def changed(self) -> list[str]:
        """Returns the names of the settings that are not at their defaults and matter to model servers over HTTP alone,
        without the API key."""
        left_out = {"api_key", "repeats", *_OF_ANSWERS} | (set() if self.repeats else {"retries"})
        default = Access()
        names = [one.name for one in fields(self) if one.name not in left_out]
        return [_NAMES.get(name, name) for name in names if getattr(self, name) != getattr(default, name)]


@dataclass(frozen=True, slots=True)
class Target:
    """The settings of one model for its model server. A kind uses those that apply to it."""

    model_name: str
    endpoint: str = field(default="", repr=False)
    """A URL for a server, a file for `scripted`, empty for a model in this service."""
    access: Access = Access()
    context_window: int | None = None
    """The maximum number of tokens of prompt and answer together; None: as the model server reports it."""
    device: str = "CPU"
    """The device of an embedded engine, by the engine's name for it."""
    engine: Mapping[str, JSON] = field(default_factory=dict, repr=False)
    """The engine settings, under the engine's names: `n_ctx`, `device_map`, `torch_dtype` …"""


def need(packages: Sequence[str], extra: str, setting: str, otherwise: str = "") -> None:
    """Check that packages are installed, without importing them.

    Args:
        packages: Their import names.
        extra: The extra in setup.cfg that installs them.
        setting: The setting that needs them, as `key = value`.
        otherwise: Another remedy, for the end of the message.

    Raises:
        SettingsError: A package is not installed. The message has the command that installs it.
    """
    if missing := [package for package in packages if find_spec(package) is None]:
        raise SettingsError(
            f"{setting}: it needs {' and '.join(missing)}, not installed here; "
            f"mend it with: {sys.executable} -m pip install 'opea-llm-microservice[{extra}]'{otherwise}"
        )
