"""Command line opea-llm: serve, ask, prompt, check. Each error is printed in one line, and gives an exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from comps.app import open_models, read_settings, replicas_of
from comps.core.errors import LLMError, SettingsError, for_operator
from comps.core.generator import TextGenerator
from comps.core.ports import Loads, ModelServer
from comps.core.types import Document, Finished, GenerationRequest, Message, Sampling, TextDelta
from comps.document_files import KINDS, UnreadableDocument, text_of_file
from comps.exit_codes import FAILED, INTERRUPTED, WRONG_SETTINGS
from comps.listening import listening_sockets, sockets_of_workers
from comps.logs import start_log
from comps.preview import ModelPreview, show
from comps.serving import ServiceProcess, message, model_with_server
from comps.settings import Settings
from comps.telemetry import drop_gauges
from comps.workers import Worker, Workers

_LONGEST_WAIT = 1.0
"""Seconds that connections wait for a worker that is started again. If it takes longer, they are the other workers'."""

cli = typer.Typer(
    name="opea-llm",
    help="Answers questions from documents, as a service or in the terminal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="The settings file, or llm-api's config.yaml; config.ini of this folder if left out."
    ),
]

Question = Annotated[str, typer.Argument(help="What to ask.")]
Documents = Annotated[
    list[Path] | None,
    typer.Option(
        "--document", "-d", help=f"A file to answer from ({', '.join(KINDS)}), or a folder of them; may be repeated."
    ),
]
MaxTokens = Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")]


@cli.command()
def serve(
    config: ConfigFile = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, help="How many processes answer, instead of the setting.")
    ] = None,
) -> None:
    """Run the service until it is told to end (Ctrl-C, or TERM): running answers are finished first.

    At a second signal it ends at once. The exit code is 0 if all running answers were finished, 4 if some were cut off
    at drain_seconds, 143 or 130 after a second signal, 2 for wrong settings, and 1 for any other failure.
    """
    with _exit_on_error():
        settings = _settings(config)
        if workers:
            settings = replace(settings, microservice=settings.microservice.model_copy(update={"workers": workers}))
        start_log(settings.logging.log_level, settings.logging.log_path, settings.logging.log_format)
        service = ServiceProcess(settings)
        code = _run_workers(service, settings) if settings.microservice.workers > 1 else service.run_until_end(None)
    if code:
        raise typer.Exit(code)


def _run_workers(service: ServiceProcess, settings: Settings) -> int:
    """Run the service in several processes; returns the exit code."""
    sockets = sockets_of_workers(settings)

    def work(worker: Worker) -> int:
        try:
            with _exit_on_error():
                own = sockets.pop(worker.number)
                close()
                service.be(worker, Path(folder))
                return service.run_until_end(own or listening_sockets(settings, shared=True))
        except typer.Exit as failed:
            return failed.exit_code

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


