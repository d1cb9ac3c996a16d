"""OpenAPI document: adds the bodies, which FastAPI does not know because our handler parses them, and their answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI

from comps.core.types import JSON
from comps.dialects.shared.base import (
    STATUS,
    Call,
    DescriptionCall,
    Dialect,
    EmbeddingCall,
    GenerationCall,
    PromptCountCall,
    PromptTokenizeCall,
    Style,
    Text,
    TokenCountCall,
    TokenizeCall,
    owner_of,
)
from comps.dialects.shared.endpoint import Endpoint, PreviewEndpoint
from comps.openapi_examples import error_answers, preview_answer, route_answer, schema_of, stream, whole_answer
from comps.openapi_fields import FIELDS, FIELDS_OF_ANSWERS

_FIRST = ("opea", "openai")
"""The dialects whose groups come first."""
_SERVICE = "service"
_ABOUT_SERVICE = "What the service has whatever dialects are spoken: probes, metrics, and the preview of a prompt."


def describe_bodies(
    app: FastAPI,
    endpoints: Sequence[Endpoint],
    preview: PreviewEndpoint | None,
    dialects: Sequence[Dialect],
    *,
    needs_key: bool = False,
) -> None:
    """Add all bodies and answers, with examples, to the application's OpenAPI document, grouped by dialect.

    Args:
        app: The application.
        endpoints: The endpoints.
        preview: The endpoint of the prompt preview, which accepts all bodies for text; None if there is none.
        dialects: The enabled dialects, by precedence.
        needs_key: Whether requests need an API key.
    """
    plain: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            routes: dict[str, Any] = document["paths"]
            bodies = {_shown(endpoint.path): {"post": _operation(endpoint, document)} for endpoint in endpoints}
            for path, operations in routes.items():
                for method, operation in operations.items():
                    _describe_route(f"{method.upper()} {path}", operation, dialects)
            of_service = {preview.path: {"post": _preview(preview, document)}} if preview else {}
            document["paths"] = _merged(bodies, of_service, routes)
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    named = [_parameter(name) for name in re.findall(r"\{(\w+)\}", path)]
                    operation["parameters"] = [*named, *operation.pop("_query", ())]
            document["tags"] = [*map(_tag, _in_order(dialects)), {"name": _SERVICE, "description": _ABOUT_SERVICE}]
            if needs_key:
                document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"key": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend its document.


def _shown(path: str) -> str:
    """Returns a path without Starlette's converters: `/api/{model}/x` for `/api/{model:path}/x`."""
    return re.sub(r":\w+\}", "}", path)


