"""Prompt templates from a folder: a file for each language, one for documents, and folders for families of models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from comps.config_files.base import read_text
from comps.core.errors import SettingsError
from comps.core.model_names import name_parts
from comps.core.prompts import AUTO, DOCUMENT_TEMPLATE, INSTRUCTIONS, RAG_TEMPLATES, Templates, misspelled

_TEXT = ".txt"
_DOCUMENT = "document"
_SYSTEM = ".system"
"""What follows the language in the name of a file with an instruction."""


def read_templates(folder: str, model_name: str = "") -> Templates:
    """Reads the prompt templates in a folder; the built-in templates are used for files that are missing.

    Args:
        folder: The folder with `<language>.txt` for `Templates.rag`, `<language>.system.txt` for
            `Templates.instructions`, and `document.txt` for `Templates.document`. A language with the first alone has
            no instruction. A final line break is not part of a template. A folder in it has the same files for a family
            of models, and is named as they are: its files go before the others. Empty: the built-in templates alone.
        model_name: Of the model; a folder is for it that has a part of this name, in upper or lower case. Of several
            the one with the longest name is taken.

    Raises:
        SettingsError: The folder or a file cannot be read, or a template is invalid.
    """
    if not folder:
        return Templates()
    try:
        found = _read(Path(folder), model_name)
    except SettingsError as error:
        raise SettingsError(f"prompt_templates = {folder}: {error}") from None
    document = found.pop(_DOCUMENT, DOCUMENT_TEMPLATE)
    own = {name.removesuffix(_SYSTEM): found.pop(name) for name in list(found) if name.endswith(_SYSTEM)}
    instructions = {language: text for language, text in INSTRUCTIONS.items() if language not in found}
    return Templates({**RAG_TEMPLATES, **found}, document, instructions={**instructions, **own})


def _read(folder: Path, model_name: str) -> dict[str, str]:
    """The templates of a folder and of the folder in it that is for a model; all of them are checked."""
    families = sorted((one for one in _listed(folder) if one.is_dir() and one.suffix != _TEXT), key=_longest_last)
    common, chosen = dict(_read_files(folder)), {}
    of_families = {family: dict(_read_files(family, f"{family.name}/")) for family in families}
    if not common and not any(of_families.values()):
        raise SettingsError(f"has no {_TEXT} file")
    for family, own in {folder: common, **of_families}.items():
        _check_instructions({**common, **own}, "" if family is folder else f"{family.name}/")
        if family is folder or any(family.name.lower().replace("_", "-") in part for part in name_parts(model_name)):
            chosen = own
    return {**common, **chosen}


def _longest_last(folder: Path) -> tuple[int, str]:
    return len(folder.name), folder.name


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise SettingsError(f"cannot be read: {error.strerror}") from None


def _check_instructions(found: Mapping[str, str], where: str) -> None:
    for name in found:
        language = name.removesuffix(_SYSTEM)
        if name.endswith(_SYSTEM) and language not in found and language not in RAG_TEMPLATES:
            raise SettingsError(f"{where}{name}{_TEXT}: there is no {language}{_TEXT}")


def _read_files(folder: Path, where: str = "") -> Iterator[tuple[str, str]]:
    for file in _listed(folder):
        if file.suffix != _TEXT:
            continue
        template = read_text(file, where + file.name).removesuffix("\n")
        if file.stem == _DOCUMENT and "{text}" not in template:
            raise SettingsError(f"{where}{file.name}: it has no {{text}}, so that no document would reach the model")
        if file.stem != _DOCUMENT and (wrong := misspelled(template)):
            raise SettingsError(f"{where}{file.name}: {wrong}")
        if file.stem == AUTO:
            raise SettingsError(
                f"{where}{file.name}: no language can be called {AUTO}, which chooses one by the documents"
            )
        yield file.stem, template
