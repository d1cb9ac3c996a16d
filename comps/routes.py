"""The running service: the lifespan of its models, and its routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from inspect import isawaitable
from math import inf
from time import time
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from comps.access import CALLER, Caller, Keys
from comps.admission import Admission
from comps.body_memory import BodyMemory
from comps.core.errors import LLMError, shutting_down
from comps.core.models import Models
from comps.core.redaction import shown_urls
from comps.core.types import JSON, ModelInfo
from comps.dialects.shared.base import Dialect, GenerationCall, ServiceStatus, Text, owner_of
from comps.dialects.shared.endpoint import Endpoint, PreviewEndpoint
from comps.gpus import gpus
from comps.guard import Guard
from comps.handler import Handler, PromptHandler
from comps.limits import Limits
from comps.loading import load_all, state_of
from comps.logs import log, log_unhandled
from comps.openapi import describe_bodies
from comps.pages import DOCS, DOCS_ROUTES
from comps.refusals import Refusals
from comps.settings import Model, Settings
from comps.telemetry import Telemetry
from comps.tracing import Tracing
from comps.ui import PAGE, DocumentReader, page_files, page_routes
from comps.unknown_routes import UnknownRoutes
from comps.version import version
from comps.watched_files import WatchedFiles

MEGABYTE = 1_000_000
PROMPT = "/v1/prompt"
_AHEAD = 4
"""Of the room for large bodies there is this part more, in which bodies are read that wait for it."""
_STREAM_TESTS = 8
"""How many test streams may run at once; see `comps.model_servers.stream_test`."""


class Service:
    """The running service, with the state that its routes share.

    Args:
        settings: The settings.
        models: The served models.
        dialects: The dialects, by precedence.
        shut_down: Stops the service; None if it cannot be stopped.
        keys: The API keys; None if callers need none.
        others: The dialects that are not enabled, whose paths have the same refusals as if they were.
        watched: Files that are read again when they change.
    """

    def __init__(
        self,
        settings: Settings,
        models: Models,
        dialects: list[Dialect],
        shut_down: Callable[[], None] | None,
        keys: Keys | None = None,
        others: Sequence[Dialect] = (),
        watched: Sequence[WatchedFiles] = (),
    ) -> None:
        self.settings = settings
        self.models = models
        self.dialects = dialects
        self.version = version()
        servers = {name: served.model.model_server for name, served in settings.models.items()}
        self.telemetry = Telemetry(models, servers, self.version)
        limits = settings.microservice
        self.admissions = {
            generator.model: Admission(
                limits.max_running,
                limits.max_waiting,
                limits.max_wait_seconds,
                partial(self.telemetry.waited, generator.model),
            )
            for generator in models
        }
        self.telemetry.watch(self.admissions)
        room = limits.max_bodies_mb * MEGABYTE
        shares = 2 if keys else 1
        ahead = BodyMemory(room // _AHEAD, 0, room // _AHEAD // shares)
        self.bodies = BodyMemory(room, limits.max_wait_seconds, room // shares, ahead)
        self.shut_down = shut_down if settings.microservice.allow_shutdown else None
        self._watched = watched
        self.refusal = Refusals(dialects, others)
        self.guard = Guard(keys, _open_routes(settings), self.refusal, self.telemetry) if keys else None
        self._ending = False
        self.started = int(time())

    @asynccontextmanager
    async def open(
        self,
        on_loaded: Callable[[LLMError | None], None] | None,
        on_state: Callable[[Mapping[str, LLMError]], None] | None,
    ) -> AsyncIterator[None]:
        """Lifespan: load all models concurrently, in the background, and close them at the end; see `make_app`."""
        asyncio.get_running_loop().set_exception_handler(log_unhandled)
        if self.settings.logging.log_prompts:
            log.warning("log_prompts = true: the log gets every prompt, with all questions and documents")
        tracing = Tracing.from_environment
        models = {name: served.model for name, served in self.settings.models.items()}
        traces = await asyncio.to_thread(tracing, self.settings.microservice.name, models, self.version)
        self.telemetry.tracing = traces
        watching = [self.telemetry.watch_loop(), *(files.watch() for files in self._watched)]
        tasks = [asyncio.ensure_future(one) for one in (load_all(self.models, on_loaded, on_state), *watching)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(generator.server.aclose() for generator in self.models))
            if traces:
                await traces.aclose()

    def withdraw(self) -> None:
        """From now on, the service is not ready. It still answers."""
        self._ending = True

    async def describe(
        self,
        asks_models: bool,
        path: Mapping[str, str] = MappingProxyType({}),
        query: Mapping[str, str] = MappingProxyType({}),
        caller: Caller | None = None,
    ) -> ServiceStatus:
        """Returns the current service status. The service is ready if one of its models can answer.

        Args:
            asks_models: Whether to ask the model servers; if not, the models have no description.
            path: The path parameters of the request.
            query: Its query parameters.
            caller: Who asks, and sees the models that this caller may use; None: all.

        Raises:
            Forbidden: The caller may not use the model in the path, or none that is served.
        """
        models = list(self.models)
        if asked := path.get("model"):
            path = {**path, "model": self.models.served_name(asked)}
        if caller and caller.models:
            asked = path.get("model")
            self.models.named(asked if asked in {one.model for one in models} else None, allowed=caller.models)
            models = self.models.allowed(caller.models)
        states: list[tuple[ModelInfo, LLMError | None]] = [(ModelInfo(one.model), None) for one in models]
        if asks_models:
            states = await asyncio.gather(*(state_of(generator) for generator in models))
        not_ready = states[0][1] if all(error for _, error in states) else None
        if asks_models and self._ending:
            not_ready = shutting_down()
        return ServiceStatus(
            name=self.settings.microservice.name,
            version=self.version,
            started=self.started,
            models=[info for info, _ in states],
            ready=[info for info, error in states if error is None],
            not_ready=not_ready,
            statistics=self.telemetry.statistics(),
            queue_length=sum(one.running + one.waiting for one in self.admissions.values()),
            path=path,
            query=query,
            shut_down=self.shut_down,
            gpus=gpus,
        )

    @property
    def limits(self) -> Limits:
        """What the connections of clients may take."""
        own = self.settings.microservice
        return Limits(
            max_connections=own.max_connections,
            header_seconds=own.header_seconds or inf,
            body_seconds=own.body_seconds or inf,
            idle_seconds=own.idle_seconds or inf,
            stalled_client_seconds=own.stalled_client_seconds or inf,
            max_header=own.max_header_kb * 1000,
            max_target=own.max_url_kb * 1000,
            max_body=own.max_body_mb * MEGABYTE,
        )

    def add_routes(self, app: FastAPI) -> None:
        """Add all routes: those with a body, those without one (of the first dialect that has them), and our own."""
        paths = list(dict.fromkeys(path for dialect in self.dialects for path in dialect.calls))
        endpoints = [Endpoint(path, self.dialects) for path in paths]
        # Most bodies are for that path.
        generating = sorted(filter(_generates, endpoints), key=lambda endpoint: endpoint.path != "/v1/chat/completions")
        preview = PreviewEndpoint(PROMPT, self.dialects, generating)
        common: dict[str, Any] = {
            "models": self.models,
            "admissions": self._admissions_of_all(),
            "telemetry": self.telemetry,
            "max_body": self.settings.microservice.max_body_mb * MEGABYTE,
            "bodies": self.bodies,
            "keepalive_seconds": self.settings.microservice.keepalive_seconds,
            "strict": self.settings.dialects.strict,
        }
        show = self.settings.microservice.show_endpoints
        servers = {name: _model_server(served.model, show) for name, served in self.settings.models.items()}
        handlers = [Handler(endpoint, **common) for endpoint in endpoints]
        prompt = [PromptHandler(preview, servers, **common)] if self.settings.microservice.serve_prompt else []
        self.handlers = [*handlers, *prompt]
        for handler in self.handlers:
            app.router.routes.append(Route(handler.endpoint.path, handler, methods=["POST"]))
        self._add_get_routes(app)
        if self.settings.microservice.serve_ui:
            self._add_page(app)
        shows_docs = self.settings.microservice.serve_docs
        unknown = UnknownRoutes(app.router.routes, self.refusal, self.telemetry, shows_docs=shows_docs)
        app.add_exception_handler(HTTPException, unknown)
        shown = preview if prompt else None
        describe_bodies(app, endpoints, shown, self.dialects, needs_key=self.guard is not None)

    def _admissions_of_all(self) -> dict[str, Admission]:
        """Returns the admissions of the models, and of the unlisted one, which has few slots."""
        unlisted = self.models.unlisted
        return {**({unlisted.model: Admission(_STREAM_TESTS, 0)} if unlisted else {}), **self.admissions}

    def _add_get_routes(self, app: FastAPI) -> None:
        """Add the routes without a body."""
        app.add_api_route("/", self._root, methods=["GET"], summary="A page for browsers, an answer for probes")
        app.add_api_route(
            "/health",
            _live,
            methods=["GET"],
            summary="Liveness: 200 as long as the service runs",
            response_class=Response,
        )
        app.add_api_route(
            "/ready",
            self._ready,
            methods=["GET"],
            summary="Readiness: 200 when a model can answer",
            response_class=Response,
            responses=_described(503),
        )
        if self.settings.microservice.serve_metrics:
            app.add_api_route(
                "/metrics",
                self._metrics,
                methods=["GET"],
                summary="Prometheus metrics",
                response_class=PlainTextResponse,
            )
        for route in dict.fromkeys(route for dialect in self.dialects for route in dialect.routes):
            method, _, path = route.partition(" ")
            if path != "/" and "?" not in path:
                app.add_api_route(
                    path,
                    self._route_handler(route),
                    methods=[method],
                    summary=owner_of(route, self.dialects).routes[route].respond.__doc__,
                    responses=_described(403, 404, 500, 502, 503, 504),
                )

    def _add_page(self, app: FastAPI) -> None:
        """Add the page for browsers."""
        microservice = self.settings.microservice
        dialects = [dialect.name for dialect in self.dialects]
        reader = DocumentReader(microservice.max_body_mb * MEGABYTE, self.bodies, _caller_name, self._refused)
        app.router.routes += page_routes(microservice.name, self.version, self._models_for, dialects, reader)

    def _models_for(self, request: Request) -> list[str]:
        """Returns the names of the models that the sender of a request may use."""
        caller: Caller | None = request.scope.get(CALLER)
        return [one.model for one in self.models.allowed(caller.models if caller else ())]

    def _has(self, route: str) -> bool:
        return any(route in dialect.routes for dialect in self.dialects)

    def _route_handler(self, route: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def respond(request: Request) -> Response:
            return await self._respond(route, request)

        return respond

    async def _respond(self, name: str, request: Request) -> Response:
        owner = owner_of(name, self.dialects, request.scope["headers"])
        route = owner.routes[name]
        style = route.style or owner.style
        try:
            caller = request.scope.get(CALLER)
            asked = request.path_params, request.query_params
            content = route.respond(await self.describe(route.asks_models, *asked, caller))
            if isawaitable(content):
                content = await content
        except LLMError as error:
            failed = error
        except asyncio.CancelledError:  # The service ends before the model servers answer.
            failed = shutting_down()
        except Exception:  # A fault of ours: the log gets the details, the caller none.
            log.exception("while answering %s", name)
            failed = LLMError("internal error; the service's log has it")
        else:
            if isinstance(content, Text):
                return Response(content.text, media_type=content.media_type)
            return Response(style.encode(content), media_type="application/json")
        return Response(style.encode(style.error(failed)), style.status(failed), _retry(failed), "application/json")

    async def _root(self, request: Request) -> Response:
        microservice, has_answer = self.settings.microservice, self._has("GET /")
        page = "ui" if microservice.serve_ui else "docs" if microservice.serve_docs else ""
        if page and (not has_answer or "text/html" in request.headers.get("accept", "")):
            return RedirectResponse(page)
        if not has_answer:
            raise HTTPException(404)
        return await self._respond("GET /", request)

    async def _ready(self) -> Response:
        try:
            not_ready = shutting_down() if self._ending else (await self.describe(asks_models=True)).not_ready
        except asyncio.CancelledError:  # The service ends before the model servers answer.
            not_ready = shutting_down()
        return Response() if not_ready is None else self._failure(not_ready, 503)

    def _failure(self, error: LLMError, status: int) -> Response:
        """Returns the error response of a route of our own, in the style of the first dialect."""
        style = self.dialects[0].style
        return Response(style.encode(style.error(error)), status, _retry(error), "application/json")

    def _refused(self, error: LLMError) -> Response:
        return self._failure(error, self.dialects[0].style.status(error))

    async def _metrics(self, request: Request) -> Response:
        otherwise = f"GET /metrics?{request.url.query}"
        if self._has(otherwise):
            return await self._respond(otherwise, request)
        await self.telemetry.read_process()
        return Response(self.telemetry.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _open_routes(settings: Settings) -> list[str]:
    """Returns the paths that need no key."""
    paths = settings.microservice.open_routes
    return [*paths, *(DOCS_ROUTES if DOCS in paths else ()), *(page_files() if PAGE in paths else ())]


def _described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the statuses of errors, for the OpenAPI document."""
    return {status: {"description": "Error", "content": {"application/json": {"schema": {}}}} for status in statuses}


def _generates(endpoint: Endpoint) -> bool:
    return issubclass(endpoint.calls[0][0], GenerationCall)


def _model_server(model: Model, show_endpoint: bool) -> JSON:
    """Returns what callers may see of a model's server: kind, framework, and perhaps its URL without credentials and
    query."""
    seen: dict[str, JSON] = {"kind": model.model_server, "framework": model.framework}
    if show_endpoint:
        seen["endpoint"] = ", ".join(shown_urls(model.model_server_endpoint)) or None
    return seen


def _caller_name(request: Request) -> str:
    caller: Caller | None = request.scope.get(CALLER)
    return caller.name if caller else ""


def _retry(error: LLMError) -> dict[str, str]:
    return {} if error.retry_after is None else {"retry-after": str(error.retry_after)}


async def _live() -> Response:
    return Response()
