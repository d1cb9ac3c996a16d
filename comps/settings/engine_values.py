"""What an engine's own settings say: the text of a setting as a typed value, and a value as text for whoever looks."""

from __future__ import annotations

import json
import re

from comps.core.types import JSON
from comps.settings.sections import unquoted

_SECRET = re.compile("(^|_)(api_?key|(access|auth|hf)_token|secret|password)$|^token$")
"""An engine has keys of its own with the word token in them that hide nothing: tokenizer, eos_token."""
_LIKE_A_SECRET = re.compile("key|token|secret|password")
_CREDENTIALS = re.compile(r"//[^/@\s]*@")

_WORDS: dict[str, JSON] = {"true": True, "false": False, "null": None, "none": None}


def typed(text: str) -> JSON:
    """An engine's setting as its text says: a number, true, false, null, a JSON list or object, else text, which may
    stand in quotes.

    Raises:
        ValueError: It begins like a list or an object, and is none.
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
    """Whether an engine's setting of that name hides something."""
    return bool(_SECRET.search(key.lower()))


def may_be_secret(key: str) -> bool:
    """Whether a key that nobody knows may have been meant as one that hides something."""
    return bool(_LIKE_A_SECRET.search(key.lower()))


def masked(key: str, value: JSON) -> JSON:
    """An engine's setting without its secrets."""
    if is_secret(key) and value:
        return "***"
    if isinstance(value, dict):
        return {name: masked(name, inner) for name, inner in value.items()}
    return [masked(key, inner) for inner in value] if isinstance(value, list) else value


def written(value: object) -> str:
    """A setting's value as text, without credentials in a URL."""
    text = ", ".join(value) if isinstance(value, tuple) else value
    return _CREDENTIALS.sub("//***@", json.dumps(text) if isinstance(text, list | dict) else str(text))
