"""Ray Serve with an application that speaks OpenAI's API: Ray's own builder over vLLM, or ours over an engine."""

from __future__ import annotations

from comps.model_servers.remote.openai_api import OpenAIAPI
from comps.model_servers.remote.vllm import VLLM


class RayServe(OpenAIAPI):
    """https://docs.ray.io/en/latest/serve/llm/; both applications take vLLM's fields besides OpenAI's, and ours says
    which of them come to something."""

    honoured = VLLM.honoured
    options = VLLM.options
