"""Every recorded stream of every real server, read by our client however its bytes are cut."""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from comps.core.answers import read
from comps.core.errors import LLMError, ModelServerError
from comps.core.types import Finished, Message, Prompt, Sampling, TextDelta, Usage
from comps.model_servers.remote.openai_api import OpenAIAPI
from tests.model_servers.replay import TRAFFIC, recorded, replaying

RECORDINGS = {f"{file.parent.name}/{file.stem}": file for file in sorted(TRAFFIC.glob("*/*.json"))}


def recording_in(file: Path) -> dict[str, Any]:
    recording: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return recording


def asks_for_a_stream(recording: dict[str, Any]) -> bool:
    asked = recording.get("request", {})
    return "completions" in asked.get("path", "") and "stream" in str(asked.get("body"))


STREAMS = [
    name
    for name, file in RECORDINGS.items()
    if asks_for_a_stream(recording_in(file)) and "event-stream" in recording_in(file)["headers"]["content-type"]
]
ERRORS = [name for name in RECORDINGS if "/err_" in name and recording_in(RECORDINGS[name])["status"] != 200]


@dataclass
class Told:
    """The content of an answer, from whichever parser."""

    text: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    arguments: str = ""
    """Of a function that is called."""
    tokens: list[str] = field(default_factory=list)
    """That logprobs are given for."""
    usage: Usage | None = None


def told_by_the_recording(body: str) -> Told:
    """A plain reading: whole events, each one line of JSON."""
    told = Told()
    for line in body.splitlines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        chunk = json.loads(line[6:])
        if usage := chunk.get("usage"):
            details = {name: said for name, said in usage.items() if isinstance(said, dict)}
            told.usage = Usage(usage["prompt_tokens"], usage["completion_tokens"], details)
        for choice in chunk.get("choices", ()):
            number, delta = choice["index"], choice.get("delta", {})
            told.text[number] = told.text.get(number, "") + (delta.get("content") or choice.get("text") or "")
            for call in delta.get("tool_calls") or ():
                told.arguments += call["function"].get("arguments") or ""
            told.tokens += [token["token"] for token in (choice.get("logprobs") or {}).get("content") or ()]
            if choice.get("finish_reason"):
                told.reasons[number] = choice["finish_reason"]
    return told


async def told_by_our_client(name: str, size: int | None) -> Told:
    server, case = name.split("/")
    path = recording_in(RECORDINGS[name])["request"]["path"]
    prompt: Prompt = (Message("user", "Hi"),) if "chat" in path else "Hi"
    told = Told()
    async with replaying({path: recorded(server, case, size)}) as replay:
        client = OpenAIAPI("m", replay.url)
        try:
            async with aclosing(read(client.generate, prompt, Sampling(), {})) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        told.reasons[event.choice], told.usage = event.reason, event.usage or told.usage
                    else:
                        add(told, event)
        finally:
            await client.aclose()
    return told


def add(told: Told, delta: TextDelta) -> None:
    extra = delta.extra or {}
    told.text[delta.choice] = told.text.get(delta.choice, "") + delta.text
    for call in extra.get("tool_calls") or ():
        told.arguments += call["function"].get("arguments") or ""
    told.tokens += [token["token"] for token in (extra.get("logprobs") or {}).get("content") or ()]


@pytest.mark.parametrize("size", [None, 1, 7])
@pytest.mark.parametrize("name", STREAMS)
async def test_a_recorded_stream_says_to_us_what_it_says(name: str, size: int | None) -> None:
    expected = told_by_the_recording(recording_in(RECORDINGS[name])["body_raw"])
    if expected.reasons:
        assert await told_by_our_client(name, size) == expected
    else:  # An error within the stream; of llama-cpp-python, for a prompt that is too long, not even that.
        with pytest.raises(ModelServerError):
            await told_by_our_client(name, size)


@pytest.mark.parametrize("name", ERRORS)
async def test_a_recorded_error_is_one_of_ours(name: str) -> None:
    with pytest.raises(LLMError):
        await told_by_our_client(name, None)


def test_there_are_recordings_of_streams_and_of_errors() -> None:
    assert {name.split("/")[0] for name in STREAMS} >= {"vllm", "llama_server", "transformers_serve", "ray_serve"}
    assert ERRORS
