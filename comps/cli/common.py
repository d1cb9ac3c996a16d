"""What the commands have in common: their arguments, errors, and how they run what is asynchronous."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from comps.cli.documents import KNOWN
from comps.cli.progress import progress
from comps.core.errors import InvalidRequest, LLMError, SettingsError, for_operator
from comps.exit_codes import FAILED, INTERRUPTED, WRONG_SETTINGS
from comps.messages import message
from comps.model_servers import FRAMEWORKS, MODEL_SERVERS

if TYPE_CHECKING:
    from comps.core.generator import TextGenerator
    from comps.core.ports import ModelServer
    from comps.settings import Settings

P = ParamSpec("P")

API_KEY = "OPEA_LLM_API_KEY"
"""The environment variable of the key for `--url`."""

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="The settings file, or llm-api's config.yaml; config.ini of this folder if left out.",
    ),
]
Question = Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")]
Documents = Annotated[
    list[Path] | None,
    typer.Option("--document", "-d", help=f"A file to answer from ({KNOWN}), or a folder of them; may be repeated."),
]
MaxTokens = Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")]
Temperature = Annotated[
    float | None, typer.Option(min=0, help="0, if left out, always takes the likeliest token.", show_default=False)
]
System = Annotated[str, typer.Option(help="What the model is told before the question (a system message).")]
OneModel = Annotated[
    str | None, typer.Option("--model", "-m", help="Which of the models to ask; the first one if left out.")
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
URL = Annotated[str, typer.Option(help="Ask the service that runs there, instead of a model in this process.")]
APIKey = Annotated[
    str, typer.Option(envvar=API_KEY, show_default=False, help="The key for --url; better in the environment.")
]
Endpoint = Annotated[str | None, typer.Option(help="The model server's URL.")]
Kind = Annotated[
    str | None,
    typer.Option(
        "--model-server", help="What runs the model: openvino, vllm, tgi …", autocompletion=lambda: list(MODEL_SERVERS)
    ),
]
Framework = Annotated[
    str | None,
    typer.Option(help="langchain or native: how the model server is reached.", autocompletion=lambda: list(FRAMEWORKS)),
]


def expected_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Decorator of a command: it prints an expected error in one line, without a traceback, and exits with its code."""

    @wraps(command)
    def run_command(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            command(*arguments, **options)
        except SettingsError as error:
            for problem in error.problems:
                message(f"opea-llm: {problem}")
            raise typer.Exit(WRONG_SETTINGS) from None
        except LLMError as error:
            message(f"opea-llm: {for_operator(error)}")
            raise typer.Exit(WRONG_SETTINGS if isinstance(error, InvalidRequest) else FAILED) from None
        except BrokenPipeError:  # The reader has closed the pipe; at exit, Python would report that once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            print(file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            message(f"opea-llm: {error}")
            raise typer.Exit(FAILED) from None

    return run_command


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine. Ctrl-C cancels it, so that it closes what is open."""
    let_interrupt()
    asyncio.run(work)


def let_interrupt() -> bool:
    """Let Ctrl-C raise KeyboardInterrupt from here on; returns whether it can, which is so in the main thread."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return is_main


def settings_of(config: Path | None, flags: Mapping[str, Mapping[str, Any]] | None = None) -> Settings:
    """Returns the settings, and tells which of them have no effect.

    Args:
        config: The settings file.
        flags: The values of flags by heading and key of their settings; None: the flag was not given.
    """
    from comps.app import read_settings
    from comps.settings import ConfigValue

    given = {
        heading: {key: ConfigValue(str(value), flag_of(key)) for key, value in values.items() if value is not None}
        for heading, values in (flags or {}).items()
    }
    settings = read_settings(config, given)
    for sentence in settings.without_effect:
        message(sentence)
    return settings


def flags_of_model(
    model: str | None, endpoint: str | None, model_server: str | None, framework: str | None
) -> dict[str, str | None]:
    """Returns the flags about the model, by the keys of their settings."""
    return {
        "model_name": model,
        "framework": framework,
        "model_server": model_server,
        "model_server_endpoint": endpoint,
    }


_FLAGS = {"model_name": "--model", "model_server_endpoint": "--endpoint"}


def flag_of(key: str) -> str:
    """Returns the flag of a setting."""
    return _FLAGS.get(key) or "--" + key.replace("_", "-")


async def load(settings: Settings, model: str, server: ModelServer | TextGenerator) -> None:
    """Load a model, if it has to be, and say so.

    Args:
        settings: The settings.
        model: Its name.
        server: What loads it.
    """
    from comps.core.generator import TextGenerator
    from comps.core.ports import Loads
    from comps.serving import model_with_server

    loads = server.server if isinstance(server, TextGenerator) else server
    if isinstance(loads, Loads):
        message(f"Loading {model_with_server(settings, model)} …")
        with progress(f"Loading {model}"):
            await (server if isinstance(server, TextGenerator) else loads).load()
