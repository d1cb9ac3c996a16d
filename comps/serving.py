"""The process that serves: what `opea-llm serve` runs, and what it prints."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path
from socket import socket

import uvicorn

from comps.app import direct, example, make_app
from comps.core.errors import LLMError, for_operator
from comps.core.redaction import shown_urls
from comps.core.sockets import notice_silence
from comps.exit_codes import CUT_OFF, ended_at_once
from comps.listening import is_reachable, listening_sockets, raise_file_limit
from comps.memory import collect_seldom
from comps.messages import message
from comps.server import Server, ServerProtocol
from comps.settings import Model, Settings
from comps.trace_exporters import problem as traces_missing
from comps.workers import END_AT_ONCE, Worker


class ServiceProcess(Server):
    """The uvicorn server. It prints that it loads, and whether the models answer, and exits if none can be loaded."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._failed: LLMError | None = None
        self._worker: Worker | None = None
        self._signals: list[int] = []
        microservice = settings.microservice
        app = make_app(
            settings,
            on_loaded=self._on_loaded,
            on_state=lambda silent: self._say(state(settings, silent)),
            shut_down=self._shut_down,
        )
        self._routes = direct(app)
        self._service = app.state.service
        config = uvicorn.Config(
            self._routes,
            host=microservice.host,
            port=microservice.port,
            loop="uvloop",
            http=ServerProtocol,
            ws="none",
            proxy_headers=bool(microservice.trusted_proxies),
            forwarded_allow_ips=list(microservice.trusted_proxies),
            ssl_context_factory=(lambda *_: app.state.tls.context) if app.state.tls else None,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=microservice.drain_seconds,
        )
        super().__init__(config)

    def be(self, worker: Worker, folder: Path) -> None:
        """Be one of several workers.

        Args:
            worker: Which one.
            folder: Where the workers write their metrics.
        """
        self._worker = worker
        self._service.telemetry.share(folder, worker.number)
        self.config.callback_notify, self.config.timeout_notify = self._publish, 0
        worker.handle_signals(self.handle_exit)

    def run_until_end(self, sockets: list[socket] | None) -> int:
        """Run the service; returns the exit code.

        Raises:
            LLMError: No model could be loaded, or there is nothing to listen on.
        """
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # `nohup` has it ignored, and a worker ignores it.
            signal.signal(signal.SIGHUP, self.handle_exit)
        self.run(sockets)
        if self._failed:
            raise self._failed
        if self.force_exit:
            return ended_at_once(self._signals[-1])
        return CUT_OFF if self.cut_off else 0

    async def startup(self, sockets: list[socket] | None = None) -> None:
        try:
            sockets = sockets or listening_sockets(self._settings)
        except LLMError as error:
            self._failed = error
            self.end()
            return
        for listening in sockets:
            notice_silence(listening, self._settings.microservice.stalled_client_seconds)
        if self._worker:
            asyncio.get_running_loop().add_reader(self._worker.lifeline, self._end_without_parent)
        self._say(beginning(self._settings, [*self._make_room(), *wrong(self._settings, is_reachable(sockets))]))
        await super().startup(sockets)

    def _make_room(self) -> list[str]:
        """Let so many files be open that there is one for each connection, or serve fewer connections.

        Returns what is wrong then.
        """
        connections, warning = raise_file_limit(self._settings)
        self._routes.limits = replace(self._routes.limits, max_connections=connections)
        return [warning] if warning else []

    async def pre_stop(self) -> None:
        self._say(f"not ready any more; it still accepts requests for {self.pre_stop_seconds:g} s", named=True)
        await super().pre_stop()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        seconds = self._settings.microservice.drain_seconds
        if self.server_state.tasks:
            self._say(f"ending when all running answers have ended, at the latest in {seconds} s", named=True)
        await super().shutdown(sockets)
        if self.cut_off:
            self.tell(f"{self.cut_off} answers were cut off")
        self._service.telemetry.publish()

    def end(self) -> None:
        self._service.withdraw()
        super().end()

    def handle_exit(self, sig: int, frame: object) -> None:
        """Handle a signal: end after the running requests, at a second one at once, at a third one without any cleanup.

        A worker is told what to do by its parent alone: a signal may be sent to all processes.
        """
        if self._worker and sig in (signal.SIGTERM, signal.SIGINT):
            return
        self._signals.append(sig)
        if len(self._signals) == 1 and sig != END_AT_ONCE:
            self.end()
        elif self.force_exit:
            os._exit(ended_at_once(sig))
        else:
            self.end_at_once()

    def _shut_down(self) -> None:
        if self._worker:
            self._worker.end_all()
        else:
            self.end()

    def _end_without_parent(self) -> None:
        assert self._worker
        asyncio.get_running_loop().remove_reader(self._worker.lifeline)
        self.end()

    async def _publish(self) -> None:
        self._service.telemetry.publish()

    def _on_loaded(self, failed: LLMError | None) -> None:
        self._failed = failed
        collect_seldom()
        if failed:
            self.end()
        else:
            self.pre_stop_seconds = self._settings.microservice.pre_stop_seconds

    def tell(self, text: str) -> None:
        """Say something of this service to the operator."""
        message(f"{self._settings.microservice.name}: {text}")

    def _say(self, text: str, *, named: bool = False) -> None:
        """Say what is the same for all workers, once."""
        if self._worker is None or self._worker.is_first:
            message(f"{self._settings.microservice.name}: {text}" if named else text)


