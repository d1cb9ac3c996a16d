"""A LangChain chat model for programs without the service: it loads its model by itself, and binds tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from comps.core.errors import InvalidRequest
from comps.core.ports import Answer, Loads
from comps.core.types import CALLS_ON_DEMAND, JSON, Generation
from comps.model_servers.langchain.chat_model import ChatModelServer


class StandaloneChatModel(ChatModelServer):
    """A LangChain chat model over a model server that no service has loaded."""

    async def write_answer(
        self, messages: list[BaseMessage], stop: Sequence[str] | None, given: Mapping[str, Any], answer: Answer
    ) -> None:
        await self._prepare(given)
        await super().write_answer(messages, stop, given, answer)

    async def whole_answer(
        self, messages: list[BaseMessage], stop: Sequence[str] | None, given: Mapping[str, Any]
    ) -> Generation:
        await self._prepare(given)
        return await super().whole_answer(messages, stop, given)

    async def _prepare(self, given: Mapping[str, Any]) -> None:
        """Load the model, and check that it can call the functions that a call has.

        Raises:
            InvalidRequest: It cannot.
        """
        if isinstance(self.server, Loads):
            await self.server.load()
        if not given.get("tools"):
            return
        capabilities = (await self.server.describe()).capabilities
        if "tools" not in capabilities:
            raise InvalidRequest(f"the model {self.model} cannot call functions", "tools")
        if CALLS_ON_DEMAND in capabilities and given.get("tool_choice", "auto") == "auto":
            said = f"the model {self.model} calls a function only if it must: 'any', or the name of a function"
            raise InvalidRequest(said, "tool_choice")

    def bind_tools(
        self,
        tools: Sequence[Mapping[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | Mapping[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Returns this chat model with functions that it may call.

        Whether it can is known when the model is loaded, so a call raises `InvalidRequest` if it cannot. The engines
        of this project make one call if they must (`any`, or a function's name). They leave the choice to the model
        (`auto`) only if its chat template has `<tool_call>`, as those of Qwen and Hermes.

        Args:
            tools: As for any chat model of LangChain's: functions, classes, `BaseTool`s or OpenAI's objects.
            tool_choice: `auto`, `none`, `any` (the same as `required` and True), a function's name, or OpenAI's object.
            kwargs: Further arguments of each call.
        """
        bound = [convert_to_openai_tool(tool) for tool in tools]
        choice = {"tool_choice": _choice(tool_choice)} if tool_choice else {}
        return self.bind(tools=bound, **choice, **kwargs)


def _choice(asked: str | Mapping[str, Any] | Literal[True]) -> JSON:
    """Returns a tool choice in OpenAI's form."""
    if asked is True or asked == "any":
        return "required"
    if isinstance(asked, str) and asked not in ("auto", "none", "required"):
        return {"type": "function", "function": {"name": asked}}
    return asked
