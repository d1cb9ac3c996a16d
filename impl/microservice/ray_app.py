"""The microservice itself on Ray Serve: replicas that come and go with the load, on one machine or on many.

    serve run impl.microservice.ray_app:app                  # in Ray's usual way, on port 8000
    serve deploy docker/ray/serve.yaml                       # on a cluster that runs
    python impl/microservice/ray_app.py min_replicas=2       # a Ray of its own, which ends as the service does

The settings are the service's own, from the environment and config.ini. They are read once, where the application is
built, and every replica gets just these, whatever the environment of its node says. Importing this starts nothing.
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

# Found only with the line above, in a checkout that is not installed.
from comps.app import make_app, read_settings  # noqa: E402
from comps.core.errors import LLMError, Overloaded, SettingsError  # noqa: E402
from comps.settings import Settings  # noqa: E402
from comps.telemetry import log, start_log  # noqa: E402

WRONG_SETTINGS, FAILED = 2, 1
"""Exit codes."""
DEPLOYMENT = "microservice"
"""What the replicas are called, in Ray's status and in the file for `serve deploy`."""
APPLICATION = "llm"
"""The name that Ray knows the application by."""
SCALING = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 32, "upscale_delay_s": 10}
"""Ray Serve's `autoscaling_config`, as far as it is not left to Ray."""
OBJECT_STORE_BYTES = 256 * 1024 * 1024
"""Ray would take a third of the memory for data that tasks share; here they share none."""
NODES_PATH = {"PYTHONPATH": f"{ROOT}:${{PYTHONPATH}}"}
"""Where a replica finds this module, before what its node has; Ray puts that in."""


class Replica:
    """The service, once. Ray calls it ready when its models are loaded, and sends it nothing before.

    Args:
        settings: All that can be set.
    """

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray awaits it.
        start_log(settings.logging.log_level, settings.logging.log_path)
        for sentence in settings.without_effect:
            log.warning("%s", sentence)
        loaded: asyncio.Future[LLMError | None] = asyncio.get_running_loop().create_future()
        self._app = await asyncio.to_thread(make_app, settings, on_loaded=loaded.set_result)
        self._app.add_middleware(ToldOfLeaving)
        opened = AsyncExitStack()
        await opened.enter_async_context(self._app.router.lifespan_context(self._app))
        if failed := await loaded:
            await opened.aclose()
            raise failed

        @asynccontextmanager
        async def until_the_end(_: FastAPI) -> AsyncIterator[None]:
            async with opened:
                yield

        self._app.router.lifespan_context = until_the_end

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray once the replica is made; its answers are what this application says."""
        return self._app

    async def check_health(self) -> None:
        """Called by Ray from time to time, in the loop that answers: a replica in which that stands still is replaced.

        A model server that does not answer is no reason: with another replica it would not answer either.
        """


class ToldOfLeaving:
    """Tells the service that a client has left in the way of HTTP servers: by a message.

    Ray cancels the request instead, which to the service means that it is to end itself.
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
    """The application, for `serve run` and `serve deploy`.

    Args:
        arguments: Any of Ray Serve's `autoscaling_config`, and `num_cpus`, the cores that a replica takes from Ray's
            count of them. The file for `serve deploy` has places of its own for them, which go before these.

    Raises:
        Unservable: A setting or an argument is wrong; it names that.
    """
    try:
        return bound(Replica, read_settings(None), arguments)
    except SettingsError as error:
        raise _unservable(error) from None


