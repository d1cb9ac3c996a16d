"""A model server whose answers come by way of LangChain, so that its callbacks and traces see every request."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager
from langchain_core.globals import get_llm_cache
from langchain_core.runnables.config import ensure_config
from pydantic import BaseModel, ValidationError

from comps.core.errors import SettingsError
from comps.core.ports import ABILITIES, Answer, ModelServer
from comps.core.types import JSON, SAMPLING_FIELDS, Generation, ModelInfo, Prompt, Sampling
from comps.model_servers.langchain.chat_model import CONTINUE, AnswersChat
from comps.model_servers.langchain.chunks import MessageReader, generation_of
from comps.model_servers.langchain.langchain_model import LangChainModel
from comps.model_servers.langchain.messages import to_langchain
from comps.model_servers.remote.openai_api import OpenAIAPI
from comps.model_servers.remote.tgi import TGI

CHAT_MODELS: dict[type[Any], str] = {
    TGI: "comps.model_servers.langchain.chat_tgi:ChatTGI",
    OpenAIAPI: "comps.model_servers.langchain.chat_openai:ChatOpenAIAPI",
    object: "comps.model_servers.langchain.chat_model:ChatModelServer",
}
"""LangChain's own classes by the kind of model server, subclasses first. They are imported when they are needed, since
one brings OpenAI's SDK, which takes long."""


_GIVEN = {"server", "model", "model_id"}
"""The fields of these classes that are given by themselves."""


def through_langchain(server: ModelServer, model: str = "") -> ModelServer:
    """The same model server, reached through LangChain, which calls it `model`; it keeps all its abilities."""
    if isinstance(server, LangChainModel):  # It is LangChain's in any case.
        return server
    through = ThroughLangChain(chat_model_over(server, model), server)
    for ability in ABILITIES:
        if getattr(server, ability, None) and not hasattr(through, ability):
            setattr(through, ability, getattr(server, ability))
    return through


def chat_model_over(
    server: ModelServer, model: str, classes: Mapping[type[Any], str] = CHAT_MODELS, /, **fields: Any
) -> AnswersChat:
    """Returns the chat model over a model server.

    Args:
        server: The model server.
        model: The model's name.
        classes: See `CHAT_MODELS`.
        fields: Fields of the class, such as `temperature`, and of `Sampling`.

    Raises:
        SettingsError: There is no such field, or its value is wrong.
    """
    path = next(path for kind, path in classes.items() if isinstance(server, kind))
    module, _, name = path.partition(":")
    kind = getattr(import_module(module), name)
    try:
        chat_model: AnswersChat = kind.over(server, model, **_known_fields(kind, fields))
    except ValidationError as error:
        problems = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors(include_url=False)]
        raise SettingsError(*(f"{field}: {said}" if field else said for field, said in problems)) from None
    return chat_model


def _known_fields(kind: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields for a class; those of `Sampling` that it does not have are in its `model_kwargs`.

    Raises:
        SettingsError: There is no such field.
    """
    own = {name for field, info in kind.model_fields.items() for name in (field, info.alias) if name} - _GIVEN
    further = set(SAMPLING_FIELDS) - own if "model_kwargs" in own else set()
    known = [*own, *further, "model_name"]
    problems = []
    for name in given.keys() - own - further:
        near = get_close_matches(name, known, n=1, cutoff=0.65)
        problems.append(f"{name}: no such field" + (f"; did you mean {near[0]}?" if near else ""))
    if problems:
        raise SettingsError(*sorted(problems))
    moved = {name: value for name, value in given.items() if name in further}
    if not moved:
        return dict(given)
    left = {name: value for name, value in given.items() if name not in further}
    return {**left, "model_kwargs": {**(given.get("model_kwargs") or {}), **moved}}


class ThroughLangChain:
    """A model server whose tokens come by way of a LangChain chat model, so that LangChain's callbacks and traces see
    every request.

    Where nobody looks on, the chat model still makes the requests, but no objects of its own out of the answers.

    Args:
        chat_model: What is asked.
        server: What the chat model speaks to, where it is described and closed.
    """

    def __init__(self, chat_model: AnswersChat, server: ModelServer) -> None:
        self._chat_model = chat_model
        self._server = server
        self._is_observed()  # What LangChain imports for it is not imported during the first request.

    async def describe(self) -> ModelInfo:
        return await self._server.describe()

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON], answer: Answer) -> None:
        asked, given = to_langchain(prompt, ours=True), _call(prompt, sampling, options)
        if not self._is_observed():
            await self._chat_model.write_answer(asked, given.pop("stop"), given, answer)
            return
        reader = MessageReader(answer)
        messages: Any = self._chat_model.astream(asked, **given)
        async with aclosing(messages):
            async for message in messages:
                reader.read(message)
                if answer.full:
                    await answer.drain()
        reader.close()

    async def complete(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> Generation:
        """See `Completes`."""
        asked, given = to_langchain(prompt, ours=True), _call(prompt, sampling, options)
        if self._is_observed() or self._is_cached():
            return generation_of(await self._chat_model.ainvoke(asked, **given))
        return await self._chat_model.whole_answer(asked, given.pop("stop"), given)

    def _is_observed(self) -> bool:
        """Whether something would learn of a request, or hold it up, that goes LangChain's whole way."""
        model = self._chat_model
        if model.rate_limiter or model.disable_streaming:
            return True
        callbacks = ensure_config().get("callbacks")
        return bool(AsyncCallbackManager.configure(callbacks, model.callbacks, model.verbose).handlers)

    def _is_cached(self) -> bool:
        """Whether LangChain keeps whole answers."""
        cache = self._chat_model.cache
        return bool(cache) or (cache is None and get_llm_cache() is not None)

    async def aclose(self) -> None:
        await self._server.aclose()


def _call(prompt: Prompt, sampling: Sampling, options: Mapping[str, JSON]) -> dict[str, Any]:
    """The arguments of a call of a chat model besides the messages."""
    given = {name: value for name in SAMPLING_FIELDS if (value := getattr(sampling, name)) is not None}
    given["stop"] = list(sampling.stop) or None
    if isinstance(prompt, str):
        given[CONTINUE] = True
    if options:  # In a place of their own, so that none is taken for an argument of LangChain's.
        given["extra_body"] = dict(options)
    return given
