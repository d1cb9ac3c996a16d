"""The form of errors for requests that no handler gets: the server, the guard or the router refuses them."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import compile_path

from comps.core.errors import LLMError
from comps.dialects.shared.base import Dialect, Style
from comps.dialects.shared.endpoint import Endpoint
from comps.dialects.shared.framing import openai_error


class Refusals:
    """Encodes errors in the style of the path.

    Args:
        dialects: All dialects, the enabled ones first: an error has the form that the path has in any of them, so that
            it does not tell which routes there are. All other paths have the style of the first.
    """

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        styles = _styles_by_path(dialects)
        self._styles = [(compile_path(path)[0], style) for path, style in styles.items()]
        self.id_headers = {path: style.id_header for path, style in styles.items() if style.id_header}
        """The further names of the header with the request's id, by path."""
        self._first = dialects[0].style

    def __call__(self, error: LLMError, path: str) -> tuple[int, bytes, str]:
        """Returns the status, the body and the content type of an error.

        Args:
            error: The error.
            path: The path of the request, as it was sent; perhaps not all of it.
        """
        style = next((style for pattern, style in self._styles if pattern.match(path)), None)
        if style is None:
            return self._first.status(error), self.of_no_route(error, path), "application/json"
        return style.status(error), style.encode(style.error(error)), style.media_type

    def of_no_route(self, error: LLMError, path: str) -> bytes:
        """Returns the body of an error on a path that is no route."""
        content = self._first.error(error)
        if path.startswith("/v1"):  # OpenAI's SDKs print `error.message`.
            content = {"detail": str(error), **content, **openai_error(error)}
        return self._first.encode(content)


def _styles_by_path(dialects: Sequence[Dialect]) -> dict[str, Style]:
    """Returns the style of errors of all paths of these dialects; of several patterns that match, the first counts."""
    paths = dict.fromkeys(path for dialect in dialects for path in dialect.calls)
    styles = {path: Endpoint(path, dialects).style for path in paths}
    for dialect in dialects:
        for route, one in dialect.routes.items():
            path = route.partition(" ")[2].partition("?")[0]
            styles.setdefault(path, one.style or dialect.style)
    return styles
