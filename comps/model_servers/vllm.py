"""vLLM: OpenAI's API, and the sampling fields that it adds to it."""

from __future__ import annotations

from comps.model_servers.openai_api import OpenAIAPI


class VLLM(OpenAIAPI):
    """https://docs.vllm.ai/en/stable/serving/openai_compatible_server.html"""

    honoured = OpenAIAPI.honoured | {"top_k", "repetition_penalty"}
