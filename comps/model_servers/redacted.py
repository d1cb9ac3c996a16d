"""A model server whose errors show neither its keys and addresses nor the prompt, and are counted."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from comps.core.beside import beside
from comps.core.errors import LLMError
from comps.core.ports import ABILITIES, Answer, ModelServer
from comps.core.redaction import Redactor, is_long, without_keys
from comps.core.request_id import REQUEST_ID
from comps.core.tallies import MODEL_SERVER_ERRORS, class_of
from comps.core.types import JSON, ModelInfo, Prompt, Sampling

log = logging.getLogger("opea_llm")

_ASKS = ("complete", "embed")
"""The abilities that ask the model, besides `generate`."""


class Redacted:
    """A model server whose errors are redacted before anything else sees them. It has its optional abilities.

    Args:
        server: The model server.
        redactor: Knows its keys and addresses.
        logs_prompts: Whether each prompt is written to the log, with what looks like a key redacted.
        model: The name of its model, for the metrics.
    """

    def __init__(self, server: ModelServer, redactor: Redactor, *, logs_prompts: bool = False, model: str = "") -> None:
        self._server = server
        self._model = model
        self._redactor = redactor
        self._logs_prompts = logs_prompts
        for ability in ABILITIES:
            if method := getattr(server, ability, None):
                setattr(self, ability, self._redacted(method, ability))

    def _redacted(self, method: Callable[..., Awaitable[Any]], ability: str) -> Callable[..., Awaitable[Any]]:
        asks, logs_prompt = ability in _ASKS, ability == "complete" and self._logs_prompts

        async def call(*arguments: Any) -> Any:
            if logs_prompt:
                _log_prompt(arguments[0])
            try:
                return await method(*arguments)
            except LLMError as error:
                await self._redact(error, arguments)
                if asks:
                    MODEL_SERVER_ERRORS[self._model, class_of(error)] += 1
                raise

        return call

    async def _redact(self, error: LLMError, asked: Sequence[object]) -> None:
        """Redact an error; beside the event loop if much was asked, since all of it is searched for quotes."""
        if is_long(asked):
            await beside(self._redactor.redact, error, *asked)
        else:
            self._redactor.redact(error, *asked)

    async def describe(self) -> ModelInfo:
        try:
            return await self._server.describe()
        except LLMError as error:
            self._redactor.redact(error)
            raise

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        if self._logs_prompts:
            _log_prompt(prompt)
        try:
            await self._server.generate(prompt, sampling, options, answer)
        except LLMError as error:
            await self._redact(error, (prompt, sampling, options))
            MODEL_SERVER_ERRORS[self._model, class_of(error)] += 1
            raise

    async def aclose(self) -> None:
        await self._server.aclose()


def _log_prompt(prompt: Prompt) -> None:
    asked = prompt if isinstance(prompt, str) else [{"role": one.role, "content": one.content} for one in prompt]
    log.info("prompt id=%s: %s", REQUEST_ID.get() or "-", without_keys(json.dumps(asked, ensure_ascii=False)))
