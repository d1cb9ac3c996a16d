"""Prompt templates from a folder: a file for each language, and one for the documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from comps.config_files.base import read_text
from comps.core.errors import SettingsError
from comps.core.prompts import AUTO, DOCUMENT_TEMPLATE, INSTRUCTIONS, RAG_TEMPLATES, Templates

_DOCUMENT = "document"
_SYSTEM = ".system"
"""What follows the language in the name of a file with an instruction."""


def read_templates(folder: str) -> Templates:
    """Reads the prompt templates in a folder; the built-in templates are used for files that are missing.

    Args:
        folder: The folder with `<language>.txt` for `Templates.rag`, `<language>.system.txt` for
            `Templates.instructions`, and `document.txt` for `Templates.document`. A language with the first alone has
            no instruction. A final line break is not part of a template. Empty: the built-in templates alone.

    Raises:
        SettingsError: The folder or a file cannot be read, or a template is invalid.
    """
    if not folder:
        return Templates()
    try:
        found = dict(_read(Path(folder)))
    except SettingsError as error:
        raise SettingsError(f"prompt_templates = {folder}: {error}") from None
    document = found.pop(_DOCUMENT, DOCUMENT_TEMPLATE)
    own = {name.removesuffix(_SYSTEM): found.pop(name) for name in list(found) if name.endswith(_SYSTEM)}
    if lost := [language for language in own if language not in found and language not in RAG_TEMPLATES]:
        raise SettingsError(f"prompt_templates = {folder}: {lost[0]}{_SYSTEM}.txt: there is no {lost[0]}.txt")
    instructions = {language: text for language, text in INSTRUCTIONS.items() if language not in found}
    return Templates({**RAG_TEMPLATES, **found}, document, instructions={**instructions, **own})


def _read(folder: Path) -> Iterator[tuple[str, str]]:
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix == ".txt")
    except OSError as error:
        raise SettingsError(f"cannot be read: {error.strerror}") from None
    if not files:
        raise SettingsError("has no .txt file")
    for file in files:
        template = read_text(file, file.name).removesuffix("\n")
        if file.stem == _DOCUMENT and "{text}" not in template:
            raise SettingsError(f"{file.name}: it has no {{text}}, so that no document would reach the model")
        if file.stem == AUTO:
            raise SettingsError(f"{file.name}: no language can be called {AUTO}, which chooses one by the documents")
        yield file.stem, template
