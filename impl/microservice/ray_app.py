"""The microservice as a Ray Serve application, with autoscaled replicas on one machine or on many.

    serve run impl.microservice.ray_app:app                  # with Ray's command, on port 8000
    serve deploy docker/ray/serve.yaml                       # on a running cluster
    python impl/microservice/ray_app.py min_replicas=2       # with its own Ray instance, which ends with it

The settings are those of the service, from the environment and config.ini. They are read once, where the application is
built, and passed to every replica; the environment of the replica's node is not used. Importing this starts nothing.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# In a checkout that is not installed, these need the line above.
from comps.app import make_app, read_settings  # noqa: E402
from comps.core.errors import LLMError, Overloaded, SettingsError, for_operator  # noqa: E402
from comps.logs import log, start_log  # noqa: E402
from comps.settings import Settings  # noqa: E402

WRONG_SETTINGS, FAILED = 2, 1
"""Exit codes."""
DEPLOYMENT = "microservice"
"""The deployment's name, in Ray's status and in the file for `serve deploy`."""
APPLICATION = "llm"
"""The application's name in Ray."""
SCALING = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 32, "upscale_delay_s": 10}
"""Our defaults for Ray Serve's `autoscaling_config`; times are in seconds."""
OBJECT_STORE_BYTES = 256 * 1024 * 1024
"""The size of the object store, which is not used here; by default, Ray takes a third of the memory for it."""
NODES_PATH = {"PYTHONPATH": f"{ROOT}:${{PYTHONPATH}}"}
"""The replicas' PYTHONPATH: this checkout, then that of the node, which Ray substitutes."""


OF_OWN_SERVER = (
    *("workers", "tls_certificate", "tls_key", "tls_client_ca", "trusted_proxies"),
    *("max_header_kb", "max_url_kb", "max_connections", "allow_shutdown", "pre_stop_seconds"),
    *("header_seconds", "body_seconds", "idle_seconds", "stalled_client_seconds"),
)
"""The settings of the service's own HTTP server, which Ray's takes the place of."""


class Replica:
    """One replica of the service. It is ready for Ray once its models are loaded; before that it gets no requests.

    Args:
        settings: The settings of the service.

    Raises:
        LLMError: No model could be loaded.
    """

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray awaits it.
        start_log(settings.logging.log_level, settings.logging.log_path)
        for sentence in settings.without_effect:
            log.warning("%s", sentence)
        loaded: asyncio.Future[LLMError | None] = asyncio.get_running_loop().create_future()
        self._app = await asyncio.to_thread(make_app, settings, on_loaded=loaded.set_result)
        self._app.add_middleware(DisconnectOnCancel)
        opened = AsyncExitStack()
        await opened.enter_async_context(self._app.router.lifespan_context(self._app))
        if failed := await loaded:
            await opened.aclose()
            raise failed

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            async with opened:
                yield

        self._app.router.lifespan_context = lifespan

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Returns the ASGI application; called by Ray after the replica is created."""
        return self._app

    async def check_health(self) -> None:
        """Health check, called by Ray in the event loop of the requests: a replica whose loop is blocked is replaced.

        An unreachable model server is no failure of the replica: another replica could not reach it either.
        """


class DisconnectOnCancel:
    """ASGI middleware that turns the cancellation of a request into the message `http.disconnect`.

    Ray cancels a request when the client disconnects. To the service, cancellation would mean shutdown.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        async def receive_or_left() -> Message:
            message = asyncio.ensure_future(receive())
            try:
                done, _ = await asyncio.wait((message, left), return_when=asyncio.FIRST_COMPLETED)
                return done.pop().result()
            finally:
                message.cancel()

        answering = asyncio.ensure_future(self._app(scope, receive_or_left, send))
        try:
            await asyncio.shield(answering)
        except asyncio.CancelledError:
            left.set_result({"type": "http.disconnect"})
            await asyncio.gather(answering, return_exceptions=True)
            raise


