"""What bodies that ask for no text are answered with: embeddings, counts and tokens, and what is known of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from comps.core.beside import beside
from comps.core.counting import prompt_texts
from comps.core.errors import InvalidRequest
from comps.core.generator import TextGenerator
from comps.core.types import Embeddings, GenerationRequest, ModelInfo, Usage
from comps.dialects.shared.base import (
    Call,
    DescriptionCall,
    EmbeddingCall,
    PromptCountCall,
    PromptOnlyCall,
    PromptTokenizeCall,
    TokenCountCall,
    TokenizeCall,
)
from comps.exchange import Exchange
from comps.replies import metadata_of

OPERATIONS: dict[type[Call], str] = {
    EmbeddingCall: "embeddings",
    TokenCountCall: "count_tokens",
    TokenizeCall: "tokenize",
    PromptCountCall: "count_tokens",
    PromptTokenizeCall: "tokenize",
    DescriptionCall: "describe",
}
"""What metrics and traces call the work of a body that asks for no text, by its class."""
_MOST_TOKENIZED = 2_000_000
"""Characters of a text that is answered with its tokens: TGI's limit of a body, in bytes. The answer may have fifty
times as many, and to free millions of tokens holds the event loop."""
_MOST_AT_ONCE = 5_000
"""The most values of an answer that is encoded within the event loop: what takes some milliseconds."""


async def computed(call: Call, model: TextGenerator, info: ModelInfo, exchange: Exchange) -> tuple[Any, ...]:
    """Returns what a body that asks for no text is answered with: the arguments of its `reply`."""
    if isinstance(call, EmbeddingCall):
        embeddings = await model.embed(call.texts())
        if embeddings.prompt_tokens is not None:
            exchange.usage = Usage(embeddings.prompt_tokens, 0)
        return embeddings, metadata_of(info, exchange)
    if isinstance(call, TokenCountCall):
        return (await model.count_tokens(call.text()),)
    if isinstance(call, TokenizeCall):
        _check_length([call.text()], call)
        return (await model.tokenize(call.text()),)
    if isinstance(call, PromptOnlyCall):
        request = honoured(call.request(), info)
        request = replace(request, is_large=True) if call.is_large else request
        if isinstance(call, PromptTokenizeCall):
            _check_length(prompt_texts(request.prompt, {}), call)
            return await model.tokenize_prompt(request)
        return (await model.count_prompt(request),)
    assert isinstance(call, DescriptionCall)
    return (info,)


def _check_length(texts: Sequence[str], call: Call) -> None:
    if sum(map(len, texts)) > _MOST_TOKENIZED:
        raise InvalidRequest(f"it has more than {_MOST_TOKENIZED} characters", call.marker)


async def encoded_reply(call: Call, *found: Any) -> list[bytes]:
    """Returns the answer in pieces, of what `computed` returned; a long one is encoded beside the event loop."""
    assert isinstance(
        call, EmbeddingCall | TokenCountCall | TokenizeCall | PromptCountCall | PromptTokenizeCall | DescriptionCall
    )
    if not call.is_large and sum(map(_values_in, found)) <= _MOST_AT_ONCE:
        return [call.style.encode(call.reply(*found))]
    return await beside(lambda: call.style.encode_long(call.reply(*found)))


def _values_in(found: Any) -> int:
    """Returns how many numbers, tokens or characters a part of an answer has."""
    if isinstance(found, Embeddings):
        return sum(map(len, found.vectors))
    return len(found) if isinstance(found, Sequence) else 1


def honoured(request: GenerationRequest, info: ModelInfo) -> GenerationRequest:
    """Returns the request without the options that its model server does not support."""
    if request.options.keys() <= info.capabilities:
        return request
    return replace(request, options={name: one for name, one in request.options.items() if name in info.capabilities})
