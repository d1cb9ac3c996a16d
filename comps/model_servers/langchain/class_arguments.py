"""Where a LangChain chat model is found by its class, and what that class is made with."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from langchain_core.language_models import BaseChatModel
from pydantic import SecretStr

from comps.core.errors import SettingsError
from comps.core.types import JSON
from comps.model_servers.remote.addresses import shown
from comps.model_servers.target import Target

log = logging.getLogger("opea_llm")

_OTHER_NAMES = {
    "max_tokens": ("max_output_tokens", "max_new_tokens", "num_predict"),
    "repetition_penalty": ("repeat_penalty",),
    "seed": ("random_seed",),
    "model": ("model_name",),
    "api_key": ("api_token",),
    "base_url": ("api_base", "endpoint_url", "endpoint"),
}
"""What classes call a field as well; `openai_api_key` ends in one of the names, which is as good."""
_DOMAINS = {
    "anthropic": "anthropic.com",
    "cohere": "cohere.com",
    "google": "googleapis.com",
    "groq": "groq.com",
    "mistral": "mistral.ai",
    "openai": "api.openai.com",
}
"""The vendors of keys that classes find in the environment, and the domains of their own servers."""
_NO_KEY = "none"
"""The key for a server that needs none; without any, OpenAI's SDK takes that of the environment."""
_SECRET = re.compile("key|token|secret|password|auth", re.IGNORECASE)


def class_at(path: str) -> type[BaseChatModel]:
    """The class that `module:Class` names."""
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise SettingsError(
            f"class (LLM_ENGINE_CLASS) = {path}: a LangChain chat model is needed, as in langchain_openai:ChatOpenAI"
        )
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        if error.name and module.startswith(f"{package}.") and error.name != package:
            raise SettingsError(f"class = {path}: there is no module {error.name}") from None
        pip = f"{sys.executable} -m pip install {package.replace('_', '-')}"
        raise SettingsError(f"class = {path}: the package {package} is missing: {pip}") from None
    except AttributeError:
        raise SettingsError(f"class = {path}: {module} has no {name}") from None
    except Exception as error:
        raise SettingsError(f"class = {path}: cannot be imported: {type(error).__name__}: {error}") from None
    if not (isinstance(found, type) and issubclass(found, BaseChatModel)):
        raise SettingsError(f"class = {path}: this is no LangChain chat model (a BaseChatModel)")
    return found


def field_of(kind: type[BaseChatModel], name: str) -> str | None:
    """The field of a class for what is called `name` here."""
    by_name = {alias: field for field, info in kind.model_fields.items() for alias in (info.alias, field) if alias}
    for one in (name, *_OTHER_NAMES.get(name, ())):
        if one in by_name:
            return by_name[one]
    return None


def arguments_of(kind: type[BaseChatModel], path: str, given: Mapping[str, JSON], target: Target) -> dict[str, Any]:
    """What the class is made with, by the names that it takes."""
    by_field: dict[str, Any] = {}
    for name, value in given.items():
        field = next((field for field, info in kind.model_fields.items() if name in (field, info.alias)), None)
        if field is None and kind.model_config.get("extra") != "allow":
            near = get_close_matches(name, kind.model_fields, n=1, cutoff=0.5)
            raise SettingsError(f"{path} has no argument {name}" + (f"; did you mean {near[0]}?" if near else ""))
        by_field[field or name] = value
    if field := field_of(kind, "model"):
        by_field.setdefault(field, target.model_name)
    if target.endpoint:
        field = _url_field(kind)
        if not field:
            raise SettingsError(f"model_server_endpoint = {target.endpoint}: {path} has no argument for a URL")
        by_field.setdefault(field, target.endpoint)
    if target.access.api_key and (field := field_of(kind, "api_key") or _ending(kind, "api_key")):
        by_field.setdefault(field, SecretStr(target.access.api_key))
    _keep_keys_of_environment(kind, by_field)
    _share_no_client(kind, by_field)
    for name in target.access.changed():
        raise SettingsError(f"{name}: not known to a LangChain class; set an argument of {path} instead")
    infos = kind.model_fields
    return {(field in infos and infos[field].alias) or field: value for field, value in by_field.items()}


def _ending(kind: type[BaseChatModel], name: str) -> str | None:
    """A field with a longer name, such as `anthropic_api_key`."""
    endings = tuple(f"_{one}" for one in (name, *_OTHER_NAMES[name]))
    return next((field for field in kind.model_fields if field.endswith(endings)), None)


def _keep_keys_of_environment(kind: type[BaseChatModel], by_field: dict[str, Any]) -> None:
    """Give the class another key where it would send one of the environment to a server that this is not for.

    Classes look for a key such as OPENAI_API_KEY by themselves, even if they get the URL of another server. It may go
    to its vendor's own hosts alone.
    """
    given = by_field.get(_url_field(kind) or "")
    for field in kind.model_fields:
        vendor = field.removesuffix("_api_key")
        if vendor == field or field in by_field:
            continue
        said = [os.environ.get(f"{vendor.upper()}_{name}") for name in ("API_BASE", "BASE_URL")]
        url = next((one for one in (given, *said) if isinstance(one, str) and one), None)
        if url is None:
            continue
        variable = field.upper()
        if variable in os.environ and not _is_host_of(vendor, url):
            log.warning("environment %s: not sent to %s; LLM_API_KEY is its key", variable, shown(urlsplit(url)))
            by_field[field] = SecretStr(_NO_KEY)


def _share_no_client(kind: type[BaseChatModel], by_field: dict[str, Any]) -> None:
    """Give the class a timeout with which `langchain_openai` makes an HTTP client of its own.

    It caches one client for each address and timeout. Closed with one chat model, it would fail for every later one.
    A timeout that cannot be hashed, such as `openai.Timeout`, is not cached.
    """
    if any(base.__module__.startswith("langchain_openai.") for base in kind.__mro__):
        seconds = by_field.get("request_timeout", kind.model_fields["request_timeout"].default)
        if seconds is None or (isinstance(seconds, int | float) and not isinstance(seconds, bool)):
            by_field["request_timeout"] = import_module("openai").Timeout(seconds)


def _is_host_of(vendor: str, url: str) -> bool:
    domain = _DOMAINS.get(vendor)
    host = urlsplit(url).hostname or ""
    return bool(domain) and url.startswith("https://") and (host == domain or host.endswith(f".{domain}"))


def address_of(kind: type[BaseChatModel], arguments: Mapping[str, Any]) -> str:
    """The URL among the arguments of a class, without credentials and query; empty: there is none."""
    field = _url_field(kind)
    if not field:
        return ""
    value = arguments.get(kind.model_fields[field].alias or field) or arguments.get(field)
    return shown(urlsplit(value)) if isinstance(value, str) and "://" in value else ""


def _url_field(kind: type[BaseChatModel]) -> str | None:
    return field_of(kind, "base_url") or _ending(kind, "base_url")


def names_in(said: JSON) -> set[str]:
    """Names, given as a list or as text with commas."""
    names = said.split(",") if isinstance(said, str) else said
    if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        raise SettingsError(f"honours = {said}: not a list of names")
    return {name.strip() for name in names if name.strip()}


def secrets_in(value: Any, key: str = "") -> Iterator[str]:
    """The texts in settings that are secret: keys, passwords and the like."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
        key = "secret"
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from secrets_in(one, str(name))
    elif isinstance(value, str) and len(value) > 2 and _SECRET.search(key):
        yield value
