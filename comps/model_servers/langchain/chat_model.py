"""A `ModelServer` as a LangChain chat model: what all of them have in common, and the one for any kind."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, SkipValidation

from comps.core.answers import collect, read
from comps.core.beside import MANY, beside
from comps.core.ports import Answer, Completes, ModelServer
from comps.core.types import JSON, SAMPLING_FIELDS, Generation, Prompt, Sampling
from comps.model_servers.langchain.chunks import chunk_of, whole_of
from comps.model_servers.langchain.messages import message_of
from comps.model_servers.langchain.sync import one_by_one, wait_for

Asked: TypeAlias = tuple[Prompt, Sampling, dict[str, JSON]]
"""What a model server is asked; see `ModelServer.generate`."""

CONTINUE = "continue_text"
"""The call argument that says: the one message is text to continue, not a conversation to answer."""
_NO_OPTIONS = frozenset(
    (*SAMPLING_FIELDS, CONTINUE, "extra_body", "messages", "model", "stream", "stream_options", "stream_usage")
)
"""Arguments that are no options: they have a place of their own, or a request to the model server holds them anyway."""

if TYPE_CHECKING:
    _Base = BaseChatModel
else:  # The fields of `BaseChatModel` would hide those that a class of LangChain's declares anew.
    _Base = object


class AnswersChat(_Base):
    """A LangChain chat model whose answers come from a model server; goes before LangChain's class among the bases."""

    if TYPE_CHECKING:
        server: ModelServer

    @abstractmethod
    def _asked(self, messages: list[BaseMessage], stop: Sequence[str] | None, given: Mapping[str, Any]) -> Asked:
        """What the model server is asked for `messages`.

        Args:
            messages: As LangChain has them.
            stop: The stop strings of the call; None: the chat model's own.
            given: The further arguments of the call.
        """

    @abstractmethod
    def _metadata(self, reason: str) -> dict[str, Any]:
        """The `response_metadata` of an answer that ended for that reason."""

    async def write_answer(
        self, messages: list[BaseMessage], stop: Sequence[str] | None, given: Mapping[str, Any], answer: Answer
    ) -> None:
        """Write the answer to `messages`; see `_asked` and `ModelServer.generate`. No callback learns of it."""
        asked = self._asked
        found = await beside(asked, messages, stop, given) if len(messages) > MANY else asked(messages, stop, given)
        await self.server.generate(*found, answer)

    async def whole_answer(
        self, messages: list[BaseMessage], stop: Sequence[str] | None, given: Mapping[str, Any]
    ) -> Generation:
        """The same answer, whole."""
        asked = self._asked
        found = await beside(asked, messages, stop, given) if len(messages) > MANY else asked(messages, stop, given)
        if isinstance(self.server, Completes):
            return await self.server.complete(*found)
        return await collect(self.server.generate, *found)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[ChatGenerationChunk]:
        async with aclosing(read(self.write_answer, messages, stop, kwargs)) as events:
            async for event in events:
                chunk = chunk_of(event, self._metadata)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        generation = await self.whole_answer(messages, stop, kwargs)
        return ChatResult(generations=[whole_of(choice, self._metadata) for choice in generation.choices])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in one_by_one(self._astream(messages, stop, **kwargs)):
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return wait_for(self._agenerate(messages, stop, **kwargs))


def sampling_of(given: Mapping[str, Any]) -> Sampling:
    """The sampling fields among the arguments of a call."""
    values = {name: given[name] for name in SAMPLING_FIELDS if name in given}
    stop = values.get("stop") or ()
    return Sampling(**{**values, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})


def options_of(given: Mapping[str, Any]) -> dict[str, JSON]:
    """The options among them; what stands in `extra_body` is one, whatever its name."""
    named = {name: value for name, value in given.items() if name not in _NO_OPTIONS and value is not None}
    return named | (given.get("extra_body") or {})


class ChatModelServer(AnswersChat, BaseChatModel):
    """A LangChain chat model over one of this project's model servers.

    >>> from comps.model_servers.scripted import Scripted
    >>> ChatModelServer(server=Scripted([["Hello", "!"]])).invoke("Hi").content
    'Hello!'

    Every field of `Sampling` may be given here as the default of all calls, or to a single call.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    server: SkipValidation[ModelServer]
    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    max_total_tokens: int | None = None

    @classmethod
    def over(cls, server: ModelServer, model: str = "", **fields: Any) -> ChatModelServer:
        """The chat model over `server`, under the name `model`, with further `fields`."""
        return cls(server=server, model=model, **fields)

    @property
    def _llm_type(self) -> str:
        return "opea-llm"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"model": self.model, **{name: getattr(self, name) for name in SAMPLING_FIELDS}}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        sampling = self._sampling(stop, kwargs)
        params["ls_provider"] = "opea-llm"
        if model := kwargs.get("model", self.model):
            params["ls_model_name"] = model
        if sampling.temperature is not None:
            params["ls_temperature"] = sampling.temperature
        if sampling.max_tokens is not None:
            params["ls_max_tokens"] = sampling.max_tokens
        return params

    def _sampling(self, stop: Sequence[str] | None, given: Mapping[str, Any]) -> Sampling:
        own = {name: getattr(self, name) for name in SAMPLING_FIELDS}
        return sampling_of({**own, **given, "stop": self.stop if stop is None else stop})

    def _asked(self, messages: list[BaseMessage], stop: Sequence[str] | None, given: Mapping[str, Any]) -> Asked:
        prompt = str(messages[0].content) if given.get(CONTINUE) else tuple(map(message_of, messages))
        return prompt, self._sampling(stop, given), options_of(given)

    def _metadata(self, reason: str) -> dict[str, Any]:
        return {"finish_reason": reason, **({"model_name": self.model} if self.model else {})}
