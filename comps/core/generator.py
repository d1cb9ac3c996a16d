"""The way of a request through the core: request to prompt to events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from comps.core.errors import LLMError, ModelServerError, UnknownModel
from comps.core.ports import Loads, ModelServer
from comps.core.prompts import build_prompt
from comps.core.types import Event, Finished, Generation, GenerationRequest, ModelInfo, TextDelta


class TextGenerator:
    """Answers requests with one model.

    Args:
        server: Where the tokens come from.
        model: The name callers know the model by; a request for any other is refused.
    """

    def __init__(self, server: ModelServer, model: str) -> None:
        self.server = server
        self.model = model
        self._broken: LLMError | None = None
        self._info: ModelInfo | None = None

    async def load(self) -> None:
        """Load the model, if there is something to load; where that fails, nobody waits for it any longer.

        Raises:
            SettingsError: There is no such model.
            ModelServerError: The model cannot be loaded.
        """
        try:
            if isinstance(self.server, Loads):
                await self.server.load()
        except Exception:
            self._broken = ModelServerError(
                f"the model {self.model} could not be loaded; the service's log has the reason"
            )
            raise

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """The events of the answer; closing them stops the model."""
        if request.model and request.model != self.model:
            raise UnknownModel(request.model, self.model)
        if self._broken:
            raise self._broken
        return self.server.generate(build_prompt(request), request.sampling, request.options)

    async def describe(self) -> ModelInfo:
        """What answers, under the name that callers know it by, and what it honours; see `ModelServer.describe`."""
        if self._broken:
            raise self._broken
        self._info = replace(await self.server.describe(), name=self.model)
        return self._info

    async def info(self) -> ModelInfo:
        """What it said of itself when it was last described: no request waits for that and then for its answer."""
        return self._info if self._info and not self._broken else await self.describe()


class Models:
    """The models that are served, by the names that callers know them by.

    Args:
        generators: One for each model; the first answers where a request names none.
    """

    def __init__(self, generators: Sequence[TextGenerator]) -> None:
        self._by_name = {generator.model: generator for generator in generators}

    def __iter__(self) -> Iterator[TextGenerator]:
        return iter(self._by_name.values())

    def named(self, name: str | None) -> TextGenerator:
        """What answers for that model; for None or an empty name, the first.

        Raises:
            UnknownModel: There is none of that name.
        """
        if not name:
            return next(iter(self))
        if name not in self._by_name:
            raise UnknownModel(name, ", ".join(self._by_name))
        return self._by_name[name]


async def collect(events: AsyncGenerator[Event]) -> Generation:
    """Gather the first choice of an answer.

    Raises:
        ModelServerError: The events ended without a `Finished`; half an answer is never passed off as a whole one.
    """
    pieces: list[str] = []
    finished: Finished | None = None
    async with aclosing(events):
        async for event in events:
            if event.choice != 0:
                continue
            if isinstance(event, TextDelta):
                pieces.append(event.text)
            else:
                finished = event
    if finished is None:
        raise ModelServerError("the model server broke off in the middle of the answer")
    return Generation("".join(pieces), finished.reason, finished.usage)