def app(arguments: Mapping[str, Any]) -> Any:
    """Returns the application, for `serve run` and `serve deploy`.

    Args:
        arguments: The fields of Ray Serve's `autoscaling_config`, and `num_cpus`, the logical CPUs of a replica. The
            fields of the deployment in the file for `serve deploy` override them.

    Raises:
        Unservable: A setting or an argument is invalid.
    """
    try:
        return bound(Replica, read_own_settings(), arguments)
    except SettingsError as error:
        raise _unservable(error) from None


def read_own_settings() -> Settings:
    """Reads the settings. Those of the service's own HTTP server that are not at their defaults have no effect.

    Raises:
        SettingsError: A setting is invalid.
    """
    settings = read_settings(None)
    own, fields = settings.microservice, type(settings.microservice).model_fields
    changed = [key for key in OF_OWN_SERVER if getattr(own, key) != fields[key].default]
    sources = {one.key: one.source for one in settings.listing if one.section == "OPEA_Microservice"}
    lost = [f"{sources[key]}: {key} has no effect here, since Ray serves HTTP" for key in changed]
    return replace(settings, without_effect=(*settings.without_effect, *lost))


def bound(replica: type[Any], settings: Settings, arguments: Mapping[str, Any]) -> Any:
    """Returns the application for a class of replicas and their settings; see `app`."""
    from ray import serve

    microservice = settings.microservice
    scaling, cpus = _scaling(arguments)
    return (
        serve.deployment(serve.ingress()(replica))
        .options(
            name=DEPLOYMENT,
            autoscaling_config=scaling,
            # Further requests queue in Ray, which knows all replicas, and those that it is starting.
            max_ongoing_requests=microservice.max_running,
            max_queued_requests=max(microservice.max_waiting, 1),
            backpressure_config={"status_code": 429, "retry_after_s": Overloaded("").retry_after},
            max_constructor_retry_count=1,
            graceful_shutdown_timeout_s=microservice.drain_seconds,
            ray_actor_options={"num_cpus": cpus, "runtime_env": {"env_vars": NODES_PATH}},
        )
        .bind(settings)
    )


def _scaling(arguments: Mapping[str, Any]) -> tuple[Any, float]:
    """Returns Ray Serve's `autoscaling_config`, and the logical CPUs of a replica.

    Raises:
        SettingsError: An argument is unknown, or its value is invalid.
    """
    from ray.serve.config import AutoscalingConfig

    fields = dict(arguments)
    cpus = fields.pop("num_cpus", 1)
    known = [*AutoscalingConfig.model_fields, "num_cpus"]
    if unknown := [name for name in fields if name not in known]:
        raise SettingsError(f"argument {unknown[0]}: unknown; known: {', '.join(known)}")
    try:
        return AutoscalingConfig(**{**SCALING, **fields}), float(cpus)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        wrong = "".join(f" {name} = {fields.get(name)}" for name in map(str, first["loc"][:1] or fields))
        raise SettingsError(f"argument{wrong}: {first['msg'].removeprefix('Value error, ')}") from None
    except ValueError:
        raise SettingsError(f"argument num_cpus = {cpus}: not a number") from None


def _unservable(error: SettingsError) -> Exception:
    """Returns the error as an exception that Ray shows in one line, without a traceback.

    Its command line needs a click.ClickException for that, its status a RayServeException.
    """
    import click
    from ray.serve.exceptions import RayServeException

    class Unservable(RayServeException, click.ClickException):  # type: ignore[misc]  # Ray has no types.
        exit_code = WRONG_SETTINGS

    return Unservable("; ".join(error.problems))


