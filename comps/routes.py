"""One running service: its models from start to end, and a route for everything that may be asked of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from inspect import isawaitable
from time import time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from comps.admission import Admission
from comps.core.errors import InvalidRequest, LLMError
from comps.core.generator import Models, TextGenerator
from comps.core.types import JSON, ModelInfo
from comps.dialects.shared.base import Dialect, GenerationCall, ServiceStatus, Text
from comps.dialects.shared.endpoint import Endpoint, PreviewEndpoint
from comps.handler import Handler, PromptHandler
from comps.openapi import describe_bodies
from comps.responses import EXTENSION
from comps.settings import Model, Settings
from comps.telemetry import Telemetry, gpus, log

MEGABYTE = 1_000_000
PROMPT = "/v1/prompt"
_CREDENTIALS = re.compile(r"//[^/?#]*@")


class DirectRoutes:
    """Takes bodies to their handlers before the application's middlewares and routes, which cost as much as all else.

    What a middleware is for goes on to the application: a request from a web page of some origin, and any that is no
    POST to one of the handlers' paths.

    Args:
        app: The application.
        handlers: By their paths, which have no variables.
    """

    def __init__(self, app: ASGIApp, handlers: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            handler = self._handlers.get(scope["path"]) if scope["method"] == "POST" else None
            if handler and not scope["root_path"] and all(name != b"origin" for name, _ in scope["headers"]):
                await handler(scope, receive, send)
                return
            # Middlewares change what goes through `send`, so that no response may go another way.
            (scope.get("extensions") or {}).pop(EXTENSION, None)
        await self._app(scope, receive, send)


class Service:
    """One running service, and what its routes need of it."""

    def __init__(
        self, settings: Settings, models: Models, dialects: list[Dialect], shut_down: Callable[[], None] | None
    ) -> None:
        self.settings = settings
        self.models = models
        self.dialects = dialects
        self.admission = Admission(settings.microservice.max_running, settings.microservice.max_waiting)
        self.telemetry = Telemetry()
        self.shut_down = shut_down if settings.microservice.allow_shutdown else None
        self.version = _version()
        self.started = int(time())

    @asynccontextmanager
    async def open(self, on_loaded: Callable[[LLMError | None], None] | None) -> AsyncIterator[None]:
        """Load the models beside the running service and each other, and free them at the end."""
        loading = asyncio.ensure_future(self._load(on_loaded))
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await asyncio.gather(*(generator.server.aclose() for generator in self.models))

    async def _load(self, on_loaded: Callable[[LLMError | None], None] | None) -> None:
        failures = await asyncio.gather(*(self._load_one(generator) for generator in self.models))
        if on_loaded:
            on_loaded(failures[0] if all(failures) else None)

    async def _load_one(self, generator: TextGenerator) -> LLMError | None:
        """Load a model; the others do not depend on it."""
        try:
            await generator.load()
        except LLMError as error:
            if len(self.settings.models) > 1:  # Otherwise the service ends and says it.
                log.error("the model %s cannot be loaded: %s", generator.model, error)
            return error
        except Exception:  # A fault of ours: the log gets the details.
            log.exception("while loading the model %s", generator.model)
            return LLMError("the model could not be loaded; the log above has the reason")
        return None

    async def describe(self, asks_models: bool, path: Mapping[str, str]) -> ServiceStatus:
        """The state of the service at this moment: it is ready when one of its models can answer."""
        states: list[tuple[ModelInfo, LLMError | None]] = [(ModelInfo(one.model), None) for one in self.models]
        if asks_models:
            states = await asyncio.gather(*(_state(generator) for generator in self.models))
        return ServiceStatus(
            name=self.settings.microservice.name,
            version=self.version,
            started=self.started,
            models=[info for info, _ in states],
            not_ready=states[0][1] if all(error for _, error in states) else None,
            statistics=self.telemetry.statistics(),
            queue_length=self.admission.running + self.admission.waiting,
            path=path,
            shut_down=self.shut_down,
            gpus=gpus,
        )

    def add_routes(self, app: FastAPI) -> None:
        """All routes: with a body, by path; without one, from the first dialect that has them; and our own."""
        paths = list(dict.fromkeys(path for dialect in self.dialects for path in dialect.calls))
        endpoints = [Endpoint(path, self.dialects) for path in paths]
        # Nearly all that is asked is asked there.
        generating = sorted(filter(_generates, endpoints), key=lambda endpoint: endpoint.path != "/v1/chat/completions")
        every = PreviewEndpoint(PROMPT, self.dialects, generating)
        common: dict[str, Any] = {
            "models": self.models,
            "admission": self.admission,
            "telemetry": self.telemetry,
            "max_body": self.settings.microservice.max_body_mb * MEGABYTE,
            "strict": self.settings.dialects.strict,
        }
        servers = {name: _model_server(served.model) for name, served in self.settings.models.items()}
        handlers = [Handler(endpoint, **common) for endpoint in endpoints]
        self.handlers = [*handlers, PromptHandler(every, servers, **common)]
        for handler in self.handlers:
            app.router.routes.append(Route(handler.endpoint.path, handler, methods=["POST"]))
        app.add_api_route("/", self._front, methods=["GET"], summary="A page for browsers, an answer for probes")
        app.add_api_route("/health", _alive, methods=["GET"], summary="Liveness: 200 as long as the service runs")
        app.add_api_route("/ready", self._ready, methods=["GET"], summary="Readiness: 200 when a model can answer")
        app.add_api_route("/metrics", self._metrics, methods=["GET"], summary="Prometheus metrics")
        for route in dict.fromkeys(route for dialect in self.dialects for route in dialect.routes):
            method, _, path = route.partition(" ")
            if path != "/" and "?" not in path:
                summary = self._owner(route).routes[route].respond.__doc__
                app.add_api_route(path, self._telling(route), methods=[method], summary=summary)
        app.add_exception_handler(HTTPException, self._no_such_route)
        describe_bodies(app, endpoints, every)

    def _has(self, route: str) -> bool:
        return any(route in dialect.routes for dialect in self.dialects)

    def _owner(self, route: str) -> Dialect:
        """The first dialect that has a route without a body."""
        return next(dialect for dialect in self.dialects if route in dialect.routes)

    def _telling(self, route: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def tell(request: Request) -> Response:
            return await self._tell(route, request)

        return tell

    async def _tell(self, name: str, request: Request) -> Response:
        owner = self._owner(name)
        route = owner.routes[name]
        style = route.style or owner.style
        try:
            told = route.respond(await self.describe(route.asks_models, request.path_params))
            if isawaitable(told):
                told = await told
        except LLMError as error:
            failed = error
        except Exception:  # A fault of ours: the log gets the details, the caller none.
            log.exception("while answering %s", name)
            failed = LLMError("internal error; the service's log has it")
        else:
            if isinstance(told, Text):
                return Response(told.text, media_type=told.media_type)
            return Response(style.encode(told), media_type="application/json")
        return Response(style.encode(style.error(failed)), style.status(failed), _retry(failed), "application/json")

    async def _front(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", "") or not self._has("GET /"):
            return RedirectResponse("docs")
        return await self._tell("GET /", request)

    async def _ready(self) -> Response:
        status = await self.describe(asks_models=True, path={})
        return Response() if status.not_ready is None else self._failure(status.not_ready, 503)

    def _failure(self, error: LLMError, status: int) -> Response:
        """An error of a route that is ours, as the first dialect spells it."""
        style = self.dialects[0].style
        return Response(style.encode(style.error(error)), status, _retry(error), "application/json")

    async def _metrics(self, request: Request) -> Response:
        otherwise = f"GET /metrics?{request.url.query}"
        if self._has(otherwise):
            return await self._tell(otherwise, request)
        return Response(self.telemetry.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _no_such_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = InvalidRequest(f"{request.method} {request.url.path}: {error.detail}; GET /docs shows what there is")
        style = self.dialects[0].style
        return Response(style.encode(style.error(said)), error.status_code, error.headers, "application/json")


def _generates(endpoint: Endpoint) -> bool:
    return issubclass(endpoint.calls[0][0], GenerationCall)


def _model_server(model: Model) -> JSON:
    """Who answers for a model, as callers may know it: a URL without credentials and query, and no path of a file."""
    urls = [_CREDENTIALS.sub("//", url.strip()).partition("?")[0] for url in model.model_server_endpoint.split(",")]
    endpoint = ", ".join(urls) if "://" in model.model_server_endpoint else None
    return {"kind": model.model_server, "endpoint": endpoint, "framework": model.framework}


async def _state(generator: TextGenerator) -> tuple[ModelInfo, LLMError | None]:
    """What a model says of itself, and why it cannot answer if it cannot."""
    try:
        return await generator.describe(), None
    except LLMError as error:
        return ModelInfo(generator.model), error


def _retry(error: LLMError) -> dict[str, str]:
    return {} if error.retry_after is None else {"retry-after": str(error.retry_after)}


async def _alive() -> Response:
    return Response()


def _version() -> str:
    try:
        return version("opea-llm-microservice")
    except PackageNotFoundError:  # Run from a checkout that is not installed.
        return "0"