def beginning(settings: Settings, problems: Sequence[str]) -> str:
    """Returns what the service says when it begins, in five lines: what is served, by whom, where, with which limits,
    and what to know."""
    service = settings.microservice
    pages = {"/ui": service.serve_ui, "/docs": service.serve_docs, "/metrics": service.serve_metrics}
    listed = ", ".join(page for page, is_served in pages.items() if is_served) or "none"
    who = "callers need a key" if service.needs_key else "no key needed"
    several = f"; {service.workers} processes, each with these limits" if service.workers > 1 else ""
    wait = f" for {service.max_wait_seconds:g} s" if service.max_wait_seconds else ""
    return (
        f"{service.name}: starting with {_model_names(settings)} …; requests get status 503 until it is ready\n"
        f"  by: {'; '.join(_served_by(name, one.model) for name, one in settings.models.items())}\n"
        f"  at: {_address(settings)} (listening on {service.host}:{service.port}), {who}; pages: {listed}; dialects: "
        f"{', '.join(settings.dialects.enabled)}\n"
        f"  limits: {service.max_running} requests of a model at once, {service.max_waiting} more wait{wait}; "
        f"{service.max_body_mb} MB a body; {service.max_connections} connections{several}\n"
        f"  warnings: {'; '.join(problems) or 'none'}"
    )


def wrong(settings: Settings, is_reachable: bool) -> Iterator[str]:
    """Yields what an operator should know, in a sentence each.

    Args:
        settings: The settings.
        is_reachable: Whether others than this machine may connect.
    """
    service = settings.microservice
    if is_reachable and not (service.needs_key or service.tls_client_ca):
        yield (
            f"all who reach {service.host}:{service.port} may ask, since no API key is set; USVC_API_KEYS_FILE names a "
            "file of keys"
        )
    if why := traces_missing():
        yield why
    if settings.logging.log_prompts:
        yield "the log gets every prompt (log_prompts = true)"
    if settings.logging.record:
        yield f"{settings.logging.record} gets a file of each request (record)"
    ways = {way for one in settings.models.values() for way in (one.model.framework, one.model.model_server)}
    if "langchain" in ways and sends_to_langsmith():
        yield "LangSmith gets every question and answer (LANGSMITH_TRACING)"


def sends_to_langsmith() -> bool:
    """Returns whether LangChain is told to trace: https://docs.langchain.com/langsmith/observability-quickstart"""
    names = ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING")
    return any(os.environ.get(name, "").lower() == "true" for name in names)


def _served_by(name: str, model: Model) -> str:
    """Returns what runs a model, and where, without credentials."""
    urls = shown_urls(model.model_server_endpoint)
    where = " and ".join(urls) or "in this process"
    return f"{name} by {model.model_server} {'at ' if urls else ''}{where}, through {model.framework}"


def _address(settings: Settings) -> str:
    """Returns the URL to ask."""
    service = settings.microservice
    host = "localhost" if service.host in ("0.0.0.0", "::") else service.host
    scheme = "https" if service.tls_certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{service.port}"


def state(settings: Settings, silent: Mapping[str, LLMError]) -> str:
    """Returns what the service says of its models: that they answer, or which of them do not, and how to try it."""
    service = settings.microservice
    address = _address(settings)
    key = ' -H "Authorization: Bearer $KEY"' if service.needs_key else ""
    read_on = f"  Read on: {address}/docs\n" if service.serve_docs else ""
    where = f"{address} (listening on {service.host}:{service.port})"
    answering = [name for name in settings.models if name not in silent]
    away = "; ".join(
        f"{model_with_server(settings, name)} does not answer: {for_operator(error)}" for name, error in silent.items()
    )
    if not answering:
        return f"{service.name}: started at {where}, but not ready: {away}; requests fail until it does"
    path, body = example(settings)
    return (
        f"{service.name}: ready at {where}, answering with {_model_names(settings, answering)}"
        f"{f'; {away}' if away else ''}\n\n"
        f"  Try it:  curl {address}{path}{key} -H 'Content-Type: application/json' -d '{dumps(body)}'\n"
        f"{read_on}"
    )


def _model_names(settings: Settings, names: Iterable[str] = ()) -> str:
    return ", ".join(model_with_server(settings, name) for name in names or settings.models)


def model_with_server(settings: Settings, name: str) -> str:
    model = settings.models[name].model
    return f"{name} ({model.model_server}, {model.framework})"
