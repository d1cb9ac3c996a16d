"""The form of errors for requests that no handler gets: the server, the guard or the router refuses them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from starlette.routing import compile_path

from comps.core.errors import LLMError
from comps.dialects.shared.base import Dialect, Style
from comps.dialects.shared.endpoint import Endpoint
from comps.dialects.shared.framing import openai_error

_SHARED = "/v1"
"""The folder of OpenAI's API, which most have in common."""


class Refusals:
    """Encodes errors in the style of the path.

    Args:
        dialects: All dialects, the enabled ones first: an error has the form that the path has in any of them, so that
            it does not tell which routes there are.
    """

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        styles = _styles_by_path(dialects)
        self._styles = [(compile_path(path)[0], style) for path, style in styles.items()]
        self.id_headers = {path: style.id_header for path, style in styles.items() if style.id_header}
        """The further names of the header with the request's id, by path."""
        self._first = dialects[0].style
        self._near = _styles_by_place(dialects)

    def __call__(self, error: LLMError, path: str) -> tuple[int, bytes, str]:
        """Returns the status, the body and the content type of an error.

        Args:
            error: The error.
            path: The path of the request, as it was sent; perhaps not all of it.
        """
        style = next((style for pattern, style in self._styles if pattern.match(path)), None)
        if style is None:
            return self.of_no_route(error, path)
        return style.status(error), style.encode(style.error(error)), style.media_type

    def of_no_route(self, error: LLMError, path: str) -> tuple[int, bytes, str]:
        """Returns the same of an error on a path that is no route, or not with the method of the request.

        It has the form that the path has otherwise, or the nearest folder above it; where several dialects share that
        (`/api`), it has the fields of all. Elsewhere it has the form of the first dialect.
        """
        near = next((styles for place, styles in self._near if f"{path}/".startswith(place)), None)
        styles = near or [self._first]
        content: dict[str, Any] = {}
        for style in styles:
            content = {**style.error(error), **content}
        if near is None and path.startswith(_SHARED):  # OpenAI's and Anthropic's SDKs read `error.message`.
            content = {"detail": str(error), **content, **openai_error(error)}
        return styles[0].status(error), styles[0].encode(content), styles[0].media_type


def _styles_by_path(dialects: Sequence[Dialect]) -> dict[str, Style]:
    """Returns the style of errors of all paths of these dialects; of several patterns that match, the first counts."""
    paths = dict.fromkeys(path for dialect in dialects for path in dialect.calls)
    styles = {path: Endpoint(path, dialects).style for path in paths}
    for dialect in dialects:
        for route, one in dialect.routes.items():
            styles.setdefault(_path(route), one.style or dialect.style)
    return styles


def _styles_by_place(dialects: Sequence[Dialect]) -> list[tuple[str, list[Style]]]:
    """Returns the styles of the dialects that have a path, or one below it, by that path and `/`; the longest first."""
    styles: dict[str, list[Style]] = {}
    for dialect in dialects:
        for path in (*dialect.calls, *map(_path, dialect.routes)):
            for place in _upwards(path):
                found = styles.setdefault(f"{place}/", [])
                if dialect.style not in found:
                    found.append(dialect.style)
    return sorted(styles.items(), key=lambda item: -len(item[0]))


def _path(route: str) -> str:
    """Returns the path of a route (`GET /metrics?format=kaito`)."""
    return route.partition(" ")[2].partition("?")[0]


def _upwards(path: str) -> Iterator[str]:
    """Yields a path and the folders above it that are not shared by most dialects."""
    yield path
    while (path := path.rpartition("/")[0]) not in ("", _SHARED):
        yield path
