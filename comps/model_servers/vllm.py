"""vLLM: OpenAI's API, the sampling fields that it adds to it, and its tokenizer."""

from __future__ import annotations

from comps.model_servers.http import sensible
from comps.model_servers.openai_api import OpenAIAPI


class VLLM(OpenAIAPI):
    """https://docs.vllm.ai/en/stable/serving/openai_compatible_server.html"""

    honoured = OpenAIAPI.honoured | {"top_k", "repetition_penalty"}

    async def count_tokens(self, text: str) -> int:
        body = {"model": self._model_name, "prompt": text, "add_special_tokens": False}
        with sensible():
            return int((await self.http.post("/tokenize", body))["count"])
