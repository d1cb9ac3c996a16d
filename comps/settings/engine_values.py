"""Values of engine settings: parsing them from text, and formatting them without secrets."""

from __future__ import annotations

import json
import re

from comps.core.types import JSON
from comps.settings.field_types import unquoted

_SECRET = re.compile("(^|_)(api_?key|(access|auth|hf)_token|secret|password)$|^token$")
"""Keys of secrets. Other engine keys contain `token` without being secret: tokenizer, eos_token."""
_LIKE_A_SECRET = re.compile("key|token|secret|password")
_CREDENTIALS = re.compile(r"//[^/@\s]*@")

_WORDS: dict[str, JSON] = {"true": True, "false": False, "null": None, "none": None}


def typed(text: str) -> JSON:
    """Parses an engine setting: a number, true, false, null, a JSON list or object, or else a string, quoted or not.

    Raises:
        ValueError: The text begins like a JSON list or object, but is invalid.
    """
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if unquoted(text) != text:
        return unquoted(text)
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError:
        if text[:1] in ("[", "{"):
            raise ValueError("not the JSON that it begins like; text that begins so stands in quotes") from None
        return text


def _no_number(word: str) -> JSON:
    raise ValueError(word)


def is_secret(key: str) -> bool:
    """Whether the engine setting with this key is a secret."""
    return bool(_SECRET.search(key.lower()))


def may_be_secret(key: str) -> bool:
    """Whether an unknown key may be the misspelled key of a secret."""
    return bool(_LIKE_A_SECRET.search(key.lower()))


def masked(key: str, value: JSON) -> JSON:
    """Returns the value of an engine setting with `***` for secrets, nested ones included."""
    if is_secret(key) and value:
        return "***"
    if isinstance(value, dict):
        return {name: masked(name, inner) for name, inner in value.items()}
    return [masked(key, inner) for inner in value] if isinstance(value, list) else value


def written(value: object) -> str:
    """Returns the value of a setting as text, with `***` for credentials in URLs."""
    text = ", ".join(value) if isinstance(value, tuple) else value
    return _CREDENTIALS.sub("//***@", json.dumps(text) if isinstance(text, list | dict) else str(text))
