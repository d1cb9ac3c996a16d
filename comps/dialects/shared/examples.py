"""What the examples of several dialects have in common."""

from __future__ import annotations

FACT = "Intel Gaudi 2 has 96 GB of HBM2E memory on board."
OTHER_FACT = "Deep learning is a part of machine learning."
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
"""A function, in OpenAI's form."""
