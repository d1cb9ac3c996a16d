"""The start of the models: all are loaded concurrently, and asked until each has answered once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from comps.core.errors import LLMError, for_operator
from comps.core.generator import TextGenerator
from comps.core.models import Models
from comps.core.types import ModelInfo
from comps.logs import log

_ASK_AGAIN_SECONDS = 3.0
"""Seconds after which a model server that did not answer at the start is asked again."""


async def load_all(
    models: Models,
    on_loaded: Callable[[LLMError | None], None] | None,
    on_state: Callable[[Mapping[str, LLMError]], None] | None,
) -> None:
    """Load all models; see `make_app` for `on_loaded` and `on_state`."""
    is_alone = len(list(models)) == 1
    failures = await asyncio.gather(*(_load(generator, is_alone) for generator in models))
    if on_loaded:
        on_loaded(failures[0] if all(failures) else None)
    if on_state and not all(failures):
        await _watch(dict(zip(models, failures, strict=True)), on_state)


async def _load(generator: TextGenerator, is_alone: bool) -> LLMError | None:
    """Load one model; returns the error if that fails, since the other models do not depend on it."""
    try:
        await generator.load()
    except LLMError as error:
        if not is_alone:  # Of a single model, the command prints it.
            log.error("the model %s cannot be loaded: %s", generator.model, for_operator(error))
        return error
    except Exception:  # A fault of ours: the log gets the details.
        log.exception("while loading the model %s", generator.model)
        return LLMError("the model could not be loaded; the log above has the reason")
    return None


async def _watch(
    failures: Mapping[TextGenerator, LLMError | None], on_state: Callable[[Mapping[str, LLMError]], None]
) -> None:
    """Ask the loaded models until each has answered once, and tell when the number of silent ones changes."""
    failed = {generator.model: error for generator, error in failures.items() if error}
    waiting = [generator for generator, error in failures.items() if not error]
    told: int | None = None
    while waiting:
        states = await asyncio.gather(*(state_of(generator) for generator in waiting))
        silent = {info.name: error for info, error in states if error}
        if len(silent) != told:
            on_state({**failed, **silent})
            told = len(silent)
        waiting = [generator for generator in waiting if generator.model in silent]
        if waiting:
            await asyncio.sleep(_ASK_AGAIN_SECONDS)


async def state_of(generator: TextGenerator) -> tuple[ModelInfo, LLMError | None]:
    """Returns the description of a model, and the error if it is not ready."""
    try:
        return await generator.describe(), None
    except LLMError as error:
        return ModelInfo(generator.model), error