@cli.command()
def ask(
    question: Question,
    document: Documents = None,
    max_tokens: MaxTokens = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.0,
    model: Annotated[
        str | None, typer.Option(help="Which of the models to ask; the one of [Model] if left out.")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Answer one question here in the terminal, from documents if there are any, without a service."""
    with _exit_on_error():
        request = _request(question, document, max_tokens, temperature)
        settings = _settings(config)
        start_log("WARNING", "")
        _run(_ask(settings, replace(request, model=model)))


def _request(question: str, document: list[Path] | None, max_tokens: int, temperature: float) -> GenerationRequest:
    if not question.strip():
        raise SettingsError("the question is empty")
    documents = [one for path in document or () for one in _documents_of(path)]
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
    found = tuple(documents) or None
    return GenerationRequest((Message("user", question),), found, sampling=sampling, ranked=False)


def _documents_of(path: Path) -> Iterator[Document]:
    """Yields a document, or those of a folder and its folders, by name; hidden ones are left out."""
    if not path.is_dir():
        yield Document(_text_of(path), path.name)
        return
    names = [file.relative_to(path) for file in path.rglob("*") if file.suffix.lower() in KINDS]
    names = sorted(name for name in names if not any(part.startswith(".") for part in name.parts))
    if not names:
        raise SettingsError(f"--document {path}: this folder has no file that ends in {', '.join(KINDS)}")
    for name in names:
        try:
            yield Document(_text_of(path / name), str(name))
        except SettingsError as error:
            message(f"[left out: {error}]")


def _text_of(path: Path) -> str:
    try:
        return text_of_file(path.name, path.read_bytes())
    except OSError as error:
        raise SettingsError(f"--document {path}: cannot be read: {error.strerror}") from None
    except UnreadableDocument as error:
        raise SettingsError(f"--document {path}: cannot be read: {error}") from None


async def _ask(settings: Settings, request: GenerationRequest) -> None:
    generator = open_models(settings).named(request.model)
    try:
        await _load(settings, generator)
        plan = await generator.plan(request)
        for use in plan.report.documents:
            if use.fate != "kept":
                title = (request.documents or ())[use.number - 1].title
                message(f"[document {use.number} ({title}) was {use.fate}: {use.reason}]")
        await generator.answer(plan, _PrintedAnswer(request.sampling.max_tokens))
    finally:
        await generator.server.aclose()


class _PrintedAnswer:
    """Answer that is printed as it is written; after it, the reason if it was cut short.

    Args:
        most: The maximum number of tokens of the answer.
    """

    full = False

    def __init__(self, most: int | None) -> None:
        self._most = most

    def text(self, text: str, choice: int = 0) -> None:
        print(text, end="", flush=True)

    def delta(self, delta: TextDelta) -> None:
        self.text(delta.text)

    def finished(self, end: Finished) -> None:
        print(flush=True)
        if end.reason != "stop":
            reached = end.usage and end.usage.completion_tokens == self._most
            message(f"[cut short: {end.reason}{'; --max-tokens allows more' if reached else ''}]")

    async def drain(self) -> None:
        """Returns at once."""


@cli.command()
def prompt(
    question: Question,
    document: Documents = None,
    max_tokens: MaxTokens = 512,
    model: Annotated[
        list[str] | None,
        typer.Option(help="For which of the models; given twice, the two are side by side; [Model] if left out."),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Show the prompt that `ask` would send, and which documents fit in it; no model answers."""
    with _exit_on_error():
        request = _request(question, document, max_tokens, 0.0)
        settings = _settings(config)
        start_log("WARNING", "")
        _run(_preview(settings, request, list(dict.fromkeys(model or [""]))))


async def _preview(settings: Settings, request: GenerationRequest, names: Sequence[str]) -> None:
    models = open_models(settings)
    shown = []
    for generator in [models.named(name) for name in names]:
        try:
            await _load(settings, generator)
            preview = await generator.preview(request)
        finally:
            await generator.server.aclose()
        shown.append(ModelPreview(model_with_server(settings, generator.model), request.documents or (), preview))
    show(shown)


async def _load(settings: Settings, generator: TextGenerator) -> None:
    if isinstance(generator.server, Loads):
        message(f"Loading {model_with_server(settings, generator.model)} …")
    await generator.load()


@cli.command()
def check(
    settings_only: Annotated[
        bool, typer.Option("--settings", help="Only the settings: no model is loaded, and no model server asked.")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Show every setting and where it comes from, and whether the model servers answer."""
    with _exit_on_error():
        settings = _settings(config)
        start_log("WARNING", "")
        width = max(len(f"[{one.section}] {one.key} = {one.value}") for one in settings.listing)
        for one in settings.listing:
            print(f"{f'[{one.section}] {one.key} = {one.value}':{width}}  ({one.source})")
        if settings_only:
            open_models(settings)  # Model servers check their own settings; nothing is connected yet.
        else:
            _run(_check(settings))


async def _check(settings: Settings) -> None:
    """Print whether the model server of each model, or each of its replicas, answers."""
    failures: list[LLMError] = []
    asked = [(generator, server) for generator in open_models(settings) for server in replicas_of(generator)]
    for generator, server in asked:
        kind = settings.models[generator.model].model.model_server
        head = f"model server of {generator.model}: {kind}" if len(asked) > 1 else f"model server: {kind}"
        try:
            print(f"{head} answers with {await _described(settings, generator.model, server)}")
        except LLMError as error:
            failures.append(error)
            if len(asked) > 1:
                print(f"{head} does not answer: {for_operator(error)}")
        finally:
            await server.aclose()
    if failures:
        raise LLMError(f"{len(failures)} of {len(asked)} do not answer; see above") if len(asked) > 1 else failures[0]


async def _described(settings: Settings, model: str, server: ModelServer) -> str:
    if isinstance(server, Loads):
        message(f"Loading {model_with_server(settings, model)} …")
        await server.load()
    info = await server.describe()
    window = f"{info.context_window} tokens" if info.context_window else "of unknown size"
    return f"{info.name}, context window {window}"


def _settings(config: Path | None) -> Settings:
    settings = read_settings(config)
    for sentence in settings.without_effect:
        message(sentence)
    return settings


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine. Ctrl-C cancels it, so that it closes what is open."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _exit_on_error() -> Iterator[None]:
    """Print an expected error in one line, without a traceback, and exit with its code."""
    try:
        yield
    except SettingsError as error:
        for problem in error.problems:
            message(f"opea-llm: {problem}")
        raise typer.Exit(WRONG_SETTINGS) from None
    except LLMError as error:
        message(f"opea-llm: {for_operator(error)}")
        raise typer.Exit(FAILED) from None
    except BrokenPipeError:  # The reader has closed the pipe; at exit, Python would report that once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(FAILED) from None
    except OSError as error:
        message(f"opea-llm: {error}")
        raise typer.Exit(FAILED) from None
