"""Ray Serve with an application that has OpenAI's API: Ray's own over vLLM, or ours over an embedded engine."""

from __future__ import annotations

from comps.model_servers.remote.openai_api import OpenAIAPI
from comps.model_servers.remote.vllm import VLLM


class RayServe(OpenAIAPI):
    """Client of Ray Serve. Both applications accept vLLM's options; ours reports which of them it supports.

    https://docs.ray.io/en/latest/serve/llm/
    """

    stops_whole = True
    honoured = VLLM.honoured
    options = VLLM.options
