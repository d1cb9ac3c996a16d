"""The relay that all ratios are to: uvicorn and aiohttp, every byte handed on as it comes, nothing looked at.

Run as `python bare_relay.py <port> <URL of the model server>`.
"""

from __future__ import annotations

import sys

import aiohttp
import uvicorn
from starlette.types import Receive, Scope, Send


class Relay:
    """An ASGI application."""

    def __init__(self, model_server: str) -> None:
        self._model_server = model_server
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(self._model_server, connector=aiohttp.TCPConnector(limit=0))
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {"content-type": "application/json"}
        async with self._session.request(scope["method"], scope["path"], data=body, headers=headers) as response:
            kind = (b"content-type", response.headers["content-type"].encode())
            await send({"type": "http.response.start", "status": response.status, "headers": [kind]})
            async for piece in response.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})


if __name__ == "__main__":
    uvicorn.run(
        Relay(sys.argv[2]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
    )
