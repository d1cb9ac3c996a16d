"""No error is left to the garbage collector: its traceback refers to all that was read.

It is, if the traceback has a frame that refers to the error: a cycle. All garbage is collected once a minute.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Mapping

import pytest

from comps.core.answers import collect
from comps.core.beside import beside
from comps.core.errors import InvalidRequest, LLMError, ModelServerError, Unreachable
from comps.core.fallbacks import one_token
from comps.core.ports import Answer
from comps.core.tasks import at_once
from comps.core.types import JSON, GenerationRequest, Prompt, Sampling
from comps.model_servers.remote.chunks import raise_reported
from comps.model_servers.replicas import Replicas
from comps.model_servers.scripted import Scripted


class Fails(Scripted):
    """A model server that fails with a new error each time."""

    def __init__(self, error: type[LLMError]) -> None:
        super().__init__([])
        self._error = error

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        raise self._error("it broke")


def raises(error: type[LLMError] = ModelServerError) -> None:
    raise error("it broke")


async def fails() -> None:
    raises()


async def in_replicas(error: type[LLMError]) -> None:
    await collect(Replicas([Fails(error), Fails(error)]).generate, "?", Sampling(), {})


async def reports(said: dict[str, JSON], *, begun: bool) -> None:
    raise_reported(said, begun=begun)


async def refused_for_another_field() -> None:
    try:
        raises(InvalidRequest)
    except InvalidRequest as error:
        one_token(error, GenerationRequest("?", sampling=Sampling()))


@pytest.mark.parametrize(
    "fail",
    [
        lambda: beside(raises),
        lambda: at_once([asyncio.sleep(60), fails()]),
        lambda: reports({"error": {"message": "no", "code": 500}}, begun=False),
        lambda: reports({"error": {"message": "no", "code": 400}}, begun=True),
        refused_for_another_field,
        lambda: in_replicas(Unreachable),
        lambda: in_replicas(ModelServerError),
    ],
    ids=["beside the loop", "several tasks", "reported", "in a stream", "refused", "no replica", "replicas"],
)
async def test_an_error_is_freed_at_once(fail: Callable[[], Awaitable[object]]) -> None:
    freed, loop = asyncio.Event(), asyncio.get_running_loop()
    gc.disable()
    try:
        try:
            await fail()
        except LLMError as error:
            raised = weakref.ref(error, lambda _: loop.call_soon_threadsafe(freed.set))
        await asyncio.wait_for(freed.wait(), 5)
        assert raised() is None
    finally:
        gc.enable()
