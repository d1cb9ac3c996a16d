"""Hooks of MkDocs: pages outside of docs/ are part of the site, and links between files of the repository lead to them.

https://www.mkdocs.org/user-guide/configuration/#hooks
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"{folder}/**/*.md" for folder in ("docker", "impl")))
"""The pages outside of docs/, as patterns."""
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#]+)(?=[)#])")
HOME = "index.md"
"""The README's name in the site."""


def _in_site(path: str) -> str:
    """Returns the place in the site of a file, by its path in the repository."""
    return HOME if path == "README.md" else path.removeprefix("docs/")


def _linked(path: str) -> Iterator[str]:
    """Yields the paths in the repository that a page links to."""
    for link in LINK.findall((ROOT / path).read_text("utf-8")):
        yield posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def on_files(files: Any, config: Any) -> Any:
    """Add the pages outside of docs/, and the files that pages link to."""
    outside = [str(path.relative_to(ROOT)) for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern))]
    pages = [*outside, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    linked = [path for page in pages for path in _linked(page) if (ROOT / path).is_file()]
    for path in dict.fromkeys((*outside, *linked)):
        if not path.startswith("docs/"):
            files.append(File.generated(config, _in_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links between files of the repository into those of the site; one to a folder leads nowhere there."""
    here = page.file.src_uri
    path = "README.md" if here == HOME else here if (ROOT / here).is_file() else f"docs/{here}"

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link[1]))
        return posixpath.relpath(_in_site(target), posixpath.dirname(here) or ".")

    folder = re.compile(r"\[([^\]]+)\]\(([^)#:]+)\)")
    text = folder.sub(lambda one: one[1] if (ROOT / posixpath.dirname(path) / one[2]).is_dir() else one[0], markdown)
    return LINK.sub(moved, text)
