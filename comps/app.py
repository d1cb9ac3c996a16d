"""The plan of the house: settings in, a FastAPI application out, with every room in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Route

from comps.admission import Admission
from comps.core.errors import InvalidRequest, LLMError
from comps.core.generator import TextGenerator
from comps.core.ports import Loads, ModelServer
from comps.core.types import JSON, ModelInfo
from comps.dialects import DIALECTS, open_dialect
from comps.dialects.base import Desk, Dialect, House
from comps.dialects.opea import Switches
from comps.handler import Handler, status_of
from comps.model_servers import MODEL_SERVERS, open_model_server, through_framework
from comps.model_servers.target import Access, Target
from comps.openapi import describe_bodies
from comps.settings import Settings, load_settings
from comps.telemetry import Telemetry, log

MEGABYTE = 1_000_000


def read_settings(file: Path | None) -> Settings:
    """The settings, checked against what this house has; see `load_settings`."""
    return load_settings(file, MODEL_SERVERS, DIALECTS)


def open_server(settings: Settings) -> ModelServer:
    """The model server that the settings name; nothing is loaded or connected yet."""
    model = settings.model
    target = Target(
        model.model_name,
        model.model_server_endpoint,
        Access(api_key=model.api_key.get_secret_value(), verify=not model.tls_skip_verify),
        device=model.device,
    )
    return open_model_server(model.model_server, target)


def make_generator(settings: Settings, server: ModelServer) -> TextGenerator:
    """What answers with that model server, through the framework that the settings name."""
    model = settings.model
    return TextGenerator(through_framework(server, model.framework, model.model_name), model.model_name)


def make_dialects(settings: Settings) -> list[Dialect]:
    """The enabled dialects; the first one has a path that several claim."""
    chosen = settings.dialects
    switches = Switches(chosen.opea_stream, chosen.messages, chosen.disable_streaming, chosen.output_guard)
    return [open_dialect(name, {"opea": switches}.get(name)) for name in chosen.enabled]


def example(settings: Settings) -> tuple[str, JSON]:
    """A path and a body to try the service with."""
    path, calls = next(iter(make_dialects(settings)[0].calls.items()))
    return path, next(iter(calls[0].examples.values()))


def make_app(
    settings: Settings,
    server: ModelServer | None = None,
    on_loaded: Callable[[LLMError | None], None] | None = None,
    *,
    further: Sequence[Dialect] = (),
) -> FastAPI:
    """The service.

    Args:
        settings: All that can be set.
        server: The model server; None opens the one that the settings name.
        on_loaded: Called once the model can answer, or with the reason why it never will.
        further: Dialects to speak before those that the settings enable.
    """
    server = server or open_server(settings)
    house = _House(settings, server, make_generator(settings, server), [*further, *make_dialects(settings)])
    app = FastAPIOffline(
        title="OPEA LLM microservice",
        version=house.version,
        description="A question and documents in, an answer out, whole or streamed.",
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lambda _: house.open(on_loaded),
    )
    house.add_routes(app)
    return app


class _House:
    """One running service, and what its routes need of it."""

    def __init__(
        self, settings: Settings, server: ModelServer, generator: TextGenerator, dialects: list[Dialect]
    ) -> None:
        self.settings = settings
        self.server = server
        self.generator = generator
        self.dialects = dialects
        self.telemetry = Telemetry()
        self.version = _version()
        self.started = int(time())

    @asynccontextmanager
    async def open(self, on_loaded: Callable[[LLMError | None], None] | None) -> AsyncIterator[None]:
        """Load the model beside the running service, and free it at the end."""
        loading = asyncio.ensure_future(self._load(on_loaded))
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await self.generator.server.aclose()

    async def _load(self, on_loaded: Callable[[LLMError | None], None] | None) -> None:
        failed: LLMError | None = None
        try:
            if isinstance(self.server, Loads):
                await self.server.load()
        except LLMError as error:
            failed = error
        except Exception:  # A fault of ours: the log gets the details.
            log.exception("while loading the model")
            failed = LLMError("the model could not be loaded; the log above has the reason")
        if on_loaded:
            on_loaded(failed)

    async def describe(self) -> House:
        """The state of the service at this moment."""
        not_ready: LLMError | None = None
        try:
            info = await self.generator.describe()
        except LLMError as error:
            info, not_ready = ModelInfo(self.generator.model), error
        return House(
            name=self.settings.microservice.name,
            version=self.version,
            started=self.started,
            models=[info],
            not_ready=not_ready,
            statistics=self.telemetry.statistics(),
        )

    def add_routes(self, app: FastAPI) -> None:
        """All routes: with a body, by path; without one, from the first dialect that has them; and our own."""
        admission = Admission(self.settings.microservice.max_running, self.settings.microservice.max_waiting)
        paths = list(dict.fromkeys(path for dialect in self.dialects for path in dialect.calls))
        desks = [Desk(path, self.dialects) for path in paths]
        for desk in desks:
            handler = Handler(
                desk,
                self.generator,
                admission,
                self.telemetry,
                max_body=self.settings.microservice.max_body_mb * MEGABYTE,
                strict=self.settings.dialects.strict,
            )
            app.router.routes.append(Route(desk.path, handler, methods=["POST"]))
        for path in dict.fromkeys(path for dialect in self.dialects for path in dialect.facts):
            owner = next(dialect for dialect in self.dialects if path in dialect.facts)
            app.add_api_route(path, self._fact(owner, path), methods=["GET"], summary=owner.facts[path].__doc__)
        app.add_api_route("/health", _alive, methods=["GET"], summary="Liveness: 200 as long as the service runs")
        app.add_api_route("/metrics", self._metrics, methods=["GET"], summary="Prometheus metrics")
        app.add_exception_handler(HTTPException, self._no_such_route)
        describe_bodies(app, desks)

    def _fact(self, dialect: Dialect, path: str) -> Callable[[], Any]:
        async def fact() -> Response:
            try:
                return JSONResponse(dialect.facts[path](await self.describe()))
            except LLMError as error:
                told = error
            except Exception:  # A fault of ours: the log gets the details, the caller none.
                log.exception("while answering %s", path)
                told = LLMError("internal error; the service's log has it")
            return JSONResponse(dialect.error(told), status_of(told), _retry(told))

        return fact

    async def _metrics(self) -> Response:
        return Response(self.telemetry.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _no_such_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = InvalidRequest(f"{request.method} {request.url.path}: {error.detail}; GET /docs shows what there is")
        return JSONResponse(self.dialects[0].error(said), error.status_code, error.headers)


def _retry(error: LLMError) -> dict[str, str]:
    return {} if error.retry_after is None else {"retry-after": str(error.retry_after)}


async def _alive() -> Response:
    return Response()


def _version() -> str:
    try:
        return version("opea-llm-microservice")
    except PackageNotFoundError:  # Run from a checkout that is not installed.
        return "0"
