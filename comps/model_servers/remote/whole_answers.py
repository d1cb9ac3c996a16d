"""Parses whole answers, in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from comps.core.answers import Collector, broken_off
from comps.core.beside import LONG, beside
from comps.core.deltas import join_extra
from comps.core.errors import ModelServerError
from comps.core.finish_reasons import finish_reason
from comps.core.tool_calls import ToolCalls
from comps.core.types import Generation, Usage
from comps.model_servers.remote.chunks import (
    ChunkReader,
    count,
    objects,
    parse_chunk,
    raise_reported,
    said_in,
    usage_of,
)
from comps.model_servers.remote.exchange import Exchange
from comps.model_servers.remote.parsing import parsed_in_pieces
from comps.model_servers.remote.sse import BLANK, STREAMS, is_done, media_type, parser_for


async def whole_answer(response: Exchange) -> Generation:
    """Parses the response to a request without `stream`; some servers stream it all the same.

    Raises:
        LLMError: The response contains an error.
        ModelServerError: The response is no completion, or a choice has no finish reason.
    """
    body = response.body
    if len(body) > LONG:
        return await beside(_whole_answer, body, response.headers)
    return _whole_answer(body, response.headers)


def _whole_answer(body: bytes, headers: Mapping[bytes, bytes]) -> Generation:
    try:
        completion = orjson.loads(body) if len(body) <= LONG else parsed_in_pieces(body)
    except (ValueError, RecursionError):
        completion = None
    if type(completion) is dict:
        return generation_of(completion)
    kind = media_type(headers)
    parser = parser_for(b"application/json" if kind not in STREAMS else kind, body.lstrip(BLANK))
    if parser is None:
        return generation_of(parse_chunk(body))
    collector = Collector()
    reader = ChunkReader(collector)

    def read(data: bytes, name: bytes) -> None:
        if not is_done(data):
            reader.event(data, name)

    stream = parser(read)
    stream.feed(body)
    stream.close()
    reader.close()
    return collector.generation()


def generation_of(completion: dict[str, Any]) -> Generation:
    """Parses a `chat.completion` or a `text_completion`; errors are those of `whole_answer`."""
    if "choices" not in completion or completion.get("error"):
        raise_reported(completion)
    usage = usage_of(completion["usage"]) if completion.get("usage") else None
    choices = objects(completion.get("choices"), "choices")
    if not choices:
        raise ModelServerError("the model server's answer has no text")
    if len(choices) == 1:
        return _whole_choice(choices[0], usage)
    numbered = [(count(choice, "index") or 0, choice) for choice in choices]
    first, *further = (_whole_choice(choice, usage) for _, choice in sorted(numbered, key=lambda one: one[0]))
    return replace(first, further=tuple(further))


def _whole_choice(choice: dict[str, Any], usage: Usage | None) -> Generation:
    text, said = said_in(choice.get("message") or choice.get("text"), choice)
    extra = {name: value for name, value in said.items() if value not in ([], {})}
    if "tool_calls" in extra:
        extra = join_extra({}, {**extra, "tool_calls": ToolCalls().numbered(extra["tool_calls"])})
    if not choice.get("finish_reason"):
        raise broken_off()
    reason = finish_reason(choice["finish_reason"])
    stop = choice.get("stop_reason") or choice.get("matched_stop")
    return Generation(text, reason, usage, extra or None, stop_string=stop if type(stop) is str else None)
