"""The way of a request through the core: request to prompt to events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from comps.core.errors import ModelServerError, UnknownModel
from comps.core.ports import ModelServer
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

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """The events of the answer; closing them stops the model."""
        if request.model and request.model != self.model:
            raise UnknownModel(request.model, self.model)
        return self.server.generate(build_prompt(request), request.sampling, request.options)

    async def describe(self) -> ModelInfo:
        """What answers, and what it honours; see `ModelServer.describe`."""
        return await self.server.describe()


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
