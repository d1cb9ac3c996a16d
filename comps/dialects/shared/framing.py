"""How answers are encoded, shared by the dialects: server-sent events, OpenAI's objects, reports and errors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from typing import Any

import orjson

from comps.core.citations import ANNOTATIONS, UNKNOWN, annotations_in
from comps.core.errors import InvalidRequest, LLMError, Malformed, Overloaded, PromptTooLong, Unauthorized, UnknownModel
from comps.core.previews import Preview
from comps.core.times import Times
from comps.core.types import JSON, Generation, Message, Report, Usage, total
from comps.core.value_types import value_type
from comps.dialects.shared.long_json import encoded_in_pieces

DONE = b"data: [DONE]\n\n"
SSE = "text/event-stream; charset=utf-8"
_PLACE = re.compile(r"\.(\d+)")
"""An index in the name of a field: OpenAI's errors have `messages[0].role` for `messages.0.role`."""


@value_type(frozen=True, slots=True)
class ResponseMetadata:
    """What is particular to one response."""

    id: str
    """32 hexadecimal digits."""
    created: int
    """Seconds since 1970."""
    model: str
    reports: Mapping[int, Report] = field(default_factory=dict)
    """The report of each request, by its place; complete when the first event is written."""
    times: Times = Times()
    """Of its exchange; complete when the whole answer, or what follows the ends of a stream, is written."""


def sse(data: bytes) -> bytes:
    """One server-sent event, of data without line breaks."""
    return b"data: " + data + b"\n\n"


def comment(text: str) -> bytes:
    """A comment of server-sent events, which clients skip."""
    return b": " + text.encode() + b"\n\n"


def citations_in(extra: Mapping[str, JSON] | None) -> dict[str, JSON]:
    """What an answer cites, of the fields that came with its text (`Generation.extra`).

    A model server may send `annotations` of its own; what is no list of objects is left out.
    """
    if not extra:
        return {}
    found = {ANNOTATIONS: annotations_in(extra), UNKNOWN: extra.get(UNKNOWN)}
    return {name: value for name, value in found.items() if value}


