"""OAuth 2.0 client credentials: a bearer token from a token server, renewed before it runs out (RFC 6749, 4.4)."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any
from urllib.parse import urlencode

import orjson

from comps.core.errors import ModelServerError, Timeout, Unreachable
from comps.core.types import JSON
from comps.model_servers.remote.exchange import Broken, Deadlines, Exchange
from comps.model_servers.remote.site import Site

_MARGIN = 30.0
"""Seconds before its end at which a token is renewed; of a shorter-lived one, a tenth of its life."""
_UNTOLD = 300.0
"""Seconds for which a token is taken for good whose server does not say."""
_SECONDS = 10.0
"""How long the token server may take."""
_FORM = b"application/x-www-form-urlencoded"


class ClientCredentials:
    """The current token of one client.

    Args:
        site: Where tokens are had.
        client_id: Who asks for one.
        client_secret: What proves it.
    """

    def __init__(self, site: Site, client_id: str, client_secret: str) -> None:
        self._site = site
        self._form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": client_secret}
        self._token = ""
        self._renew_at = 0.0
        self._fetching: asyncio.Task[None] | None = None

    async def token(self, refused: str = "") -> str:
        """A token that is still good.

        Args:
            refused: A token that the model server does not accept (any more), whatever its server said of it.

        Raises:
            Unreachable: The token server cannot be reached.
            ModelServerError: It gives no token.
        """
        if not self._good(refused):
            # Of many requests at once, one fetches it, or fails to, for all; it goes on if that one is cancelled.
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
            # A redirect is not followed: it would take the secret along.
            await self._site.connections.run(exchange)
        except (Broken, Unreachable, Timeout) as error:
            raise Unreachable("the server that gives tokens for the model server cannot be reached") from error
        status, said = exchange.status, _document(exchange.body)
        token = said.get("access_token")
        if status != 200 or not isinstance(token, str) or not token.isprintable() or not token:
            # Its codes are known words (RFC 6749, 5.2); what else it says may hold what we sent.
            code = str(said.get("error", ""))
            told = f": {code}" if code.replace("_", "").isalpha() and len(code) < 40 else ""
            raise ModelServerError(f"the server that gives tokens for the model server answered {status}{told}")
        life = said.get("expires_in")
        seconds = float(life) if isinstance(life, int | float | str) and _is_number(life) else _UNTOLD
        self._token, self._renew_at = token, asked + seconds - min(_MARGIN, seconds / 10)

    def close(self) -> None:
        """Close all connections."""
        self._site.connections.close()


def retrieve_exception(task: asyncio.Task[Any]) -> None:
    """For a task that nobody may wait for any more: asyncio would complain in the log of a failure that nobody sees."""
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
