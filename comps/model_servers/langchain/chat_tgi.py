"""LangChain's chat model for TGI, over this project's own way to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_huggingface import ChatHuggingFace
from pydantic import ConfigDict, SkipValidation

from comps.core.ports import ModelServer
from comps.model_servers.langchain.chat_model import CONTINUE, AnswersChat, Asked, options_of, sampling_of
from comps.model_servers.langchain.messages import as_sent


class ChatTGI(AnswersChat, ChatHuggingFace):  # type: ignore[misc]  # Its own methods name one argument more.
    """ChatHuggingFace, which makes requests out of messages, without its client: a server reached and read as without
    LangChain."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    server: SkipValidation[ModelServer]
    llm: None = None
    """What ChatHuggingFace would look for its client in."""

    @classmethod
    def over(cls, server: ModelServer, model: str = "", **fields: Any) -> ChatTGI:
        """LangChain's model over `server`, under the name `model`, with further `fields`."""
        return cls(server=server, model_id=model or "tgi", **fields)

    def validate_llm(self) -> ChatTGI:  # type: ignore[override]  # A validator of pydantic's.
        """LangChain's own imports langchain-community, which warns at once that it is no longer maintained."""
        return self

    def _resolve_model_id(self) -> None:
        """LangChain's own asks the Hugging Face Hub."""

    def _asked(self, messages: list[BaseMessage], stop: Sequence[str] | None, given: Mapping[str, Any]) -> Asked:
        sent, own = self._create_message_dicts(messages, None if stop is None else list(stop))
        prompt = str(messages[0].content) if given.get(CONTINUE) else as_sent(messages, sent)
        return prompt, sampling_of({**own, **given}), options_of({**own, **given})

    def _metadata(self, reason: str) -> dict[str, Any]:
        return {"finish_reason": reason, "model_name": self.model_id}
