"""`opea-llm serve`: the service, in one process or several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comps.cli.common import ConfigFile, Endpoint, Framework, Kind, expected_errors, flags_of_model, settings_of

if TYPE_CHECKING:
    from comps.serving import ServiceProcess
    from comps.settings import Settings
    from comps.workers import Worker

_LONGEST_WAIT = 1.0
"""Seconds that connections wait for a worker that is started again. If it takes longer, they are the other workers'."""


@expected_errors
def serve(
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="The address it listens on.")] = None,
    port: Annotated[int | None, typer.Option("--port", "-p", help="The port it listens on.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model's name.")] = None,
    endpoint: Endpoint = None,
    model_server: Kind = None,
    framework: Framework = None,
    log_level: Annotated[str | None, typer.Option(help="DEBUG, INFO, WARNING, ERROR or CRITICAL.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", "-w", help="How many processes answer.")] = None,
) -> None:
    """Run the service.

    It runs until it is told to end (Ctrl-C, TERM, or HUP). Running answers are finished first.

    Each flag goes before the setting of its name, in the environment or in the settings file; `opea-llm check` shows
    all settings.

    At a second signal it ends at once. The exit code is 0 if all running answers were finished, 4 if some were cut off
    at drain_seconds, 143 or 130 after a second signal, 2 for wrong settings, and 1 for any other failure.

    \b
    Examples:
      opea-llm serve --port 8080
      opea-llm serve --model-server vllm --endpoint http://localhost:8000 --model Qwen/Qwen3-8B
      opea-llm serve --model-server tgi --endpoint http://tgi:80 --workers 4
    """
    from comps.logs import start_log
    from comps.serving import ServiceProcess

    flags: Mapping[str, Mapping[str, Any]] = {
        "Logging": {"log_level": log_level},
        "OPEA_Microservice": {"host": host, "port": port, "workers": workers},
        "Model": flags_of_model(model, endpoint, model_server, framework),
    }
    settings = settings_of(config, flags)
    start_log(settings.logging.log_level, settings.logging.log_path, settings.logging.log_format)
    service = ServiceProcess(settings)
    code = _run_workers(service, settings) if settings.microservice.workers > 1 else service.run_until_end(None)
    if code:
        raise typer.Exit(code)


def _run_workers(service: ServiceProcess, settings: Settings) -> int:
    """Run the service in several processes; returns the exit code."""
    from comps.listening import listening_sockets, sockets_of_workers
    from comps.telemetry import drop_gauges
    from comps.workers import Workers

    sockets = sockets_of_workers(settings)

    @expected_errors
    def answer(worker: Worker) -> None:
        own = sockets.pop(worker.number)
        close()
        service.be(worker, Path(folder))
        raise typer.Exit(service.run_until_end(own or listening_sockets(settings, shared=True)))

    def work(worker: Worker) -> int:
        try:
            answer(worker)
        except typer.Exit as ended:
            return ended.exit_code
        raise AssertionError("a worker ends with a code")

    def on_end(number: int, pause: float) -> None:
        drop_gauges(Path(folder), number)
        if pause > _LONGEST_WAIT:
            close(number)

    def close(*numbers: int) -> None:
        for number in numbers or range(len(sockets)):
            while sockets[number]:
                sockets[number].pop().close()

    microservice = settings.microservice
    seconds = microservice.pre_stop_seconds + microservice.drain_seconds
    with TemporaryDirectory(prefix="opea-llm-") as folder:
        return Workers(microservice.workers, work, seconds, service.tell, on_end, close).run()
