"""OAuth 2.0 client credentials grant: a bearer token, renewed before it expires (RFC 6749, 4.4)."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any
from urllib.parse import urlencode

import orjson

from comps.core.errors import ModelServerError, Timeout, Unreachable, told_at
from comps.core.types import JSON
from comps.model_servers.remote.deadlines import Deadlines
from comps.model_servers.remote.exchange import Broken, Exchange
from comps.model_servers.remote.site import Site

NAME = "the server that gives tokens for the model server"
_MARGIN = 30.0
"""The renewal margin before expiry, in seconds; for short-lived tokens, a tenth of the lifetime."""
_UNTOLD = 300.0
"""The assumed lifetime in seconds, if the response has no `expires_in`."""
_SECONDS = 10.0
"""The deadline for a token request, in seconds."""
_FORM = b"application/x-www-form-urlencoded"


class ClientCredentials:
    """Fetches and caches the access token of one client.

    Args:
        site: The token endpoint.
        client_id: The client's ID.
        client_secret: The client's secret.
    """

    def __init__(self, site: Site, client_id: str, client_secret: str) -> None:
        self._site = site
        self._form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": client_secret}
        self._token = ""
        self._renew_at = 0.0
        self._fetching: asyncio.Task[None] | None = None

    async def token(self, refused: str = "") -> str:
        """Returns a valid access token, from the cache if possible.

        Args:
            refused: A token that the model server refused; it is not returned again, even if it has not expired.

        Raises:
            Unreachable: The token endpoint cannot be reached.
            ModelServerError: The token endpoint returned an error.
        """
        if not self._good(refused):
            # Concurrent requests share one task, which is shielded: it goes on if one of them is cancelled.
            fetching = self._fetching
            if fetching is None or fetching.done() or fetching.get_loop() is not asyncio.get_running_loop():
                fetching = self._fetching = asyncio.ensure_future(self._fetch())
                fetching.add_done_callback(retrieve_exception)
            await asyncio.shield(fetching)
        return self._token

    def _good(self, refused: str) -> bool:
        return bool(self._token) and self._token != refused and monotonic() < self._renew_at

    async def _fetch(self) -> None:
        asked = monotonic()
        request = self._site.request("POST", "", urlencode(self._form).encode(), b"", _FORM)
        exchange = Exchange(request, Deadlines(_SECONDS))
        try:
            # Redirects are not followed, since the request contains the secret.
            await self._site.connections.run(exchange)
        except (Broken, Timeout) as error:
            why = f"no answer within {_SECONDS:g} s" if isinstance(error, Timeout) else f"the connection broke: {error}"
            unreachable = f"{NAME} cannot be reached"
            told = f"{unreachable}: {self._site.address}: {why}"
            raise Unreachable(f"{unreachable}: {why}", operator_text=told) from error
        status, said = exchange.status, _document(exchange.body)
        token = said.get("access_token")
        if status != 200 or not isinstance(token, str) or not token.isprintable() or not token:
            # Only the error code is shown (RFC 6749, 5.2); other fields may contain our secret.
            code = str(said.get("error", ""))
            told = f": {code}" if code.replace("_", "").isalpha() and len(code) < 40 else ""
            raise told_at(ModelServerError(f"{NAME} answered {status}{told}"), self._site.address)
        life = said.get("expires_in")
        seconds = float(life) if isinstance(life, int | float | str) and _is_number(life) else _UNTOLD
        self._token, self._renew_at = token, asked + seconds - min(_MARGIN, seconds / 10)

    def close(self) -> None:
        """Close all connections."""
        self._site.connections.close()


def retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Callback for a task that may no longer be awaited: asyncio logs exceptions that are never retrieved."""
    if not task.cancelled():
        task.exception()


def _document(body: bytes) -> dict[str, JSON]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _is_number(value: float | str) -> bool:
    try:
        return float(value) > 0
    except ValueError:
        return False
