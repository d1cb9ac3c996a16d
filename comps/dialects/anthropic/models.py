"""What Anthropic's API tells of models, to requests with the header `anthropic-version`, which its SDKs send.

https://platform.claude.com/docs/en/api/models
"""

from __future__ import annotations

from comps.core.errors import InvalidRequest, shortened
from comps.core.types import JSON, ModelInfo
from comps.dialects.shared.base import Route, ServiceStatus

VERSION_HEADER = b"anthropic-version"
_USUAL, _MOST = 20, 1000
"""How many models a page has, and may have."""
_UNKNOWN_TIME = "1970-01-01T00:00:00Z"
"""What Anthropic says where it is not known when a model was released."""


def _model_object(info: ModelInfo) -> JSON:
    return {
        "type": "model",
        "id": info.name,
        "display_name": info.name,
        "created_at": _UNKNOWN_TIME,
        "lifecycle": "active",
        "max_input_tokens": info.context_window,
    }


def _models(status: ServiceStatus) -> JSON:
    """The models that answer here, in pages: those behind `after_id`, or before `before_id`, `limit` at most"""
    models, limit = list(status.models), _limit(status)
    after, before = (_place(status, name) for name in ("after_id", "before_id"))
    if after is not None and before is not None:
        raise InvalidRequest("only one of after_id and before_id can be given", "before_id")
    first = max(before - limit, 0) if before is not None else 0 if after is None else after + 1
    last = before if before is not None else first + limit
    page = models[first:last]
    return {
        "data": [_model_object(info) for info in page],
        "has_more": first > 0 if before is not None else last < len(models),
        "first_id": page[0].name if page else None,
        "last_id": page[-1].name if page else None,
    }


def _limit(status: ServiceStatus) -> int:
    said = status.query.get("limit") or str(_USUAL)
    if not (said.isascii() and said.isdigit() and len(said) <= len(str(_MOST)) and 0 < int(said) <= _MOST):
        raise InvalidRequest(f"it must be a number from 1 to {_MOST}", "limit")
    return int(said)


def _place(status: ServiceStatus, name: str) -> int | None:
    """Returns the place of the model that a parameter names; None if it names none."""
    said, names = status.query.get(name), [info.name for info in status.models]
    if not said:
        return None
    if said not in names:
        raise InvalidRequest(f"'{shortened(said)}' is not served here; known: {', '.join(names)}", name)
    return names.index(said)


def _model(status: ServiceStatus) -> JSON:
    """One of the models that answer here"""
    return _model_object(status.named_model())


MODELS = {
    "GET /v1/models": Route(_models, header=VERSION_HEADER),
    "GET /v1/models/{model:path}": Route(_model, header=VERSION_HEADER),
}
