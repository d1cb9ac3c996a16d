"""OpenAPI document: adds the bodies, which FastAPI does not know because our handler parses them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from comps.core.types import JSON
from comps.dialects.shared.base import STATUS, Call, EmbeddingCall, GenerationCall, TokenCountCall
from comps.dialects.shared.endpoint import Endpoint, PreviewEndpoint


def describe_bodies(
    app: FastAPI, endpoints: list[Endpoint], preview: PreviewEndpoint | None, *, needs_key: bool = False
) -> None:
    """Add the schemas and examples of all bodies to the application's OpenAPI document.

    Args:
        app: The application.
        endpoints: The endpoints.
        preview: The endpoint of the prompt preview, which accepts all bodies for text; None if there is none.
        needs_key: Whether requests need an API key.
    """
    plain: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            for endpoint in endpoints:
                document["paths"].setdefault(_shown(endpoint.path), {})["post"] = _operation(endpoint, document)
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["parameters"] = [_parameter(name) for name in re.findall(r"\{(\w+)\}", path)]
            if preview:
                document["paths"][preview.path] = {"post": _preview(preview, document)}
            if needs_key:
                document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"key": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend its document.


def _shown(path: str) -> str:
    """Returns a path without Starlette's converters: `/api/{model}/x` for `/api/{model:path}/x`."""
    return re.sub(r":\w+\}", "}", path)


def _parameter(name: str) -> JSON:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _preview(preview: PreviewEndpoint, document: dict[str, Any]) -> JSON:
    operation = _operation(preview, document)
    first = _operation(preview.endpoints[0], document)["requestBody"]["content"]["application/json"]
    operation["requestBody"]["content"]["application/json"]["examples"] = first["examples"]
    said = "The prompts, and all that would be asked with them"
    operation["responses"]["200"] = {"description": said, "content": {"application/json": {"schema": {}}}}
    route = {"name": "route", "in": "query", "schema": {"type": "string"}, "description": _ROUTE}
    return {**operation, "summary": "Show what would be asked of the model, and ask nothing", "parameters": [route]}


def _operation(endpoint: Endpoint, document: dict[str, Any]) -> JSON:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    names: dict[str, None] = {}
    for call, _ in endpoint.calls:
        schema = call.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[call.__name__] = schema
        names[call.__name__] = None
    examples = {
        f"{call.__name__}-{number}": {"summary": summary, "value": body}
        for call, _ in endpoint.calls
        for number, (summary, body) in enumerate(call.examples.items(), 1)
    }
    content = {"schema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]}, "examples": examples}
    styles = [call.style.statuses for call, _ in endpoint.calls]
    statuses = sorted({200, *STATUS.values(), *(status for style in styles for status in style.values())})
    return {
        "summary": next(said for kind, said in _SUMMARIES.items() if issubclass(endpoint.calls[0][0], kind)),
        "operationId": re.sub(r"\W+", "_", _shown(endpoint.path)).strip("_"),
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {str(status): _response(status, endpoint) for status in statuses},
    }


def _response(status: int, endpoint: Endpoint) -> JSON:
    content: dict[str, JSON] = {"application/json": {"schema": {}}}
    if status == 200:
        generating = [call for call, _ in endpoint.calls if issubclass(call, GenerationCall)]
        content |= {call.media_type.partition(";")[0]: {"schema": {}} for call in generating}
    return {"description": _RESPONSES.get(status, "Error"), "content": content}


_SUMMARIES: dict[type[Call], str] = {
    GenerationCall: "Generate text",
    EmbeddingCall: "Turn texts into vectors",
    TokenCountCall: "Count the tokens of a text",
}
"""The summary of an endpoint, by the class of its calls."""
_ROUTE = (
    "The path at which the body would be posted (/generate, /api/mymodel/worker_generate …); left out: the first that "
    "finds nothing wrong with it, /v1/chat/completions before all others."
)
_RESPONSES = {200: "The answer, whole (JSON) or streamed", 429: "Too many requests at once"}
