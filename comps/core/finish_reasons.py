"""Finish reasons: why an answer ended, in OpenAI's words.

https://platform.openai.com/docs/api-reference/chat/object
"""

from __future__ import annotations

import re

from comps.core.errors import BrokenOff

_WORDS = {
    "stop": (
        *("end_turn", "stop_sequence", "pause_turn", "complete", "completed", "finish"),
        *("eos_token", "eos", "end_of_text", "word", "done", "finished", "end"),
    ),
    "length": (
        *("max_tokens", "max_token", "max_output_tokens", "max_length", "model_length", "token_limit", "limit"),
        *("model_context_window_exceeded", "context_length_exceeded", "error_limit"),
    ),
    "tool_calls": ("tool_use", "tool_call"),
    "content_filter": (
        *("content_filtered", "safety", "image_safety", "recitation", "image_recitation", "language", "blocklist"),
        *("prohibited_content", "image_prohibited_content", "spii", "model_armor", "refusal", "error_toxic"),
        *("guardrail_intervened", "sensitive", "image_other"),
    ),
}
"""The words of Anthropic, Cohere, Google, Mistral, Amazon, TGI, llama.cpp and others, by OpenAI's word."""
_FAILED = frozenset(
    (
        *("abort", "aborted", "cancelled", "canceled", "error", "failed", "internal_error", "network_error"),
        *("insufficient_system_resource", "timeout"),
    )
)
"""The words of vLLM, SGLang, OpenRouter, Z.ai, DeepSeek and Cohere for an answer that the server did not complete."""
_REASONS = {theirs: ours for ours, words in _WORDS.items() for theirs in words}
_PREFIX = re.compile(r"^(finish|stop)_?reason[_.]")
_CAPITAL = re.compile("(?<=[a-z])(?=[A-Z])")
_WORD = re.compile("[a-z_]{1,40}")


def finish_reason(said: object) -> str:
    """Returns OpenAI's word for a finish reason: `stop`, `length`, `tool_calls` or `content_filter`.

    Another word is returned in lower case, and `unknown` for what is no word.

    Raises:
        BrokenOff: The word says that the server did not complete the answer.
    """
    if not isinstance(said, str):
        return "unknown"
    if said in ("stop", "length", "tool_calls"):
        return said
    word = _CAPITAL.sub("_", said.strip()).lower().replace("-", "_").replace(" ", "_")
    word = _PREFIX.sub("", word)
    if word in _FAILED:
        raise BrokenOff(f"the model server broke off in the middle of the answer: {word}")
    return _REASONS.get(word, word) if _WORD.fullmatch(word) else "unknown"
