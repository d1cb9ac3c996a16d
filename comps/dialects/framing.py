"""How answers are laid on the wire, shared by the dialects: server-sent events, OpenAI's objects and chunks.

Every function that yields, yields whole events: the handler sends each as one HTTP chunk.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import orjson

from comps.core.errors import InvalidRequest, LLMError, Overloaded, PromptTooLong, UnknownModel
from comps.core.types import JSON, Event, Finished, Generation, TextDelta, Usage

DONE = b"data: [DONE]\n\n"
SSE = "text/event-stream; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What makes one reply this reply."""

    id: str
    """32 hexadecimal digits."""
    created: int
    """Seconds since 1970."""
    model: str


def sse(data: bytes) -> bytes:
    """One server-sent event; `data` has no line break in it."""
    return b"data: " + data + b"\n\n"


def comment(text: str) -> bytes:
    """An event that clients pass over."""
    return b": " + text.encode() + b"\n\n"


async def repr_stream(events: AsyncGenerator[Event], spell: Callable[[str], str]) -> AsyncGenerator[bytes]:
    """OPEA's own stream: a Python literal an event.

    Its clients know no place for a finish reason, so an answer that was cut short says so in a comment behind the end,
    where none of them reads on.
    """
    finished: Finished | None = None
    async for event in events:
        if isinstance(event, Finished):
            finished = event
        elif event.text:
            yield sse(spell(event.text).encode())
    yield DONE
    if finished and finished.reason != "stop":
        yield comment(f"finish_reason={finished.reason}")


def bytes_literal(text: str) -> str:
    """`b' Deep'`"""
    return repr(text.encode())


async def chat_chunks(
    events: AsyncGenerator[Event], stamp: Stamp, include_usage: bool = False
) -> AsyncGenerator[bytes]:
    """OpenAI's `chat.completion.chunk`s and `[DONE]`: a piece of text each, then the finish reason, then the usage."""
    head = {"id": f"chatcmpl-{stamp.id}", "object": "chat.completion.chunk", "created": stamp.created}
    constant = orjson.dumps({**head, "model": stamp.model})[:-1]
    opening, closing = constant + b',"choices":[{"index":0,"delta":', b'},"logprobs":null,"finish_reason":null}]}\n\n'
    first = b"data: " + opening + b'{"role":"assistant","content":'
    later = b"data: " + opening + b'{"content":'
    usage: Usage | None = None
    before_text = first
    async for event in events:
        if isinstance(event, TextDelta):
            further = b"," + orjson.dumps(event.extra)[1:-1] if event.extra else b""
            yield before_text + orjson.dumps(event.text) + further + closing
            before_text = later
        else:
            usage = event.usage
            yield sse(opening + b'{},"logprobs":null,"finish_reason":' + orjson.dumps(event.reason) + b"}]}")
    if include_usage:
        yield sse(constant + b',"choices":[],"usage":' + orjson.dumps(usage_object(usage)) + b"}")
    yield DONE


def chat_completion(generation: Generation, stamp: Stamp) -> JSON:
    """OpenAI's `chat.completion`."""
    return {
        "id": f"chatcmpl-{stamp.id}",
        "object": "chat.completion",
        "created": stamp.created,
        "model": stamp.model,
        "choices": [chat_choice(generation)],
        "usage": usage_object(generation.usage),
    }


def chat_choice(generation: Generation) -> JSON:
    """One choice of a `chat.completion`."""
    message = {"role": "assistant", "content": generation.text}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": generation.reason}


def usage_object(usage: Usage | None) -> JSON:
    """OpenAI's `usage`; null where the model server does not count."""
    return usage and {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
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
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}