def serve_until_signal(
    build: Callable[[], Any], name: str, models: str, host: str, port: int, drain_seconds: float
) -> None:
    """Serve an application until SIGTERM or Ctrl-C, on a new Ray instance or on the cluster at RAY_ADDRESS.

    Args:
        build: Returns the application.
        name: The service's name, for the message that it listens.
        models: The models' names, for the same message.
        host: The address to listen on.
        port: The port to listen on.
        drain_seconds: The deadline for running requests at shutdown, in seconds.

    Raises:
        LLMError: The application cannot be served.
    """
    if find_spec("ray") is None:
        wanted = ROOT / "impl" / "model_server" / "ray" / "requirements.txt"
        raise SettingsError(f"Ray is not installed here; mend it with: {sys.executable} -m pip install -r {wanted}")
    _check_port(host, port)
    stop = threading.Event()
    _set_on_signals(stop)
    _set_up_ray()
    application = build()
    import ray
    from ray import serve

    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        _start_ray(folder)
        try:
            serve.start(http_options={"host": host, "port": port})
            serve.run(application, name=APPLICATION, route_prefix="/")
            _set_on_signals(stop)  # Ray has replaced our signal handlers.
            print(f"{name}: listening on {host}:{port}, answering with {models}", flush=True)
            stop.wait()
        except RuntimeError as error:
            raise LLMError(f"{models} cannot be served: {_reason(error)}") from None
        finally:
            with suppress(Exception):  # Ray may have ended already.
                _delete(drain_seconds)
                if not os.environ.get("RAY_ADDRESS"):  # A cluster may serve other applications.
                    serve.shutdown()
            ray.shutdown()


def _set_on_signals(stop: threading.Event) -> None:
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())


def _delete(drain_seconds: float) -> None:
    """Delete the application gracefully; `serve.shutdown` alone would cut off running requests."""
    from ray import serve

    until = time.monotonic() + drain_seconds
    while APPLICATION in serve.status().applications and time.monotonic() <= until:
        with suppress(TimeoutError):  # Each call waits for one minute.
            serve.delete(APPLICATION)


def _reason(error: RuntimeError) -> str:
    """Returns why the application failed: the last line of the deployment's traceback, or else of Ray's error."""
    from ray import serve

    failed = serve.status().applications.get(APPLICATION)
    said = [str(one.message) for one in failed.deployments.values()] if failed else []
    lines: list[str] = [line.strip() for text in [str(error), *said] for line in text.splitlines() if line.strip()]
    return lines[-1]


def _set_up_ray() -> None:
    """Set Ray's environment variables. Ray reads them when it is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not os.environ.get("RAY_ADDRESS") and "RAY_AUTH_MODE" not in os.environ:
        # Ray's ports listen on all addresses, and allow a client to run code. By default, Ray stores its token in the
        # home folder and reuses it.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _start_ray(folder: str) -> None:
    """Start a Ray instance on this machine, or connect to the cluster at RAY_ADDRESS."""
    import ray

    if os.environ.get("RAY_ADDRESS"):
        ray.init()
        return
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=True,
        _temp_dir=folder,
    )


def _check_port(host: str, port: int) -> None:
    """Check that the port is free; Ray would notice it only after the models are loaded.

    Raises:
        LLMError: The port cannot be bound.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LLMError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def main(words: list[str]) -> int:
    """Run the application with arguments such as `min_replicas=2`; returns the exit code."""
    try:
        arguments = dict(_argument(word) for word in words)
        settings = read_own_settings()
        service = settings.microservice
        models = ", ".join(f"{name} ({served.model.model_server})" for name, served in settings.models.items())
        serve_until_signal(
            lambda: bound(Replica, settings, arguments),
            service.name,
            models,
            service.host,
            service.port,
            service.drain_seconds,
        )
    except LLMError as error:
        print(f"ray_app: {for_operator(error)}", file=sys.stderr)
        return WRONG_SETTINGS if isinstance(error, SettingsError) else FAILED
    return 0


def _argument(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise SettingsError(f"argument {word}: an argument is a name, = and a value, such as min_replicas=2")
    return name, value


if __name__ == "__main__":
    from impl.microservice.ray_app import main as imported_main  # Replicas can import this module under this name.

    sys.exit(imported_main(sys.argv[1:]))
