"""What is asked instead of what a model server, or its context window, has no place for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comps.core.errors import InvalidRequest, PromptTooLong
from comps.core.planning import Plan
from comps.core.types import GenerationRequest, Sampling

TOTAL = "max_total_tokens"
_OTHER_NAMES = {"max_completion_tokens": "max_tokens", "max_new_tokens": "max_tokens"}
"""Other names of sampling fields in the errors of model servers."""


def one_token(error: InvalidRequest, request: GenerationRequest) -> Sampling:
    """Returns the sampling for a prompt that fills a default `max_total_tokens`: one token.

    Raises:
        InvalidRequest: The error, if it is another one, or the limit was set by the caller.
    """
    if error.field != TOTAL:
        try:
            raise error
        finally:
            del error  # Whose traceback has this frame: a cycle.
    if not request.total_is_default:
        raise InvalidRequest(error.args[0], request.total_field) from None
    return replace(request.sampling, max_tokens=1)


def without_default(plan: Plan, error: InvalidRequest) -> Plan | None:
    """Returns the plan without the default that a model server refuses; None if it refuses what the caller sent.

    A default option may also be the reason for which another field is refused, so it is left out first.
    """
    request = plan.request
    kept = {name: value for name, value in plan.options.items() if name not in request.defaulted}
    if len(kept) < len(plan.options) and not isinstance(error, PromptTooLong):
        return replace(plan, options=kept)
    field = _OTHER_NAMES.get(error.field or "", error.field)
    if field is None or field not in request.defaulted or getattr(plan.sampling, field, None) is None:
        return None
    unset: dict[str, Any] = {field: None}
    sampling = replace(request.sampling, **unset)
    return replace(plan, request=replace(request, sampling=sampling), sampling=replace(plan.sampling, **unset))
