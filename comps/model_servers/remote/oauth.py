"""OAuth 2.0 client credentials: a bearer token from a token server, renewed before it runs out (RFC 6749, 4.4)."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import aiohttp
import orjson

from comps.core.errors import ModelServerError, Unreachable
from comps.core.types import JSON

_MARGIN = 30.0
"""Seconds before its end at which a token is renewed; of a shorter-lived one, a tenth of its life."""
_UNTOLD = 300.0
"""Seconds for which a token is taken for good whose server does not say."""
_PATIENCE = aiohttp.ClientTimeout(total=10.0)


class ClientCredentials:
    """The current token of one client.

    Args:
        token_url: Where tokens are had.
        client_id: Who asks for one.
        client_secret: What proves it.
        proxy: The URL of a proxy to go through.
    """

    def __init__(self, token_url: str, client_id: str, client_secret: str, proxy: str | None = None) -> None:
        self._url = token_url
        self._proxy = proxy
        self._form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": client_secret}
        self._token = ""
        self._renew_at = 0.0
        self._fetching: asyncio.Task[None] | None = None

    async def token(self, session: aiohttp.ClientSession, refused: str = "") -> str:
        """A token that is still good.

        Args:
            session: What it is fetched with if there is none.
            refused: A token that the model server does not accept (any more), whatever its server said of it.

        Raises:
            Unreachable: The token server cannot be reached.
            ModelServerError: It gives no token.
        """
        if not self._good(refused):
            # Of many requests at once, one fetches it, or fails to, for all; it goes on if that one is cancelled.
            fetching = self._fetching
            if fetching is None or fetching.done() or fetching.get_loop() is not asyncio.get_running_loop():
                fetching = self._fetching = asyncio.ensure_future(self._fetch(session))
                fetching.add_done_callback(retrieve_exception)
            await asyncio.shield(fetching)
        return self._token

    def _good(self, refused: str) -> bool:
        return bool(self._token) and self._token != refused and monotonic() < self._renew_at

    async def _fetch(self, session: aiohttp.ClientSession) -> None:
        asked = monotonic()
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        try:
            async with session.post(
                self._url,
                data=self._form,
                headers=headers,
                timeout=_PATIENCE,
                proxy=self._proxy,
                allow_redirects=False,  # It would take the secret along.
            ) as response:
                status, said = response.status, _document(await response.read())
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise Unreachable("the server that gives tokens for the model server cannot be reached") from error
        token = said.get("access_token")
        if status != 200 or not isinstance(token, str) or not token:
            # Its codes are known words (RFC 6749, 5.2); what else it says may hold what we sent.
            code = str(said.get("error", ""))
            told = f": {code}" if code.replace("_", "").isalpha() and len(code) < 40 else ""
            raise ModelServerError(f"the server that gives tokens for the model server answered {status}{told}")
        life = said.get("expires_in")
        seconds = float(life) if isinstance(life, int | float | str) and _is_number(life) else _UNTOLD
        self._token, self._renew_at = token, asked + seconds - min(_MARGIN, seconds / 10)


def retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Whoever waited may have left: then nobody else hears of a failure, and asyncio would complain in the log."""
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
