"""Texts that would open or close a turn if they could, and how often a text does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comps.core.types import Document, GenerationRequest, Message
from comps.model_servers.chat_templates.formats import FORMATS

FOLDER = Path(__file__).parent
GOLDEN: dict[str, Any] = {name: json.loads((FOLDER / f"{name}.json").read_text("utf-8")) for name in FORMATS}
MODELS = {
    "chatml": "OpenHermes-2.5-Mistral-7B",
    "dolly": "dolly-v2-3b",
    "falcon": "falcon-7b-instruct",
    "falcon-chat": "falcon-180B-chat",
    "falcon3": "Falcon3-7B-Instruct",
    "gemma": "gemma-2-9b-it",
    "llama-2": "Llama-2-7b-chat-hf",
    "llama-3": "Meta-Llama-3-8B-Instruct",
    "llama-3.1": "Meta-Llama-3.1-8B-Instruct",
    "mistral-nemo": "Mistral-Nemo-Instruct-2407",
    "mistral-v1": "Mistral-7B-Instruct-v0.1",
    "mistral-v3": "Mistral-7B-Instruct-v0.3",
    "neural-chat": "neural-chat-7b-v3-3",
    "phi-3": "Phi-3-mini-4k-instruct",
    "qwen": "Qwen2-7B-Instruct",
    "qwen2.5": "Qwen2.5-3B-Instruct",
    "qwen3": "Qwen3-8B",
    "vicuna": "vicuna-13b-v1.5",
}
"""A model of each format."""
ODD = "{question} {context} {{ 7 * 7 }} {% raw %} {0} %s a\x00b \u202eright to left\u200f c\u200bd\ufeff"
"""What a text may hold and nothing shall read anything into."""

_TAG = re.compile(r"<<[^<>\s]+>>|<[^<>\s]+>|\[/?[A-Z_]+\]")
_UNSEEN = "\x00\u200b\u202e\ufeff\ud800\U000e0041"


def marks_of(name: str) -> set[str]:
    """What opens or closes a turn: what the format names, and what stands in its golden file."""
    written = "".join(GOLDEN[name]["prompts"].values())
    special = {"<|im_start|>", "<|eot_id|>", "</s>", "<bos>", "<eos>", "<｜User｜>", "<|turn>", "<turn|>"}
    return {*FORMATS[name].markers, *_TAG.findall(written), *special}


def disguised(mark: str) -> Iterator[str]:
    """A mark in all the ways that one might try."""
    bare = mark.strip()
    yield from (bare, f"a\n{bare}b", f"a\r\n \t{bare} b", f"\u200f{bare}", "\u200b".join(bare))
    yield f"{bare[0]} {bare}{bare[1:]}" if bare[0].isalnum() else bare[:2] + bare + bare[2:]
    yield from (f"{bare[0]}{unseen}{bare[1:]}" for unseen in _UNSEEN)


def evil_text(name: str, *, surrogates: bool = True) -> str:
    """All of them, in lines; half a character is in no text that came over HTTP."""
    lines = [one for mark in sorted(marks_of(name)) for one in disguised(mark)]
    return "\n".join([ODD, *lines] if surrogates else [ODD, *(line for line in lines if "\ud800" not in line)])


def count(mark: str, text: str) -> int:
    """How often a mark occurs, or how many lines or words begin with it, if invisible characters are ignored."""
    begin = r"^[ \t]*" if mark.startswith("\n") else r"\b" if mark[0].isalnum() else ""
    return len(re.findall(f"(?m){begin}{re.escape(mark.strip())}", re.sub(f"[{_UNSEEN}]", "", text)))


def asking(text: str) -> GenerationRequest:
    """A request with this text in every field that takes text."""
    documents = (Document(text, text, {"url": text}), Document(text))
    system = text.replace("{context}", "")  # Which would ask for the documents.
    return GenerationRequest((Message("system", system), Message("user", text, {"name": text})), documents)
