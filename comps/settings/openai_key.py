"""OPENAI_API_KEY: a key that is in many a shell for other programs. It goes to OpenAI's own host alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

from pydantic import SecretStr

from comps.settings.loaded_section import LoadedSection

_SOURCE = "environment OPENAI_API_KEY"
_HOST = "api.openai.com"
"""https://platform.openai.com/docs/guides/your-data#data-residency-controls: the regional hosts end in it."""
_OF_CLASSES = ("OPENAI_API_BASE", "OPENAI_BASE_URL")
"""The variables that tell LangChain's classes another host."""
_CLASSES = "langchain_openai:"
"""The beginning of LangChain's classes that ask OpenAI's own host if they get no other URL."""


def without_openai_key(section: LoadedSection, lost: list[str]) -> LoadedSection:
    """Returns the section of a model; its key is removed if it is OPENAI_API_KEY, and the model elsewhere than there.

    Args:
        section: The model's section, with the settings of its engine.
        lost: A message is added if the key is removed, and the model server might have needed it.
    """
    source, urls = section.sources.get("api_key", ""), list(_urls(section))
    if not source.startswith(_SOURCE) or (urls and all(map(_is_openai, urls))):
        return section
    by_class = section.values.model_server == "langchain" and "class" in section.engine
    if not urls and not (by_class and not str(section.engine["class"].value).startswith(_CLASSES)):
        return section  # It goes nowhere, or to the class's own server.
    if urls:
        why = f"it goes to https://{_HOST} alone; LLM_API_KEY{section.ending} is the key of [{section.name}]'s server"
        lost.append(f"{source}: no effect here: {why}")
    values = section.values.model_copy(update={"api_key": SecretStr("")})
    return replace(section, values=values, sources={**section.sources, "api_key": "default"})


def _urls(section: LoadedSection) -> Iterator[str]:
    """Yields all URLs that the model may be asked at."""
    settings = (one.value for one in section.engine.values())
    for given in (*section.values.model_server_endpoint.split(","), *settings):
        if isinstance(given, str) and "://" in given:
            yield given.strip()
    if "class" in section.engine and str(section.engine["class"].value).startswith(_CLASSES):
        yield from (os.environ[name] for name in _OF_CLASSES if os.environ.get(name))


def _is_openai(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return parts.scheme == "https" and (host == _HOST or host.endswith(f".{_HOST}"))
