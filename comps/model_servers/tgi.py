"""Text Generation Inference, over its Messages API, which knows no top_k, typical_p or repetition_penalty."""

from __future__ import annotations

from comps.core.types import JSON, Sampling
from comps.model_servers.openai_api import OpenAIAPI


class TGI(OpenAIAPI):
    """https://huggingface.co/docs/text-generation-inference/messages_api"""

    def _sampling(self, sampling: Sampling) -> dict[str, JSON]:
        """TGI refuses a temperature of 0 and a top_p of 1, which both stand for what it does without them."""
        fields = super()._sampling(sampling)
        return {
            name: value for name, value in fields.items() if (name, value) not in (("temperature", 0), ("top_p", 1))
        }
