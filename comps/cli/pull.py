"""`opea-llm pull`: fetches a model for the engines that run in the service."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from comps.cli.common import expected_errors
from comps.core.errors import SettingsError
from comps.messages import message

ENGINES = ("openvino", "llama_cpp", "transformers")
"""The model servers that run a model here."""


@expected_errors
def pull(
    name: Annotated[
        str,
        typer.Argument(help="A Hugging Face repository (owner/name, or owner/name/file), or SmolLM2-135M-Instruct."),
    ],
    model_server: Annotated[str, typer.Option(help=f"The engine that will run it: {', '.join(ENGINES)}.")] = ENGINES[0],
) -> None:
    """Fetch a model for an engine that runs here.

    `serve` and `ask` then find it on this machine. An interrupted download goes on where it was. The path goes to
    standard output. A gated repository needs HF_TOKEN; HF_ENDPOINT names a mirror, HF_HOME the cache.

    \b
    Examples:
      opea-llm pull bartowski/SmolLM2-360M-Instruct-GGUF
      opea-llm pull Qwen/Qwen3-0.6B --model-server transformers
    """
    from comps.model_servers.embedded.model_files import fetch

    if model_server not in ENGINES:
        raise SettingsError(f"--model-server {model_server}: runs no model here; known: {', '.join(ENGINES)}")
    if not sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    print(fetch(name, model_server))
    message(f"Serve it: opea-llm serve --model-server {model_server} --model {name}")
