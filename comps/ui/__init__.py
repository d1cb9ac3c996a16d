"""A page to try the service in a browser: its files, what it needs to know, and the reading of documents for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from time import monotonic

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from comps.admission import Admission, RequestSlots
from comps.body_memory import BodyMemory
from comps.core.errors import InvalidRequest, LLMError
from comps.document_files import UnreadableDocument, read_apart
from comps.requests import ClientGone, Incoming

PAGE = "/ui"
_READ_AT_ONCE, _WAITING, _WAIT_SECONDS = 2, 64, 60
"""Files of documents that are read at once, each in a process of its own; how many more may wait, and how long."""
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
    reader: DocumentReader,
) -> list[Route]:
    """Returns the routes of the page: `/ui`, its files, what it is told of the service, and `POST /ui/read`.

    Args:
        name: What the service calls itself.
        version: Of the service.
        models: Returns the names of the models that the sender of a request may use.
        dialects: The names of the dialects that are spoken.
        reader: Answers `POST /ui/read`.
    """

    async def service(request: Request) -> Response:
        names = [*models(request)]
        return JSONResponse({"name": name, "version": version, "models": names, "dialects": [*dialects]})

    routes = [_file(path, content) for path, content in _files().items()]
    return [*routes, Route(f"{PAGE}/service.json", service), Route(f"{PAGE}/read", reader.read, methods=["POST"])]


class DocumentReader:
    """Reads the files of documents for the page, a few at once.

    Args:
        max_body: The maximum size of a file, in bytes.
        bodies: The room for them.
        caller: Returns the name of the sender of a request; senders take turns.
        failure: The response to an error.
    """

    def __init__(
        self,
        max_body: int,
        bodies: BodyMemory,
        caller: Callable[[Request], str],
        failure: Callable[[LLMError], Response],
    ) -> None:
        self._max_body = max_body
        self._bodies = bodies
        self._caller = caller
        self._failure = failure
        self._admission = Admission(_READ_AT_ONCE, _WAITING, _WAIT_SECONDS)

    async def read(self, request: Request) -> Response:
        """Returns the text of a document's file, which is the body of the request."""
        caller, most = self._caller(request), self._max_body
        slots = RequestSlots(self._admission, caller, monotonic())
        try:
            slots.check()
            size = request.headers.get("content-length", "")
            body = Incoming(request.receive, most)
            await body.take_room(self._bodies, request, min(int(size), most) if size.isdigit() else most, caller)
            content = await body.whole()
            await body.unless_gone(slots.enter())
            return JSONResponse({"text": await read_apart(request.query_params.get("name", ""), content)})
        except UnreadableDocument as error:
            return self._failure(InvalidRequest(str(error), "body"))
        except LLMError as error:
            return self._failure(error)
        except ClientGone:
            return Response(status_code=400)
        finally:
            slots.close()
            self._bodies.give_back(request)


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