def _merged(*several: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the operations by path, in their order."""
    merged: dict[str, dict[str, Any]] = {}
    for paths in several:
        for path, operations in paths.items():
            merged[path] = {**merged.get(path, {}), **operations}
    return merged


def _in_order(dialects: Sequence[Dialect]) -> list[Dialect]:
    return sorted(dialects, key=lambda one: _FIRST.index(one.name) if one.name in _FIRST else len(_FIRST))


def _tag(dialect: Dialect) -> JSON:
    return {"name": dialect.name, "description": dialect.about}


def _parameter(name: str) -> JSON:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _preview(preview: PreviewEndpoint, document: dict[str, Any]) -> JSON:
    operation = _operation(preview, document)
    first = _operation(preview.endpoints[0], document)["requestBody"]["content"]["application/json"]
    operation["requestBody"]["content"]["application/json"]["examples"] = first["examples"]
    answer = preview_answer(preview, *preview.calls[0])
    content = {"application/json": {"schema": {}, "example": answer}}
    operation["responses"]["200"] = {"description": _PREVIEWED, "content": content}
    return {
        **operation,
        "tags": [_SERVICE],
        "summary": "Show what would be asked of the model, and ask nothing",
        "description": "Takes the body of any route that asks for text.",
        "_query": [{"name": "route", "in": "query", "schema": {"type": "string"}, "description": _ROUTE}],
    }


def _operation(endpoint: Endpoint, document: dict[str, Any]) -> JSON:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for call, _ in endpoint.calls:
        schema = call.model_json_schema(ref_template="#/components/schemas/{model}")
        found = {**schema.pop("$defs", {}), call.__name__: schema}
        for name, one in found.items():
            _describe_fields(name, one)
        schemas.update(found)
    names = dict.fromkeys(call.__name__ for call, _ in endpoint.calls)
    examples = {key: example for call, _ in endpoint.calls for key, example in _examples(endpoint, call)}
    content = {"schema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]}, "examples": examples}
    return {
        "tags": [one.name for one in _in_order(endpoint.dialects) if endpoint.path in one.calls],
        "summary": _summary(endpoint),
        "description": "\n".join(_kinds(endpoint)),
        "operationId": re.sub(r"\W+", "_", _shown(endpoint.path)).strip("_"),
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {
            "200": _answer(endpoint, schemas),
            **_errors((call.marker or dialect.name, call.style) for call, dialect in endpoint.calls),
        },
    }


def _describe_fields(name: str, schema: dict[str, Any]) -> None:
    for field, told in schema.get("properties", {}).items():
        if not told.get("description") and (said := FIELDS.get(f"{name}.{field}") or FIELDS.get(field)):
            told["description"] = said


def _describe_answer(schema: JSON, name: str) -> JSON:
    """Returns the schema of an answer, with descriptions of its fields, at all depths.

    Args:
        schema: The schema, or a part of it.
        name: Its name, and the path of the part.
    """
    for field, told in schema.get("properties", {}).items():
        if said := FIELDS_OF_ANSWERS.get(f"{name}.{field}") or FIELDS_OF_ANSWERS.get(field):
            told["description"] = said
        _describe_answer(told, f"{name}.{field}")
    for one in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else [])):
        _describe_answer(one, name)
    return schema


def _summary(endpoint: Endpoint) -> str:
    said = next(said for kind, said in _SUMMARIES.items() if issubclass(endpoint.calls[0][0], kind))
    *others, last = dict.fromkeys(str(call.marker) for call, _ in endpoint.calls)
    if others:
        return f"{said} from {', '.join(others)} or {last}"
    what = (endpoint.calls[0][0].__doc__ or "").partition(".")[0]
    return f"{said}: {what[:1].lower()}{what[1:]}" if said == _SUMMARIES[GenerationCall] else said


def _examples(endpoint: Endpoint, call: type[Call]) -> Iterator[tuple[str, JSON]]:
    """Yields the examples of a kind of body, by their names in the document."""
    before = f"{call.marker}: " if len(endpoint.calls) > 1 else ""
    for number, (title, body) in enumerate(call.examples.items(), 1):
        yield f"{call.__name__}-{number}", {"summary": f"{before}{title}", "value": body}


def _kinds(endpoint: Endpoint) -> Iterator[str]:
    """Yields a line of Markdown for each kind of body: its marker, its dialect and what it is."""
    for call, dialect in endpoint.calls:
        with_marker = f"with `{call.marker}`" if call.marker and len(endpoint.calls) > 1 else "the body"
        said = " ".join((call.__doc__ or "").split())
        yield f"- {with_marker}, answered by `{dialect.name}`: {said}"


def _answer(endpoint: Endpoint, schemas: dict[str, Any]) -> JSON:
    """Returns the response to a body, whole and streamed, with an example for each example of a body."""
    content: dict[str, Any] = {}
    for call, dialect in endpoint.calls:
        media_type = getattr(call, "media_type", "").partition(";")[0]
        for shown, make in (("application/json", whole_answer), (media_type, stream)):
            answers = {key: make(call, dialect, example["value"]) for key, example in _examples(endpoint, call)}
            found = {key: answer for key, answer in answers.items() if answer is not None}
            if found:
                told = content.setdefault(shown, {"schema": {}, "examples": {}})
                if make is whole_answer:
                    name = f"{call.__name__}Answer"
                    schemas[name] = _describe_answer(schema_of(found.values()), name)
                    schema = {"$ref": f"#/components/schemas/{call.__name__}Answer"}
                    told["schema"].setdefault("anyOf", []).append(schema)
                titles = {key: example["summary"] for key, example in _examples(endpoint, call)}
                told["examples"] |= {key: {"summary": titles[key], "value": one} for key, one in found.items()}
    streams = [media_type for media_type in content if media_type != "application/json"]
    said = "The answer" if not streams else "The answer: whole (JSON) or streamed" if len(content) > 1 else "The stream"
    headers = _HEADERS if issubclass(endpoint.calls[0][0], GenerationCall) else _HEADERS_OF_ALL
    return {"description": said, "content": content, "headers": headers}


def _errors(styles: Iterable[tuple[str, Style]]) -> JSON:
    """Returns the responses with errors by status, with an example in each style.

    Args:
        styles: The styles, each with the name of what has it.
    """
    known: dict[int, tuple[list[str], Style]] = {}
    for name, style in styles:
        known.setdefault(id(style), ([], style))[0].append(name)
    answers = [(" ".join(names), style.media_type, error_answers(style)) for names, style in known.values()]
    statuses = {*STATUS.values(), *(status for _, style in known.values() for status in style.statuses.values())}
    return {str(status): _error(status, answers) for status in sorted(statuses)}


def _error(status: int, answers: Sequence[tuple[str, str, Mapping[int, JSON]]]) -> JSON:
    """Returns the response with an error of a status.

    Args:
        status: The status.
        answers: By whom, the content type, and the errors by status.
    """
    content: dict[str, Any] = {"application/json": {"schema": {}}}
    for name, media_type, by_status in answers:
        told = content.setdefault(media_type, {"schema": {}})
        if status in by_status:
            told.setdefault("examples", {})[name] = {"value": by_status[status]}
    headers = {"headers": _HEADERS_OF_WAITING} if status in _WAITING else {}
    return {"description": _STATUSES.get(status, "Error"), "content": content, **headers}


def _describe_route(name: str, operation: dict[str, Any], dialects: Sequence[Dialect]) -> None:
    """Add the group, the answer and the errors to the operation of a route without a body."""
    owners = [one for one in _in_order(dialects) if name in map(_shown, one.routes)]
    operation["tags"] = [one.name for one in owners] or [_SERVICE]
    said = operation["responses"].setdefault("200", {})
    said["description"] = "The answer"
    if not owners:
        for status in operation["responses"].keys() & set(map(str, _WAITING)):
            operation["responses"][status]["headers"] = _HEADERS_OF_WAITING
        return
    path = next(path for path in owners[0].routes if _shown(path) == name)
    owner = owner_of(path, dialects)
    route = owner.routes[path]
    answer = route_answer(route, re.findall(r"\{(\w+)", path))
    if isinstance(answer, Text):
        said["content"] = {answer.media_type.partition(";")[0]: {"schema": {"type": "string"}, "example": answer.text}}
    elif answer is not None:
        said["content"] = {"application/json": {"schema": {}, "example": answer}}
    others = [(one, one.routes[path]) for one in owners if one is not owner and one.routes[path].header]
    if others:
        operation["description"] = "\n".join(
            f"- with the header `{other.header.decode()}`, answered by `{one.name}`: {other.respond.__doc__}"
            for one, other in others
        )
    styles = [(one.name, which.style or one.style) for one, which in [(owner, route), *others]]
    operation["responses"] = {"200": said, **_errors(styles)}


_SUMMARIES: dict[type[Call], str] = {
    GenerationCall: "Generate text",
    EmbeddingCall: "Turn texts into vectors",
    TokenCountCall: "Count the tokens of a text",
    TokenizeCall: "Tell the tokens of a text",
    PromptCountCall: "Count the tokens of a prompt",
    PromptTokenizeCall: "Tell the text and the tokens of a prompt",
    DescriptionCall: "Tell what is known of a model",
}
"""The summary of an endpoint, by the class of its calls."""
_ROUTE = (
    "The path at which the body would be posted (/generate, /api/mymodel/worker_generate …); left out: the first that "
    "finds nothing wrong with it, /v1/chat/completions before all others."
)
_PREVIEWED = (
    "The model, its server, the dialect and the route; `ignored`, the fields without effect; and `prompts`, each with "
    "its `messages` or `prompt`, the text `rendered` by the chat template, `sampling`, `options` and `report`."
)


def _header(said: str) -> JSON:
    return {"description": said, "schema": {"type": "string"}}


_HEADERS_OF_ALL = {
    "x-request-id": _header("The id of the request: the client's own, or a new one."),
    "x-ignored-params": _header("The fields of the body that had no effect."),
    "server-timing": _header("Where the time went, in milliseconds: total, queue, model and overhead."),
}
_HEADERS = {
    **_HEADERS_OF_ALL,
    "x-documents-used": _header("The places of the documents that are in the prompt, or none."),
    "x-turns-dropped": _header("How many earlier messages had no room in the prompt."),
    "x-finish-reason": _header("Of a whole answer that was cut: length."),
}
_WAITING = (429, 503)
"""The statuses of errors that say when to come again."""
_HEADERS_OF_WAITING = {
    "Retry-After": {"description": "The seconds after which to come again.", "schema": {"type": "integer"}}
}
_STATUSES = {
    400: "The request is wrong; the error names the field",
    401: "The API key is missing or unknown",
    403: "The API key, or a setting, does not allow it",
    404: "There is no such model",
    413: "The body is larger than max_body_mb",
    415: "The content encoding is not read",
    422: "The body is no valid JSON, or a field is missing or has a wrong type",
    424: "The model server failed",
    429: "Too many requests at once; Retry-After says when to come again",
    500: "A fault of the service; its log has it",
    502: "The model server failed",
    503: "The model server cannot be reached, or the service ends",
    504: "The model server did not answer in time",
}
