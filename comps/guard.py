"""The guard: lets requests with an API key in, and refuses all others in the shape of the path's dialect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Receive, Scope, Send

from comps.access import CALLER, Caller, Keys, client_address
from comps.core.errors import LLMError, Unauthorized
from comps.core.request_id import REQUEST_ID
from comps.logs import RequestLine, log
from comps.telemetry import Telemetry

_LONGEST_PATH = 200
"""The most characters of a path in the log."""


class Guard:
    """Checks requests for keys and for what their callers may have.

    Args:
        keys: The keys.
        open_routes: The paths that need no key; one that ends in `/` stands for all that begin with it, and `/` for the
            page there, not for bodies.
        refusal: Returns the status, the body and its content type for an error, by the error, the path and the headers.
        telemetry: Counts what is refused.
    """

    def __init__(
        self,
        keys: Keys,
        open_routes: Collection[str],
        refusal: Callable[[LLMError, str, Sequence[tuple[bytes, bytes]]], tuple[int, bytes, str]],
        telemetry: Telemetry,
    ) -> None:
        self.keys = keys
        self._open = frozenset(open_routes)
        self._open_folders = tuple(path for path in open_routes if path.endswith("/") and path != "/")
        self._refusal = refusal
        self._telemetry = telemetry

    def check(self, scope: Scope) -> LLMError | None:
        """Returns why a request is refused; None if it is let in, and then its caller is in the scope."""
        path = _route_path(scope)
        is_body = path == "/" and scope["method"] == "POST"
        if (path in self._open and not is_body) or path.startswith(self._open_folders):
            return None
        try:
            caller = scope[CALLER] = self.keys.caller(scope["headers"])
            caller.check_limits(generates=scope["method"] == "POST")
        except LLMError as error:
            return error
        return None

    async def refuse(self, error: LLMError, scope: Scope, send: Send) -> None:
        """Send the response to a request that is refused."""
        path = _route_path(scope)
        status, body, kind = self._refusal(error, path, scope["headers"])
        caller: Caller | None = scope.get(CALLER)
        self._telemetry.refused(caller, status)
        log.info(RequestLine(Refusal(error, status, caller, scope), ""))
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        if isinstance(error, Unauthorized):
            headers.append((b"www-authenticate", b"Bearer"))
        if error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@dataclass(frozen=True)
class Refusal:
    """What the log says of a request that no handler gets. Path and client may be anything that somebody sent."""

    error: LLMError
    status: int
    caller: Caller | None
    scope: Scope

    def line(self, server: str) -> str:
        """Returns the line in text."""
        told = self.fields(server)
        where = f"{told['method']} {told['path']} from {told['client'] or '-'}"
        return f"{where} {self.status} key={told['key'] or '-'}: {self.error}"

    def fields(self, server: str) -> dict[str, Any]:
        """Returns what it says, by name."""
        return {
            "method": self.scope["method"],
            "path": quote(_route_path(self.scope)[:_LONGEST_PATH]),
            "outcome": str(self.status),
            "request_id": REQUEST_ID.get(),
            "client": client_address(self.scope.get("client")),
            "key": self.caller.name if self.caller else None,
            "error": str(self.error),
        }


class Guarded:
    """ASGI middleware: an application behind the guard. Lifespan events pass."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._guard.check(scope)):
            await self._guard.refuse(error, scope, send)
            return
        await self._app(scope, receive, send)


def _route_path(scope: Scope) -> str:
    """Returns the path without the prefix under which the application is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path
