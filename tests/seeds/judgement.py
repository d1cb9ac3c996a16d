"""Whether an answer is text at all: nothing is said about whether it is right.

An answer is *empty* without a letter or a digit, and *garbage* with a marker of a chat template, or if one word is more
than half of it.
"""

from __future__ import annotations

import json
import re
from ast import literal_eval
from collections import Counter
from collections.abc import Iterator
from typing import Any

_WORD = re.compile(r"[^\W_]+")
_MARKER = re.compile(r"<[|｜][^<>\s]+[|｜]>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|\ufffd")
_MANY = 8
"""Words of which one may be more than half in a short answer, such as `No, no, no.`"""


def fault(text: str) -> str | None:
    """What is wrong with an answer of a model's; None: nothing."""
    words = _WORD.findall(text.casefold())
    if not words:
        return "empty"
    if marker := _MARKER.search(text):
        return f"garbage: {marker[0]}"
    word, times = Counter(words).most_common(1)[0]
    if len(words) >= _MANY and times > len(words) / 2:
        return f"garbage: {word} {times} times in {len(words)} words"
    return None


def faults(path: str, sent: Any, answer: bytes) -> list[str]:
    """What is wrong with the texts of an answer, in any of the services' forms; of several texts, with their numbers.

    Args:
        path: Where it was asked.
        sent: The body that asked.
        answer: The body that answered, of status 200.
    """
    texts = list(answer_texts(path, sent, answer))
    found = [(number, fault(text)) for number, text in enumerate(texts, 1)]
    return [f"{why} (text {number})" if len(texts) > 1 else why for number, why in found if why]


def answer_texts(path: str, sent: Any, answer: bytes) -> Iterator[str]:
    """The texts that a model wrote in an answer; none if it is no text's, such as a vector or a preview."""
    if path.endswith("/worker_generate_stream"):
        yield json.loads(answer.split(b"\0")[-2])["text"]
    elif path.endswith("/agenerate"):
        events = answer.decode().replace("\r\n", "\n").split("\n\n")
        yield "".join("\n".join(_data(event)) for event in events)
    elif answer.startswith((b"data:", b":")):
        yield "".join(_piece(data) for data in _data(answer.decode()))
    elif path not in WITHOUT_TEXT:
        yield from _whole(sent, json.loads(answer))


WITHOUT_TEXT = ("/", "/healthz", "/check", "/shutdown", "/embeddings", "/v1/health_check", "/v1/prompt")


def _data(events: str) -> list[str]:
    """The data of server-sent events, line by line."""
    return [line[5:].removeprefix(" ") for line in events.split("\n") if line.startswith("data:")]


def _piece(data: str) -> str:
    """The text of one of OPEA's events, or of OpenAI's."""
    if data == "[DONE]":
        return ""
    if data.startswith("{"):
        return "".join((one.get("delta") or {}).get("content") or "" for one in json.loads(data)["choices"])
    literal = literal_eval(data)
    return literal.decode() if isinstance(literal, bytes) else str(literal)


def _whole(sent: Any, answer: Any) -> Iterator[str]:
    match answer:
        case str():  # llm-api
            yield answer
        case {"text": text} | {"choices": [{"message": {"content": text}}]}:  # OPEA, SQuARE; OpenAI
            yield text
        case {"Result": text}:  # KAITO's other models
            yield text.removeprefix(sent.get("prompt", ""))
        case {"content": blocks}:  # Anthropic
            yield "".join(block["text"] for block in blocks)
        case {"results": results}:  # Llama: prompts, or dialogs with the answer as the last turn
            yield from (one["response"] if "response" in one else one[-1]["content"] for one in results)
        case _:
            raise ValueError(f"no known answer: {answer}")
