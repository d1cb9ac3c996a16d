"""`opea-llm prompt`: the prompt that a question would become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from comps.cli.common import ConfigFile, Documents, MaxTokens, Question, System, expected_errors, load, run, settings_of
from comps.cli.documents import request_of
from comps.core.types import GenerationRequest

if TYPE_CHECKING:
    from comps.settings import Settings


@expected_errors
def prompt(
    question: Question,
    document: Documents = None,
    max_tokens: MaxTokens = 512,
    system: System = "",
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="For which of the models; given twice, the two are side by side; else [Model]."
        ),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Show the prompt that `ask` would send.

    It shows which documents fit in it, and what is cut. No model answers.

    \b
    Examples:
      opea-llm prompt "How much memory does Gaudi 2 have?" --document docs/
      opea-llm prompt "Which one?" -d a.txt -d b.txt --model small --model large
    """
    from comps.logs import start_log

    request = request_of(question, document, max_tokens, system=system)
    settings = settings_of(config)
    start_log("WARNING", "")
    run(_preview(settings, request, list(dict.fromkeys(model or [""]))))


async def _preview(settings: Settings, request: GenerationRequest, names: Sequence[str]) -> None:
    from comps.opening import open_models
    from comps.preview import ModelPreview, show
    from comps.serving import model_with_server

    models = open_models(settings)
    shown = []
    for generator in [models.named(name) for name in names]:
        try:
            await load(settings, generator.model, generator)
            preview = await generator.preview(request)
        finally:
            await generator.server.aclose()
        shown.append(ModelPreview(model_with_server(settings, generator.model), request.documents or (), preview))
    show(shown)
