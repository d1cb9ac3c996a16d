"""vLLM: OpenAI's API with additional sampling parameters, and the tokenizer endpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comps.core.beside import beside_if_long
from comps.core.errors import ModelServerError
from comps.core.types import JSON, Message, Prompt, Sampling, Token
from comps.model_servers.chat_templates.token_strings import ends_of
from comps.model_servers.remote.failures import checked_answer
from comps.model_servers.remote.openai_api import OPENAI_OPTIONS, OpenAIAPI, wire_message

VLLM_OPTIONS = frozenset(
    (
        "add_generation_prompt",
        "add_special_tokens",
        "allowed_token_ids",
        "bad_words",
        "cache_salt",
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "ignore_eos",
        "include_reasoning",
        "include_stop_str_in_output",
        "length_penalty",
        "logprob_token_ids",
        "media_io_kwargs",
        "min_p",
        "min_tokens",
        "mm_processor_kwargs",
        "priority",
        "prompt_token_ids",
        "repetition_detection",
        "return_tokens_as_token_ids",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop_token_ids",
        "structured_outputs",
        "thinking_token_budget",
        "truncate_prompt_tokens",
        "truncation_side",
        "use_beam_search",
        "vllm_xargs",
    )
)
"""vLLM's own options, without `prompt_logprobs`, which is not streamed, and `return_token_ids`, for which our answers
have no field. Source: vllm/entrypoints/openai/chat_completion/protocol.py."""
_UNKNOWN = frozenset(
    (
        "audio",
        "function_call",
        "functions",
        "metadata",
        "modalities",
        "moderation",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
        "web_search_options",
    )
)
"""The options of OpenAI that vLLM ignores."""
_MOST_SPECIAL = 2
"""The most special tokens in front of a text."""
_READ = ("tools", "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
"""The options that change the rendered prompt."""


class VLLM(OpenAIAPI):
    """https://docs.vllm.ai/en/stable/serving/openai_compatible_server.html"""

    stops_whole = True
    honoured = OpenAIAPI.honoured | {"top_k", "repetition_penalty"}
    options = (OPENAI_OPTIONS - _UNKNOWN) | VLLM_OPTIONS

    def asking(
        self, asked: Mapping[str, JSON], sampling: Sampling, options: Mapping[str, JSON]
    ) -> tuple[str, dict[str, JSON]]:
        ids = options.get("prompt_token_ids")
        if ids is None:
            return super().asking(asked, sampling, options)
        others = {name: value for name, value in options.items() if name != "prompt_token_ids"}
        return super().asking({**asked, "prompt": ids}, sampling, others)

    async def count_tokens(self, text: str) -> int:
        return await self._count({"prompt": text, "add_special_tokens": False})

    async def token_ends(self, text: str) -> Sequence[int]:
        asked = {"prompt": text, "add_special_tokens": False, "return_token_strs": True}
        with checked_answer():
            strings = (await self._tokenizer("/tokenize", asked))["token_strs"]
            ends = ends_of(strings, text)
        if ends is None:
            raise ModelServerError("its tokens are not spelled in a way that is known here")
        return ends

    async def tokenize(self, text: str) -> Sequence[Token]:
        """See `Tokenizes`."""
        with checked_answer():
            answer = await self._tokenizer("/tokenize", {"prompt": text, "return_token_strs": True})
            return await beside_if_long(text, _tokens_in, answer, text)

    async def count_prompt(self, prompt: Prompt, options: Mapping[str, JSON]) -> int:
        return await self._count({"prompt": prompt} if isinstance(prompt, str) else _chat(prompt, options))

    async def render(self, prompt: Prompt, options: Mapping[str, JSON]) -> str:
        """Returns the rendered prompt, detokenized from the tokens of the chat template; see `Renders`."""
        if isinstance(prompt, str):
            return prompt
        with checked_answer():
            tokens = (await self._tokenizer("/tokenize", _chat(prompt, options)))["tokens"]
            return str((await self._tokenizer("/detokenize", {"tokens": tokens}))["prompt"])

    async def _count(self, asked: dict[str, JSON]) -> int:
        with checked_answer():
            return int((await self._tokenizer("/tokenize", asked))["count"])

    async def _tokenizer(self, route: str, asked: dict[str, JSON]) -> Any:
        return await self.http.post(route, {"model": self.model_name, **asked})


def _tokens_in(answer: Mapping[str, Any], text: str) -> list[Token]:
    """Returns the tokens of a text, with their ends if they are spelled in a way that is known here."""
    ids, strings = answer["tokens"], answer.get("token_strs") or []
    found = (ends_of(strings[special:], text) for special in range(min(len(strings), _MOST_SPECIAL) + 1))
    ends = next((one for one in found if one is not None), [None] * len(ids))
    return [Token(int(id), end) for id, end in zip(ids, [0] * (len(ids) - len(ends)) + ends, strict=True)]


def _chat(messages: Sequence[Message], options: Mapping[str, JSON]) -> dict[str, JSON]:
    """Returns the body of a conversation for the tokenizer endpoints."""
    read = {name: options[name] for name in _READ if name in options}
    if "documents" in options:  # Unlike /v1/chat/completions, these endpoints have no field `documents`.
        arguments = read.get("chat_template_kwargs") or {}
        read["chat_template_kwargs"] = {**arguments, "documents": options["documents"]}
    return {"messages": [wire_message(message) for message in messages], **read}
