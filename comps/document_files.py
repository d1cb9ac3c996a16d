"""The text of a document's file: plain text, Markdown, HTML, PDF and DOCX.

As a program (`python -m comps.document_files NAME MEMORY`), it reads the file from its standard input, so that a
hostile file can be given a process of its own: see `read_apart`.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any

_SECONDS = 30.0
"""How long a file may take to read."""
_MEMORY = 2 * 1024**3
"""Bytes of address space that a process may have that reads a file."""
_BLOCKS = ["p", "div", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "section", "article", "table"]
"""The elements of HTML after which a line ends."""
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


class UnreadableDocument(Exception):
    """A file has no text that can be read; the text says why."""


def text_of_file(name: str, content: bytes) -> str:
    """Returns the text of a document.

    Args:
        name: The file's name, whose extension says what it is; any other is plain text.
        content: The file.

    Raises:
        UnreadableDocument: It is not what its name says, or no text at all.
    """
    kind = PurePath(name).suffix.lower()
    read = KINDS.get(kind, _plain)
    try:
        text = read(content)
    except UnreadableDocument:
        raise
    except MemoryError:
        raise UnreadableDocument("it takes too much memory to read") from None
    except Exception as error:  # Each library has its own, and some raise whatever comes.
        raise UnreadableDocument(
            f"it is no {kind[1:].upper()} file that can be read ({type(error).__name__})"
        ) from None
    if not text.strip():
        raise UnreadableDocument("it has no text" + ("; it may be scanned pages" if kind == ".pdf" else ""))
    return text


def _plain(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableDocument("it is not UTF-8 text") from None
    if "\0" in text:
        raise UnreadableDocument("it is not text")
    return text


def _html(content: bytes) -> str:
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(content, "html.parser")
    for element in soup(["script", "style", "template", "noscript", "head"]):
        element.decompose()
    for line_break in soup("br"):
        line_break.replace_with("\n")
    for block in soup(
        ["p", "div", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "section", "article", "table"]
    ):
        block.append("\n")
    for cell in soup(["td", "th"]):
        cell.append("\t")
    return _BLANK_LINES.sub("\n\n", soup.get_text()).strip()


def _pdf(content: bytes) -> str:
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # What is wrong with a file is said once, by us.
    reader = PdfReader(io.BytesIO(content))
    if reader.is_encrypted and not reader.decrypt(""):
        raise UnreadableDocument("it needs a password")
    return "\n\n".join(filter(None, (page.extract_text().strip() for page in reader.pages)))


def _docx(content: bytes) -> str:
    from docx import Document

    return "\n".join(_blocks(Document(io.BytesIO(content))))


def _blocks(part: Any) -> Iterator[str]:
    """The paragraphs, and the rows of the tables, in their order."""
    for block in part.iter_inner_content():
        if hasattr(block, "rows"):
            for row in block.rows:
                yield "\t".join(cell.text for cell in row.cells)
        else:
            yield block.text


KINDS: Mapping[str, Callable[[bytes], str]] = {
    ".txt": _plain,
    ".md": _plain,
    ".markdown": _plain,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".docx": _docx,
}
"""How files are read, by their extension."""


async def read_apart(name: str, content: bytes) -> str:
    """Returns the text of a document, read in a process of its own, which ends after 30 s or if this is cancelled.

    Raises:
        UnreadableDocument: See `text_of_file`; also if it takes too long, or too much memory.
    """
    kind = PurePath(name).suffix.lower()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "comps.document_files", f"document{kind if kind in KINDS else ''}", str(_MEMORY)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(content), _SECONDS)
    except (TimeoutError, asyncio.TimeoutError):
        raise UnreadableDocument(f"it takes more than {_SECONDS:.0f} s to read") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    said = output.decode()
    if process.returncode == 0:
        return said
    raise UnreadableDocument(said or "it takes too much memory to read")


def main() -> None:
    """Read a file from the standard input; write its text, or why it has none with the exit code 1."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
    try:
        sys.stdout.buffer.write(text_of_file(sys.argv[1], sys.stdin.buffer.read()).encode("utf-8", "replace"))
    except UnreadableDocument as error:
        sys.stdout.write(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
