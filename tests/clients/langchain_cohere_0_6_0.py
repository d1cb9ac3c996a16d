"""LangChain's client of Cohere, 0.6.0, against the service at the address given, in an environment of its own; prints
what it got."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_cohere import ChatCohere, CohereEmbeddings
from langchain_core.documents import Document
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage

ASKED = [HumanMessage("Where do penguins live?")]
DOCUMENTS = [
    Document("Paris is the capital of France."),
    Document("Emperor penguins live in Antarctica.", metadata={"id": "100"}),
]
model = ChatCohere(cohere_api_key="none", base_url=sys.argv[1], temperature=0.3)


def find(bird: str) -> str:
    """Find out where a bird lives."""
    return bird


def invoke() -> Any:
    answer = model.invoke(ASKED, stop=["END"])
    return [model.model, answer.content, answer.response_metadata["finish_reason"], answer.usage_metadata]


def stream() -> Any:
    return joined(model.stream(ASKED))


def uncounted() -> Any:
    """Where the model server counts no tokens."""
    asked = [HumanMessage("uncounted")]
    answer = model.invoke(asked)
    return [answer.content, answer.usage_metadata, joined(model.stream(asked))]


def joined(chunks: Any) -> Any:
    whole: AIMessageChunk | None = None
    texts = []
    for chunk in chunks:
        texts.append(chunk.text)
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return [[text for text in texts if text], whole.response_metadata["finish_reason"]]


def documents() -> Any:
    answer = model.invoke(ASKED, documents=DOCUMENTS)
    return [[one.text, [source.id for source in one.sources]] for one in answer.additional_kwargs["citations"]]


def tools() -> Any:
    able = model.bind_tools([find])
    first = able.invoke(ASKED)
    call = first.tool_calls[0]
    result = ToolMessage("Emperor penguins live in Antarctica.", tool_call_id=call["id"])
    second = able.invoke([*ASKED, first, result])
    return [call["name"], call["args"], second.content, len(second.additional_kwargs["citations"])]


def structured() -> Any:
    schema = {"title": "City", "type": "object", "properties": {"city": {"type": "string"}}}
    return model.with_structured_output(schema).invoke(ASKED)


def concurrently() -> Any:
    async def all_of_it() -> Any:
        answer = await model.ainvoke(ASKED)
        chunks = [chunk async for chunk in model.astream(ASKED)]
        return [answer.content, joined(chunks)]

    return asyncio.run(all_of_it())


def embeddings() -> Any:
    embedder = CohereEmbeddings(cohere_api_key="none", base_url=sys.argv[1], model=model.model)
    return [embedder.embed_documents(["a", "bcd"]), embedder.embed_query("a")]


def errors() -> Any:
    try:
        ChatCohere(cohere_api_key="none", base_url=sys.argv[1], model="command-a-03-2025").invoke(ASKED)
    except Exception as error:
        return [type(error).__name__, getattr(error, "status_code", None)]


print(
    json.dumps(
        {
            one.__name__: one()
            for one in (invoke, stream, uncounted, documents, tools, structured, concurrently, embeddings, errors)
        }
    )
)
