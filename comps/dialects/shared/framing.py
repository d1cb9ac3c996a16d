"""How answers are laid on the wire, shared by the dialects: server-sent events, OpenAI's objects and chunks.

Every function that yields, yields whole events: the handler sends each as one HTTP chunk.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from comps.core.citations import ANNOTATIONS, UNKNOWN
from comps.core.errors import InvalidRequest, LLMError, Malformed, Overloaded, PromptTooLong, UnknownModel
from comps.core.generator import Preview
from comps.core.types import JSON, Event, Finished, Generation, Message, Report, TextDelta, Usage, total

DONE = b"data: [DONE]\n\n"
SSE = "text/event-stream; charset=utf-8"
_PLACE = re.compile(r"\.(\d+)")
"""In a list: `messages.0.role` is `messages[0].role` in OpenAI's errors."""


@dataclass(frozen=True, slots=True)
class ResponseMetadata:
    """What makes one reply this reply."""

    id: str
    """32 hexadecimal digits."""
    created: int
    """Seconds since 1970."""
    model: str
    reports: Mapping[int, Report] = field(default_factory=dict)
    """What became of each request on its way into a prompt, by its place; there from an answer's first event on."""


def sse(data: bytes) -> bytes:
    """One server-sent event; `data` has no line break in it."""
    return b"data: " + data + b"\n\n"


def comment(text: str) -> bytes:
    """An event that clients pass over."""
    return b": " + text.encode() + b"\n\n"


async def repr_stream(
    events: AsyncGenerator[Event], spell: Callable[[str], str], reports: Mapping[int, Report] | None = None
) -> AsyncGenerator[bytes]:
    """OPEA's own stream: a Python literal an event, and before the end, if reports are wanted, what the answer cites
    and these, as events of those types.

    Its clients know no place for a finish reason, so an answer that was cut short says so in a comment behind the end,
    where none of them reads on.
    """
    finished: Finished | None = None
    found: dict[str, JSON] = {}
    async for event in events:
        if isinstance(event, Finished):
            finished = event
        elif event.text:
            yield sse(spell(event.text).encode())
        elif event.extra:
            found = cited(event.extra) or found
    if reports is not None and found:
        yield b"event: annotations\n" + sse(orjson.dumps(found))
    for report in (reports or {}).values():
        yield b"event: report\n" + sse(orjson.dumps(report_object(report)))
    yield DONE
    if finished and finished.reason != "stop":
        yield comment(f"finish_reason={finished.reason}")


def bytes_literal(text: str) -> str:
    """`b' Deep'`"""
    return repr(text.encode())


async def chat_chunks(
    events: AsyncGenerator[Event], metadata: ResponseMetadata, include_usage: bool = False, include_report: bool = False
) -> AsyncGenerator[bytes]:
    """OpenAI's `chat.completion.chunk`s and `[DONE]`: a piece of text each, then the finish reason, then the usage."""
    head = {"id": f"chatcmpl-{metadata.id}", "object": "chat.completion.chunk"}
    chunk = _Chunk(head, metadata, include_usage, include_report)
    begun: dict[int, bytes] = {}
    async for event in events:
        if isinstance(event, TextDelta):
            before = begun.get(event.choice)
            has_begun = before is not None
            if before is None:
                before = chunk.opening(event.choice) + b'"delta":{"role":"assistant","content":'
                begun[event.choice] = chunk.opening(event.choice) + b'"delta":{"content":'
            if event.extra:
                further, logprobs = _besides(event.extra)
                if further and not event.text and has_begun:
                    # OPEA's pipelines take a content that is there for a text.
                    delta = chunk.opening(event.choice) + b'"delta":{' + further[1:]
                else:
                    delta = before + orjson.dumps(event.text or None) + further
                yield delta + b'},"logprobs":' + logprobs + chunk.unfinished
            else:
                yield before + orjson.dumps(event.text) + b'},"logprobs":null' + chunk.unfinished
        else:
            said = event.choice in begun
            yield chunk.last(event, b'"delta":{}' if said else b'"delta":{"role":"assistant","content":""}')
    for item in chunk.end():
        yield item


async def text_chunks(
    events: AsyncGenerator[Event], metadata: ResponseMetadata, include_usage: bool = False, include_report: bool = False
) -> AsyncGenerator[bytes]:
    """The same for text that is continued: `text_completion`s."""
    chunk = _Chunk({"id": f"cmpl-{metadata.id}", "object": "text_completion"}, metadata, include_usage, include_report)
    async for event in events:
        if isinstance(event, TextDelta):
            further, logprobs = _besides(event.extra) if event.extra else (b"", b"null")
            before = chunk.opening(event.choice) + b'"text":'
            yield before + orjson.dumps(event.text) + further + b',"logprobs":' + logprobs + chunk.unfinished
        else:
            yield chunk.last(event, b'"text":""')
    for item in chunk.end():
        yield item


