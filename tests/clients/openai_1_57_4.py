"""OpenAI's SDK 1.57.4 against the service at the address given, in an environment of its own; prints what it got."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is Deep Learning?"}]

sdk = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
MODEL = sdk.models.list().data[0].id


def chat() -> Any:
    answer = sdk.chat.completions.create(model=MODEL, messages=MESSAGES)
    choice = answer.choices[0]
    return [choice.message.role, choice.message.content, choice.finish_reason, answer.usage and answer.usage.to_dict()]


def streamed_chat() -> Any:
    chunks = list(
        sdk.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, max_tokens=2, stream_options={"include_usage": True}
        )
    )
    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    usage = chunks[-1].usage
    return [pieces, ends, usage and usage.completion_tokens]


def completions() -> Any:
    answer = sdk.completions.create(model=MODEL, prompt=["One", "Two"])
    return [[choice.index, choice.text, choice.finish_reason] for choice in answer.choices]


def streamed_completion() -> Any:
    return [chunk.choices[0].text for chunk in sdk.completions.create(model=MODEL, prompt="One", stream=True)]


def embeddings() -> Any:
    # The SDK asks for base64 by itself, and turns it into numbers.
    answer = sdk.embeddings.create(model=MODEL, input=["a", "bcd"])
    floats = sdk.embeddings.create(model=MODEL, input="a", encoding_format="float")
    return [[item.embedding for item in answer.data], floats.data[0].embedding, answer.usage.prompt_tokens]


def models() -> Any:
    return [MODEL, sdk.models.retrieve(MODEL).id]


def errors() -> Any:
    said = {}
    wrong: dict[str, dict[str, Any]] = {
        "model": {"model": "no such model"},
        "temperature": {"temperature": -1},
        "messages": {"messages": []},
    }
    for name, fields in wrong.items():
        try:
            sdk.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, **fields})
        except openai.APIStatusError as error:
            said[name] = [type(error).__name__, error.status_code, error.type, error.param, error.code]
    return said


def broken_stream() -> Any:
    pieces = []
    try:
        for chunk in sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "break"}], stream=True
        ):
            pieces.append(chunk.choices[0].delta.content)
    except openai.APIError as error:
        return [pieces, error.message]
    return [pieces, None]


print(
    json.dumps(
        {
            one.__name__: one()
            for one in (
                *(chat, streamed_chat, completions, streamed_completion),
                *(embeddings, models, errors, broken_stream),
            )
        }
    )
)
