"""Command line opea-llm: serve, ask, prompt, check. Each error is printed in one line, and gives an exit code."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from json import dumps
from pathlib import Path
from socket import socket
from types import FrameType
from typing import Annotated, Any

import typer
import uvicorn

from comps.app import direct, example, make_app, open_models, read_settings, replicas_of
from comps.core.errors import LLMError, SettingsError, for_operator
from comps.core.generator import TextGenerator
from comps.core.ports import Loads, ModelServer
from comps.core.sockets import notice_silence
from comps.core.types import Document, Finished, GenerationRequest, Message, Sampling, TextDelta
from comps.document_files import KINDS, UnreadableDocument, text_of_file
from comps.listening import listening_sockets
from comps.preview import ModelPreview, show
from comps.server import Server, ServerProtocol
from comps.settings import Settings
from comps.telemetry import start_log

WRONG_SETTINGS, FAILED, INTERRUPTED = 2, 1, 130
"""Exit codes."""

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
def serve(config: ConfigFile = None) -> None:
    """Run the service until it is told to stop (Ctrl-C, or TERM; running answers are finished first)."""
    with _exit_on_error():
        settings = _settings(config)
        start_log(settings.logging.log_level, settings.logging.log_path)
        service = _Service(settings)
        service.run()
        if service.failed:
            raise service.failed


class _Service(Server):
    """The uvicorn server. It prints that it loads, and whether the models answer, and exits if none can be loaded."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.failed: LLMError | None = None
        microservice = settings.microservice
        app = make_app(
            settings,
            on_loaded=self._on_loaded,
            on_state=lambda silent: _message(_state(settings, silent)),
            shut_down=lambda: self.handle_exit(signal.SIGTERM, None),
        )
        config = uvicorn.Config(
            direct(app),
            host=microservice.host,
            port=microservice.port,
            loop="uvloop",
            http=ServerProtocol,
            ws="none",
            proxy_headers=False,  # Nothing here reads the client's address.
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=microservice.drain_seconds,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        try:
            sockets = sockets or listening_sockets(self._settings)
        except LLMError as error:
            self.failed = error
            self.end()
            return
        for listening in sockets:
            notice_silence(listening, self._settings.microservice.stalled_client_seconds)
        name, models = self._settings.microservice.name, _models(self._settings)
        _message(f"{name}: loading {models} …; requests get status 503 until it is ready")
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        name, seconds = self._settings.microservice.name, self._settings.microservice.drain_seconds
        if self.server_state.tasks:
            _message(f"{name}: ending when all running answers have ended, at the latest in {seconds} s")
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Exit after the running requests; on a second signal, if it is Ctrl-C, at once. The exit code is 0."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.end()

    def _on_loaded(self, failed: LLMError | None) -> None:
        self.failed = failed
        # What is there by now stays: to look through all of it each time would hold up every stream for 0.1 s.
        gc.collect()
        gc.freeze()
        if failed:
            self.end()


def _state(settings: Settings, silent: Mapping[str, LLMError]) -> str:
    """Returns what the service says of its models: that they answer, or which of them do not, and how to try it."""
    service = settings.microservice
    host = "localhost" if service.host in ("0.0.0.0", "::") else service.host
    address = f"http://{f'[{host}]' if ':' in host else host}:{service.port}"
    where = f"{address} (listening on {service.host}:{service.port})"
    answering = [name for name in settings.models if name not in silent]
    away = "; ".join(
        f"{_model(settings, name)} does not answer: {for_operator(error)}" for name, error in silent.items()
    )
    if not answering:
        return f"{service.name}: started at {where}, but not ready: {away}; requests fail until it does"
    path, body = example(settings)
    return (
        f"{service.name}: ready at {where}, answering with {_models(settings, answering)}"
        f"{f'; {away}' if away else ''}\n\n"
        f"  Try it:  curl {address}{path} -H 'Content-Type: application/json' -d '{dumps(body)}'\n"
        f"  Read on: {address}/docs\n"
    )


def _models(settings: Settings, names: Iterable[str] = ()) -> str:
    return ", ".join(_model(settings, name) for name in names or settings.models)


def _model(settings: Settings, name: str) -> str:
    model = settings.models[name].model
    return f"{name} ({model.model_server}, {model.framework})"


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
            _message(f"[left out: {error}]")


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
                _message(f"[document {use.number} ({title}) was {use.fate}: {use.reason}]")
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
            _message(f"[cut short: {end.reason}{'; --max-tokens allows more' if reached else ''}]")

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
        shown.append(ModelPreview(_model(settings, generator.model), request.documents or (), preview))
    show(shown)


async def _load(settings: Settings, generator: TextGenerator) -> None:
    if isinstance(generator.server, Loads):
        _message(f"Loading {_model(settings, generator.model)} …")
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
        _message(f"Loading {_model(settings, model)} …")
        await server.load()
    info = await server.describe()
    window = f"{info.context_window} tokens" if info.context_window else "of unknown size"
    return f"{info.name}, context window {window}"


def _settings(config: Path | None) -> Settings:
    settings = read_settings(config)
    for sentence in settings.without_effect:
        _message(sentence)
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
            _message(f"opea-llm: {problem}")
        raise typer.Exit(WRONG_SETTINGS) from None
    except LLMError as error:
        _message(f"opea-llm: {for_operator(error)}")
        raise typer.Exit(FAILED) from None
    except BrokenPipeError:  # The reader has closed the pipe; at exit, Python would report that once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(FAILED) from None
    except OSError as error:
        _message(f"opea-llm: {error}")
        raise typer.Exit(FAILED) from None


def _message(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
