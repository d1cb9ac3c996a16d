"""Who may ask: API keys, and what each of them is allowed. No HTTP here; `comps.guard` reads the requests.

A file of keys has a line for each, and comments that begin with `#`:

    web = s3cret
    batch = sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b
    guest = abc123; requests_per_minute=60; tokens_per_minute=100000; models=small,large
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import ceil
from time import monotonic
from typing import Final
from urllib.parse import quote

from comps.core.errors import Overloaded, SettingsError, SettingsProblems, Unauthorized
from comps.core.model_names import other_spelling
from comps.watched_files import WatchedFiles

log = logging.getLogger("opea_llm")

CALLER: Final = "opea_llm.caller"
"""The key of ASGI's scope with the `Caller`. It is absent if no keys are set, and on open routes."""
_LONGEST_ADDRESS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SEPARATOR = re.compile(rf"[,\n](?=[ \t]*{_NAME.pattern}[ \t]*=)")
_SHORT = 16
"""The characters from which on a key is not called short."""
_KEY = re.compile(r"[!#-&(-+\--:<-~]+")
"""Visible ASCII without quotes, `,` and `;`."""
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_HASHED = "sha256:"
_AMOUNT = re.compile(r"0*[1-9][0-9]{0,14}")
_LIMITS = ("requests_per_minute", "tokens_per_minute")
_MODELS = "models"


class Allowance:
    """An amount for each minute: it is there at once, and comes back evenly. More may be spent than is there.

    Args:
        per_minute: The amount.
    """

    __slots__ = ("_at", "_left", "per_minute")

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left = float(per_minute)
        self._at = monotonic()

    def seconds_until(self, amount: float) -> float:
        """Returns the seconds until at least `amount` is there; 0: now."""
        now = monotonic()
        self._left = min(self.per_minute, self._left + (now - self._at) * self.per_minute / 60)
        self._at = now
        return max(0.0, (amount - self._left) * 60 / self.per_minute)

    def spend(self, amount: float) -> None:
        """Take an amount, whether it is there or not."""
        self._left -= amount


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a key. The key itself is not kept."""

    name: str
    models: frozenset[str] = frozenset()
    """The names of the models that may be used; empty: all."""
    requests: Allowance | None = field(default=None, repr=False, compare=False)
    """The requests of a minute; None: no limit."""
    tokens: Allowance | None = field(default=None, repr=False, compare=False)
    """The tokens of a minute, of prompts and answers together; None: no limit."""
    is_short: bool = field(default=False, compare=False)
    """Whether the key is so short that it could be guessed."""

    def check_limits(self, generates: bool) -> None:
        """Count a request.

        Args:
            generates: Whether tokens are needed for it.

        Raises:
            Overloaded: The limit of this minute is reached; `retry_after` is when there is room again.
        """
        if self.tokens and generates and (wait := self.tokens.seconds_until(1)):
            raise self._too_many("tokens", self.tokens, wait)
        if self.requests:
            if wait := self.requests.seconds_until(1):
                raise self._too_many("requests", self.requests, wait)
            self.requests.spend(1)

    def _too_many(self, what: str, allowance: Allowance, seconds: float) -> Overloaded:
        said = f"the key '{self.name}' may have {allowance.per_minute} {what} a minute, and they are spent"
        return Overloaded(said, ceil(seconds))


class Keys:
    """The callers, by the SHA-256 digests of their keys.

    A key that was sent is hashed, and its digest is looked up. How long a lookup takes depends on the digest alone, and
    nobody can choose a key by its digest, so the time tells nothing about the keys that exist.

    Args:
        read: Returns the text of the keys; raises a SettingsError if it cannot.
        source: What the text is called in messages: a file's path, or a variable.
        file: The path of the file that `read` reads, with a key in each line; empty: commas separate the keys.
        known_models: The names of the served models.

    Raises:
        SettingsError: The text is wrong. The message has no key.
    """

    def __init__(self, read: Callable[[], str], source: str, file: str = "", known_models: Iterable[str] = ()) -> None:
        self._read = read
        self._source = source
        self._entries = _lines if file else _separated
        self._known = frozenset(known_models)
        self._by_digest: Mapping[bytes, Caller] = {}
        self.files = WatchedFiles([file], self._reload_or_log)
        self.reload()

    def reload(self) -> None:
        """Read the keys again. What a caller has spent of this minute stays spent, unless the limit is another one.

        Raises:
            SettingsError: The text is wrong; the keys are those of before.
        """
        parsed = _parsed(self._entries(self._read()), self._source)
        before = {one.name: one for one in self._by_digest.values()}
        self._by_digest = {
            digest: _with_spent(replace(one, models=frozenset(map(self._served, one.models))), before.get(one.name))
            for digest, one in parsed.items()
        }

    def warn(self) -> None:
        """Log a warning for each short key, and for each model that a key names and that is not served."""
        for one in self._by_digest.values():
            if one.is_short:
                said = (
                    "%s: the key '%s' has fewer than %d characters and could be guessed; openssl rand -hex 24 makes one"
                )
                log.warning(said, self._source, one.name, _SHORT)
            for model in sorted(one.models - self._known):
                said = "%s: the key '%s' names the model '%s', which is not served here"
                log.warning(said, self._source, one.name, model)

    def _served(self, name: str) -> str:
        """Returns the name of a served model that a name stands for, or else the name itself; see `Models.named`."""
        return name if name in self._known or (other := other_spelling(name)) not in self._known else other

    def _reload_or_log(self) -> None:
        try:
            self.reload()
        except SettingsError as error:
            for problem in error.problems:
                log.error("%s; the keys stay as they were", problem)
        else:
            log.info("%s: read again, %d keys", self._source, len(self._by_digest))
            self.warn()

    def caller(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Returns who sent a request.

        Args:
            headers: The request's headers, with names in small letters. The key may be in `Authorization: Bearer`,
                `x-api-key` and `api-key`.

        Raises:
            Unauthorized: There is no key, or an unknown one.
        """
        sent = False
        for name, value in headers:
            if name == b"authorization":
                scheme, _, value = value.partition(b" ")
                if scheme.lower() != b"bearer":
                    continue
            elif name != b"x-api-key" and name != b"api-key":
                continue
            sent = True
            if found := self._by_digest.get(sha256(value.strip()).digest()):
                return found
        if sent:
            raise Unauthorized("the API key is unknown")
        raise Unauthorized("an API key is needed, as Authorization: Bearer <key>, or in x-api-key or api-key")


