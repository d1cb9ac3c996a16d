"""LangChain's chat model by its kind of model server, as a program without the service makes it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import BaseModel, Field

from comps import InvalidRequest, ModelInfo, SettingsError, chat_model
from comps.core.types import CALLS_ON_DEMAND
from comps.model_servers.embedded.openvino import OpenVINO
from comps.model_servers.langchain.chat_openai import ChatOpenAIAPI
from comps.model_servers.langchain.chat_tgi import ChatTGI
from comps.model_servers.langchain.standalone import StandaloneChatModel
from comps.model_servers.scripted import Scripted


class City(BaseModel):
    """The weather in a city."""

    city: str = Field(max_length=10)


class Calling(Scripted):
    """Calls functions, and is loaded once."""

    def __init__(self, *capabilities: str) -> None:
        super().__init__([["It", " rains."]])
        self._info = ModelInfo("calling", capabilities=frozenset(capabilities))
        self.loads = 0

    async def load(self) -> None:
        self.loads += 1


def test_three_lines_make_a_chat_model_that_answers_whole_and_streamed() -> None:
    chat: Any = chat_model("scripted", temperature=0.5)
    assert chat.invoke("Hi").text == "This answer was written beforehand."
    assert "".join(piece.text for piece in chat.stream("Hi")) == "This answer was written beforehand."
    assert type(chat) is StandaloneChatModel
    assert (chat.model, chat.temperature) == ("scripted", 0.5)


@pytest.mark.parametrize(
    ("kind", "expected"), [("vllm", ChatOpenAIAPI), ("openai_api", ChatOpenAIAPI), ("tgi", ChatTGI)]
)
def test_a_server_with_a_class_of_langchains_own_gets_that_one(kind: str, expected: type) -> None:
    chat: Any = chat_model(kind, "m", "http://127.0.0.1:9", api_key="a-secret", temperature=0.5)
    assert type(chat).__name__ == expected.__name__
    assert chat.temperature == 0.5
    assert "a-secret" not in repr(chat)


@pytest.mark.parametrize("kind", ["vlm", "langchain"])
def test_an_unknown_kind_is_told_with_those_that_there_are(kind: str) -> None:
    with pytest.raises(SettingsError, match=f"model_server = {kind}: it is one of .*openvino.*vllm"):
        chat_model(kind)


@pytest.mark.parametrize("kind", ["scripted", "vllm", "tgi"])
def test_a_field_that_there_is_not_or_a_wrong_value_is_told_by_name(kind: str) -> None:
    for fields, said in (
        ({"temprature": 1}, "temprature: no such field; did you mean temperature?"),
        ({"model": "m"}, "model: no such field; did you mean model_name?"),
        ({"server": None, "zzz": 1}, "server: no such field"),
        ({"temperature": "hot"}, "temperature: Input should be a valid number, unable to parse string as a number"),
    ):
        with pytest.raises(SettingsError) as caught:
            chat_model(kind, "m", "http://127.0.0.1:9" if kind != "scripted" else "", **fields)
        assert str(caught.value).startswith(said)
        assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("kind", ["vllm", "tgi"])
def test_every_sampling_field_reaches_a_server_whose_class_does_not_have_it(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chat: Any = chat_model(kind, "m", "http://127.0.0.1:9", top_k=3, repetition_penalty=1.5, temperature=0.5)
    _, sampling, _ = chat._asked([HumanMessage("Hi")], None, {})
    assert (sampling.top_k, sampling.repetition_penalty, sampling.temperature) == (3, 1.5, 0.5)


def test_the_model_is_loaded_before_the_first_call_and_gets_the_functions_that_are_bound() -> None:
    server = Calling("tools")
    chat = StandaloneChatModel(server=server, model="calling")
    assert server.loads == 0
    for choice, sent in (
        (None, None),
        ("any", "required"),
        (True, "required"),
        ("auto", "auto"),
        ("City", {"type": "function", "function": {"name": "City"}}),
        ({"type": "function", "function": {"name": "City"}}, {"type": "function", "function": {"name": "City"}}),
    ):
        assert chat.bind_tools([City], tool_choice=choice).invoke("Rain?").text == "It rains."
        assert server.loads == len(server.asked)
        options = server.asked[-1][2]
        assert options["tools"][0]["function"]["name"] == "City"
        assert options.get("tool_choice") == sent


@pytest.mark.parametrize(
    ("capabilities", "choice", "field", "said"),
    [
        ((), "any", "tools", "calling cannot call functions"),
        (("tools", CALLS_ON_DEMAND), None, "tool_choice", "only if it must"),
        (("tools", CALLS_ON_DEMAND), "auto", "tool_choice", "only if it must"),
    ],
)
def test_functions_that_the_model_cannot_call_are_an_error_that_says_so(
    capabilities: tuple[str, ...], choice: str | None, field: str, said: str
) -> None:
    chat = StandaloneChatModel(server=Calling(*capabilities), model="calling")
    bound = chat.bind_tools([City], tool_choice=choice)
    with pytest.raises(InvalidRequest, match=said) as caught:
        bound.invoke("Rain?")
    assert caught.value.field == field
    with pytest.raises(InvalidRequest, match=said):
        list(bound.stream("Rain?"))


@pytest.mark.xdist_group("engine")
def test_a_model_in_the_process_calls_a_function_and_fills_in_an_object(engine: OpenVINO) -> None:
    chat = StandaloneChatModel(server=engine, model="SmolLM2-135M-Instruct", temperature=0.0, max_tokens=24)
    called = chat.bind_tools([City], tool_choice="any").invoke("How is the weather in Paris?")
    assert isinstance(called, AIMessage)
    assert [call["name"] for call in called.tool_calls] == ["City"]
    assert City(**called.tool_calls[0]["args"])
    assert isinstance(chat.with_structured_output(City).invoke("How is the weather in Paris?"), City)
