"""Redaction: takes keys, addresses and quotes of a request out of texts that callers or the log get."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import urlsplit

from comps.core.errors import LLMError, Refused
from comps.core.types import Message, Sampling

HIDDEN = "***"

_KEY = re.compile(
    r"-----BEGIN [A-Z ]{1,40}-----[^-]*(?:-----END [A-Z ]{1,40}-----)?"
    r"|(?<=://)[^\s/@]{1,500}(?=@)"
    r"|(?i:(?<=\bbearer )|(?<=\bbasic ))[^\s\"',;]{6,}"
    r"|(?<![A-Za-z0-9])(?:sk|pk|rk|hf|gh[oprsu]|github_pat|glpat|xox[a-z]|AKIA|ASIA|AIza|ya29|eyJ)[-_.A-Za-z0-9]{12,}"
    r"|(?i:(?<=key)|(?<=_token)|(?<=secret)|(?<=password)|(?<=passwd)|(?<=passphrase))[\"']?\s?[:=]\s?[\"']?"
    r"[^\s\"',;{}]{4,}"
    r"|(?<![-\w+/])(?!/)(?=[-A-Za-z_+/]{0,40}[0-9])(?=[-0-9_+/]{0,40}[A-Za-z])[-\w+/]{32,}"
)
"""What looks like a key: a PEM block, the credentials of a URL or of a header, a vendor's prefix, a value behind the
name of a secret, and 32 or more characters with digits and letters that are no absolute path."""
_URL = re.compile(r"(?<!\w)\w{1,20}://[^\s'\"<>)]+|(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?(?![\d.])")
"""A URL, or an IPv4 address."""
_CREDENTIALS = re.compile(r"//[^/?#]*@")
_LEAST_QUOTE, _SURE_QUOTE = 12, 24
"""Characters: what a message and a prompt have in common may be a quote, and is one for sure."""
_WORDS_ALONE = re.compile(r"[a-z ,.']+")
_SEARCHED = 400_000
"""Characters of a request in which quotes are looked for."""
_SOON_SEARCHED, _OF_A_TEXT = 10_000, 100
"""Characters of a request that are searched in a few milliseconds, and what each text of it counts beside its own."""
_NAMED = frozenset(("name", "required"))
"""The keys of functions' names and of those of their arguments, without which errors about them are no help."""
_NAME = re.compile(r"[\w.-]{1,64}")
_ESCAPED = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")


def without_keys(text: str) -> str:
    """Returns a text with `***` for all that looks like a key."""
    return _KEY.sub(HIDDEN, text)


def shown_urls(endpoints: str) -> list[str]:
    """Returns the URLs in a setting that lists some, without credentials and query; none if it is a file's path."""
    if "://" not in endpoints:
        return []
    return [_CREDENTIALS.sub("//", url.strip()).partition("?")[0] for url in endpoints.split(",")]


class Redactor:
    """Takes what one model server knows, and a caller or the log must not get, out of the errors that quote it.

    Args:
        secrets: The keys of the model server.
        urls: Its URLs, and those of servers that belong to it.
    """

    def __init__(self, secrets: Iterable[str] = (), urls: Iterable[str] = ()) -> None:
        self._secrets = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
        self._addresses = sorted({name for url in urls for name in _names_in(url)}, key=len, reverse=True)

    def redact(self, error: LLMError, *asked: object) -> None:
        """Take keys and quotes out of the texts of an error, and addresses out of that for callers.

        Args:
            error: The error, as a model server raised it.
            *asked: What the model server was asked, which the error may quote: prompt, sampling, options, texts.
        """
        quotable = _searched(asked)
        told = str(error.args[0]) if error.args else ""
        if not error.operator_text and self._without_addresses(told) != told:
            error.operator_text = told
        error.operator_text = without_quotes(self._without_secrets(error.operator_text), quotable)
        error.args = tuple(self._for_caller(one, quotable) if isinstance(one, str) else one for one in error.args)
        if isinstance(error, Refused):
            error.body = self._for_caller(error.body, quotable)

    def _for_caller(self, text: str, quotable: str) -> str:
        return without_quotes(self._without_addresses(self._without_secrets(text)), quotable)

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return without_keys(text)

    def _without_addresses(self, text: str) -> str:
        text = _URL.sub(HIDDEN, text)
        for name in self._addresses:
            text = text.replace(name, HIDDEN)
        return text


def without_quotes(message: str, text: str) -> str:
    """Returns a message with `***` for what it quotes of a text.

    A run of 24 characters that both have is a quote, and one of 12 is one unless it is of small letters alone, such as
    `in the message`.
    """
    if not text:
        return message
    message = _ESCAPED.sub(_unescaped, message)
    pieces, place = [], 0
    while place < len(message):
        end = place + _LEAST_QUOTE
        if end <= len(message) and message[place:end] in text:
            while end < len(message) and message[place : end + 1] in text:
                end += 1
            if end - place >= _SURE_QUOTE or not _WORDS_ALONE.fullmatch(message, place, end):
                pieces.append(HIDDEN)
                place = end
                continue
        pieces.append(message[place])
        place += 1
    return "".join(pieces)


def texts_of(asked: object) -> Iterator[str]:
    """Yields all texts in what a model server is asked: in prompts, stop strings, options and lists of texts.

    Keys are not among them, nor are the names of functions and of their arguments.
    """
    if isinstance(asked, str):
        yield asked
    elif isinstance(asked, Sampling):
        yield from asked.stop
    elif isinstance(asked, Message):
        yield from texts_of((asked.content, *asked.extra.values()))
    elif isinstance(asked, Mapping):
        for key, one in asked.items():
            yield from (text for text in texts_of(one) if key not in _NAMED or not _NAME.fullmatch(text))
    elif isinstance(asked, list | tuple):
        for one in asked:
            yield from texts_of(one)


def is_long(asked: object) -> bool:
    """Returns whether it takes long to look for quotes of what a model server was asked."""
    size = 0
    for text in texts_of(asked):
        size += len(text) + _OF_A_TEXT
        if size > _SOON_SEARCHED:
            return True
    return False


def _searched(asked: object) -> str:
    """Returns the texts, a line for each, since messages of model servers are one line.

    If they are too long together, the longest ones have only their beginnings and ends.
    """
    texts = sorted(texts_of(asked), key=len)
    parts, left = list[str](), _SEARCHED
    for number, text in enumerate(texts):
        half = left // (len(texts) - number) // 2
        part = text if len(text) <= 2 * half else text[:half] + text[len(text) - half :]
        parts.append(part)
        left -= len(part)
    return "\n".join(" ".join(part.split()) for part in parts)


def _unescaped(escapes: re.Match[str]) -> str:
    """Returns the characters for JSON's escapes of them."""
    units = bytes.fromhex(escapes[0].replace("\\u", ""))
    return units.decode("utf-16-be", "replace")


def _names_in(url: str) -> Iterator[str]:
    """The names of a URL's server: with its port, with dots, or within quotes, so that no ordinary word is one."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return
    if port:
        yield f"{host}:{port}"
    if "." in host or ":" in host:
        yield host
    elif host:
        yield from (f"'{host}'", f'"{host}"')
