"""A page to try the service in a browser: its files, what it needs to know, and the reading of documents for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from comps.body_memory import BodyMemory
from comps.core.errors import BodyTooLarge, InvalidRequest, LLMError
from comps.document_files import UnreadableDocument, read_apart

PAGE = "/ui"
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
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
    models: Callable[[Request], Sequence[str]],
    dialects: Sequence[str],
    max_body: int,
    bodies: BodyMemory,
    failure: Callable[[LLMError], Response],
) -> list[Route]:
    """Returns the routes of the page: `/ui`, its files, what it is told of the service, and `POST /ui/read`.

    Args:
        name: What the service calls itself.
        version: Of the service.
        models: Returns the names of the models that the sender of a request may use.
        dialects: The names of the dialects that are spoken.
        max_body: The maximum size of a document's file, in bytes.
        bodies: The room for them.
        failure: The response to an error.
    """

    async def service(request: Request) -> Response:
        names = [*models(request)]
        return JSONResponse({"name": name, "version": version, "models": names, "dialects": [*dialects]})

    async def read(request: Request) -> Response:
        try:
            size = request.headers.get("content-length", "")
            await bodies.take(request, min(int(size), max_body) if size.isdigit() else max_body)
            content = await _content(request, max_body)
            return JSONResponse({"text": await read_apart(request.query_params.get("name", ""), content)})
        except UnreadableDocument as error:
            return failure(InvalidRequest(str(error), "body"))
        except LLMError as error:
            return failure(error)
        except ClientDisconnect:
            return Response(status_code=400)
        finally:
            bodies.give_back(request)

    routes = [_file(path, content) for path, content in _files().items()]
    return [*routes, Route(f"{PAGE}/service.json", service), Route(f"{PAGE}/read", read, methods=["POST"])]


def page_files() -> list[str]:
    """Returns the paths of the page and of the files that it loads, which tell nothing of the service."""
    return list(_files())


def _files() -> dict[str, bytes]:
    """Returns the files by their paths."""
    static = (files(__package__) / "static").iterdir()
    return {PAGE if file.name == "index.html" else f"{PAGE}/{file.name}": file.read_bytes() for file in static}


def _file(path: str, content: bytes) -> Route:
    media_type = "text/html" if path == PAGE else _TYPES[path.rpartition(".")[2]]
    response = Response(content, media_type=media_type, headers=dict(_HEADERS))

    async def respond(_: Request) -> Response:
        return response

    return Route(path, respond)


async def _content(request: Request, most: int) -> bytes:
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > most:
            raise BodyTooLarge(f"larger than the {most} bytes that are read", "body")
    return bytes(content)
