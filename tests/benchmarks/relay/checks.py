"""Whether an answer says what the fake model server said: the whole text, how it ended and what it used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from tests.benchmarks.relay import wire, words


class Wrong(Exception):
    """An answer is not the one that was asked for."""


@dataclass(frozen=True)
class Asked:
    """A question, and by which way it is answered."""

    text: str
    tokens: int
    stream: bool
    exact: bool
    """Every byte is the model server's own: the answer was only handed on."""
    tgi: bool = False
    """It went to TGI's own API, past the service."""

    @property
    def said(self) -> wire.Said:
        return wire.Said(words.answer(self.text, self.tokens), words.prompt_tokens(self.text))


def check(asked: Asked, body: bytes) -> None:
    """Compare an answer with what was asked for.

    Raises:
        Wrong: They differ.
    """
    said = asked.said
    if asked.exact:
        _same(body, _exact(asked, said))
    elif asked.stream:
        _check_stream(said, body)
    else:
        _check_whole(said, body)


def _exact(asked: Asked, said: wire.Said) -> bytes:
    if asked.tgi:
        return b"".join(wire.tgi_stream(said)) if asked.stream else wire.tgi_whole(said)
    return b"".join(wire.chat_stream(said, usage=True)) if asked.stream else wire.chat_whole(said)


def _check_stream(said: wire.Said, body: bytes) -> None:
    """OpenAI's chunks: the role, each token in an event of its own, the end, the usage."""
    events = body.split(b"\n\n")
    if events[-2:] != [b"data: [DONE]", b""]:
        raise Wrong(f"the stream ends with {events[-2:]!r}")
    pieces: list[str] = []
    reasons: list[str] = []
    usages: list[Any] = []
    identities = set()
    for event in events[:-2]:
        if not event.startswith(b"data: "):
            raise Wrong(f"no event with data: {event[:200]!r}")
        chunk = _read(event[6:], "chat.completion.chunk")
        identities.add((chunk["id"], chunk["created"], chunk["model"]))
        if usage := chunk.get("usage"):
            usages.append(usage)
        for choice in chunk["choices"]:
            text = _content(choice, "delta")
            if reasons and text:
                raise Wrong(f"{text!r} follows the end")
            pieces += [text] if text else []
            reasons += [choice["finish_reason"]] if choice.get("finish_reason") else []
    _same("".join(pieces).encode(), "".join(said.pieces).encode())
    if len(pieces) != len(said.pieces):
        raise Wrong(f"{len(said.pieces)} tokens came in {len(pieces)} events")
    if len(identities) != 1:
        raise Wrong(f"the events are of several answers: {identities}")
    _check_end(said, reasons, usages)


def _check_whole(said: wire.Said, body: bytes) -> None:
    document = _read(body, "chat.completion")
    _same(
        "".join(_content(choice, "message") for choice in document["choices"]).encode(), "".join(said.pieces).encode()
    )
    _check_end(said, [choice["finish_reason"] for choice in document["choices"]], [document["usage"]])


def _read(data: bytes, kind: str) -> Any:
    try:
        document = orjson.loads(data)
    except ValueError:
        raise Wrong(f"no JSON: {data[:200]!r}") from None
    if not isinstance(document, dict) or document.get("object") != kind:
        raise Wrong(f"not a {kind}: {data[:200]!r}")
    return document


def _content(choice: Any, where: str) -> str:
    """The text of a choice that has nothing else."""
    told = {name: value for name, value in choice[where].items() if value}
    if choice["index"] != 0 or told.keys() - {"role", "content"} or told.get("role", "assistant") != "assistant":
        raise Wrong(f"more than an answer's text: {choice!r}")
    text: str = told.get("content", "")
    return text


def _check_end(said: wire.Said, reasons: list[str], usages: list[Any]) -> None:
    if reasons != ["length"]:
        raise Wrong(f"it ended with {reasons}, not once with length")
    numbers = [{name: usage.get(name) for name in said.usage} for usage in usages]
    if numbers != [said.usage]:
        raise Wrong(f"the usage is {usages}, not {said.usage}")


def _same(got: bytes, wanted: bytes) -> None:
    """Say where two texts differ first."""
    if got == wanted:
        return
    length = min(len(got), len(wanted))
    place = next((place for place in range(length) if got[place] != wanted[place]), length)
    near = slice(max(place - 40, 0), place + 40)
    raise Wrong(f"at byte {place} of {len(wanted)}: {got[near]!r} in the place of {wanted[near]!r}")
