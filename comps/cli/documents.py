"""Documents and questions from files, folders and standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from comps.cli.progress import progress
from comps.core.errors import SettingsError
from comps.core.types import Document, GenerationRequest, Message, Sampling
from comps.document_files import KINDS, UnreadableDocument, text_of_file
from comps.messages import message

KNOWN = ", ".join(KINDS)
"""The extensions of the files that are read."""


def question_of(argument: str) -> str:
    """Returns a question, which `-` reads from standard input.

    Raises:
        SettingsError: It is empty, or no UTF-8 text.
    """
    question = argument
    if argument == "-":
        try:
            question = sys.stdin.buffer.read().decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise SettingsError("the question from standard input is not UTF-8 text") from None
    if not question.strip():
        raise SettingsError("the question is empty")
    return question


def request_of(
    question: str,
    document: Iterable[Path] | None,
    max_tokens: int,
    temperature: float | None = None,
    system: str = "",
) -> GenerationRequest:
    """Returns the request for a question with the documents in files and folders; see `asking`.

    Raises:
        SettingsError: The question is empty, or a document cannot be read.
    """
    asked = Message("user", question_of(question))
    messages = (Message("system", system), asked) if system else (asked,)
    return asking(messages, document, max_tokens, temperature)


def asking(
    messages: tuple[Message, ...], document: Iterable[Path] | None, max_tokens: int, temperature: float | None
) -> GenerationRequest:
    """Returns the request for messages. Nobody has ranked the documents, and the temperature is 0 if it is None."""
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature or 0.0)
    defaulted = frozenset({"temperature"} if temperature is None else ())
    return GenerationRequest(messages, documents_in(document), sampling=sampling, defaulted=defaulted, ranked=False)


def documents_in(paths: Iterable[Path] | None) -> tuple[Document, ...] | None:
    """Returns the documents in files and folders; None if there are none."""
    with progress("Reading documents"):
        return tuple(one for path in paths or () for one in _documents_of(path)) or None


def _documents_of(path: Path) -> Iterator[Document]:
    """Yields a document, or those of a folder and its folders, by name; hidden ones are left out."""
    if not path.is_dir():
        yield Document(_text_of(path), path.name)
        return
    names = [file.relative_to(path) for file in path.rglob("*") if file.suffix.lower() in KINDS]
    names = sorted(name for name in names if not any(part.startswith(".") for part in name.parts))
    if not names:
        raise SettingsError(f"--document {path}: this folder has no file that ends in {KNOWN}")
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
