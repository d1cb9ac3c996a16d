"""A RAG pipeline with Haystack: its BM25 retriever, then an answer over the service's OpenAI route.

Start the service (`make run`), and install Haystack into an environment of its own (`pip install haystack-ai`). Then:

    python examples/haystack_rag.py
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

from haystack import Document, Pipeline, component
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.dataclasses import ChatMessage
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret

URL = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:9000"
TEXTS = ["The bike weighs 21 kg.", "The battery has a warranty of three years.", "The frame is made of aluminium."]


@component
class Request:
    """Hands the question and the documents to the service, which writes the prompt."""

    @component.output_types(messages=list[ChatMessage], generation_kwargs=dict[str, Any] | None)
    def run(self, question: str, documents: list[Document]) -> dict[str, object]:
        found = [{"text": document.content, "metadata": document.meta} for document in documents]
        return {
            "messages": [ChatMessage.from_user(question)],
            "generation_kwargs": {"temperature": 0, "extra_body": {"documents": found}},
        }


store = InMemoryDocumentStore()
store.write_documents([Document(content=text) for text in TEXTS])

pipeline = Pipeline()
pipeline.add_component("search", InMemoryBM25Retriever(store, top_k=2))
pipeline.add_component("request", Request())
pipeline.add_component(
    "answer",
    OpenAIChatGenerator(api_key=Secret.from_token("none"), api_base_url=f"{URL}/v1", model="SmolLM2-135M-Instruct"),
)
pipeline.connect("search.documents", "request.documents")
pipeline.connect("request.messages", "answer.messages")
pipeline.connect("request.generation_kwargs", "answer.generation_kwargs")

if __name__ == "__main__":
    question = "How long is the warranty of the battery?"
    result = pipeline.run({"search": {"query": question}, "request": {"question": question}})
    print(result["answer"]["replies"][0].text)
