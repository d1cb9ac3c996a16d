"""langchain-openai's chat model over this project's own way to a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import BaseModel, ConfigDict, SkipValidation, ValidationError, model_validator

from comps.model_servers.langchain.chat_model import CONTINUE, AnswersChat, Asked, options_of, sampling_of
from comps.model_servers.langchain.messages import as_sent
from comps.model_servers.remote.openai_api import OpenAIAPI


class ChatOpenAIAPI(AnswersChat, BaseChatOpenAI):
    """A LangChain chat model for a server that speaks OpenAI's API.

    langchain-openai makes requests out of messages; between it and the server stands `server` and not OpenAI's SDK, so
    that the server is reached, waited for and understood as without LangChain.

    Every field of `Sampling` may be given to a call under that name, whether OpenAI knows it or not; what the server
    does not honour is left out.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    server: SkipValidation[OpenAIAPI]

    @classmethod
    def over(cls, server: OpenAIAPI, model: str = "", **fields: Any) -> ChatOpenAIAPI:
        """The chat model over `server`, under the name `model`, with further `fields`."""
        return cls(server=server, model=model or server.model_name, **fields)

    @model_validator(mode="before")
    @classmethod
    def _without_sdk(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {
            # None of these may come from the environment, or from what langchain-openai thinks of a model's name.
            "api_key": "",
            "http_socket_options": (),
            "use_responses_api": False,
            **values,
            # Whatever is there keeps it from making clients of OpenAI's SDK.
            "client": values["server"],
            "async_client": values["server"],
        }

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        result = await super()._agenerate(messages, stop, run_manager, **kwargs)
        if model := _model_of(kwargs):
            for generation in result.generations:
                _add_parsed(generation.message, str(generation.message.text), model)
        return result

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[ChatGenerationChunk]:
        model, texts = _model_of(kwargs), list[str]()
        async with aclosing(super()._astream(messages, stop, run_manager, **kwargs)) as chunks:
            async for chunk in chunks:
                if model:
                    texts.append(chunk.text)
                    if chunk.message.response_metadata.get("finish_reason"):
                        _add_parsed(chunk.message, "".join(texts), model)
                yield chunk

    def _asked(self, messages: list[BaseMessage], stop: Sequence[str] | None, given: Mapping[str, Any]) -> Asked:
        if model := _model_of(given):
            schema = {"name": model.__name__, "schema": convert_to_json_schema(model, strict=True), "strict": True}
            given = {**given, "response_format": {"type": "json_schema", "json_schema": schema}}
        payload = self._get_request_payload(messages, stop=None if stop is None else list(stop), **given)
        prompt = str(messages[0].content) if given.get(CONTINUE) else as_sent(messages, payload["messages"])
        return prompt, sampling_of(payload), options_of(payload)

    def _metadata(self, reason: str) -> dict[str, Any]:
        return {"finish_reason": reason, "model_name": self.model_name, "model_provider": "openai"}


def _model_of(given: Mapping[str, Any]) -> type[BaseModel] | None:
    """The class of pydantic's that is the response format of a call, as `with_structured_output` sets it."""
    form = given.get("response_format")
    return form if isinstance(form, type) and issubclass(form, BaseModel) else None


def _add_parsed(message: BaseMessage, text: str, model: type[BaseModel]) -> None:
    """Put the object that an answer describes where OpenAI's SDK puts it; an answer that was cut describes none."""
    with suppress(ValidationError):
        message.additional_kwargs["parsed"] = model.model_validate_json(text)
