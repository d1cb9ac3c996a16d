"""Scripted model server: plays back prepared answers, for tests, demonstrations and client development."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TypeAlias

from comps.core.errors import LLMError, SettingsError
from comps.core.ports import Answer
from comps.core.prompts import text_of
from comps.core.stop_strings import StopStrings
from comps.core.types import JSON, Finished, ModelInfo, Prompt, Sampling, Usage
from comps.model_servers.target import Target

Script: TypeAlias = Sequence[str | LLMError | asyncio.Event]
"""One answer, in order: pieces of text (one token each), errors to raise, and events to wait for."""

_DEMO: tuple[Script, ...] = (("This", " answer", " was", " written", " beforehand", "."),)


class Scripted:
    """Model server with prepared answers.

    Tokens are the words of the prompt and the pieces of the answer. The finish reason is `length` at `max_tokens`, and
    otherwise `stop`; stop strings end an answer.

    Args:
        answers: The answers, played in turn and repeated.
        name: The name of the model.
        context_window: The context window, in tokens.
        delay: Seconds before each piece.
    """

    def __init__(
        self,
        answers: Sequence[Script] = _DEMO,
        *,
        name: str = "scripted",
        context_window: int | None = None,
        delay: float = 0.0,
    ) -> None:
        self._answers = answers
        self._turn = count()
        self._info = ModelInfo(name, context_window, frozenset({"max_tokens", "stop"}))
        self._delay = delay
        self.asked: list[tuple[Prompt, Sampling, Mapping[str, JSON]]] = []
        """The arguments of all calls so far."""
        self.reached = asyncio.Event()
        """Set at the first call."""
        self.closed = asyncio.Event()
        """Set when an answer is cancelled."""

    @classmethod
    def open(cls, target: Target) -> Scripted:
        """Returns a server with the answers in the file `target.endpoint`, or with an example answer if that is empty.

        The file is a JSON list of answers, each a list of strings.

        Raises:
            SettingsError: The file cannot be read, or has another form.
        """
        if not target.endpoint:
            return cls(name=target.model_name, context_window=target.context_window)
        try:
            answers = json.loads(Path(target.endpoint).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise SettingsError(f"model_server_endpoint = {target.endpoint}: not a file of answers: {error}") from None
        if not (isinstance(answers, list) and answers and all(_is_script(answer) for answer in answers)):
            raise SettingsError(f"model_server_endpoint = {target.endpoint}: not a JSON list of lists of strings")
        return cls(answers, name=target.model_name, context_window=target.context_window)

    async def describe(self) -> ModelInfo:
        return self._info

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        self.asked.append((prompt, sampling, options))
        self.reached.set()
        script = self._answers[next(self._turn) % len(self._answers)]
        try:
            await self._play(script, _words(prompt), sampling, answer)
        except asyncio.CancelledError:
            self.closed.set()
            raise

    async def _play(self, script: Script, prompt_tokens: int, sampling: Sampling, answer: Answer) -> None:
        stops, used, reason = StopStrings(sampling.stop), 0, "stop"
        for item in script:
            if isinstance(item, LLMError):
                raise item
            if isinstance(item, asyncio.Event):
                await item.wait()
                continue
            if used == sampling.max_tokens:
                reason = "length"
                break
            await asyncio.sleep(self._delay)
            await answer.drain()
            used += 1
            if text := stops.push(item):
                answer.text(text)
            if stops.hit:
                break
        if text := stops.flush():
            answer.text(text)
        answer.finished(Finished(reason, Usage(prompt_tokens, used), stop_string=stops.found))

    async def aclose(self) -> None:
        """There are no resources to release."""


def _is_script(answer: JSON) -> bool:
    return isinstance(answer, list) and all(isinstance(piece, str) for piece in answer)


def _words(prompt: Prompt) -> int:
    texts = [prompt] if isinstance(prompt, str) else [text_of(message.content) for message in prompt]
    return sum(len(text.split()) for text in texts)
