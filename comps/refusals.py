"""The form of errors for requests that the server refuses before a handler gets them."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.routing import compile_path

from comps.core.errors import LLMError
from comps.dialects.shared.base import Style
from comps.dialects.shared.endpoint import Endpoint


class Refusals:
    """Encodes errors in the style of the path, if it is known.

    Args:
        endpoints: The endpoints.
        first: The style of all other paths.
    """

    def __init__(self, endpoints: Iterable[Endpoint], first: Style) -> None:
        self._styles = [(compile_path(endpoint.path)[0], endpoint.style) for endpoint in endpoints]
        self._first = first

    def __call__(self, error: LLMError, path: str) -> tuple[int, bytes]:
        """Returns the status and the body of an error.

        Args:
            error: The error.
            path: The path of the request, as it was sent; perhaps not all of it.
        """
        style = next((style for pattern, style in self._styles if pattern.match(path)), self._first)
        return style.status(error), style.encode(style.error(error))
