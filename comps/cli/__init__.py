"""Command line opea-llm: one module per command, and here the registry of them.

The modules import what is heavy within their functions: `--help`, `--version` and completion answer at once.
"""

from __future__ import annotations

from typing import Annotated

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]

from comps.cli import ask, chat, check, completion, config, models, prompt, pull, replay, serve
from comps.exit_codes import MEANINGS

_EPILOG = "Exit codes:\n\n\b\n" + "\n".join(f"{code:>4}  {meaning}" for code, meaning in MEANINGS.items())
_EXAMPLES = """Answers questions from documents, as a service or in the terminal.

\b
  opea-llm ask "How much memory does Gaudi 2 have?" --document gaudi.txt
  opea-llm serve --model-server vllm --endpoint http://localhost:8000 --model Qwen/Qwen3-8B
  opea-llm chat --url http://localhost:9000
  opea-llm check --through https://llm.example.com

A flag goes before the environment, which goes before config.ini.
"""

cli = typer.Typer(
    name="opea-llm",
    help=_EXAMPLES,
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
completion_init()  # It answers the scripts of `completion`.

for _command in (
    serve.serve,
    ask.ask,
    chat.chat,
    prompt.prompt,
    check.check,
    models.models,
    pull.pull,
    replay.replay,
    completion.completion,
):
    cli.command()(_command)
cli.add_typer(config.config, name="config")


def _show_version(wanted: bool) -> None:
    if wanted:
        from comps.version import version

        print(f"opea-llm {version()}")
        raise typer.Exit


@cli.callback(help=_EXAMPLES)
def _main(
    _: Annotated[
        bool, typer.Option("--version", "-V", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    pass