def bound(replica: type[Any], settings: Settings, arguments: Mapping[str, Any]) -> Any:
    """The application of such replicas, each with these settings; see `app`."""
    from ray import serve

    microservice = settings.microservice
    scaling, cpus = _scaling(arguments)
    return (
        serve.deployment(serve.ingress()(replica))
        .options(
            name=DEPLOYMENT,
            autoscaling_config=scaling,
            # Whoever comes next waits in Ray, which knows of all replicas, and of those to come.
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
    """Ray Serve's `autoscaling_config`, and the cores of a replica.

    Raises:
        SettingsError: An argument is not known, or its value is none.
    """
    from ray.serve.config import AutoscalingConfig

    told = dict(arguments)
    cpus = told.pop("num_cpus", 1)
    known = [*AutoscalingConfig.model_fields, "num_cpus"]
    if unknown := [name for name in told if name not in known]:
        raise SettingsError(f"argument {unknown[0]}: unknown; known: {', '.join(known)}")
    try:
        return AutoscalingConfig(**{**SCALING, **told}), float(cpus)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        wrong = "".join(f" {name} = {told.get(name)}" for name in map(str, first["loc"][:1] or told))
        raise SettingsError(f"argument{wrong}: {first['msg'].removeprefix('Value error, ')}") from None
    except ValueError:
        raise SettingsError(f"argument num_cpus = {cpus}: not a number") from None


def _unservable(error: SettingsError) -> Exception:
    """The error as Ray tells it in one line: its command as a click.ClickException, its status as an exception of its
    own; of any other it keeps the traceback as well."""
    import click
    from ray.serve.exceptions import RayServeException

    class Unservable(RayServeException, click.ClickException):  # type: ignore[misc]  # Ray has no types.
        exit_code = WRONG_SETTINGS

    return Unservable(str(error))


def serve_until_told(
    build: Callable[[], Any], name: str, models: str, host: str, port: int, drain_seconds: float
) -> None:
    """Serve an application on a Ray of its own, or on the one that RAY_ADDRESS names, until TERM or Ctrl-C.

    Args:
        build: Makes the application.
        name: How it calls itself when it says that it answers.
        models: What it answers with.
        host: The address that it listens on.
        port: Its port.
        drain_seconds: How long answers under way may take to end.

    Raises:
        LLMError: It cannot be served; says why.
    """
    if find_spec("ray") is None:
        wanted = ROOT / "impl" / "model_server" / "ray" / "requirements.txt"
        raise SettingsError(f"Ray is not installed here; mend it with: {sys.executable} -m pip install -r {wanted}")
    _check_port(host, port)
    told = threading.Event()
    _listen(told)
    _set_up_ray()
    application = build()
    import ray
    from ray import serve

    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        _start_ray(folder)
        try:
            serve.start(http_options={"host": host, "port": port})
            serve.run(application, name=APPLICATION, route_prefix="/")
            _listen(told)  # Ray has put its own in the place of ours.
            print(f"{name}: listening on {host}:{port}, answering with {models}", flush=True)
            told.wait()
        except RuntimeError as error:
            raise LLMError(f"{models} cannot be served: {_reason(error)}") from None
        finally:
            with suppress(Exception):  # Ray may be gone already.
                _delete(drain_seconds)
                if not os.environ.get("RAY_ADDRESS"):  # Others may be served in a cluster that we joined.
                    serve.shutdown()
            ray.shutdown()


def _listen(told: threading.Event) -> None:
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: told.set())


def _delete(drain_seconds: float) -> None:
    """Take the application away, which lets its answers end; `serve.shutdown` alone would cut them off."""
    from ray import serve

    until = time.monotonic() + drain_seconds
    while APPLICATION in serve.status().applications and time.monotonic() <= until:
        with suppress(TimeoutError):  # It waits for a minute.
            serve.delete(APPLICATION)


def _reason(error: RuntimeError) -> str:
    """Why there is no application: the last line of the traceback that Ray keeps of its deployment, or of Ray's own."""
    from ray import serve

    failed = serve.status().applications.get(APPLICATION)
    said = [str(one.message) for one in failed.deployments.values()] if failed else []
    lines: list[str] = [line.strip() for text in [str(error), *said] for line in text.splitlines() if line.strip()]
    return lines[-1]


def _set_up_ray() -> None:
    """What Ray reads from the environment, before it is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not os.environ.get("RAY_ADDRESS") and "RAY_AUTH_MODE" not in os.environ:
        # Ray's ports listen on all addresses, and whoever may speak to them may run code here. Ray would keep its
        # token in the home folder, for every Ray to come.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _start_ray(folder: str) -> None:
    """A Ray of our own on this machine, or the one that RAY_ADDRESS names."""
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
    """Raise now what Ray would only find out when all else is up."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LLMError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def main(words: list[str]) -> int:
    """Run the application with arguments such as `min_replicas=2`; the exit code says how that went."""
    try:
        arguments = dict(_argument(word) for word in words)
        settings = read_settings(None)
        service = settings.microservice
        models = ", ".join(f"{name} ({served.model.model_server})" for name, served in settings.models.items())
        serve_until_told(
            lambda: bound(Replica, settings, arguments),
            service.name,
            models,
            service.host,
            service.port,
            service.drain_seconds,
        )
    except LLMError as error:
        print(f"ray_app: {error}", file=sys.stderr)
        return WRONG_SETTINGS if isinstance(error, SettingsError) else FAILED
    return 0


def _argument(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise SettingsError(f"argument {word}: an argument is a name, = and a value, such as min_replicas=2")
    return name, value


if __name__ == "__main__":
    from impl.microservice.ray_app import main as imported_main  # Under this name, replicas can import what is here.

    sys.exit(imported_main(sys.argv[1:]))
