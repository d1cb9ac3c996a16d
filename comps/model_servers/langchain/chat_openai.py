"""langchain-openai's chat model over this project's own way to a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import ConfigDict, SkipValidation, model_validator

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
    def over(cls, server: OpenAIAPI, model: str = "") -> ChatOpenAIAPI:
        """The chat model over `server`, under the name `model`."""
        return cls(server=server, model=model or server.model_name)

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

    def _asked(self, messages: list[BaseMessage], stop: Sequence[str] | None, given: Mapping[str, Any]) -> Asked:
        payload = self._get_request_payload(messages, stop=None if stop is None else list(stop), **given)
        prompt = str(messages[0].content) if given.get(CONTINUE) else as_sent(messages, payload["messages"])
        return prompt, sampling_of(payload), options_of(payload)

    def _metadata(self, reason: str) -> dict[str, Any]:
        return {"finish_reason": reason, "model_name": self.model_name, "model_provider": "openai"}