def client_address(client: tuple[str, int] | None) -> str | None:
    """Returns the address of a client for the log and traces; None if it is not known.

    If a trusted proxy tells it, it may be any text. It is shortened, and characters that no address has are quoted.

    Args:
        client: The address and the port, as in ASGI's scope.
    """
    return quote(client[0][:_LONGEST_ADDRESS], safe=":") if client else None


def _with_spent(caller: Caller, before: Caller | None) -> Caller:
    """Returns a caller with what was spent before, where the limit is the same."""
    if before is None:
        return caller
    requests, tokens = (
        old if old and new and old.per_minute == new.per_minute else new
        for old, new in ((before.requests, caller.requests), (before.tokens, caller.tokens))
    )
    return replace(caller, requests=requests, tokens=tokens)


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Yields each key of a file, with its place."""
    for number, line in enumerate(text.splitlines(), 1):
        if (line := line.strip()) and not line.startswith("#"):
            yield f"line {number}", line


def _separated(text: str) -> Iterator[tuple[str, str]]:
    """Yields each key of a variable, with its place. A comma with no `name =` behind it is one between models."""
    entries = filter(None, (entry.strip(", \t\r\n") for entry in _SEPARATOR.split(text)))
    yield from ((f"key {number}", entry) for number, entry in enumerate(entries, 1))


def _parsed(entries: Iterable[tuple[str, str]], source: str) -> dict[bytes, Caller]:
    """Returns the callers by the digests of their keys.

    Raises:
        SettingsError: With all that is wrong.
    """
    problems = SettingsProblems()
    found: dict[bytes, Caller] = {}
    places: dict[bytes | str, str] = {}
    for place, entry in entries:
        with problems.caught(f"{source}, {place}: "):
            digest, caller = _entry(entry)
            for what, one in (("name", caller.name), ("key", digest)):
                if other := places.setdefault(one, place) != place and places[one]:
                    raise SettingsError(f"the same {what} as in {other}")
            found[digest] = caller
    problems.raise_if_any()
    if not found:
        raise SettingsError(f"{source}: no key is there; write: name = key")
    return found


def _entry(entry: str) -> tuple[bytes, Caller]:
    """Returns the digest of the key and the caller in `name = key; option=value; …`."""
    head, *options = entry.split(";")
    name, equals, key = (part.strip() for part in head.partition("="))
    if not (equals and _NAME.fullmatch(name)):
        raise SettingsError("not name = key, where a name has up to 64 letters, digits and ._@-")
    if key.lower().startswith(_HASHED):
        if not _DIGEST.fullmatch(key, len(_HASHED)):
            raise SettingsError(f"{_HASHED} is not followed by 64 hexadecimal digits")
        digest = bytes.fromhex(key[len(_HASHED) :])
    elif _KEY.fullmatch(key):
        digest = sha256(key.encode()).digest()
    else:
        raise SettingsError("a key is of visible ASCII characters, none of them a quote, a comma or a semicolon")
    values = dict(_option(option) for option in options)
    if len(values) < len(options):
        raise SettingsError("what stands behind ; is there twice")
    requests, tokens = (Allowance(values[one]) if one in values else None for one in _LIMITS)  # type: ignore[arg-type]
    is_short = len(key) < _SHORT
    return digest, Caller(name, frozenset(values.get(_MODELS, ())), requests, tokens, is_short)  # type: ignore[arg-type]


def _option(option: str) -> tuple[str, int | list[str]]:
    """Returns an option behind a key. The error does not repeat it, since it may be the rest of a key with a `;`."""
    name, _, value = (part.strip() for part in option.partition("="))
    if name in _LIMITS:
        if not _AMOUNT.fullmatch(value):
            raise SettingsError(f"{name} is not a whole number above 0")
        return name, int(value)
    models = [one for one in re.split(r"[,\s]+", value) if one]
    if name != _MODELS or not models:
        raise SettingsError(f"behind ; may stand {', '.join(f'{one}=…' for one in (*_LIMITS, _MODELS))}")
    return name, models
