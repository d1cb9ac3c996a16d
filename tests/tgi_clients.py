"""What tests with TGI's clients have in common, before a stand-in and before our own service."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import AsyncInferenceClient

OLD_PYDANTIC = pytest.mark.filterwarnings("ignore:The `dict` method is deprecated")
"""For text_generation, the client in TGI's own repository."""


async def read(client: AsyncInferenceClient, prompt: str, stream: bool, parameters: Any) -> None:
    """Read an answer to its end."""
    answer: Any = await client.text_generation(prompt, stream=stream, **parameters)
    if stream:
        async for _ in answer:
            pass
