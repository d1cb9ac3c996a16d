"""Ray Serve with an application that speaks OpenAI's API: Ray's own builder over vLLM, or ours over an engine."""

from __future__ import annotations

from comps.model_servers.openai_api import OpenAIAPI


class RayServe(OpenAIAPI):
    """https://docs.ray.io/en/latest/serve/llm/; both applications take vLLM's sampling fields besides OpenAI's."""

    honoured = OpenAIAPI.honoured | {"top_k", "repetition_penalty"}
