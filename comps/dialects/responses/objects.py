"""The parts of an answer: what ended it, its usage, log probabilities, citations and errors.

https://platform.openai.com/docs/api-reference/responses/object
"""

from __future__ import annotations

from collections.abc import Mapping

from comps.core.citations import annotations_in
from comps.core.errors import InvalidRequest, LLMError, Overloaded
from comps.core.types import JSON, Usage
from comps.dialects.shared.framing import openai_error

_CUT: Mapping[str, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why an answer is incomplete, by its finish reason."""
_NEEDED: Mapping[str, Mapping[str, type]] = {
    "url_citation": {"url": str, "title": str, "start_index": int, "end_index": int},
    "file_citation": {"file_id": str, "filename": str, "index": int},
}
"""The fields that a citation must have, by its type."""
_PLACES = ("start_index", "end_index", "index")
"""The fields of a citation that are places in the text."""
_LEAST = -9999.0
"""OpenAI's log probability of a token that is not among the likeliest."""


def ended(reason: str) -> dict[str, JSON]:
    """The fields of a response that say how it ended, by its finish reason."""
    cut = _CUT.get(reason)
    return {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": cut} if cut else None,
    }


def usage_object(usage: Usage | None) -> JSON:
    """The usage; null where the model server does not count. Details that it does not tell are 0."""
    if usage is None:
        return None
    prompt, answer = (usage.details.get(f"{part}_tokens_details", {}) for part in ("prompt", "completion"))
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": prompt.get("cached_tokens", 0),
            "cache_write_tokens": prompt.get("cache_write_tokens", 0),
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.get("reasoning_tokens", 0)},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def logprobs_in(extra: Mapping[str, JSON]) -> list[JSON]:
    """The log probabilities of the tokens in a delta, in the form of this API."""
    logprobs = extra.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [
        {**_token(one), "top_logprobs": [_token(other) for other in _objects(one.get("top_logprobs"))]}
        for one in _objects(tokens)
    ]


def _objects(given: JSON) -> list[dict[str, JSON]]:
    """The objects in a list."""
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def _token(one: Mapping[str, JSON]) -> dict[str, JSON]:
    text, logprob = str(one.get("token") or ""), one.get("logprob")
    return {
        "token": text,
        "logprob": logprob if isinstance(logprob, int | float) else _LEAST,
        "bytes": one.get("bytes") or list(text.encode()),
    }


def cited_in(extra: Mapping[str, JSON]) -> list[dict[str, JSON]]:
    """The citations in the extra fields of an answer, in the form of this API; those that have none are left out.

    A document with a URL becomes a `url_citation`, any other a `file_citation`, whose `file_id` is its object's name,
    or `document-` and its number. Our further fields stay beside them: `number`, `start_index`, `end_index` …

    Args:
        extra: With annotations in the form of the chat API; see `comps.core.citations.annotation`.
    """
    read = map(_annotation, annotations_in(extra))
    return [one for one in read if one]


def _annotation(one: dict[str, JSON]) -> dict[str, JSON] | None:
    kind = str(one.get("type"))
    told = dict(one[kind]) if isinstance(one.get(kind), dict) else dict(one)
    if kind in ("file_citation", "document_citation") and "number" in told:  # One of ours.
        kind, identity = "file_citation", f"document-{told['number']}"
        if told.keys() >= {"bucket_name", "object_name"}:
            identity = f"{told['bucket_name']}/{told['object_name']}"
        told |= {"file_id": identity, "filename": told.get("title") or identity, "index": told.get("end_index")}
    needed = _NEEDED.get(kind)
    is_known = needed and all(type(told.get(name)) is wanted for name, wanted in needed.items())
    return {"type": kind, **told} if is_known else None


def place_of(annotation: dict[str, JSON]) -> int:
    """Where in the text the first place of a citation is; each has one, see `_NEEDED`."""
    place: int = next(annotation[name] for name in _PLACES if type(annotation.get(name)) is int)
    return place


def moved_by(distance: int, annotation: dict[str, JSON]) -> dict[str, JSON]:
    """An annotation of a text that begins elsewhere, by so many characters."""
    places = {name: annotation[name] + distance for name in _PLACES if type(annotation.get(name)) is int}
    return annotation | places if distance else annotation


def error_object(error: LLMError) -> JSON:
    """The error of a response that failed."""
    code = "server_error"
    if isinstance(error, Overloaded):
        code = "rate_limit_exceeded"
    elif isinstance(error, InvalidRequest):
        code = "invalid_prompt"
    return {"code": code, "message": str(error)}


def error_event(error: LLMError) -> dict[str, JSON]:
    """The fields of the event `error`: as specified, and beside them the object `error` that OpenAI sends instead, by
    which its SDKs raise."""
    inner = openai_error(error)["error"]
    return {**error_object(error), "param": inner["param"], "error": inner}
