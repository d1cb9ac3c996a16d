"""ChatHuggingFace over our way to TGI: the same is asked and the same comes back as without LangChain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from comps.core.answers import read
from comps.core.ports import Completes, ModelServer
from comps.core.types import Message, Prompt, Sampling
from comps.model_servers.langchain.chat_tgi import ChatTGI
from comps.model_servers.langchain.through import ThroughLangChain, through_langchain
from comps.model_servers.remote.tgi import TGI
from comps.model_servers.scripted import Scripted
from tests.model_servers.tgi_stand_in import StandIn, standing_in

QUESTION: Prompt = (Message("system", "Be brief."), Message("user", "Hi"))
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": {"properties": {}}}}]


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    async with standing_in() as stand_in:
        yield stand_in


@pytest.mark.parametrize("prompt", [QUESTION, "Once upon a time"])
@pytest.mark.parametrize("options", [{}, {"tools": TOOLS}, {"logprobs": True, "top_logprobs": 2}])
async def test_the_same_is_asked_and_answered_every_way(stand_in: StandIn, prompt: Prompt, options: Any) -> None:
    if isinstance(prompt, str) and options:
        pytest.skip("options are for conversations")
    server = TGI("tgi", stand_in.url)
    watched = ChatTGI.over(server, "tgi")
    watched.callbacks = [AsyncCallbackHandler()]
    ways: list[ModelServer] = [server, through_langchain(server, "tgi"), ThroughLangChain(watched, server)]
    seen = []
    for way in ways:
        await way.describe()
        stand_in.asked.clear()
        events = [event async for event in read(way.generate, prompt, Sampling(9, 0.5, seed=1), options)]
        assert isinstance(way, Completes)
        whole = await way.complete(prompt, Sampling(9, 0.5, seed=1, stop=("word3",)), options)
        seen.append((events, whole, [body for path, body in stand_in.asked if "tokenize" not in path]))
    assert seen[0] == seen[1] == seen[2]
    await server.aclose()


async def test_tools_can_be_bound_and_their_calls_are_langchains(stand_in: StandIn) -> None:
    server = TGI("tgi", stand_in.url)
    model = ChatTGI.over(server, "tgi").bind_tools(TOOLS)
    whole = await model.ainvoke("What is the weather?")
    first, *others = [piece async for piece in model.astream("What is the weather?")]
    for message in (whole, first + others):
        assert isinstance(message, AIMessage)
        assert [(call["name"], call["args"]) for call in message.tool_calls] == [("weather", {"city": "Paris"})]
    await server.aclose()


async def test_a_conversation_with_tools_keeps_what_huggingface_has_for_it() -> None:
    scripted = Scripted()
    called = AIMessage("", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "1"}])
    developer = SystemMessage("In English.", additional_kwargs={"__openai_role__": "developer"})
    asked = [developer, HumanMessage("?"), called, ToolMessage("42", tool_call_id="1")]
    await ChatTGI.over(scripted).ainvoke(asked, temperature=0.5, stop=["x"], top_k=3, user="me")
    prompt, sampling, options = scripted.asked[0]
    assert (sampling, options) == (Sampling(temperature=0.5, stop=("x",), top_k=3), {"user": "me"})
    assert not isinstance(prompt, str)
    first, second, third, fourth = prompt
    assert (first, second) == (Message("developer", "In English."), Message("user", "?"))
    assert third.extra["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert fourth == Message("tool", "42", {"tool_call_id": "1"})
