"""What a client got of an answer whose model server misbehaved, and the check that nothing was lost without a word."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from tests.service import PATH, Service


@dataclass(frozen=True)
class Outcome:
    """What a client got.

    Args:
        status: The status of the response.
        text: The text of the answer, as far as it came.
        error: The message of the error, in a body or in an item of a stream; empty: none.
        ended: Whether the answer has its proper end: of a stream, a finish reason and `[DONE]`.
    """

    status: int
    text: str
    error: str
    ended: bool

    @property
    def brief(self) -> str:
        """For a table."""
        if self.ended and not self.error:
            return "the whole answer"
        return f"{'text, then an error item' if self.status == 200 else self.status}: {self.error}"


def body(model: str, streamed: bool, question: str = "?") -> dict[str, Any]:
    """A chat in OpenAI's form."""
    return {"model": model, "messages": [{"role": "user", "content": question}], "stream": streamed}


async def outcome(service: Service, model: str, streamed: bool, question: str = "?", path: str = PATH) -> Outcome:
    """Ask for an answer."""
    answer = await service.post(body(model, streamed, question), path)
    if answer.status != 200:
        assert set(answer.json) == {"error"}
        return Outcome(answer.status, "", answer.json["error"]["message"], False)
    if not streamed:
        choice = answer.json["choices"][0]
        return Outcome(200, choice["message"]["content"], "", choice["finish_reason"] == "stop")
    return of_stream(answer.body)


def of_stream(data: bytes) -> Outcome:
    """The outcome of a stream with the status 200, whose HTTP body had its proper end."""
    *events, rest = data.decode().split("\n\n")
    assert rest == ""
    items = [event.removeprefix("data: ") for event in events]
    is_done = items[-1] == "[DONE]"
    documents = [json.loads(item) for item in items if item != "[DONE]"]
    errors = [document["error"]["message"] for document in documents if "error" in document]
    choices = [choice for document in documents for choice in document.get("choices", ())]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    assert len(errors) + len(reasons) == 1, data  # Never both, and never none.
    assert not errors or "error" in documents[-1]
    return Outcome(200, text, "".join(errors), is_done and reasons == ["stop"])


async def both(service: Service, model: str) -> tuple[Outcome, Outcome]:
    """The outcomes of a streamed and of a whole answer, at the same time."""
    streamed, whole = await asyncio.gather(outcome(service, model, True), outcome(service, model, False))
    return streamed, whole


def check(got: Outcome, tokens: list[str]) -> None:
    """The text is the whole answer, or its beginning, and an error says so. Nothing is doubled or reordered."""
    if got.error:
        assert not got.ended
        assert "".join(tokens).startswith(got.text), got
        assert any("".join(tokens[:number]) == got.text for number in range(len(tokens) + 1)), got
    else:
        assert got.ended, got
        assert got.text == "".join(tokens)
