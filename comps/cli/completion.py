"""`opea-llm completion`: the scripts by which shells complete commands and options."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]


class Shell(str, Enum):
    """The shells that have a script."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="Whose script.")]) -> None:
    """Print a shell's completion script.

    \b
    Examples:
      eval "$(opea-llm completion bash)"                                # in ~/.bashrc
      eval "$(opea-llm completion zsh)"                                 # in ~/.zshrc, after compinit
      opea-llm completion fish > ~/.config/fish/completions/opea-llm.fish
    """
    print(get_completion_script(prog_name="opea-llm", complete_var="_OPEA_LLM_COMPLETE", shell=shell.value).strip())
