"""`opea-llm config`: files of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comps.cli.common import expected_errors
from comps.core.errors import LLMError, SettingsError
from comps.messages import message

config = typer.Typer(help="Write a file of settings.", no_args_is_help=True, rich_markup_mode=None)


@config.callback()
def _main() -> None:
    pass


@config.command()
@expected_errors
def init(
    file: Annotated[Path, typer.Argument(help="Where it is written; - prints it.")] = Path("config.ini"),
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented config.ini.

    It has every setting at its default, with what it is and its environment variable.

    \b
    Examples:
      opea-llm config init
      opea-llm config init - | less
    """
    from comps.settings.example_file import example_file

    text = example_file()
    if str(file) == "-":
        print(text, end="")
        return
    try:
        with file.open("w" if force else "x", encoding="utf-8") as written:
            written.write(text)
    except FileExistsError:
        raise SettingsError(f"{file} is there already; --force writes over it") from None
    except OSError as error:
        raise LLMError(f"{file}: cannot be written: {error.strerror}") from None
    message(f"Written: {file}; opea-llm check shows which settings are in effect")
