"""Cohere's SDK 7.3.1 against the service at the address given, in an environment of its own; prints what it got.

Each answer and event is validated by its own type, and must have no field that the type does not declare.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cohere
from pydantic import BaseModel

SDK = {"api_key": "none", "base_url": sys.argv[1], "max_retries": 0}
sdk = cohere.ClientV2(**SDK)
MODEL = sdk.models.list(endpoint="chat", default_only=True).models[0].name
QUESTION: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where do penguins live?"}]
DOCUMENTS: Any = [
    "Paris is the capital of France.",
    {"id": "100", "data": {"title": "Penguins", "snippet": "Emperor penguins live in Antarctica."}},
]
PARAMETERS = {"type": "object", "properties": {"bird": {"type": "string"}}, "required": ["bird"]}
TOOLS: Any = [{"type": "function", "function": {"name": "find", "description": "Find.", "parameters": PARAMETERS}}]


def checked(said: Any) -> Any:
    """What came, if it is what its type says."""
    type(said).model_validate(json.loads(said.json()))
    assert not (further := [*undeclared(said)]), further
    return said


def undeclared(value: Any) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from (f"{type(value).__name__}.{name}" for name in value.model_extra or ())
        value = list(dict(value).values())
    if isinstance(value, list):
        for one in value:
            yield from undeclared(one)


def cited(citations: Any) -> Any:
    return [
        [one.start, one.end, one.text, one.type, [json.loads(source.json()) for source in one.sources]]
        for one in citations or ()
    ]


def told(answer: Any) -> Any:
    return [[block.type, getattr(block, block.type)] for block in answer.message.content or ()]


def counted(usage: Any) -> Any:
    return [usage.billed_units.input_tokens, usage.tokens.output_tokens]


def asked(**fields: Any) -> Any:
    return {"model": MODEL, "messages": QUESTION, **fields}


def streamed(**fields: Any) -> Any:
    return [checked(event) for event in sdk.v2.chat_stream(**asked(**fields))]


def kinds(events: Any) -> Any:
    """The types of the events, repetitions left out."""
    return [event.type for place, event in enumerate(events) if not place or events[place - 1].type != event.type]


def chat() -> Any:
    answer = checked(sdk.chat(**asked(max_tokens=50, temperature=0.3, k=5, p=0.75, seed=1, stop_sequences=["END"])))
    return [answer.message.role, told(answer), answer.finish_reason, counted(answer.usage)]


def chat_stream() -> Any:
    events = streamed()
    texts = [event.delta.message.content.text for event in events if event.type == "content-delta"]
    return [kinds(events), texts, events[-1].delta.finish_reason, counted(events[-1].delta.usage)]


def documents() -> Any:
    answer = checked(sdk.chat(**asked(documents=DOCUMENTS, citation_options={"mode": "ACCURATE"})))
    return cited(answer.message.citations)


def documents_stream() -> Any:
    events = streamed(documents=DOCUMENTS)
    started = [event.delta.message.citations for event in events if event.type == "citation-start"]
    return [kinds(events), cited(started)]


def tools() -> Any:
    first = checked(sdk.chat(**asked(tools=TOOLS, strict_tools=True)))
    call = first.message.tool_calls[0]
    document = {"type": "document", "document": {"data": {"text": "Emperor penguins live in Antarctica."}}}
    result = {"role": "tool", "tool_call_id": call.id, "content": [document]}
    second = checked(sdk.chat(**asked(messages=[*QUESTION, first.message, result], tools=TOOLS)))
    return [
        first.finish_reason,
        told(first),
        call.function.name,
        call.function.arguments,
        cited(second.message.citations),
    ]


def tools_stream() -> Any:
    events = streamed(tools=TOOLS)
    calls = [event.delta.message.tool_calls for event in events if event.type in ("tool-call-start", "tool-call-delta")]
    name, identity = calls[0].function.name, calls[0].id
    arguments = "".join(call.function.arguments for call in calls)
    return [kinds(events), name, identity, arguments, events[-1].delta.finish_reason]


def structured() -> Any:
    form: Any = {"type": "json_object", "json_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    return told(checked(sdk.chat(**asked(response_format=form))))


def logprobs() -> Any:
    answer = checked(sdk.chat(**asked(logprobs=True)))
    return [[item.text, item.logprobs] for item in answer.logprobs]


def embed() -> Any:
    both = checked(
        sdk.embed(model=MODEL, texts=["a", "bcd"], input_type="search_document", embedding_types=["float", "base64"])
    )
    inputs: Any = [{"content": [{"type": "text", "text": "a"}]}]
    one = checked(sdk.embed(model=MODEL, inputs=inputs, input_type="classification"))
    embeddings = both.embeddings
    return [
        embeddings.float_,
        embeddings.base64,
        both.texts,
        both.meta.billed_units.input_tokens,
        one.embeddings.float_,
    ]


def tokenize() -> Any:
    said = checked(cohere.Client(**SDK).tokenize(text="é b", model=MODEL, offline=False))
    return [said.tokens, said.token_strings, said.meta.api_version.version]


def documented() -> Any:
    """What the example in the documentation prints."""
    page = (Path(__file__).parent.parent.parent / "docs" / "moving.md").read_text("utf-8")
    (block,) = (
        one for one in re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if "import cohere" in one
    )
    printed: list[Any] = []
    names = {"print": lambda *values: printed.append(values)}
    ours = block.replace("http://localhost:9000", sys.argv[1]).replace("SmolLM2-135M-Instruct", MODEL)
    exec(compile(ours, "moving.md", "exec"), names)
    return printed


def models() -> Any:
    return [MODEL, checked(sdk.models.list()).models[0].endpoints, checked(sdk.models.get(MODEL)).name]


def errors() -> Any:
    said = {}
    wrong: dict[str, dict[str, Any]] = {
        "model": {"model": "command-a-03-2025"},
        "temperature": {"temperature": -1},
        "messages": {"messages": []},
        "tool_choice": {"tool_choice": "REQUIRED"},
    }
    for name, fields in wrong.items():
        for ask in (sdk.chat, lambda **fields: next(iter(sdk.chat_stream(**fields)))):
            try:
                ask(**asked(**fields))
            except cohere.core.api_error.ApiError as error:
                id_is_told = error.body["id"] == error.headers["x-request-id"]
                said[name] = [
                    type(error).__name__,
                    error.status_code,
                    error.body["message"].partition(":")[0],
                    id_is_told,
                ]
    return said


def broken_stream() -> Any:
    events = streamed(messages=[{"role": "user", "content": "break"}])
    return [kinds(events), events[-1].delta.finish_reason, events[-1].delta.error]


def from_several_tasks() -> Any:
    async def all_of_it() -> Any:
        client = cohere.AsyncClientV2(**SDK)
        answer = checked(await client.chat(**asked(documents=DOCUMENTS)))
        events = [checked(event) async for event in client.chat_stream(**asked(documents=DOCUMENTS))]
        vectors = await client.embed(model=MODEL, texts=["a"], input_type="search_query", embedding_types=["float"])
        return [told(answer), len(answer.message.citations), kinds(events), vectors.embeddings.float_]

    return asyncio.run(all_of_it())


print(
    json.dumps(
        {
            one.__name__: one()
            for one in (
                *(chat, chat_stream, documents, documents_stream, tools, tools_stream, structured, logprobs),
                *(embed, tokenize, documented, models, errors, broken_stream, from_several_tasks),
            )
        }
    )
)
