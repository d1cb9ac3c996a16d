"""Structured output and tools as people use them: unmodified clients against the service with its bundled model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, SecretStr

from comps.model_servers.embedded.openvino import OpenVINO
from tests.clients import is_installed, use
from tests.service import Service, running

pytestmark = pytest.mark.xdist_group("engine")


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=10)
    age: int


class City(BaseModel):
    """The weather in a city."""

    city: str = Field(max_length=10)


class Shared(OpenVINO):
    """The bundled model of the whole session, which no service closes."""

    def __init__(self, engine: OpenVINO) -> None:
        self.__dict__ = engine.__dict__

    async def aclose(self) -> None:
        pass


@asynccontextmanager
async def serving(engine: OpenVINO, monkeypatch: pytest.MonkeyPatch, framework: str) -> AsyncIterator[Service]:
    environment = {"LLM_NAME": "smollm2", "FRAMEWORK": framework}
    async with running(Shared(engine), monkeypatch, environment) as service:
        yield service


@pytest.mark.parametrize("framework", ["native", "langchain"])
async def test_openais_sdk_parses_an_answer_and_a_call_whole_and_streamed(
    engine: OpenVINO, monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    asked: Any = {"model": "smollm2", "messages": [{"role": "user", "content": "Jason is 25 years old."}]}
    tool = openai.pydantic_function_tool(City)
    choice: Any = {"type": "function", "function": {"name": "City"}}
    async with (
        serving(engine, monkeypatch, framework) as service,
        openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as sdk,
    ):
        parsed, called = await asyncio.gather(
            sdk.chat.completions.parse(**asked, response_format=Person, temperature=0),
            sdk.chat.completions.parse(**asked, tools=[tool], tool_choice=choice),
        )
        async with sdk.chat.completions.stream(**asked, tools=[tool], tool_choice="required") as stream:
            kinds = [event.type async for event in stream]
            streamed = await stream.get_final_completion()
        with pytest.raises(openai.LengthFinishReasonError):
            await sdk.chat.completions.parse(**asked, response_format=Person, max_tokens=2)
        raw = await sdk.chat.completions.with_raw_response.create(**asked, tools=[tool], max_tokens=1)
        with pytest.raises(openai.BadRequestError) as bad:
            await sdk.chat.completions.create(**asked, extra_body={"guided_regex": "(a"})
    assert isinstance(parsed.choices[0].message.parsed, Person)
    for completion in (called, streamed):
        assert completion.choices[0].finish_reason == "tool_calls"
        assert completion.choices[0].message.tool_calls
        (call,) = completion.choices[0].message.tool_calls
        assert (call.type, call.function.name) == ("function", "City")
        assert isinstance(call.function.parsed_arguments, City)
    assert kinds.count("tool_calls.function.arguments.delta") > 3
    assert raw.headers["x-ignored-params"] == "tools"
    assert bad.value.param == "guided_regex"


async def test_langchain_makes_objects_of_answers_in_all_three_ways_and_goes_on_behind_a_call(
    engine: OpenVINO, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods: tuple[Literal["json_schema", "json_mode", "function_calling"], ...]
    methods = ("json_schema", "json_mode", "function_calling")
    question = HumanMessage('Repeat this JSON: {"name": "Jason", "age": 25}')  # One method sends no schema.
    async with serving(engine, monkeypatch, "langchain") as service:
        model = ChatOpenAI(
            model="smollm2",
            base_url=f"{service.url}/v1",
            api_key=SecretStr("none"),
            temperature=0,
            max_completion_tokens=60,
        )
        made: list[Any] = await asyncio.gather(
            *(model.with_structured_output(Person, method=one, include_raw=True).ainvoke([question]) for one in methods)
        )
        call = await model.bind_tools([City], tool_choice="any").ainvoke([question])
        assert isinstance(call, AIMessage)
        result = ToolMessage("It rains in Paris.", tool_call_id=call.tool_calls[0]["id"])
        told = await model.ainvoke([question, call, result, HumanMessage("Does it rain in Paris?")])
    assert [one["parsed"] for one in made[:2]] == [Person(name="Jason", age=25)] * 2
    assert isinstance(made[2]["parsed"], Person)
    assert City(**call.tool_calls[0]["args"])
    asked = made[1]["raw"].usage_metadata["input_tokens"]
    assert told.usage_metadata
    assert told.usage_metadata["input_tokens"] > asked + 30  # The call and its result are in the prompt.


async def used(engine: OpenVINO, monkeypatch: pytest.MonkeyPatch, client: str, package: str) -> dict[str, Any]:
    """What a client in an environment of its own gets from the service."""
    if not is_installed(client, package):
        pytest.skip(f"{client} is not installed: `make test` does it, where it can be had")
    async with serving(engine, monkeypatch, "native") as service:
        return await asyncio.to_thread(use, client, service.url)


async def test_instructor_makes_objects_of_a_call_and_of_json(
    engine: OpenVINO, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await used(engine, monkeypatch, "instructor_1_17_0", "instructor")
    assert isinstance(Person(**made["TOOLS"]), Person)
    assert made["JSON_SCHEMA"] == {"name": "Jason", "age": 25}


async def test_vercels_ai_sdk_makes_objects_whole_and_streamed_and_calls_a_tool(
    engine: OpenVINO, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await used(engine, monkeypatch, "ai_sdk", "ai")
    jason = {"name": "Jason", "age": 25}
    assert made["object"] == [jason, "stop"]
    assert made["stream"] == [jason, True]
    (name, arguments), *others = made["call"]
    assert (name, others, made["reason"]) == ("add", [], "tool-calls")
    assert made["result"] == [f"{Person(**arguments).name} was added."]
