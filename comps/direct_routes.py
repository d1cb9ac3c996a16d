"""The way of a body to its handler, past the web framework."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from starlette.types import ASGIApp, Receive, Scope, Send

from comps.core.request_id import REQUEST_ID, TRACE_HEADERS
from comps.guard import Guard
from comps.limits import Limits
from comps.refusals import Refusals
from comps.requests import (
    REQUEST_ID_HEADER,
    REQUEST_ID_OF_SCOPE,
    plain_path,
    request_id,
    trace_headers,
    with_request_id,
    without_body,
)
from comps.responses import EXTENSION


class DirectRoutes:
    """ASGI application that passes bodies to their handlers directly, past the middlewares and the router of FastAPI.

    Middlewares and router cost as much as all other work on a request. Requests with an `Origin` header, which need the
    CORS middleware, and all other paths and methods go to the application. Each request gets its id here, and a path
    with a slash too many is that without it. HEAD is answered as GET, without the body.

    Args:
        app: The application.
        handlers: The handlers by path, without path parameters.
        guard: Checks the requests that are passed on directly; those that it refuses, the application refuses too.
            None: no keys are needed.
        refusal: The response to an error, by the error and the path; for the server (`connections`).
        limits: What the connections of clients may take; for the server as well.
    """

    def __init__(
        self, app: ASGIApp, handlers: Mapping[str, ASGIApp], guard: Guard | None, refusal: Refusals, limits: Limits
    ) -> None:
        self._app = app
        self._handlers = handlers
        self._guard = guard
        self.refusal = refusal
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = sent = None
        for name, value in scope["headers"]:
            if name == b"origin":
                origin = value
            elif name == REQUEST_ID_HEADER:
                sent = value
            elif name == b"traceparent":
                TRACE_HEADERS.set(trace_headers(value, scope["headers"]))
        said = scope[REQUEST_ID_OF_SCOPE] = request_id(sent)
        REQUEST_ID.set(said)
        path = scope["path"]
        if path not in self._handlers and plain_path(path) != path:
            path = plain_path(path)
            scope = {**scope, "path": path, "raw_path": quote(path).encode()}
        handler = self._handlers.get(path) if scope["method"] == "POST" else None
        if handler and origin is None and not scope["root_path"] and not (self._guard and self._guard.check(scope)):
            await handler(scope, receive, send)
            return
        # What follows changes the response in `send`, so the extension that writes past `send` is removed.
        (scope.get("extensions") or {}).pop(EXTENSION, None)
        send = with_request_id(send, said, self.refusal.id_header(path, scope["headers"]))
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, without_body(send)
        await self._app(scope, receive, send)
