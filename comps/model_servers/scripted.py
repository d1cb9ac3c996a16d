"""Plays back what it is given: for demonstrations, tests and trying a client out; it has no model."""

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
"""One answer: pieces of text (a token each), errors to raise, and events to wait for, in order."""

_DEMO: tuple[Script, ...] = (("This", " answer", " was", " written", " beforehand", "."),)


class Scripted:
    """A model server whose answers are written beforehand.

    It counts a word of the prompt and a piece of the answer as a token each, ends at `max_tokens` with `length` and
    before a stop string with `stop`, as a real one does.

    Args:
        answers: Played one after the other, over and over.
        name: What it calls its model.
        context_window: In its own tokens.
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
        """Every call so far, as it came."""
        self.reached = asyncio.Event()
        """Set when an answer has been asked for."""
        self.closed = asyncio.Event()
        """Set when an answer was cancelled."""

    @classmethod
    def open(cls, target: Target) -> Scripted:
        """Answers from the file `target.endpoint`, a JSON list of answers, each a list of pieces; a demonstration
        without one."""
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
        answer.finished(Finished(reason, Usage(prompt_tokens, used)))

    async def aclose(self) -> None:
        """Nothing is held."""


def _is_script(answer: JSON) -> bool:
    return isinstance(answer, list) and all(isinstance(piece, str) for piece in answer)


def _words(prompt: Prompt) -> int:
    texts = [prompt] if isinstance(prompt, str) else [text_of(message.content) for message in prompt]
    return sum(len(text.split()) for text in texts)
