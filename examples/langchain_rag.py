"""A RAG chain with LangChain: search, then an answer from what was found.

The search uses the service's own embeddings, the answer its chat route. Start the service (`make run`), then:

    .venv/bin/python examples/langchain_rag.py
"""

from __future__ import annotations

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

URL = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:9000"
KEY, MODEL = SecretStr("none"), "SmolLM2-135M-Instruct"
TEXTS = ["The bike weighs 21 kg.", "The battery has a warranty of three years.", "The frame is made of aluminium."]

# The service takes text and no token ids, so the length check, which makes token ids, is off.
embeddings = OpenAIEmbeddings(base_url=f"{URL}/v1", api_key=KEY, model=MODEL, check_embedding_ctx_length=False)
chat = ChatOpenAI(base_url=f"{URL}/v1", api_key=KEY, model=MODEL, temperature=0)
retriever = InMemoryVectorStore.from_texts(TEXTS, embeddings).as_retriever(search_kwargs={"k": 2})


def ask(question: str) -> Runnable[str, str]:
    """The chat model with the documents that the search finds; the service writes the prompt."""
    documents = [{"text": found.page_content, "metadata": found.metadata} for found in retriever.invoke(question)]
    return chat.bind(extra_body={"documents": documents}) | StrOutputParser()


chain = RunnableLambda(ask)

if __name__ == "__main__":
    for piece in chain.stream("How long is the warranty of the battery?"):
        print(piece, end="", flush=True)
    print()
