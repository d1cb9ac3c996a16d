"""The types of settings: how their texts are read, and checked."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")
_USUAL_PORTS = {"https://": ":443", "http://": ":80"}


def unquoted(value: Any) -> Any:
    """Returns text without surrounding quotes, which OPEA's own configuration file has; other values unchanged."""
    if isinstance(value, str):
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            return value[1:-1].strip()
    return value


def lowered(value: Any) -> Any:
    """Returns text in small letters; other values unchanged."""
    return value.lower() if isinstance(value, str) else value


def items_of(value: Any) -> Any:
    """Returns the items of a text with commas, in small letters; other values unchanged."""
    if not isinstance(value, str):
        return value
    return tuple(item.strip() for item in value.lower().split(",") if item.strip())


def words_of(value: Any) -> Any:
    """Returns the items of a text with commas, as they are; other values unchanged."""
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def url_path(path: str) -> str:
    """Returns a path of a URL, if it is one."""
    if not path.startswith("/"):
        raise ValueError(f"'{path}' does not begin with /")
    return path


def origin(text: str) -> str:
    """Returns the origin of web pages as browsers send it, or `*`, if it is one.

    Browsers send neither a slash at the end nor the usual port. `null`, which any page can send, is none.
    """
    said = text.lower().rstrip("/")
    if text != "*" and not _ORIGIN.fullmatch(said):
        raise ValueError(f"'{text}' is no origin, such as https://chat.example")
    usual = next((port for scheme, port in _USUAL_PORTS.items() if said.startswith(scheme)), "")
    return said.removesuffix(usual)


def network(text: str) -> str:
    """Returns an IP address or a network, if it is one."""
    try:
        ip_network(text)
    except ValueError:
        raise ValueError(f"'{text}' is no IP address and no network, such as 10.0.0.0/8") from None
    return text


def listed(value: Any) -> Any:
    """Returns the items of a text with commas, if there are any; see `items_of`."""
    items = items_of(value)
    if not items:
        raise ValueError("must name at least one")
    return items


def existing(path: str) -> str:
    """Returns the path of a file, if it can be read; empty: no file."""
    if path:
        try:
            with Path(path).open("rb"):
                pass
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from None
    return path


ExistingFile = Annotated[str, AfterValidator(existing)]
"""The path of a file that can be read when the settings are loaded; empty: no file."""
PromptForm = Annotated[Literal["auto", "text", "messages"], BeforeValidator(lowered)]
"""How a text of a body goes to the model."""
LLMAPIFamily = Annotated[Literal["llama", "huggingface", "gptq_llama", "autoawq"], BeforeValidator(lowered)]
"""A model family of llm-api."""


def key_of(default: Any, description: str, environment: str, *aliases: str, **bounds: Any) -> Any:
    """Returns the field of a key.

    Args:
        default: The default value.
        description: The description in config.ini and docs/settings.md.
        environment: The environment variable.
        *aliases: Further environment variables, which other deployments use.
        **bounds: Constraints, as for `pydantic.Field`.
    """
    return Field(default, description=description, validation_alias=AliasChoices(environment, *aliases), **bounds)
