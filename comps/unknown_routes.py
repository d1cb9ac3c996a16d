"""The answer to a request for a route that there is not, or not with its method."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from comps.access import CALLER, Caller
from comps.core.errors import UnknownRoute, shortened
from comps.guard import Refusal
from comps.logs import RequestLine, log
from comps.refusals import Refusals
from comps.telemetry import Telemetry


class UnknownRoutes:
    """Handler of the exceptions that say that there is no such route. It names the nearest one.

    Args:
        routes: All routes.
        refusal: Gives the error its form.
        telemetry: Counts the request.
        shows_docs: Whether `/docs` is there.
    """

    def __init__(
        self, routes: Sequence[BaseRoute], refusal: Refusals, telemetry: Telemetry, *, shows_docs: bool
    ) -> None:
        self._routes = routes
        self._refusal = refusal
        self._telemetry = telemetry
        self._otherwise = "; GET /docs shows what there is" if shows_docs else ""

    async def __call__(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        nearest = self._nearest(request.method, path)
        hint = f"; did you mean {nearest}?" if nearest else self._otherwise
        said = UnknownRoute(f"{request.method} {shortened(path)}: {error.detail}{hint}", error.status_code)
        caller: Caller | None = request.scope.get(CALLER)
        self._telemetry.refused(caller, error.status_code)
        log.info(RequestLine(Refusal(said, error.status_code, caller, request.scope), ""))
        status, body, kind = self._refusal.of_no_route(said, path, request.scope["headers"])
        return Response(body, status, error.headers, kind)

    def _nearest(self, method: str, path: str) -> str | None:
        """Returns the route that is most like a path that is none, with its method; None if none is like it."""
        known = {route.path: route.methods or set() for route in self._routes if isinstance(route, Route | APIRoute)}
        wanted = max((one for one in known if path.endswith(one) and one != "/"), key=len, default=None)
        found = [path] if path in known else [wanted] if wanted else get_close_matches(path, known, 1, 0.75)
        if not found:
            return None
        methods = known[found[0]] - {"HEAD"}
        return f"{method if method in methods else min(methods)} {found[0]}"
