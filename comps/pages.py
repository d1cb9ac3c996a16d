"""The documentation page, with headers that keep it from doing anything but showing itself."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi_offline import FastAPIOffline
from starlette.responses import Response

DOCS = "/docs"
_FILES = "/static-offline-docs"
DOCS_ROUTES = (DOCS, "/openapi.json", f"{_FILES}/")
"""The page's path, and those of what it loads; the last one stands for all that begin with it."""
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def app_with_pages(serve_docs: bool, **arguments: Any) -> FastAPI:
    """Returns a FastAPI application with or without the page and its document; `arguments` are FastAPI's."""
    if not serve_docs:
        return FastAPI(docs_url=None, redoc_url=None, openapi_url=None, **arguments)
    app = FastAPIOffline(docs_url=None, redoc_url=None, static_url=_FILES, **arguments)

    @app.get(DOCS, include_in_schema=False)
    async def docs(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        page = get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title} - Swagger UI",
            swagger_js_url=f"{root}{_FILES}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{_FILES}/swagger-ui.css",
            swagger_favicon_url=f"{root}{_FILES}/favicon.png",
            swagger_ui_parameters={"tryItOutEnabled": True, "defaultModelsExpandDepth": 0},
        )
        page.headers.update(page_headers(bytes(page.body).decode()))
        return page

    return app


def page_headers(page: str) -> dict[str, str]:
    """Returns the security headers of a page: it may run its own scripts, and load files of this service.

    A script within the page is allowed by its hash. Swagger UI sets styles on elements, for which there is no hash.
    https://developer.mozilla.org/en-US/docs/Web/HTTP/Guides/CSP
    """
    hashes = [f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in _SCRIPT.findall(page)]
    policy = (
        "default-src 'none'",
        " ".join(("script-src 'self'", *hashes)),
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return {
        "content-security-policy": "; ".join(policy),
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
    }
