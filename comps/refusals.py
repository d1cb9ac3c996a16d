"""The form of errors for requests that no handler gets: the server, the guard or the router refuses them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from starlette.routing import compile_path

from comps.core.errors import LLMError
from comps.dialects.shared.base import Dialect, Style, owner_of
from comps.dialects.shared.endpoint import Endpoint
from comps.dialects.shared.framing import openai_error

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
_SHARED = "/v1"
"""The folder of OpenAI's API, which most have in common."""


class Refusals:
    """Encodes errors in the style of the path.

    Args:
        enabled: The enabled dialects, by precedence.
        others: All others: an error has the form that the path has in any dialect, so that it does not tell which
            routes there are.
    """

    def __init__(self, enabled: Sequence[Dialect], others: Sequence[Dialect]) -> None:
        dialects = [*enabled, *others]
        styles = _styles_by_path(enabled)
        for path, style in _styles_by_path(others).items():
            styles.setdefault(path, style)
        self._by_header = [(name, compile_path(path)[0], style) for name, path, style in _styles_by_header(dialects)]
        self._styles = [(compile_path(path)[0], style) for path, style in styles.items()]
        self._first = dialects[0].style
        self._near = _styles_by_place(dialects)

    def __call__(self, error: LLMError, path: str, headers: Headers = ()) -> tuple[int, bytes, str]:
        """Returns the status, the body and the content type of an error.

        Args:
            error: The error.
            path: The path of the request, as it was sent; perhaps not all of it.
            headers: The headers of the request, with their names in small letters; perhaps not all of them.
        """
        style = self._style(path, headers)
        if style is None:
            return self.of_no_route(error, path, headers)
        return style.status(error), style.encode(style.error(error)), style.media_type

    def id_header(self, path: str, headers: Headers) -> bytes:
        """Returns the further name of the header with the request's id; empty if there is none."""
        style = self._style(path, headers)
        return style.id_header if style else b""

    def _style(self, path: str, headers: Headers) -> Style | None:
        """Returns the style of a path; None if no dialect has it."""
        recognised = self._recognised(path, headers)
        return recognised or next((style for pattern, style in self._styles if pattern.match(path)), None)

    def _recognised(self, path: str, headers: Headers) -> Style | None:
        """Returns the style of the dialect whose header was sent to a path that others have as well."""
        sent = {name for name, _ in headers}
        return next((style for name, pattern, style in self._by_header if name in sent and pattern.match(path)), None)

    def of_no_route(self, error: LLMError, path: str, headers: Headers) -> tuple[int, bytes, str]:
        """Returns the same of an error on a path that is no route, or not with the method of the request.

        It has the form that the path has otherwise, or the nearest folder above it; where several dialects share that
        (`/api`), it has the fields of all. Elsewhere it has the form of the first dialect.
        """
        recognised = self._recognised(path, headers)
        near = next((styles for place, styles in self._near if f"{path}/".startswith(place)), None)
        styles = [recognised] if recognised else near or [self._first]
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
    for route in dict.fromkeys(route for dialect in dialects for route in dialect.routes):
        owner = owner_of(route, dialects)
        styles.setdefault(_path(route), owner.routes[route].style or owner.style)
    return styles


def _styles_by_header(dialects: Sequence[Dialect]) -> Iterator[tuple[bytes, str, Style]]:
    """Yields the header, the path and the style of errors of all routes that are chosen by a header."""
    for dialect in dialects:
        for route, one in dialect.routes.items():
            if one.header:
                yield one.header, _path(route), one.style or dialect.style


def _styles_by_place(dialects: Sequence[Dialect]) -> list[tuple[str, list[Style]]]:
    """Returns the styles of the dialects that have a path, or one below it, by that path and `/`; the longest first."""
    styles: dict[str, list[Style]] = {}
    for dialect in dialects:
        plain = [route for route, one in dialect.routes.items() if not one.header]
        for path in (*dialect.calls, *map(_path, plain)):
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
