"""Environment variables that look like settings of ours, but are none."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from functools import lru_cache

from comps.settings.engines import ENGINE
from comps.settings.sections import SECTIONS
from comps.settings.variables import environment_names, file_names

_OURS = ("LLM_", "USVC_")
"""The prefixes of our variables. A few have none: MODEL_SERVER, FRAMEWORK, LOG_LEVEL, LOG_PATH."""
_SHARED = {"CLIENTID", "CLIENT_SECRET", "OPENAI_API_KEY", "TOKEN_URL"}
"""Variables without our prefixes that belong to other programs as well; nothing similar is taken for them."""
_ALIKE, _ALMOST_EQUAL = 0.7, 0.88
"""The similarity, from 0 to 1, at which a variable with and without one of our prefixes is taken for a known one."""
_INFOS = [info for section in SECTIONS.values() for info in section.model_fields.values()]
_KNOWN = frozenset(name for info in _INFOS for name in environment_names(info))
_LINK = re.compile(r"\w+_(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
"""The links that Kubernetes and Docker set for each service. There is `…_PORT` as well, whose value is a URL.
https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables"""
_FOREIGN = re.compile(r"LLM_(API|RAY|SERVER|SERVICE)_\w+|LLM_(ENDPOINT_PORT|IMAGE)|USVC_(CPUS|MEMORY|STOP_SECONDS|TMP)")
"""Variables of llm-api, of its clients, of OPEA's other services, and of the files in docker/ and impl/."""


def unknown_variables(endings: Collection[str]) -> Iterator[str]:
    """Yields a message for each variable that looks like one of ours, with the most similar one.

    Args:
        endings: The suffixes of the variables of further models.
    """
    taken = _KNOWN.union(*map(file_names, _INFOS))
    for variable in sorted(os.environ):
        head, two, rest = variable.partition("__")
        if two + rest not in endings:
            head, two, rest = variable, "", ""
        if head in taken or head.startswith(ENGINE) or variable.partition("__")[0] in taken:
            continue
        alike = _most_similar(head)
        if (alike or head.startswith(_OURS)) and not _is_foreign(head, os.environ[variable], alike):
            told = f"; did you mean {alike}{two}{rest}?" if alike else ""
            yield f"environment {variable}: no effect here: no setting has this variable{told}"


@lru_cache
def _most_similar(name: str) -> str:
    """Returns the known variable that a name may be misspelled for; empty: none."""
    known = _KNOWN - _SHARED
    for meant in (name.upper(), name.upper().removesuffix("_FILE")):  # A file is read for a secret alone.
        if meant in known:
            return meant
    cutoff = _ALIKE if name.startswith(_OURS) else _ALMOST_EQUAL
    return next(iter(get_close_matches(name, known, n=1, cutoff=cutoff)), "")


def _is_foreign(name: str, value: str, alike: str) -> bool:
    """Returns whether a variable belongs to another program for sure."""
    if _LINK.fullmatch(name) or (name.endswith("_PORT") and "://" in value):
        return True
    return bool(_FOREIGN.fullmatch(name)) and not get_close_matches(name, [alike], cutoff=_ALMOST_EQUAL)