class _Chunk:
    """What the chunks of one reply share, encoded once."""

    def __init__(
        self, head: dict[str, JSON], metadata: ResponseMetadata, include_usage: bool, include_report: bool
    ) -> None:
        self._constant = orjson.dumps({**head, "created": metadata.created, "model": metadata.model})[:-1]
        self._include_usage = include_usage
        self._reports = metadata.reports if include_report else {}
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self.unfinished = b',"finish_reason":null}' + self._tail
        self._usage: Usage | None = None

    def opening(self, choice: int) -> bytes:
        """A chunk up to what a choice says."""
        return b"data: " + self._constant + b',"choices":[{"index":%d,' % choice

    def last(self, end: Finished, nothing: bytes) -> bytes:
        """The chunk that ends a choice."""
        self._usage = self._usage or end.usage
        reason = b',"logprobs":null,"finish_reason":' + orjson.dumps(end.reason) + b"}"
        return self.opening(end.choice) + nothing + reason + self._tail

    def end(self) -> Iterator[bytes]:
        """What comes when all choices have ended."""
        several = len(self._reports) > 1
        for number, report in sorted(self._reports.items()):
            whose = b',"prompt":%d' % number if several else b""
            told = orjson.dumps(report_object(report))
            yield sse(self._constant + b',"choices":[]' + whose + b',"report":' + told + b"}")
        if self._include_usage:
            yield sse(self._constant + b',"choices":[],"usage":' + orjson.dumps(usage_object(self._usage)) + b"}")
        yield DONE


def _besides(extra: Mapping[str, JSON]) -> tuple[bytes, bytes]:
    """What comes with a piece of text: further fields of the object that has the text, and logprobs, which are beside
    it."""
    fields = {name: value for name, value in extra.items() if name != "logprobs"}
    return b"," + orjson.dumps(fields)[1:-1] if fields else b"", orjson.dumps(extra.get("logprobs"))


def cited(extra: Mapping[str, JSON] | None) -> dict[str, JSON]:
    """What the answer cites, of what came beside it."""
    return {name: extra[name] for name in (ANNOTATIONS, UNKNOWN) if extra.get(name)} if extra else {}


def report_object(report: Report) -> JSON:
    """What became of a request on its way into a prompt, for a client; sizes are in tokens."""
    return {**asdict(report), "headroom": report.headroom}


def preview_document(of_all: Mapping[str, JSON], previews: Sequence[Preview]) -> bytes:
    """What the model server would be asked for the requests of a body, and what is true of all of them; plain JSON,
    whatever the dialect's own is."""
    return orjson.dumps({**of_all, "prompts": [_preview_object(preview) for preview in previews]})


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


def says_something(report: Report) -> bool:
    """Whether a client might miss it: it was close enough to the limit to be counted."""
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
        # Their places in the list say what the index says in a stream.
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
    param = error.field if isinstance(error, InvalidRequest) else None
    if param:
        param = _PLACE.sub(r"[\1]", param)
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def pydantic_1_error(error: LLMError) -> JSON:
    """The error object of FastAPI over pydantic 1: a text, or what is wrong with each field in pydantic 1's words.

    https://docs.pydantic.dev/1.10/usage/models/#error-handling
    """
    if isinstance(error, Malformed):
        return {"detail": [_pydantic_1_problem(problem) for problem in error.problems]}
    return {"detail": str(error)}


def _pydantic_1_problem(problem: Mapping[str, Any]) -> JSON:
    kind, said = _PYDANTIC_1.get(problem["type"], ("value_error", problem["msg"].removeprefix("Value error, ")))
    if problem["type"].endswith("_type") and problem.get("input", problem) is None:
        kind, said = "type_error.none.not_allowed", "none is not an allowed value"
    if kind.startswith("value_error.number"):
        said = problem["msg"].replace("Input should be", "ensure this value is")
    spelled = {"loc": ["body", *problem["loc"]], "msg": said, "type": kind}
    if problem["type"] == "json_invalid":
        said = problem["ctx"]["error"]
        spelled.update(msg=said, ctx={"msg": said, "pos": problem["loc"][0]})
    return spelled


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
"""Types of problems and what is said of them in pydantic 1, by their types today; what has a number in it is made."""
