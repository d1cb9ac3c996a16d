"""The bytes of vLLM's and TGI's answers, made of tokens; nothing here is sent.

`tests/model_servers/traffic/vllm` has what a real vLLM 0.32 sent; TGI's are those of its router's schema.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

STREAM = b"text/event-stream; charset=utf-8"
JSON = b"application/json"
DONE = b"data: [DONE]\n\n"
WINDOW = 8192
"""The context window in tokens."""


@dataclass(frozen=True)
class Said:
    """An answer, with all that is written around it."""

    pieces: tuple[str, ...]
    prompt_tokens: int
    identity: str = "chatcmpl-0123456789abcdef"
    created: int = 1795258320
    model: str = "m"
    fingerprint: str = "vllm-0.32.0-035f425c"

    @property
    def usage(self) -> dict[str, int]:
        told = len(self.pieces)
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + told,
            "completion_tokens": told,
        }


def dumped(document: Any) -> bytes:
    """JSON as both servers write it: dense, and in UTF-8."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def event(document: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + dumped(document) + b"\n\n"


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def chat_stream(said: Said, usage: bool) -> list[bytes]:
    """vLLM's events for a chat: the role, each token, the usage if it was asked for, and the end."""
    head = _stamp(said, "chat.completion.chunk")
    mark = {"system_fingerprint": said.fingerprint}
    first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    events = [event({**head, "choices": [first], "prompt_token_ids": None, "prompt_text": None})]
    for place, piece in enumerate(said.pieces, 1):
        last = place == len(said.pieces)
        ending = {"finish_reason": "length", "stop_reason": None} if last else {"finish_reason": None}
        choice = {"index": 0, "delta": {"content": piece}, "logprobs": None, **ending, "token_ids": None}
        events.append(event({**head, "choices": [choice], **(mark if last and not usage else {})}))
    return [*events, *_end(said, head, usage)]


def completion_stream(said: Said, usage: bool) -> list[bytes]:
    """vLLM's events for a text to continue."""
    head = _stamp(said, "text_completion")
    events = []
    for place, piece in enumerate(said.pieces, 1):
        last = place == len(said.pieces)
        choice = {
            "index": 0,
            "text": piece,
            "logprobs": None,
            "finish_reason": "length" if last else None,
            "stop_reason": None,
            "prompt_token_ids": None,
            "token_ids": None,
        }
        end = {"system_fingerprint": said.fingerprint} if last and not usage else {}
        events.append(event({**head, "choices": [choice], **end}))
    return [*events, *_end(said, head, usage)]


def _stamp(said: Said, kind: str) -> dict[str, Any]:
    return {"id": said.identity, "object": kind, "created": said.created, "model": said.model}


def _end(said: Said, head: dict[str, Any], usage: bool) -> list[bytes]:
    if not usage:
        return [DONE]
    return [event({**head, "choices": [], "usage": said.usage, "system_fingerprint": said.fingerprint}), DONE]


def chat_whole(said: Said) -> bytes:
    """vLLM's whole answer to a chat."""
    message: dict[str, Any] = {"role": "assistant", "content": "".join(said.pieces)}
    message |= dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
        "token_ids": None,
        "routed_experts": None,
    }
    last = ("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params", "metrics")
    return dumped(_whole(said, "chat.completion", choice) | dict.fromkeys(last))


def completion_whole(said: Said) -> bytes:
    """vLLM's whole continuation of a text."""
    choice = {
        "index": 0,
        "text": "".join(said.pieces),
        "logprobs": None,
        "finish_reason": "length",
        **dict.fromkeys(("stop_reason", "token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts")),
    }
    last = ("kv_transfer_params", "ec_transfer_params", "metrics")
    return dumped(_whole(said, "text_completion", choice) | dict.fromkeys(last))


def _whole(said: Said, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {
        **_stamp(said, kind),
        "choices": [choice],
        "service_tier": None,
        "system_fingerprint": said.fingerprint,
        "usage": {**said.usage, "prompt_tokens_details": None, "completion_tokens_details": None},
    }


def tgi_stream(said: Said) -> list[bytes]:
    """TGI's events for `/generate_stream`: each token, the last with the whole text and how it ended."""
    events = []
    for place, piece in enumerate(said.pieces, 1):
        token = {"id": place, "text": piece, "logprob": -0.34, "special": False}
        document: dict[str, Any] = {"index": place, "token": token, "generated_text": None, "details": None}
        if place == len(said.pieces):
            details = {"finish_reason": "length", "generated_tokens": place, "seed": None}
            document["generated_text"] = "".join(said.pieces)
            document["details"] = {**details, "input_length": said.prompt_tokens}
        events.append(event(document))
    return events


def tgi_whole(said: Said, prompt: bool = False) -> bytes:
    """TGI's answer to `/generate` with `details`; those of the prompt are there if they are asked for."""
    tokens = [
        {"id": place, "text": piece, "logprob": -0.34, "special": False} for place, piece in enumerate(said.pieces, 1)
    ]
    read = [{"id": place, "text": "", "logprob": None} for place in range(said.prompt_tokens if prompt else 0)]
    details = {"finish_reason": "length", "generated_tokens": len(tokens), "seed": None}
    return dumped({"generated_text": "".join(said.pieces), "details": {**details, "prefill": read, "tokens": tokens}})


def models(model: str) -> bytes:
    """vLLM's list of its one model."""
    one = {"id": model, "object": "model", "created": 1795258320, "owned_by": "vllm", "root": model, "parent": None}
    return dumped({"object": "list", "data": [{**one, "max_model_len": WINDOW, "permission": []}]})


def tgi_info(model: str) -> bytes:
    """What TGI says of itself."""
    return dumped(
        {
            "model_id": model,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": 4096,
            "max_best_of": 2,
            "max_stop_sequences": 4,
            "max_input_tokens": WINDOW - 1,
            "max_total_tokens": WINDOW,
            "validation_workers": 2,
            "max_client_batch_size": 4,
            "router": "text-generation-router",
            "version": "3.3.6-dev0",
            "sha": None,
            "docker_label": None,
        }
    )
