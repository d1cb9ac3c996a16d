"""A page to try the service in a browser: its files, what it needs to know, and the reading of documents for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from comps.core.errors import BodyTooLarge, InvalidRequest, LLMError
from comps.document_files import UnreadableDocument, read_apart

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_routes(
    name: str,
    version: str,
    models: Sequence[str],
    dialects: Sequence[str],
    max_body: int,
    failure: Callable[[LLMError], Response],
) -> list[Route]:
    """Returns the routes of the page: `/ui`, its files, what it is told of the service, and `POST /ui/read`.

    Args:
        name: What the service calls itself.
        version: Of the service.
        models: The names of the served models.
        dialects: The names of the dialects that are spoken.
        max_body: The maximum size of a document's file, in bytes.
        failure: The response to an error.
    """
    told = JSONResponse({"name": name, "version": version, "models": [*models], "dialects": [*dialects]})

    async def service(_: Request) -> Response:
        return told

    async def read(request: Request) -> Response:
        try:
            content = await _content(request, max_body)
            return JSONResponse({"text": await read_apart(request.query_params.get("name", ""), content)})
        except UnreadableDocument as error:
            return failure(InvalidRequest(str(error), "body"))
        except LLMError as error:
            return failure(error)
        except ClientDisconnect:
            return Response(status_code=400)

    routes = [_file(file.name, file.read_bytes()) for file in (files(__package__) / "static").iterdir()]
    return [*routes, Route("/ui/service.json", service), Route("/ui/read", read, methods=["POST"])]


def _file(name: str, content: bytes) -> Route:
    response = Response(content, media_type=_TYPES[name.rpartition(".")[2]], headers=dict(_HEADERS))

    async def respond(_: Request) -> Response:
        return response

    return Route("/ui" if name == "index.html" else f"/ui/{name}", respond)


async def _content(request: Request, most: int) -> bytes:
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > most:
            raise BodyTooLarge(f"larger than the {most} bytes that are read", "body")
    return bytes(content)