def object_in(text: str) -> dict[str, JSON] | None:
    """The object that a text is as JSON, such as the arguments of a function call; None if it is none, as where it is
    cut, or has more levels than can be written."""
    try:
        found = orjson.loads(text)
        orjson.dumps(found)
    except (orjson.JSONDecodeError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def report_object(report: Report) -> JSON:
    """A report as JSON; sizes are in tokens."""
    return {**asdict(report), "headroom": report.headroom}


def preview_document(of_all: Mapping[str, JSON], previews: Sequence[Preview]) -> list[bytes]:
    """The answer of the preview route, as plain JSON in every dialect, in pieces.

    Args:
        of_all: The fields that hold for all requests of the body.
        previews: What the model server would be asked, for each request.
    """
    return encoded_in_pieces({**of_all, "prompts": [_preview_object(preview) for preview in previews]})


def _preview_object(preview: Preview) -> JSON:
    prompt = preview.prompt
    messages = [] if isinstance(prompt, str) else [_message(message) for message in prompt]
    sampling = {name: value for name, value in asdict(preview.sampling).items() if value not in (None, ())}
    return {
        **({"prompt": prompt} if isinstance(prompt, str) else {"messages": messages}),
        "rendered": preview.rendered,
        "sampling": sampling,
        "options": dict(preview.options),
        "report": report_object(preview.plan.report),
        "answer": preview.answer,
    }


def _message(message: Message) -> JSON:
    return {"role": message.role, "content": message.content, **message.extra}


def was_counted(report: Report) -> bool:
    """Whether the prompt was so close to the limit that its tokens had to be counted."""
    return report.counted != "not"


def chat_completion(generation: Generation, metadata: ResponseMetadata) -> JSON:
    """OpenAI's `chat.completion`."""
    return {
        "id": f"chatcmpl-{metadata.id}",
        "object": "chat.completion",
        "created": metadata.created,
        "model": metadata.model,
        "choices": [chat_choice(choice, index) for index, choice in enumerate(generation.choices)],
        "usage": usage_object(generation.usage),
    }


def chat_choice(generation: Generation, index: int = 0) -> JSON:
    """One choice of a `chat.completion`."""
    extra = dict(generation.extra or {})
    logprobs = extra.pop("logprobs", None)
    message = {"role": "assistant", "content": generation.text, **extra}
    if calls := extra.get("tool_calls"):
        # Only in a stream do tool calls have an index.
        message["tool_calls"] = [{name: value for name, value in call.items() if name != "index"} for call in calls]
        message["content"] = generation.text or None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": generation.reason}


def text_completion(generations: Sequence[Generation], metadata: ResponseMetadata) -> JSON:
    """OpenAI's `text_completion` of several prompts."""
    choices = [choice for generation in generations for choice in generation.choices]
    return {
        "id": f"cmpl-{metadata.id}",
        "object": "text_completion",
        "created": metadata.created,
        "model": metadata.model,
        "choices": [
            {"index": index, "text": one.text, "logprobs": None, **(one.extra or {}), "finish_reason": one.reason}
            for index, one in enumerate(choices)
        ],
        "usage": usage_object(total(generation.usage for generation in generations)),
    }


def usage_object(usage: Usage | None) -> JSON:
    """OpenAI's `usage`; null where the model server does not count."""
    return usage and {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        **usage.details,
    }


def openai_error(error: LLMError) -> JSON:
    """OpenAI's error object."""
    kind, code = "server_error", None
    if isinstance(error, InvalidRequest):
        kind = "invalid_request_error"
    elif isinstance(error, Overloaded):
        kind, code = "rate_limit_error", "rate_limit_exceeded"
    if isinstance(error, PromptTooLong):
        code = "context_length_exceeded"
    elif isinstance(error, UnknownModel):
        code = "model_not_found"
    elif isinstance(error, Unauthorized):
        code = "invalid_api_key"
    param = error.field if isinstance(error, InvalidRequest) else None
    if param:
        param = _PLACE.sub(r"[\1]", param)
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def pydantic_1_error(error: LLMError) -> JSON:
    """The error object of FastAPI with pydantic 1: a text, or a list of problems with the messages of pydantic 1.

    https://docs.pydantic.dev/1.10/usage/models/#error-handling
    """
    if isinstance(error, Malformed):
        return {"detail": [_pydantic_1_problem(problem) for problem in error.problems]}
    return {"detail": str(error)}


def _pydantic_1_problem(problem: Mapping[str, Any]) -> JSON:
    kind, message = _PYDANTIC_1.get(problem["type"], ("value_error", problem["msg"].removeprefix("Value error, ")))
    if problem["type"].endswith("_type") and problem.get("input", problem) is None:
        kind, message = "type_error.none.not_allowed", "none is not an allowed value"
    if kind.startswith("value_error.number"):
        message = problem["msg"].replace("Input should be", "ensure this value is")
    item = {"loc": ["body", *problem["loc"]], "msg": message, "type": kind}
    if problem["type"] == "json_invalid":
        message = problem["ctx"]["error"]
        item.update(msg=message, ctx={"msg": message, "pos": problem["loc"][0]})
    return item


_INTEGER = ("type_error.integer", "value is not a valid integer")
_FLOAT = ("type_error.float", "value is not a valid float")
_BOOL = ("type_error.bool", "value could not be parsed to a boolean")
_DICT = ("type_error.dict", "value is not a valid dict")
_PYDANTIC_1: Mapping[str, tuple[str, str]] = {
    "missing": ("value_error.missing", "field required"),
    "json_invalid": ("value_error.jsondecode", ""),
    "string_type": ("type_error.str", "str type expected"),
    "int_type": _INTEGER,
    "int_parsing": _INTEGER,
    "int_parsing_size": _INTEGER,
    "int_from_float": _INTEGER,
    "float_type": _FLOAT,
    "float_parsing": _FLOAT,
    "bool_type": _BOOL,
    "bool_parsing": _BOOL,
    "list_type": ("type_error.list", "value is not a valid list"),
    "dict_type": _DICT,
    "model_type": _DICT,
    "greater_than": ("value_error.number.not_gt", ""),
    "greater_than_equal": ("value_error.number.not_ge", ""),
    "less_than": ("value_error.number.not_lt", ""),
    "less_than_equal": ("value_error.number.not_le", ""),
    "finite_number": ("value_error.number.not_finite_number", ""),
}
"""The type and message in pydantic 1 for each type of problem in pydantic 2. A message with a number in it is derived
from that of pydantic 2."""
