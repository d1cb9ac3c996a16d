"""Ollama's library and langchain-ollama against the service at the address given; prints what they got."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import ollama
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from pydantic import BaseModel

URL = sys.argv[1]
client = ollama.Client(host=URL)
MODEL = client.list().models[0].model or ""
ASKED: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is Deep Learning?"}]


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: The city.
    """
    return f"It rains in {city}."


def ending(answer: Any) -> Any:
    spans = (answer.load_duration, answer.eval_duration)
    is_timed = answer.total_duration >= sum(spans) and all(span > 0 for span in spans)
    return [answer.model, answer.done_reason, answer.prompt_eval_count, answer.eval_count, is_timed]


def chat() -> Any:
    answer = client.chat(model=MODEL, messages=ASKED)
    pieces = list(client.chat(model=MODEL, messages=ASKED, stream=True, options={"num_predict": 2}))
    texts = [piece.message.content for piece in pieces]
    return [answer.message.role, answer.message.content, ending(answer), texts, ending(pieces[-1])]


def generate() -> Any:
    answer = client.generate(model=MODEL, prompt="Once", system="Be brief.")
    pieces = [piece.response for piece in client.generate(model=MODEL, prompt="Once", raw=True, stream=True)]
    loaded = client.generate(model=MODEL).done_reason, client.chat(model=MODEL, keep_alive=0).done_reason
    return [answer.response, ending(answer), pieces, loaded]


def asynchronous() -> Any:
    async def ask() -> Any:
        own = ollama.AsyncClient(host=URL)
        answer = await own.chat(model=MODEL, messages=ASKED)
        stream = await own.chat(model=MODEL, messages=ASKED, stream=True)
        pieces = [piece.message.content async for piece in stream]
        embedded = await own.embed(model=MODEL, input="a")
        return [answer.message.content, pieces, embedded.embeddings]

    return asyncio.run(ask())


def images() -> Any:
    seen: Any = [{"role": "user", "content": "image", "images": [b"\x89PNG\r\n\x1a\n"]}]
    return client.chat(model=MODEL, messages=seen).message.content


def tools() -> Any:
    turns: Any = [{"role": "user", "content": "call"}]
    answer = client.chat(model=MODEL, messages=turns, tools=[weather], think=True)
    streamed = list(client.chat(model=MODEL, messages=turns, tools=[weather], stream=True))
    calls = [call.function for piece in streamed for call in piece.message.tool_calls or ()]
    for call in answer.message.tool_calls or ():
        said = weather(**call.function.arguments)
        turns += [answer.message, {"role": "tool", "tool_name": call.function.name, "content": said}]
    last = client.chat(model=MODEL, messages=turns, tools=[weather])
    return [answer.message.thinking, [call.arguments for call in calls], answer.done_reason, last.message.content]


def schemas() -> Any:
    asked: Any = [{"role": "user", "content": "person"}]
    answer = client.chat(model=MODEL, messages=asked, format=Person.model_json_schema())
    return Person.model_validate_json(answer.message.content or "").model_dump()


def embeddings() -> Any:
    answer = client.embed(model=MODEL, input=["a", "bcd"])
    return [answer.embeddings, answer.prompt_eval_count, client.embeddings(model=MODEL, prompt="bcd").embedding]


def models() -> Any:
    shown, running = client.show(MODEL.partition(":")[0]), client.ps().models[0]
    return [MODEL, shown.capabilities, running.model, running.expires_at and running.expires_at.year > 2200]


def errors() -> Any:
    said = {}
    asking: Any = {
        "model": lambda: client.chat(model="other", messages=ASKED),
        "streamed": lambda: list(client.chat(model="other", messages=ASKED, stream=True)),
        "options": lambda: client.chat(model=MODEL, messages=ASKED, options={"temperature": -1}),
        "show": lambda: client.show("other"),
        "pull": lambda: client.pull("other"),
        "delete": lambda: client.delete("other"),
        "create": lambda: client.create("other", from_=MODEL),
    }
    for name, ask in asking.items():
        try:
            ask()
        except ollama.ResponseError as error:
            said[name] = [error.status_code, error.error]
    return said


def broken_stream() -> Any:
    pieces = []
    try:
        for piece in client.generate(model=MODEL, prompt="break", stream=True):
            pieces.append(piece.response)
    except ollama.ResponseError as error:
        return [pieces, error.error]
    return [pieces, None]


def documented() -> Any:
    """What the example of docs/moving.md prints."""
    page = (Path(__file__).parents[2] / "docs" / "moving.md").read_text("utf-8")
    (block,) = re.findall(r"```py\n(import ollama\n.*?)```", page, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(block.replace("http://localhost:9000", URL), {})
    return printed.getvalue()


def langchain() -> Any:
    model = ChatOllama(model=MODEL, base_url=URL, validate_model_on_init=True, temperature=0, num_predict=3)
    whole = model.invoke([SystemMessage("Be brief."), HumanMessage("What is Deep Learning?")])
    pieces = [piece.text for piece in model.stream("What is Deep Learning?")]
    called = model.bind_tools([weather]).invoke("call")
    turns = [HumanMessage("call"), called, ToolMessage("It rains.", tool_call_id=called.tool_calls[0]["id"])]
    after = model.bind_tools([weather]).invoke(turns)
    person: Any = model.with_structured_output(Person).invoke("person")
    thoughtful = ChatOllama(model=MODEL, base_url=URL, reasoning=True).invoke("call")
    completed = OllamaLLM(model=MODEL, base_url=URL)
    embedder = OllamaEmbeddings(model=MODEL, base_url=URL)
    reason = whole.response_metadata["done_reason"], whole.usage_metadata and whole.usage_metadata["output_tokens"]
    assert isinstance(after, AIMessage)
    return {
        "whole": [whole.text, *reason],
        "streamed": pieces,
        "tools": [[call["name"], call["args"]] for call in called.tool_calls],
        "after": after.text,
        "structured": person.model_dump(),
        "thoughts": thoughtful.additional_kwargs.get("reasoning_content"),
        "completed": [completed.invoke("Once"), list(completed.stream("Once"))],
        "embedded": [embedder.embed_documents(["a", "bcd"]), embedder.embed_query("bcd")],
    }


def langchain_errors() -> Any:
    said = []
    for model, question in (("other", "?"), (MODEL, "break")):
        try:
            ChatOllama(model=model, base_url=URL).invoke(question)
        except ollama.ResponseError as error:
            said.append([error.status_code, error.error])
    return said


print(
    json.dumps(
        {
            one.__name__: one()
            for one in (
                *(chat, generate, asynchronous, images, tools, schemas, embeddings, models, errors, broken_stream),
                *(documented, langchain, langchain_errors),
            )
        }
    )
)
