"""A model server whose answers come by way of LangChain, so that its callbacks and traces see every request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from langchain_core.language_models import BaseChatModel

from comps.core.errors import ModelServerError
from comps.core.ports import ABILITIES, ModelServer
from comps.core.types import JSON, Event, Finished, ModelInfo, Prompt, Sampling
from comps.model_servers.langchain.chat_model import CONTINUE, ChatModelServer, events_of, to_langchain
from comps.model_servers.langchain.chat_openai import ChatOpenAIAPI
from comps.model_servers.langchain.chat_tgi import ChatTGI
from comps.model_servers.langchain.langchain_model import LangChainModel
from comps.model_servers.remote.openai_api import OpenAIAPI
from comps.model_servers.remote.tgi import TGI

CHAT_MODELS: dict[type[Any], Callable[[Any, str], BaseChatModel]] = {TGI: ChatTGI.over, OpenAIAPI: ChatOpenAIAPI.over}
"""LangChain's own classes by the kind of model server, subclasses first; any other kind has `ChatModelServer`."""


def through_langchain(server: ModelServer, model: str = "") -> ModelServer:
    """The same model server, reached through LangChain, which calls it `model`; it keeps all its abilities."""
    if isinstance(server, LangChainModel):  # It is LangChain's in any case.
        return server
    over = next((over for kind, over in CHAT_MODELS.items() if isinstance(server, kind)), ChatModelServer.over)
    through = ThroughLangChain(over(server, model), server)
    for ability in ABILITIES:
        if getattr(server, ability, None) and not hasattr(through, ability):
            setattr(through, ability, getattr(server, ability))
    return through


class ThroughLangChain:
    """A model server whose tokens come by way of a LangChain chat model, so that LangChain's callbacks and traces see
    every request.

    Args:
        chat_model: What is asked.
        server: What the chat model speaks to, where it is described and closed.
    """

    def __init__(self, chat_model: BaseChatModel, server: ModelServer) -> None:
        self._chat_model = chat_model
        self._server = server

    async def describe(self) -> ModelInfo:
        return await self._server.describe()

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> AsyncGenerator[Event]:
        given: dict[str, Any] = {name: value for name, value in asdict(sampling).items() if value is not None}
        stop = list(given.pop("stop")) or None
        if isinstance(prompt, str):
            given[CONTINUE] = True
        if options:  # In a place of their own, so that none is taken for an argument of LangChain's.
            given["extra_body"] = dict(options)
        messages = self._chat_model.astream(to_langchain(prompt, ours=True), stop=stop, **given)
        ended = False
        async with aclosing(events_of(messages)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    if not event.reason:
                        break
                    ended = True
                yield event
        if not ended:
            raise ModelServerError("the model server broke off in the middle of the answer")

    async def aclose(self) -> None:
        await self._server.aclose()
